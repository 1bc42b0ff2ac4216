"""Which examples stand in which batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, count, islice
from typing import Any

import numpy as np

from luban.columns.base import Ragged
from luban.columns.examples import Examples
from luban.training.random import rng

MOST = {"nano": 20, "small": 40, "base": 60}  # epochs over a small set, by the recipe's size
PLENTY = 4000  # rows from which on an epoch teaches enough for fewer of them
POOL = 50  # batches that are sorted by length together: enough to leave almost no padding, few enough to stay random
SHORT = 16  # positions of texts that are not sorted where they stand beside larger inputs
MOST_OF = 2  # batches of short examples under a budget of tokens hold at most so many times `batch`


def order(
    examples: Examples, batch: int, seed: int, epoch: int, purpose: str = "order", tokens: int = 0
) -> list[np.ndarray]:
    """The batches of one epoch: every example once, shuffled; examples of like length stand together where padding costs something.

    `tokens` > 0 is the budget of a batch: examples x the longest of them stays within it, however long they are, so that
    every update costs about the same and none runs out of memory; only an example that is longer by itself exceeds it.
    `batch` is then the usual number of examples, half of the most; without a budget it is the number itself.
    A function of (seed, epoch) alone, so a resumed run finds its place.
    """
    random = rng(seed, purpose, epoch)
    index = random.permutation(len(examples))
    lengths = sorted_by(examples)
    if lengths is None:
        return _cut(index, batch)
    batches: list[np.ndarray] = []
    for start in range(0, len(index), batch * POOL):
        pool = index[start : start + batch * POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += _cut_by_tokens(pool, lengths[pool], batch * MOST_OF, tokens) if tokens else _cut(pool, batch)
    return [batches[i] for i in random.permutation(len(batches))]


def sorted_by(examples: Examples) -> np.ndarray | None:
    """The lengths that batches are sorted by; None where nothing has one, and for short texts beside a larger input of fixed size.

    There padding costs next to nothing, and questions of one length are often questions of one kind: a batch of nothing but "is there a
    flag" teaches to answer by the question alone.
    """
    lengths = examples.lengths()
    if lengths is None or not len(lengths) or int(lengths.max()) > SHORT:
        return lengths
    fixed = (x for x in examples.inputs.values() if not isinstance(x, Ragged))
    written = any(isinstance(x, Ragged) for x in examples.targets.values())
    larger = any(x[0].size > SHORT * int(lengths.max()) for x in fixed)
    return None if larger and not written else lengths


def _cut(index: np.ndarray, batch: int) -> list[np.ndarray]:
    return [index[i : i + batch] for i in range(0, len(index), batch)]


def _cut_by_tokens(index: np.ndarray, lengths: np.ndarray, most: int, tokens: int) -> list[np.ndarray]:
    """`lengths` of `index`, ascending: the last one taken is the longest of its batch."""
    batches, start = [], 0
    while start < len(index):
        padded = lengths[start : start + most] * np.arange(1, min(most, len(index) - start) + 1)
        stop = start + max(1, int(np.searchsorted(padded, tokens, side="right")))
        batches.append(index[start:stop])
        start = stop
    return batches


def updates(examples: Examples, batch: int, seed: int, tokens: int = 0) -> Iterator[int]:
    """How many batches each epoch has; under a budget that differs a little with the shuffle."""
    budgeted = tokens > 0 and sorted_by(examples) is not None
    for epoch in count():
        yield len(order(examples, batch, seed, epoch, tokens=tokens)) if budgeted else -(-len(examples) // batch)


def updates_in(examples: Examples, batch: int, seed: int, epochs: int, tokens: int = 0) -> int:
    return sum(islice(updates(examples, batch, seed, tokens), epochs))


def epochs_of(steps: int, examples: Examples, batch: int, seed: int, tokens: int = 0) -> int:
    """The epochs that `steps` updates need, the last one begun perhaps but not ended."""
    reached = accumulate(updates(examples, batch, seed, tokens))
    return next(i for i, total in enumerate(reached, 1) if total >= steps)


def tokens_for(examples: Examples, batch: int) -> int:
    """What `tokens: auto` means: as much as `batch` examples of average length; 0, no budget, where nothing has a length."""
    lengths = sorted_by(examples)
    if lengths is None or not len(lengths):
        return 0
    return max(int(lengths.max()), round(batch * float(lengths.mean())))


def padding(examples: Examples, batches: list[np.ndarray]) -> float:
    """Positions that are computed for each real one: 1 where nothing is padded."""
    lengths = examples.lengths()
    if lengths is None or not len(lengths):
        return 1.0
    return sum(len(b) * int(lengths[b].max()) for b in batches) / max(1, int(lengths.sum()))


def batch_for(rows: int) -> int:
    """Sixteen updates an epoch or more, of 16 to 128 examples each, a power of two."""
    return min(128, max(16, 1 << max(0, (rows // 16).bit_length() - 1)))


def epochs_for(rows: int, size: str, network: Any = None) -> int:
    """What `epochs: auto` means: so many for a small set, fewer in proportion beyond 4,000 rows, never below a quarter.

    A part of the network that learns by heart sooner says so with a `plenty` of its own, instead of the 4,000.
    """
    if updates := getattr(network, "updates", 0):  # that a network needs, however few its rows are
        return max(1, -(-updates * batch_for(rows) // max(rows, 1)))
    parts = network.modules() if network is not None else ()
    plenty = min((m.plenty for m in parts if hasattr(m, "plenty")), default=PLENTY)
    most = MOST[size]
    least = max(3, most * plenty // (4 * PLENTY))
    return max(least, min(most, round(most * plenty / max(rows, 1))))


def patience_for(epochs: int) -> int:
    """What `patience: auto` means: a sixth of the epochs, at least 3."""
    return max(3, epochs // 6)
