"""Two models on the same rows: the difference of every metric, each with an interval from draws that both share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from luban.evaluation.intervals import Metric, paired_difference, percentile, weights
from luban.evaluation.metrics import _errors, _Rows

NUMBERS = ("mse", "rmse", "mae", "r2", "median_absolute_error")


def of_classes(truth: Any, before: Any, after: Any, *, seed: int = 0, resamples: int = 500) -> dict[str, Metric]:
    """after - before. truth (N,) class numbers, -1 unknown; probabilities (N, K) of both models."""
    truth = np.asarray(truth, np.int64).ravel()
    first, second = (_Rows(truth, np.asarray(p)) for p in (before, after))
    found = _differences(first.statistic, second.statistic, len(truth), first.names, seed, resamples)
    if len(truth):
        found["accuracy"] = found["f1_micro"] = paired_difference(second.right, first.right, seed=seed)
    return found


def of_numbers(truth: Any, before: Any, after: Any, *, seed: int = 0, resamples: int = 500) -> dict[str, Metric]:
    """after - before. All (N,), in raw units."""
    truth, before, after = (np.asarray(v, float).ravel() for v in (truth, before, after))
    statistics = [_in_row_order(truth, answers) for answers in (before, after)]
    return _differences(*statistics, len(truth), NUMBERS, seed, resamples)


def of_counts(before: Any, after: Any, *, seed: int = 0, resamples: int = 500) -> dict[str, Metric]:
    """after - before, of two `entities.Counts`, or two `detection.Judged`, over the same rows."""
    return _differences(before.statistic, after.statistic, len(after), after.names, seed, resamples)


def _in_row_order(truth: np.ndarray, answers: np.ndarray) -> Any:
    """`_errors` wants weights in the order of the errors; two models have two orders."""
    order = np.argsort(np.abs(truth - answers), kind="stable")
    statistic = _errors(truth, answers)
    return lambda block: statistic(block[:, order])


def _differences(first: Any, second: Any, n: int, names: Any, seed: int, resamples: int) -> dict[str, Metric]:
    if not n:
        return {name: Metric(math.nan, note="metric.no_rows") for name in names}
    one = np.ones((1, n))
    value = (second(one) - first(one))[0]
    samples = np.concatenate([second(block) - first(block) for block in weights(n, resamples, seed)])
    return {name: _metric(name, float(value[i]), samples[:, i]) for i, name in enumerate(names)}


def _metric(name: str, value: float, samples: np.ndarray) -> Metric:
    if name == "ece":  # draws of rows look less calibrated than the rows, for both models but not equally
        samples = samples - (samples.mean() - value)
    low, high = percentile(samples)
    return Metric(value) if low == high else Metric(value, low, high)  # no draw moved it: that is no interval
