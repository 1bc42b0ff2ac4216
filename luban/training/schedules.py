"""The learning rate over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES = ("cosine", "linear", "constant")


def schedule(name: str, warmup: float, total: int) -> Callable[[int], float]:
    """step (from 0) -> factor on the rate: a linear warm-up over `warmup` x total steps, then the named shape."""
    rise = max(1, round(warmup * total)) if warmup else 0

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        if name == "constant":
            return 1.0
        part = min(1.0, (step - rise) / max(1, total - rise))
        return 1.0 - part if name == "linear" else 0.5 * (1 + math.cos(math.pi * part))

    return factor
