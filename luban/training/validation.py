"""The loss over rows that are not trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from luban.columns.examples import Examples
from luban.nn.tokens import Batch
from luban.training.plan import Plan


@torch.no_grad()
def evaluate(network: Any, examples: Examples, plan: Plan) -> dict[str, float]:
    """The mean loss over all outputs, and each output's glance (accuracy, mean absolute error) in evaluation mode."""
    was = network.training
    network.eval()
    sums: dict[str, list[float]] = {}
    for index in np.array_split(np.arange(len(examples)), max(1, len(examples) // max(plan.batch, 256))):
        batch = Batch.of(examples.arrays(index), plan.device)
        o = network(batch)
        numbers = {("loss", n): pair for n, pair in network.loss(o, batch).items()}
        numbers |= {("glance", k): pair for k, pair in getattr(network, "glance", lambda *_: {})(o, batch).items()}
        for key, (each, weight) in numbers.items():
            pair = sums.setdefault(key, [0.0, 0.0])
            pair[0] += float(each.sum())
            pair[1] += float(weight.sum())
    network.train(was)
    mean = {key: total / max(weight, 1e-12) for key, (total, weight) in sums.items()}
    return {"loss": sum(v for (kind, _), v in mean.items() if kind == "loss")} | {
        k: v for (kind, k), v in mean.items() if kind == "glance"
    }
