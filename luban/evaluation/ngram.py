"""n-gram models with interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998), and `xz`: what a language model must beat.

The text is a sequence of small numbers (bytes, or any symbols of `bits` bits), and an n-gram is one 64-bit number, its oldest symbol first. Counting is
then sorting, and looking up is binary search in sorted arrays, so millions of bytes take seconds and every count is exact.

P_n(w | h) = max(c(h w) - D(c), 0) / c(h) + g(h) P_{n-1}(w | h without its first symbol), down to the uniform distribution. c counts occurrences
at the highest order, and below it the different symbols that stand before (continuation counts); D takes one of three discounts; g(h)
is what the discounts took away, so that the probabilities of every context sum to 1.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

HIGHEST = 8  # bytes in 64 bits


@dataclass(frozen=True)
class _Level:
    """One order: what each known n-gram gets by itself, and what each known context gives to the order below."""

    grams: np.ndarray  # (G,) uint64, sorted
    own: np.ndarray  # (G,)
    contexts: np.ndarray  # (C,) uint64, sorted
    rest: np.ndarray  # (C,)

    def __call__(self, keys: np.ndarray, bits: int, below: np.ndarray) -> np.ndarray:
        """Probabilities (N,) of n-grams, from those of the order below; where the context is new, they stay as they are."""
        at, known = _find(self.contexts, keys >> np.uint64(bits))
        gram, seen = _find(self.grams, keys)
        return np.where(known, np.where(seen, self.own[gram], 0.0) + self.rest[at] * below, below)


def _find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (N,) of keys in a sorted table, and whether they are there."""
    at = np.searchsorted(table, keys).clip(max=len(table) - 1)
    return at, table[at] == keys


def _level(grams: np.ndarray, counts: np.ndarray, bits: int) -> _Level:
    discount = np.concatenate([[0.0], _discounts(counts)])[np.minimum(counts, 3)]
    contexts, first = np.unique(grams >> np.uint64(bits), return_index=True)
    total = np.add.reduceat(counts.astype(float), first)
    share = (counts - discount) / np.repeat(total, np.diff(np.r_[first, len(grams)]))
    return _Level(grams, share, contexts, np.add.reduceat(discount, first) / total)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """D1, D2, D3+ from how many n-grams were counted once to four times; half of each where too few were."""
    n1, n2, n3, n4 = (float((counts == k).sum()) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return np.array([0.5, 1.0, 1.5])
    y = n1 / (n1 + 2 * n2)
    return np.clip([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3], 0, [1, 2, 3])


class KneserNey:
    """A model of sequences of symbols below 2 ** bits; 0 also stands for what is before a sequence.

    `symbols`: how many different ones there may be, over which the lowest order is uniform. `order` times `bits` is at most 64.
    """

    def __init__(self, sequences: Sequence[np.ndarray], *, order: int, symbols: int = 256, bits: int = 8):
        if order * bits > 64 or order < 1:
            raise ValueError((order, bits))
        self.order, self.symbols, self.bits = order, symbols, bits
        self.counted = []  # (grams, counts) of each order, from 1
        keys = self.keys(sequences)
        for n in range(1, order + 1):
            self.counted.append(np.unique(self._last(keys, n), return_counts=True))

    def keys(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """For every symbol of the sequences, in a row, the n-gram of the highest order that ends with it: (N,) uint64."""
        before = self.order - 1
        padded = [
            np.zeros(before, np.uint64),
            *(x for s in sequences for x in (s.astype(np.uint64), np.zeros(before, np.uint64))),
        ]
        stream = np.concatenate(padded)
        lengths = np.array([len(s) for s in sequences], np.int64)
        starts = before + np.cumsum(np.r_[0, lengths + before])[:-1]
        places = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(np.r_[0, lengths])[:-1], lengths)
        keys = np.zeros(len(places), np.uint64)
        for back in range(self.order):
            keys |= stream[places - back] << np.uint64(self.bits * back)
        return keys

    def _last(self, keys: np.ndarray, n: int) -> np.ndarray:
        """The n-grams that end longer ones."""
        return keys & np.uint64((1 << (n * self.bits)) - 1)

    @cached_property
    def _occurrences(self) -> list[_Level]:
        return [_level(grams, counts, self.bits) for grams, counts in self.counted]

    @cached_property
    def _continuations(self) -> list[_Level]:
        """Orders below the highest: an n-gram counts once for every symbol that was seen before it."""
        longer = [grams for grams, _ in self.counted[1:]]
        found = [np.unique(self._last(grams, n), return_counts=True) for n, grams in enumerate(longer, 1)]
        return [_level(grams, counts, self.bits) for grams, counts in found]

    def probabilities(self, keys: np.ndarray, order: int | None = None) -> np.ndarray:
        """Of the last symbol of each n-gram (N,) given those before it, by the model of `order` (default: the highest)."""
        return self.by_order(keys, order or self.order)[-1]

    def by_order(self, keys: np.ndarray, highest: int | None = None) -> list[np.ndarray]:
        """`probabilities` of the models of order 1, 2, ... in one go: they differ in their uppermost level only."""
        unique, inverse = np.unique(keys, return_inverse=True)
        below, found = np.full(len(unique), 1 / self.symbols), []
        for n in range(1, (highest or self.order) + 1):
            ends = self._last(unique, n)
            found.append(self._occurrences[n - 1](ends, self.bits, below)[inverse])
            if n < self.order:
                below = self._continuations[n - 1](ends, self.bits, below)
        return found

    def nats(self, sequences: Sequence[np.ndarray], order: int | None = None) -> np.ndarray:
        """Negative log-likelihood of each sequence, (N,), each from its own beginning."""
        lengths = [len(s) for s in sequences]
        losses = -np.log(self.probabilities(self.keys(sequences), order))
        return np.array([part.sum() for part in np.split(losses, np.cumsum(lengths)[:-1])]) if lengths else np.zeros(0)


@dataclass(frozen=True)
class ByteModel:
    """A Kneser-Ney model of UTF-8 bytes and the order that validation chose; `bits` per byte of validation by order, from 1."""

    model: KneserNey
    order: int
    bits: list[float]

    def nats(self, texts: Sequence[str]) -> np.ndarray:
        """Negative log-likelihood of each text, (N,)."""
        return self.model.nats([as_bytes(t) for t in texts], self.order)


def byte_model(train: Sequence[str], validation: Sequence[str], highest: int = HIGHEST) -> ByteModel:
    """Fitted on `train`; of the orders up to `highest` the best one on `validation` (the highest where there is none)."""
    model = KneserNey([as_bytes(t) for t in train], order=highest)
    keys = model.keys([as_bytes(t) for t in validation])
    if not len(keys):
        return ByteModel(model, highest, [])
    bits = [float(-np.log2(p).mean()) for p in model.by_order(keys)]
    return ByteModel(model, int(np.argmin(bits)) + 1, bits)


def as_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def xz_sizes(train: Sequence[str], test: Sequence[str], *, each: bool = True) -> np.ndarray:
    """Bytes that each text of `test` adds to `xz -9` of all texts before it, (N,); with `each` false the sum alone, (1,).

    The window holds everything that came before (64 MiB at least), so nothing of the training text is forgotten.
    """
    before = "\n".join(train).encode("utf-8", "surrogatepass")
    whole = [text.encode("utf-8", "surrogatepass") for text in test]
    window = max(1 << 26, 1 << (len(before) + sum(map(len, whole))).bit_length())
    kind = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}]

    def size(content: bytes) -> int:
        return len(lzma.compress(content, lzma.FORMAT_RAW, filters=kind))

    steps = [before]
    for text in whole if each else [b"\n".join(whole)]:
        steps.append(steps[-1] + b"\n" + text)
    return np.diff([size(step) for step in steps])
