"""What a step works on: network, gradients, optimiser, and the one way an update is made."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luban.errors import Diverged
from luban.training import optimizers
from luban.training.average import Average
from luban.training.norms import Norms
from luban.training.plan import Plan
from luban.training.precision import Scaler, autocast
from luban.training.random import later
from luban.training.ranks import ALONE, Ranks, totals
from luban.training.schedules import Schedule
from luban.training.shares import freeze, shares, still, thaw
from luban.training.steps import Numbers

LIMIT = 1e15  # no gradient norm, loss or weight is ever as large and still of use


class State:
    """What a step works on. Gradients are views of one flat buffer, so that a norm, a finite check and a zero are one call."""

    def __init__(self, network: nn.Module, plan: Plan, total: int, ranks: Ranks = ALONE):
        self.plan, self.ranks, self.step, self.epoch = plan, ranks, 0, 0
        self.frozen = freeze(network, plan.freeze)
        self.weights = ranks.spread(network)
        self.network, self.parameters = self.weights.network, self.weights.parameters
        self.norms = Norms(self.network, ranks)
        self.flat = torch.zeros(sum(p.numel() for p in self.parameters), device=plan.device)
        start = 0
        for p in self.parameters:
            p.grad = _laid_out(self.flat[start : start + p.numel()], p)
            start += p.numel()
        self.optimizer = optimizers.Optimizer(
            self.network, name=plan.optimizer, weight_decay=plan.weight_decay, local=self.weights.local,
            shares=shares(self.network, plan.rates, plan.layer_decay),
        )  # fmt: skip
        self.weights.bind(self.optimizer, plan)
        self.average = Average(self._averaged(), plan.ema) if plan.ema else None
        self.still, self.pieces = still(self.network), plan.accumulate
        self.factor = Schedule(plan.schedule, plan.warmup, total)
        self.late = self.far = not str(plan.device).startswith("cpu")  # reading a number would make the device wait
        self.ceiling, self.slower = LIMIT, 1.0  # the largest loss that is taken for one; what is left of the rate
        self.said: Numbers = {}  # the losses of this step
        self.first_bad = torch.full((), -1.0, device=plan.device)
        self.scaler = Scaler(plan.device) if plan.precision == "fp16" else None

    def _averaged(self) -> list[Tensor]:
        """What learns, and running statistics. What is infinite is a constant, and its average would be no number."""
        learning = [self.weights.local(p) for p in self.parameters]
        return learning + [
            b for b in self.network.buffers() if b.is_floating_point() and (b.is_meta or b.isfinite().all())
        ]

    def train(self) -> None:
        """The network in training mode, but for frozen batch norms."""
        self.network.train()
        for module in self.still:
            module.eval()

    def averaged(self) -> Any:
        """A context in which the network has the averaged weights, where there are any."""
        return self.average.swapped() if self.average else nullcontext()

    def rng(self, piece: int = 0) -> np.random.Generator:
        return later(self.plan.seed, "objective", self.step, *self.ranks.own, *((piece,) if piece else ()))

    def whole(self, sums: Numbers, counts: bool = True) -> Numbers:
        """{output: (sum, weight)} of this rank's batch, without gradient -> those of the whole global batch."""
        self.said = totals(self.ranks, sums, counts)
        return self.said

    def autocast(self) -> Any:
        """The context of a forward pass, by the plan's precision."""
        return autocast(self.plan.precision, self.plan.device)

    def update(self) -> None:
        """Clip, check, step and zero. An update whose loss or gradient is not finite, or out of bounds, is not made.

        On a processor Diverged is raised at once, before the weights are touched. An accelerator is not waited for: there
        the update is skipped on the device, and `skipped` tells when numbers are next read.
        """
        plan, flat = self.plan, self.flat
        self.weights.reduce(flat)
        if self.scaler:
            bad = self._scaled()
        else:
            norm = self.weights.norm(flat)
            bad = self._noted(norm) if self.late else self._checked(float(norm))
        if plan.clip_value:
            flat.clamp_(-plan.clip_value, plan.clip_value)
        self.optimizer.update(plan.rate * self.slower * self.factor(self.step), bad)
        if plan.clip_weights:
            self.optimizer.clamp(plan.clip_weights)
        if self.average:
            self.average.update(self.step)
        flat.zero_()
        self.said = {}

    def _checked(self, norm: float) -> None:
        if not (norm < LIMIT and abs(loss_of(self.said)) < self.ceiling):
            raise Diverged("train.diverged", step=self.step, epoch=self.epoch + 1)
        if self.plan.clip and norm > self.plan.clip:
            self.flat.mul_(self.plan.clip / (norm + 1e-6))

    def _noted(self, norm: Tensor) -> Tensor:
        """1 where this update must not be made, as a number on the device."""
        loss = sum((s / w.clamp(min=1e-12) for s, w in self.said.values()), norm * 0)
        bad = (~((norm < LIMIT) & (loss.abs() < self.ceiling))).float()
        if self.plan.clip:
            self.flat.mul_((self.plan.clip / (norm + 1e-6)).clamp(max=1.0))
        self.first_bad = torch.where((bad > 0) & (self.first_bad < 0), float(self.step), self.first_bad)
        return bad

    def skipped(self) -> int:
        """The first step whose update was skipped on the device, -1 where none was."""
        return int(self.first_bad) if self.late else -1

    def discard(self) -> None:
        """No update is made of the gradients that stand here."""
        self.flat.zero_()
        self.said = {}
        self.first_bad.fill_(-1.0)

    def _scaled(self) -> Tensor:
        """Under fp16: gradients without the loss's factor, clipped; 1 where one has overflowed, which is no divergence."""
        bad = (self.ranks.add(self.scaler.unscale(self.flat)) > 0).float()
        self.scaler.adjust()
        if self.plan.clip:
            self.flat.mul_((self.plan.clip / (self.weights.norm(self.flat) + 1e-6)).clamp(max=1.0))
        return bad

    def release(self) -> None:
        """Let go of the gradients: the network belongs to others again."""
        self.weights.release()
        thaw(self.network, self.frozen)


def loss_of(numbers: Numbers) -> float:
    return sum(float(s) / max(float(w), 1e-12) for s, w in numbers.values())


def _laid_out(stretch: Tensor, p: Tensor) -> Tensor:
    """A stretch of memory as the gradient of p, in the order in which p lies (channels last, perhaps): the fused kernels go
    through both side by side.
    """
    dense = sorted(zip(p.stride(), p.shape), reverse=True)
    if p.is_contiguous() or [s for s, n in dense if n > 1] != _steps([n for _, n in dense if n > 1]):
        return stretch.view_as(p)
    return stretch.as_strided(p.shape, p.stride())


def _steps(sizes: list[int]) -> list[int]:
    """Strides of a dense tensor whose sizes stand from the slowest to the fastest."""
    return [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
