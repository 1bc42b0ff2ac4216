"""The learning rate over the steps of a run: a factor on `rate`.

A shape says what comes after the warm-up: shape(u) for u from 0 to 1. What a schedule learns on the way (reduce-on-plateau)
is `state`, plain numbers that stand in the checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from luban import registry
from luban.part import Part
from luban.settings import Count, Fraction, NonNegative, Positive, Range

Shape = Callable[[float], float]


def constant() -> Shape:
    """1."""
    return lambda u: 1.0


def linear(*, end: Fraction = 0.0) -> Shape:
    """1 - (1 - end) u."""
    return lambda u: 1 - (1 - end) * u


def cosine(*, end: Fraction = 0.0) -> Shape:
    """end + (1 - end) (1 + cos(pi u)) / 2 (Loshchilov & Hutter 2017, without restarts)."""
    return lambda u: end + (1 - end) * 0.5 * (1 + math.cos(math.pi * u))


def step(*, at: list[Fraction] = (0.5, 0.75), factor: Fraction = 0.1) -> Shape:
    """Times `factor` at each of these parts of the run: by default as He et al. 2016 did."""
    return lambda u: factor ** sum(u >= a for a in at)


def exponential(*, end: Annotated[float, Range(above=0, high=1)] = 0.01) -> Shape:
    """end ^ u: the same factor at every step, `end` after the last."""
    return lambda u: end**u


def warmup_stable_decay(
    *, decay: Fraction = 0.2, shape: Literal["root", "linear", "cosine"] = "root", end: Fraction = 0.0
) -> Shape:
    """1, then down to `end` in the last `decay` part of the run (Hu et al. 2024): 1 - sqrt(v) (Hägele et al. 2024), 1 - v,
    or (1 + cos(pi v)) / 2.
    """
    down = {
        "root": lambda v: 1 - math.sqrt(v),
        "linear": lambda v: 1 - v,
        "cosine": lambda v: 0.5 * (1 + math.cos(math.pi * v)),
    }[shape]

    def factor(u: float) -> float:
        return 1.0 if u <= 1 - decay or not decay else end + (1 - end) * down((u - 1 + decay) / decay)

    return factor


class OneCycle:
    """Up from 1 / `start` to 1 over the first `rise` part of the run, then down to 1 / (`start` x `end`), both along a
    cosine (Smith & Topin 2018). It is its own warm-up.
    """

    def __init__(
        self, *, rise: Annotated[float, Range(above=0, high=0.99)] = 0.3, start: Positive = 25.0, end: Positive = 1e4
    ):
        self.rise, self.low, self.least = rise, 1 / start, 1 / (start * end)

    def steps(self, total: int) -> Callable[[int], float]:
        top, last = self.rise * total - 1, total - 1

        def factor(step: int) -> float:
            if step <= top:
                return _between(self.low, 1.0, step / max(top, 1e-9))
            return _between(1.0, self.least, min(1.0, (step - top) / max(last - top, 1e-9)))

        return factor


class Plateau:
    """Times `factor` when the validation loss (without one, the training loss) has not gone down by `threshold` of itself
    for more than `patience` epochs, never below `least`.
    """

    def __init__(
        self, *, factor: Fraction = 0.1, patience: Count = 2, threshold: NonNegative = 1e-4, least: Fraction = 0.0
    ):
        self.factor, self.patience, self.threshold, self.least = factor, patience, threshold, least

    def judged(self, state: dict[str, Any], loss: float) -> None:
        if loss < state["best"] * (1 - self.threshold):
            state["best"], state["bad"] = loss, 0
        else:
            state["bad"] += 1
        if state["bad"] > self.patience:
            state["factor"], state["bad"] = max(state["factor"] * self.factor, self.least), 0


class Schedule:
    """`schedule(step)`: the factor for update number `step`, from 0. A linear warm-up over `warmup` x `total` steps, then the
    shape by name (`cosine`, or `{step: {at: [0.3, 0.6]}}`). `judged` is told the loss at the end of an epoch.
    """

    def __init__(self, name: Any, warmup: float, total: int):
        part = Part.of(name)
        self.shape = registry.find("schedules", part.type)(**{k: v for k, v in part.settings.items() if v is not None})
        self.rise, self.total = (max(1, round(warmup * total)) if warmup else 0), total
        self.plateau = isinstance(self.shape, Plateau)
        self.state: dict[str, Any] = {"best": 1e300, "bad": 0, "factor": 1.0} if self.plateau else {}
        self.own = self.shape.steps(total) if isinstance(self.shape, OneCycle) else None

    def __call__(self, step: int) -> float:
        if self.own:
            return self.own(step)
        if step < self.rise:
            return (step + 1) / self.rise
        if self.plateau:
            return self.state["factor"]
        return self.shape(min(1.0, (step - self.rise) / max(1, self.total - self.rise)))

    def judged(self, loss: float) -> None:
        if self.plateau:
            self.shape.judged(self.state, loss)


def _between(a: float, b: float, u: float) -> float:
    return b + (a - b) / 2 * (1 + math.cos(math.pi * u))
