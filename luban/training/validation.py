"""The loss over rows that are not trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from luban.columns.examples import Examples
from luban.nn.tokens import Batch
from luban.training.plan import Plan
from luban.training.ranks import ALONE, Ranks
from luban.training.signals import Stopped
from luban.training.sums import Sums


@torch.no_grad()
def evaluate(
    network: Any, examples: Examples, plan: Plan, ranks: Ranks = ALONE, heard: Callable[[], int] = lambda: 0
) -> dict[str, float]:
    """The mean loss over all outputs, and each output's glance (accuracy, mean absolute error) in evaluation mode.

    Each rank computes its share of every batch; the sums are those of all. Raises Stopped when a signal is `heard`.
    """
    was = network.training
    network.eval()
    try:
        sums = _of_all(_sums(network, examples, plan, ranks, heard), ranks)
    finally:
        network.train(was)
    mean = {key: total / max(weight, 1e-12) for key, (total, weight) in sums.items()}
    return {"loss": sum(v for (kind, _), v in mean.items() if kind == "loss")} | {
        k: v for (kind, k), v in mean.items() if kind == "glance"
    }


def _sums(
    network: Any, examples: Examples, plan: Plan, ranks: Ranks, heard: Callable[[], int]
) -> dict[Any, list[float]]:
    """{(kind, name): [sum, weight]} of this rank's share. An accelerator is asked for them at the end."""
    sums = Sums()
    for index in np.array_split(np.arange(len(examples)), max(1, len(examples) // max(plan.batch, 256))):
        asked = ranks.ask(heard)
        index, counts = ranks.share(index)
        batch = Batch.of(examples.arrays(index), plan.device)
        o = network(batch)
        numbers = {("loss", n): pair for n, pair in network.loss(o, batch).items()}
        numbers |= {("glance", k): pair for k, pair in getattr(network, "glance", lambda *_: {})(o, batch).items()}
        sums.add({key: (each.sum() * counts, weight.sum() * counts) for key, (each, weight) in numbers.items()})
        number = asked()
        if number:
            raise Stopped(number)
    return sums.read()


def _of_all(sums: dict[Any, list[float]], ranks: Ranks) -> dict[Any, list[float]]:
    if ranks.world == 1:
        return sums
    whole = ranks.total([v for pair in sums.values() for v in pair])
    return {key: whole[2 * i : 2 * i + 2] for i, key in enumerate(sums)}
