"""The batches of an epoch, from a place in it on: a function of (seed, epoch, place), so a resumed run finds its own."""

from __future__ import annotations

from collections.abc import Iterator

from luban.columns.examples import Examples
from luban.nn.tokens import Batch
from luban.training.batches import order, updates_in
from luban.training.plan import Plan
from luban.training.random import rng
from luban.training.ranks import ALONE, Ranks


class Feed:
    """Cuts the training examples into global batches, and gives this rank its share of each on the device of the plan."""

    def __init__(self, examples: Examples, plan: Plan, ranks: Ranks = ALONE):
        self.examples, self.plan, self.ranks = examples, plan, ranks
        self.updates = updates_in(examples, plan.batch, plan.seed, plan.epochs, plan.tokens)  # in all epochs

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches number `start`, `start` + 1 ... of an epoch."""
        plan, augmented = self.plan, self.plan.augment and self.examples.augmented
        found = order(self.examples, plan.batch, plan.seed, epoch, tokens=plan.tokens)
        for place, index in enumerate(found[start:], start):
            augment = rng(plan.seed, "augment", epoch, place, *self.ranks.own) if augmented else None
            index, counts = self.ranks.share(index)
            batch = Batch.of(self.examples.arrays(index, augment), plan.device)
            batch.counts = counts
            yield batch
