"""Which examples stand in which batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from luban.columns.examples import Examples
from luban.training.random import rng

MOST = {"nano": 20, "small": 40, "base": 60}  # epochs over a small set, by the recipe's size
PLENTY = 4000  # rows from which on an epoch teaches enough for fewer of them
POOL = 50  # batches that are sorted by length together: enough to leave almost no padding, few enough to stay random


def order(examples: Examples, batch: int, seed: int, epoch: int, purpose: str = "order") -> list[np.ndarray]:
    """The batches of one epoch: every example once, shuffled; examples of like length stand together.

    A function of (seed, epoch) alone, so a resumed run finds its place.
    """
    random = rng(seed, purpose, epoch)
    index = random.permutation(len(examples))
    lengths = examples.lengths()
    if lengths is None:
        return _cut(index, batch)
    batches: list[np.ndarray] = []
    for start in range(0, len(index), batch * POOL):
        pool = index[start : start + batch * POOL]
        batches += _cut(pool[np.argsort(lengths[pool], kind="stable")], batch)
    return [batches[i] for i in random.permutation(len(batches))]


def _cut(index: np.ndarray, batch: int) -> list[np.ndarray]:
    return [index[i : i + batch] for i in range(0, len(index), batch)]


def batch_for(rows: int) -> int:
    """Sixteen updates an epoch or more, of 16 to 128 examples each, a power of two."""
    return min(128, max(16, 1 << max(0, (rows // 16).bit_length() - 1)))


def epochs_for(rows: int, size: str, network: Any = None) -> int:
    """What `epochs: auto` means: so many for a small set, fewer in proportion beyond 4,000 rows, never below a quarter.

    A part of the network that learns by heart sooner says so with a `plenty` of its own, instead of the 4,000.
    """
    parts = network.modules() if network is not None else ()
    plenty = min((m.plenty for m in parts if hasattr(m, "plenty")), default=PLENTY)
    most = MOST[size]
    least = max(3, most * plenty // (4 * PLENTY))
    return max(least, min(most, round(most * plenty / max(rows, 1))))


def patience_for(epochs: int) -> int:
    """What `patience: auto` means: a sixth of the epochs, at least 3."""
    return max(3, epochs // 6)


def batches_in(count: int, batch: int) -> int:
    return -(-count // batch)
