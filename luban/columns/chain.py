"""Potentials of a chain of tags -> its best legal path and how probable each part of it is. numpy, so that every engine shares it.

A row that a tags head gives is (K + 2 + T, K): K rows of what tag j after tag i is worth, one row each of what a tag is worth at
the beginning and at the end, then T rows of what each tag is worth at each position. With a CRF the first K + 2 were learned, without
one they are zero where the order is legal. The probability of a path is exp(its sum) over that of all legal paths (Lafferty et al.
2001). Letters: N rows of up to L units, K tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

EXTRA = 2  # rows for beginning and end

Legal = tuple[np.ndarray, np.ndarray, np.ndarray]  # (K, K), (K,), (K,)


class Belief(NamedTuple):
    """One row: unit potentials (L, K), forward and backward sums (L, K), the order's worth, the logarithm of all paths' sum."""

    units: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    after: np.ndarray
    first: np.ndarray
    last: np.ndarray
    total: float

    def of_path(self, path: np.ndarray) -> float:
        """The probability of all of it."""
        if not len(path):
            return 1.0
        worth = self.first[path[0]] + self.last[path[-1]] + self.units[np.arange(len(path)), path].sum()
        return _probability(worth + self.after[path[:-1], path[1:]].sum() - self.total)

    def of_stretch(self, start: int, tags: np.ndarray, not_next: np.ndarray) -> float:
        """The probability of these tags from `start` on, none of `not_next` (bool (K,)) following them."""
        stop = start + len(tags)
        worth = self.forward[start, tags[0]] + self.after[tags[:-1], tags[1:]].sum()
        worth += self.units[np.arange(start + 1, stop), tags[1:]].sum()
        if stop == len(self.units):
            worth += self.last[tags[-1]]
        else:
            following = self.after[tags[-1]] + self.units[stop] + self.backward[stop]
            worth += _log_sum(np.where(not_next, -np.inf, following), 0)
        return _probability(worth - self.total)


class Beliefs(NamedTuple):
    chains: Potentials
    forward: np.ndarray  # (N, L, K)
    backward: np.ndarray  # (N, L, K)
    total: np.ndarray  # (N,)

    def row(self, i: int) -> Belief:
        c, n = self.chains, int(self.chains.lengths[i])
        return Belief(c.units[i, :n], self.forward[i, :n], self.backward[i, :n], c.after[i], c.first[i], c.last[i], float(self.total[i]))  # fmt: skip


@dataclass(frozen=True)
class Potentials:
    units: np.ndarray  # (N, L, K)
    lengths: np.ndarray  # (N,)
    after: np.ndarray  # (N, K, K), -inf where illegal
    first: np.ndarray  # (N, K)
    last: np.ndarray  # (N, K)

    @classmethod
    def of(cls, heads: Sequence[np.ndarray], units: Sequence[np.ndarray], legal: Legal) -> Self:
        """Rows whose first K + 2 lines are `heads`, and those of their units, each (length, K)."""
        count = len(legal[1])
        lengths = np.array([len(u) for u in units], np.int64)
        padded = np.zeros((len(units), int(lengths.max(initial=0)), count))
        for row, u in zip(padded, units):
            row[: len(u)] = u
        head = np.stack(heads)
        after, first, last = head[:, :count], head[:, count], head[:, count + 1]
        allowed = lambda worth, may: np.where(may, worth, -np.inf)  # noqa: E731
        return cls(padded, lengths, allowed(after, legal[0]), allowed(first, legal[1]), allowed(last, legal[2]))

    def best(self) -> list[np.ndarray]:
        """The path of the largest sum of each row (Viterbi 1967): (length,) tag numbers."""
        count, longest = self.units.shape[:2]
        if not longest:
            return [np.zeros(0, np.int64) for _ in range(count)]
        worth = self.first + self.units[:, 0]
        before = np.zeros((longest, *worth.shape), np.int64)
        same = np.arange(worth.shape[1])
        for t in range(1, longest):
            there = (t < self.lengths)[:, None]
            each = worth[:, :, None] + self.after  # (N, from, to)
            before[t] = np.where(there, each.argmax(1), same)
            worth = np.where(there, each.max(1) + self.units[:, t], worth)
        paths = np.zeros((count, longest), np.int64)
        paths[:, -1] = (worth + self.last).argmax(1)
        for t in range(longest - 1, 0, -1):
            paths[:, t - 1] = before[t][np.arange(count), paths[:, t]]
        return [p[:n] for p, n in zip(paths, self.lengths)]

    def beliefs(self) -> Beliefs:
        """Sums over all paths to and from each tag of each unit, and over all paths."""
        count, longest, tags = self.units.shape
        forward, backward = np.zeros((count, longest, tags)), np.zeros((count, longest, tags))
        if not longest:
            return Beliefs(self, forward, backward, np.zeros(count))
        forward[:, 0] = self.first + self.units[:, 0]
        for t in range(1, longest):
            forward[:, t] = _log_sum(forward[:, t - 1, :, None] + self.after, 1) + self.units[:, t]
        backward[:, -1] = self.last
        for t in range(longest - 2, -1, -1):
            onward = _log_sum(self.after + (self.units[:, t + 1] + backward[:, t + 1])[:, None], 2)
            backward[:, t] = np.where((t + 1 < self.lengths)[:, None], onward, self.last)
        total = _log_sum(forward[:, 0] + backward[:, 0], 1)
        return Beliefs(self, forward, backward, np.where(self.lengths > 0, total, 0.0))


def _log_sum(x: np.ndarray, axis: int) -> np.ndarray:
    most = x.max(axis=axis, keepdims=True)
    most = np.where(np.isfinite(most), most, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - most).sum(axis=axis)) + most.squeeze(axis)


def _probability(log: float) -> float:
    return float(np.exp(min(log, 0.0)))
