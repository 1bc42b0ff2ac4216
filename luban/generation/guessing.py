"""Guesses of what a text goes on with, from what stands in it already ("prompt lookup", Saxena 2023).

A network reads several tokens in hardly more time than one, since it waits for its weights. So guesses are read along
with the token that was written, and each that it would have written itself, by the likeliest token or by the draw of that place, is written
without a reading of its own (speculative decoding, Leviathan et al. 2023). What is written is the same with and without.
"""

from __future__ import annotations

from collections.abc import Sequence

LENGTHS = (8, 6, 4, 3, 2, 1)  # of the endings that are looked for, the longest first
MOST = 8  # tokens that are guessed at once
LATELY = 64  # guesses after which older ones count half
FADING = 0.98  # of what is known, each time that a guess is left out
ROW = 1 / 12  # what a further token costs, in readings of the weights
TOGETHER = 64  # tokens of all texts that are read at once at most


class Rates:
    """How often guesses were right that were made from endings of each length, lately."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(LENGTHS, (1.0, 2.0))  # right, of how many

    def of(self, length: int) -> float:
        right, tried = self.counts[length]
        return right / tried

    def add(self, length: int, right: int, tried: int) -> None:
        """So many of the guesses that were read were right; behind a wrong one nothing is known."""
        before, all_ = self.counts[length]
        if all_ > LATELY:
            before, all_ = before / 2, all_ / 2
        self.counts[length] = before + right, all_ + min(right + 1, tried)

    def left(self, length: int) -> None:
        """A guess was not worth reading: after a while one is tried again."""
        right, tried = self.counts[length]
        self.counts[length] = right, max(right, FADING * tried)


class Guesses:
    """Those for one text. `read`: its ids, to which others add."""

    def __init__(self, read: list[int]):
        self.read = read
        self.seen = 0  # ids behind which an ending has been looked at
        self.behind: dict[tuple[int, ...], int] = {}  # an ending -> what stood last behind it

    def next(self, most: int) -> tuple[list[int], int]:
        """Ids that may follow, `most` or none, and the length of the ending behind which they stood before."""
        read, end = self.read, len(self.read)
        for at in range(self.seen, end):
            for n in LENGTHS:
                if at >= n:
                    self.behind[tuple(read[at - n : at])] = at
        self.seen = max(self.seen, end)
        for n in LENGTHS:
            first = self.behind.get(tuple(read[-n:])) if most > 0 else None
            if first is not None:
                found = read[first : first + most]
                while len(found) < most:  # it goes round
                    found.append(found[len(found) - (end - first)])
                return found, n
        return [], 0


def worth(guesses: Sequence[tuple[Sequence[int], float]], most: int = MOST) -> int:
    """How many guesses of each text, and the chance of each to be right, are read at once: for the most tokens in a time."""
    count, best, tokens = 0, 0.0, float(len(guesses))
    for n in range(min(most, TOGETHER // len(guesses) - 1) + 1):
        tokens += sum(rate**n for ids, rate in guesses if 0 < n <= len(ids))
        speed = tokens / (1 + ROW * len(guesses) * (1 + n))
        if speed > best:
            count, best = n, speed
    return count
