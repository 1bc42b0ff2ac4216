"""The batches of an epoch, from a place in it on: a function of (seed, epoch, place), so a resumed run finds its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from luban.columns.examples import Examples
from luban.nn.tokens import Batch
from luban.training import growing
from luban.training.batches import order, updates_in
from luban.training.loader import ahead
from luban.training.plan import Plan
from luban.training.random import rng
from luban.training.ranks import ALONE, Ranks

AT_ONCE = 1 << 20  # bytes of small examples that are gathered in one go


class Feed:
    """Cuts the training examples into global batches, and gives this rank its share of each on the device of the plan."""

    def __init__(self, examples: Examples, plan: Plan, ranks: Ranks = ALONE):
        self.examples, self.plan, self.ranks = examples, plan, ranks
        self.updates = updates_in(examples, plan.batch, plan.seed, plan.epochs, plan.tokens)  # in all epochs
        self.grids = growing.grids(examples)
        self.whole_from = growing.whole_from(
            plan.progressive, plan.epochs
        )  # the epoch that first sees images as they are

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches number `start`, `start` + 1 ... of an epoch."""
        plan = self.plan
        found = order(self.examples, plan.batch, plan.seed, epoch, tokens=plan.tokens)
        examples = self.examples.drawn(partial(rng, plan.seed, "windows", epoch))
        if not plan.loader_workers and self._small():
            yield from self._together(found[start:])
            return
        if plan.loader_workers:
            _ = examples.blocks, examples.flat_targets, examples.augmented  # once, not in each thread
        yield from ahead(partial(self._batch, examples, epoch, found), range(start, len(found)), plan.loader_workers)

    def _batch(self, examples: Examples, epoch: int, found: list[np.ndarray], place: int) -> Batch:
        """This rank's share of one global batch."""
        augmented = self.plan.augment and self.examples.augmented
        augment = rng(self.plan.seed, "augment", epoch, place, *self.ranks.own) if augmented else None
        index, counts = self.ranks.share(found[place])
        batch = Batch.of(examples.arrays(index, augment), self.plan.device)
        batch.counts = counts
        return growing.shrunk(batch, self.grids, growing.scale(self.plan.progressive, epoch, self.plan.epochs))

    # -- examples of a few numbers each ------------------------------------------------------------------------------
    def _small(self) -> bool:
        """Whether all of them are rows of numbers, which are as easily gathered for many batches as for one."""
        known, augmented = self.examples, self.plan.augment and self.examples.augmented
        return not (known.others or augmented or known.targets.keys() - known.flat_targets.keys())

    def _together(self, found: list[np.ndarray]) -> Iterator[Batch]:
        """The batches of these indices, cut from arrays of many: rows that lie anywhere are waited for, and side by side
        they take half as long.
        """
        parts = [x for _, x, _ in self.examples.blocks] + [x for x, _ in self.examples.flat_targets.values()]
        each = sum(x.nbytes // max(1, len(x)) for x in parts)
        many = max(1, AT_ONCE // max(1, each * self.plan.batch))
        for first in range(0, len(found), many):
            shares = [self.ranks.share(index) for index in found[first : first + many]]
            indices = [index for index, _ in shares]
            whole = Batch.of(self.examples.arrays(np.concatenate(indices)), self.plan.device)
            for batch, (_, counts) in zip(whole.split([len(i) for i in indices]), shares):
                batch.counts = counts
                yield batch
