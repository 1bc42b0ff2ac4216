"""What a step works on: network, gradients, optimiser, and the one way an update is made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from luban.errors import Diverged
from luban.training import optimizers
from luban.training.plan import Plan
from luban.training.precision import autocast
from luban.training.random import later
from luban.training.ranks import ALONE, Ranks, totals
from luban.training.schedules import schedule
from luban.training.steps import Numbers


class State:
    """What a step works on. Gradients are views of one flat buffer, so that a norm, a finite check and a zero are one call."""

    def __init__(self, network: nn.Module, plan: Plan, total: int, ranks: Ranks = ALONE):
        self.plan, self.ranks, self.step, self.epoch = plan, ranks, 0, 0
        self.weights = ranks.spread(network)
        self.network, self.parameters = self.weights.network, self.weights.parameters
        self.flat = torch.zeros(sum(p.numel() for p in self.parameters), device=plan.device)
        start = 0
        for p in self.parameters:
            p.grad = self.flat[start : start + p.numel()].view_as(p)
            start += p.numel()
        self.optimizer = optimizers.Optimizer(
            self.network, name=plan.optimizer, momentum=plan.momentum, weight_decay=plan.weight_decay,
            local=self.weights.local,
        )  # fmt: skip
        self.factor = schedule(plan.schedule, plan.warmup, total)

    def rng(self) -> np.random.Generator:
        return later(self.plan.seed, "objective", self.step, *self.ranks.own)

    def whole(self, sums: Numbers, counts: bool = True) -> Numbers:
        """{output: (sum, weight)} of this rank's batch, without gradient -> those of the whole global batch."""
        return totals(self.ranks, sums, counts)

    def autocast(self) -> Any:
        """The context of a forward pass, by the plan's precision."""
        return autocast(self.plan.precision, self.plan.device)

    def update(self) -> None:
        """Clip, check, step and zero. Raises Diverged before the weights are touched when a gradient is not finite."""
        self.weights.reduce(self.flat)
        norm = float(self.weights.norm(self.flat))
        if not math.isfinite(norm):
            raise Diverged("train.diverged", step=self.step, epoch=self.epoch + 1)
        if self.plan.clip and norm > self.plan.clip:
            self.flat.mul_(self.plan.clip / (norm + 1e-6))
        self.optimizer.update(self.plan.rate * self.factor(self.step))
        self.flat.zero_()

    def release(self) -> None:
        """Let go of the gradients: the network belongs to others again."""
        self.weights.release()
