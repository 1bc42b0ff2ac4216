"""Which examples stand in which batch."""

from __future__ import annotations

import numpy as np

from luban.columns.examples import Examples
from luban.training.random import rng

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


def batches_in(count: int, batch: int) -> int:
    return -(-count // batch)
