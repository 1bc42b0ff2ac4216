"""What is minimised: `objective(network, batch, rng) -> {output: (sum (B,), weight (B,))}`.

An objective may own modules and state (a teacher, a reference model); `fit` checkpoints what `modules` returns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luban.nn.tokens import Batch

Losses = dict[str, tuple[Tensor, Tensor]]


def supervised(network: Any, batch: Batch, rng: np.random.Generator) -> Losses:
    """The network's own loss against the truth."""
    return network.loss(network(batch), batch)


class Distillation:
    """(1 - share) x the truth + share x the teacher's answers (Hinton et al. 2015). The teacher is frozen."""

    def __init__(self, teacher: nn.Module, *, share: float = 0.7, temperature: float = 2.0):
        self.teacher = teacher.eval().requires_grad_(False)
        self.share, self.temperature = share, temperature

    def __call__(self, network: Any, batch: Batch, rng: np.random.Generator) -> Losses:
        o = network(batch)
        with torch.no_grad():
            soft = self.teacher(batch)
        truth = network.loss(o, batch)
        result: Losses = {}
        for name, each in network.divergence(o, soft, self.temperature).items():
            hard, weight = truth.get(name, (torch.zeros_like(each), torch.ones_like(each)))
            result[name] = ((1 - self.share) * hard + self.share * each * weight, weight)
        return result
