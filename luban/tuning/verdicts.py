"""Would more rows help? Would a larger network? Decided by the last step that was measured, or "cannot tell".

Two things make a difference of scores uncertain: which rows it was measured on (the paired bootstrap on the same
validation rows) and the luck of the seed (the spread of the repetitions, pooled over all points of the curve).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luban.evaluation.intervals import Z
from luban.settings import SIZES
from luban.tuning.curve import Curve, Point

Compare = Callable[[Point, Point, int], "dict[str, Any]"]  # (before, after, repeat) -> {"value", "low", "high"}


@dataclass(frozen=True)
class Step:
    """From one point to the next: `gain` above zero is better. `verdict`: helps, no, cannot_tell."""

    before: Point
    after: Point
    gain: float
    low: float
    high: float
    enough: float
    verdict: str


def seed_variance(points: Sequence[Point]) -> tuple[float, int]:
    """Variance of a score between seeds, pooled over the points, and its degrees of freedom; (0, 0) without repetitions."""
    many = [p.scores for p in points if len(p.results) > 1]
    freedom = sum(len(s) - 1 for s in many)
    return (sum(float(((s - s.mean()) ** 2).sum()) for s in many) / freedom, freedom) if freedom else (0.0, 0)


def student(freedom: int) -> float:
    """The 97.5 % point of Student's distribution."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom)) if freedom else 0.0


def half_width(rows_error: float, variance: float, freedom: int) -> float:
    """Half a 95 % interval out of the error over rows and the variance between seeds of a mean."""
    return math.sqrt((Z * rows_error) ** 2 + student(freedom) ** 2 * variance)


def interval(point: Point, points: Sequence[Point], most: float = math.inf) -> tuple[float, float, float]:
    """(score, low, high) of a point: the mean of its repetitions. `most`: what the metric cannot go beyond."""
    variance, freedom = seed_variance(points)
    errors = [
        (r["high"] - r["low"]) / (2 * Z)
        for r in point.results
        if r.get("low") is not None and r.get("high") is not None
    ]
    half = half_width(float(np.mean(errors)) if errors else 0.0, variance / len(point.results), freedom)
    value = float(point.scores.mean())
    return value, value - half, min(most, value + half)


def step(curve: Curve, before: Point, after: Point, compare: Compare) -> Step:
    """By how much `after` is better than `before`, and what that says."""
    found = [compare(before, after, r) for r in range(curve.repeats)]
    gain = float((after.scores - before.scores).mean())
    errors = [(f["high"] - f["low"]) / (2 * Z) for f in found]
    variance, freedom = seed_variance(curve.points)
    half = half_width(math.sqrt(float(np.mean(np.square(errors)))), 2 * variance / curve.repeats, freedom)
    gain = gain if curve.goal.higher else -gain
    enough = curve.worth if curve.goal.higher else curve.worth * abs(float(before.scores.mean()))
    return Step(before, after, gain, gain - half, gain + half, enough, said(gain - half, gain + half, enough))


def said(low: float, high: float, enough: float) -> str:
    """What is surely less than `enough` does not help, even where it is surely more than nothing."""
    if high < enough:
        return "no"
    return "helps" if low > 0 else "cannot_tell"


def more_rows(curve: Curve) -> tuple[Point, Point] | None:
    """The last step in rows, at the recipe's own size."""
    own = sorted((p for p in curve.points if p.size == curve.size), key=lambda p: p.rows)
    return (own[-2], own[-1]) if len(own) > 1 else None


def larger_network(curve: Curve) -> tuple[Point, Point] | None:
    """From the recipe's size to the next larger one; where it is the largest, the step that led to it."""
    most = max(p.rows for p in curve.points)
    by_size = sorted((p for p in curve.points if p.rows == most), key=lambda p: SIZES.index(p.size))
    at = next(i for i, p in enumerate(by_size) if p.size == curve.size)
    if len(by_size) < 2:
        return None
    return (by_size[at], by_size[at + 1]) if at + 1 < len(by_size) else (by_size[at - 1], by_size[at])
