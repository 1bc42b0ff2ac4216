"""How sure a number is: intervals over rows.

The bootstrap draws as many rows as there are, with replacement, 500 times, and takes the middle 95 % (percentile bootstrap;
Efron and Tibshirani 1993, chapter 13). A draw is a vector of weights, how often each row was drawn, so that a metric of all
draws is a few products and cumulative sums. Shares get Wilson's interval, which stays honest at 0 and 1, where every
bootstrap draw says the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from luban.messages import say

Z = 1.959963984540054  # two-sided 95 % of the normal distribution
CHUNK = 1_000_000  # weights held at once (8 MB)


@dataclass(frozen=True)
class Metric:
    """A number and its 95 % interval. Where it is not defined, `value` is NaN and `note` the id of the sentence that says why.

    A `note` beside a finite value says what was left out; `count` fills the sentence.
    """

    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    count: int = 0

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"value": _finite(self.value), "low": _finite(self.low), "high": _finite(self.high)}
        if self.note:
            data |= {"note": self.note, "reason": say(self.note, count=self.count)}
        return data


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def weights(n: int, resamples: int = 500, seed: int = 0) -> Iterator[np.ndarray]:
    """Bootstrap draws of `n` rows as counts, in blocks (R, n) of bounded size; together `resamples` draws."""
    rng = np.random.default_rng([seed, n])
    most = max(1, CHUNK // max(n, 1))
    for start in range(0, resamples, most):
        block = np.empty((min(most, resamples - start), n))
        for row in block:
            row[:] = np.bincount(rng.integers(0, n, n), minlength=n)
        yield block


def group_sums(block: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """Sums of each draw's weights by group: (R, n) and group numbers (n,) below k give (R, k)."""
    return np.stack([np.bincount(groups, row, k) for row in block])


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], n: int, *, resamples: int = 500, seed: int = 0
) -> np.ndarray:
    """`statistic` maps weights (R, n) to (R, m); gives (resamples, m)."""
    return np.concatenate([statistic(block) for block in weights(n, resamples, seed)])


def percentile(samples: np.ndarray) -> tuple[float | None, float | None]:
    """The middle 95 % of what is finite; (None, None) where a tenth of the draws or more gave no value."""
    samples = samples[np.isfinite(samples)] if np.isfinite(samples).mean() > 0.9 else samples[:0]
    if samples.size < 20:
        return None, None
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)


def wilson(hits: float, n: float) -> tuple[float, float]:
    """Interval of a share, `hits` of `n` (Wilson 1927). All right out of 20 is (0.84, 1.0), not (1.0, 1.0)."""
    hits, n = float(hits), float(n)
    if n <= 0:
        return 0.0, 1.0
    share, z2 = hits / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(max(share * (1 - share) / n + z2 / (4 * n * n), 0.0))
    return (0.0 if hits <= 0 else max(0.0, middle - half)), (1.0 if hits >= n else min(1.0, middle + half))


def mean(values: Any, *, seed: int = 0, resamples: int = 500) -> Metric:
    """The mean of `values` (N,): Wilson's interval where all are 0 or 1, else the bootstrap; NaN for no rows."""
    values = np.asarray(values, float)
    if not values.size:
        return Metric(math.nan, note="metric.no_rows")
    value = float(values.mean())
    if _shares(values):
        return Metric(value, *wilson(values.sum(), values.size))
    if values.size == 1:
        return Metric(value)
    if values.size > 5000:  # the two agree here, and this one costs nothing
        half = Z * float(values.std(ddof=1)) / math.sqrt(values.size)
        return Metric(value, value - half, value + half)
    samples = bootstrap(
        lambda block: block @ values[:, None] / values.size, values.size, resamples=resamples, seed=seed
    )
    return Metric(value, *percentile(samples[:, 0]))


def paired_difference(a: Any, b: Any, *, seed: int = 0, resamples: int = 500) -> Metric:
    """Mean of `a` minus mean of `b` on the same rows (N,), such as "model right" against "baseline right".

    Above zero with a low end above zero: a beats b. For right/wrong values the interval is Bonett and Price's (2012) for paired
    shares, which is not empty even where both answer alike; for other values the bootstrap over rows.
    """
    a, b = np.asarray(a, float).ravel(), np.asarray(b, float).ravel()
    if a.shape != b.shape:
        raise ValueError((a.shape, b.shape))
    if not a.size:
        return Metric(math.nan, note="metric.no_rows")
    difference = a - b
    if not (_shares(a) and _shares(b)):
        return mean(difference, seed=seed, resamples=resamples)
    n = a.size + 2
    only_a, only_b = ((difference > 0).sum() + 1) / n, ((difference < 0).sum() + 1) / n
    half = Z * math.sqrt((only_a + only_b - (only_a - only_b) ** 2) / n)
    middle = float(only_a - only_b)
    return Metric(float(difference.mean()), max(-1.0, middle - half), min(1.0, middle + half))


def _shares(values: np.ndarray) -> bool:
    return bool(((values == 0) | (values == 1)).all())
