"""Guesses of what a text goes on with, from what stands in it already ("prompt lookup", Saxena 2023).

A network reads several tokens in hardly more time than one, since it waits for its weights. So guesses are read along
with the token that was written, and each that it would have written itself, by the likeliest token or by the draw of that place, is written
without a reading of its own (speculative decoding, Leviathan et al. 2023). What is written is the same with and without.
"""

from __future__ import annotations

from collections.abc import Sequence

# Of the endings that are looked for, the longest first; one of five counts as one of four.
LENGTHS = (8, 6, 4, 3, 2, 1)
PLACES = 16  # where the last two ids stood that are looked at, the latest first
MOST = 8  # tokens that are guessed at once
LATELY = 64  # guesses after which older ones count half
FADING = 0.98  # of what is known, with each reading that they are left out of
ROW = 1 / 12  # what a further token costs, in readings of the weights
RARELY = 0.25  # right ones that are left whatever many are wrong: what has failed for days is tried again, too
TOGETHER = 64  # tokens of all texts that are read at once at most


class Rates:
    """How often guesses were right that were made from endings of each length, lately."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(LENGTHS, (1.0, 2.0)) | {2: (1.0, 3.0), 1: (1.0, 8.0)}  # right, of how many

    def of(self, length: int) -> float:
        right, tried = self.counts[length]
        return right / tried

    def add(self, length: int, right: int, tried: int) -> None:
        """So many of the guesses that were read were right; behind a wrong one nothing is known."""
        before, all_ = self.counts[length]
        if all_ > LATELY:
            before, all_ = max(before / 2, RARELY), all_ / 2
        self.counts[length] = before + right, all_ + min(right + 1, tried)

    def left(self, length: int) -> None:
        """Guesses of this length were not worth a reading: after a while one is tried again."""
        right, tried = self.counts[length]
        self.counts[length] = right, max(right, FADING * tried)


class Guesses:
    """Those for one text. `read`: its ids, to which others add."""

    def __init__(self, read: list[int]):
        self.read = read
        self.one: dict[int, int] = {}  # an id -> the last place behind it
        self.two: dict[tuple[int, ...], int] = {}  # two of them -> the last place behind both
        self.before: list[int] = []  # for each place the one before it that stands behind the same two, 0 = none

    def next(self, most: int) -> tuple[list[int], int]:
        """Ids that may follow, `most` or none, and the length (one of LENGTHS) of the ending behind which they stood before."""
        read, end = self.read, len(self.read)
        for at in range(len(self.before), end):
            pair = tuple(read[max(at - 2, 0) : at])
            self.before.append(self.two.get(pair, 0))
            self.one[read[at - 1]] = self.two[pair] = at
        first, same = self._longest() if most > 0 else (0, 0)
        if not first:
            return [], 0
        found = read[first : first + most]
        while len(found) < most:  # it goes round
            found.append(found[len(found) - (end - first)])
        return found, next(n for n in LENGTHS if n <= same)

    def _longest(self) -> tuple[int, int]:
        """The place behind the longest ending that stood in it before, of equally long ones the last, and its length; 0 where none did."""
        read, end = self.read, len(self.read)
        first = self.one.get(read[-1], 0)
        same, at = min(first, 1), self.two.get(tuple(read[-2:]), 0)
        for _ in range(PLACES):
            if not at or same == LENGTHS[0]:
                break
            n, furthest = 2, min(at, LENGTHS[0])
            while n < furthest and read[at - 1 - n] == read[end - 1 - n]:
                n += 1
            if n > same:
                first, same = at, n
            at = self.before[at]
        return first, same


def worth(guesses: Sequence[tuple[Sequence[int], float]], most: int = MOST) -> int:
    """How many guesses of each text, and the chance of each to be right, are read at once: for the most tokens in a time."""
    count, best, tokens = 0, 0.0, float(len(guesses))
    for n in range(min(most, TOGETHER // len(guesses) - 1) + 1):
        tokens += sum(rate**n for ids, rate in guesses if 0 < n <= len(ids))
        speed = tokens / (1 + ROW * len(guesses) * (1 + n))
        if speed > best:
            count, best = n, speed
    return count
