"""The field's metrics under the field's names, each with an interval; formulas in `docs/metrics.md`.

Plain NumPy; the values equal scikit-learn's (tests), defaults included: macro averages run over the classes that occur in the
truth or the answers, a share of nothing is 0. What is not defined (an AUC where all rows are of one class) is NaN with the
reason, never an exception. A truth of -1 is a label that training never saw: it counts as a class of its own that is never
answered, so as wrong; log loss, Brier score and the areas leave such rows out and say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from luban.evaluation.calibration import bin_of
from luban.evaluation.intervals import Metric, bootstrap, group_sums, percentile, wilson

__all__ = ["Metric", "classification", "confusion", "per_class", "regression", "roc_curve"]

LEVELS = 2048  # scores are ranked this finely within the bootstrap; the value itself is exact
BINS = 15
NAN = math.nan


def classification(
    truth: Any, probabilities: Any, labels: Sequence[str], *, seed: int = 0, resamples: int = 500
) -> dict[str, Metric]:
    """All metrics of answers to a category.

    truth (N,) are class numbers, -1 for a label unknown to the model; probabilities (N, K) sum to 1 a row; the answer is the
    most probable class. With two labels, the last one is the positive class of precision, recall, f1, roc_auc and
    average_precision. A row without finite probabilities is a wrong answer. Raises ValueError where shapes disagree.
    """
    truth, probabilities = np.asarray(truth, np.int64).ravel(), np.asarray(probabilities)
    k = len(labels)
    if probabilities.shape != (len(truth), k) or (truth >= k).any():
        raise ValueError((truth.shape, probabilities.shape, k))
    rows = _Rows(truth, probabilities)
    if not len(truth):
        return {name: Metric(NAN, note="metric.no_rows") for name in rows.names}
    samples = bootstrap(rows.statistic, len(truth), resamples=resamples, seed=seed)
    values = rows.statistic(np.ones((1, len(truth))))[0]
    return {name: rows.metric(name, float(values[i]), samples[:, i]) for i, name in enumerate(rows.names)}


class _Rows:
    """What each row contributes to the metrics, prepared once; `statistic` then costs a few sums a draw."""

    def __init__(self, truth: np.ndarray, probabilities: np.ndarray):
        n, k = probabilities.shape
        self.n, self.k = n, k
        self.finite = bool(np.isfinite(probabilities).all())
        real = np.isfinite(probabilities).all(axis=1)
        self.known = truth >= 0
        self.unseen = int((~self.known).sum())
        self.truth = np.where(self.known, truth, k)
        self.answers = (
            np.where(real, np.argmax(np.where(real[:, None], probabilities, 0), axis=1), k) if n else self.truth
        )
        self.right = (self.answers == self.truth) & self.known
        self.cells = self.truth * 2 + self.right
        self.names = [*COUNTED, *(POSITIVE if k == 2 else ()), "roc_auc"]
        self.names += ["average_precision"] if k == 2 else []
        self.names += ["log_loss", "ece", "brier"]
        if n and self.finite:
            self._prepare(truth, probabilities)

    def _prepare(self, truth: np.ndarray, probabilities: np.ndarray) -> None:
        k, known = self.k, self.known
        least = np.finfo(probabilities.dtype).eps if probabilities.dtype.kind == "f" else np.finfo(float).eps
        p = probabilities.astype(float)
        own = np.where(known, p[np.arange(self.n), np.where(known, truth, 0)], 1.0)
        loss = -np.log(np.clip(own, least, 1 - least)) * known
        brier = ((p * p).sum(axis=1) - 2 * own + 1) * known if k != 2 else (1 - own) ** 2 * known
        self.linear = np.column_stack([loss, brier, known])
        confidence = p.max(axis=1)
        self.bins, self.gap = bin_of(confidence, BINS), self.right - confidence
        self.classes = [c for c in range(k) if 0 < (truth == c).sum() < known.sum()]
        if k == 2 and self.classes:
            self.area = _Area(truth[known], p[known, 1])
        elif self.classes:
            self.one_vs_rest, self.influence = _one_vs_rest(truth[known], p[known], self.classes)

    def statistic(self, block: np.ndarray) -> np.ndarray:
        """Weights (R, N) -> (R, metrics), in the order of `names`."""
        counts = group_sums(block, self.cells, 2 * (self.k + 1)).reshape(len(block), -1, 2)
        support, hits = counts.sum(axis=2), counts[..., 1]
        found = _from_counts(support, group_sums(block, self.answers, self.k + 1), hits)
        found |= self._from_scores(block) if self.finite else {}
        return np.stack([found.get(name, np.full(len(block), NAN)) for name in self.names], axis=1)

    def _from_scores(self, block: np.ndarray) -> dict[str, np.ndarray]:
        loss, brier, known = (block @ self.linear).T
        gaps = group_sums_of(block, self.gap, self.bins, BINS)
        found = {"log_loss": _share(loss, known), "brier": _share(brier, known)}
        found["ece"] = np.abs(gaps).sum(axis=1) / self.n
        if not self.classes:
            return found
        drawn = block[:, self.known] if self.unseen else block
        if self.k == 2:
            found["roc_auc"], found["average_precision"] = self.area(drawn)
        else:
            moved = drawn @ self.influence / drawn.sum(axis=1).clip(1)
            found["roc_auc"] = np.clip(self.one_vs_rest + moved, 0, 1)
        return found

    def metric(self, name: str, value: float, samples: np.ndarray) -> Metric:
        if math.isnan(value):
            return Metric(NAN, note="metric.not_finite" if not self.finite else self._why())
        note, count = self._left_out(name)
        if name in ("accuracy", "f1_micro"):  # the same share
            return Metric(value, *wilson(self.right.sum(), self.n), note, count)
        if name == "ece":
            samples = np.clip(
                samples - (samples.mean() - value), 0, 1
            )  # draws of rows look less calibrated than the rows
        low, high = percentile(samples)
        if low is not None and low == high and value in (0.0, 1.0) and name not in ("log_loss", "brier", "ece"):
            low, high = wilson(value * self._smallest(), self._smallest())
        return Metric(value, low, high, note, count)

    def _why(self) -> str:
        return "metric.no_known_rows" if not self.known.any() else "metric.one_class"

    def _left_out(self, name: str) -> tuple[str, int]:
        if name not in ("roc_auc", "average_precision", "log_loss", "brier"):
            return "", 0
        if name == "roc_auc" and self.k > 2 and len(self.classes) < self.k:
            return "metric.absent_classes", self.k - len(self.classes)
        return ("metric.unseen_left_out", self.unseen) if self.unseen else ("", 0)

    def _smallest(self) -> float:
        counts = np.bincount(self.truth)
        return float(counts[counts > 0].min())


COUNTED = ("accuracy", "balanced_accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_micro", "f1_weighted")
POSITIVE = ("precision", "recall", "f1")


def _share(part: np.ndarray, whole: np.ndarray, otherwise: float = NAN) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), otherwise), where=whole > 0)


def _from_counts(support: np.ndarray, answered: np.ndarray, hits: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics from how often each class is true, answered, and both: arrays (R, K + 1), the last for labels never seen."""
    precision, recall = _share(hits, answered, 0.0), _share(hits, support, 0.0)
    f1 = _share(2 * hits, support + answered, 0.0)
    occurs = (support > 0) | (answered > 0)

    def macro(values: np.ndarray, of: np.ndarray = occurs) -> np.ndarray:
        return _share((values * of).sum(axis=1), of.sum(axis=1))

    n = support.sum(axis=1)
    found = {
        "accuracy": hits.sum(axis=1) / n,
        "balanced_accuracy": macro(recall, support > 0),
        "precision_macro": macro(precision),
        "recall_macro": macro(recall),
        "f1_macro": macro(f1),
        "f1_micro": hits.sum(axis=1) / n,
        "f1_weighted": (f1 * support).sum(axis=1) / n,
    }
    if support.shape[1] == 3:
        found |= {"precision": precision[:, 1], "recall": recall[:, 1], "f1": f1[:, 1]}
    return found


def group_sums_of(block: np.ndarray, values: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """Sums of weight times value by group: (R, k)."""
    return np.stack([np.bincount(groups, row * values, k) for row in block])


class _Area:
    """Area under the ROC curve and average precision of weighted rows, ties as half, scores ranked once."""

    def __init__(self, truth: np.ndarray, score: np.ndarray):
        levels, first, inverse = _ranked(score)
        rough = (first * LEVELS // len(score)) if len(levels) > LEVELS else np.arange(len(levels))
        self.cells = rough[inverse] * 2 + (truth == 1)
        self.k = 2 * (int(rough[-1]) + 1)
        counts = np.bincount(inverse * 2 + (truth == 1), minlength=2 * len(levels)).astype(float)[None]
        exact, rounded = _areas(counts), _areas(np.bincount(self.cells, minlength=self.k).astype(float)[None])
        self.shift = [float(e[0] - r[0]) for e, r in zip(exact, rounded)]

    def __call__(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        roc, average = _areas(group_sums(block, self.cells, self.k))
        return np.clip(roc + self.shift[0], 0, 1), np.clip(average + self.shift[1], 0, 1)


def _ranked(score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct scores, how many rows lie below each, and which one each row has."""
    levels, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    return levels, np.cumsum(counts) - counts, inverse


def _areas(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts (R, 2 * levels) of negatives and positives by rising score -> AUC and average precision, (R,) each."""
    negative, positive = counts[:, 0::2], counts[:, 1::2]
    all_negative, all_positive = negative.sum(axis=1), positive.sum(axis=1)
    below = np.cumsum(negative, axis=1) - 0.5 * negative
    roc = _share((positive * below).sum(axis=1), all_negative * all_positive)
    right = np.cumsum(positive[:, ::-1], axis=1)
    answered = right + np.cumsum(negative[:, ::-1], axis=1)
    average = _share((positive[:, ::-1] * _share(right, answered, 0.0)).sum(axis=1), all_positive)
    return roc, np.where(all_negative > 0, average, NAN)


def _one_vs_rest(truth: np.ndarray, p: np.ndarray, classes: list[int]) -> tuple[float, np.ndarray]:
    """Mean AUC of each class against the rest, and each row's influence on it.

    value + mean(weight * influence) is the area of a draw to first order (the structural components of DeLong et al. 1988), so
    that a draw costs one product however many classes there are.
    """
    values, influence = [], np.zeros(len(truth))
    for c in classes:
        own = truth == c
        _, _, inverse = _ranked(p[:, c])
        positive, negative = np.bincount(inverse, own), np.bincount(inverse, ~own)
        below = (np.cumsum(negative) - 0.5 * negative)[inverse] / (~own).sum()
        above = 1 - (np.cumsum(positive) - 0.5 * positive)[inverse] / own.sum()
        values.append(below[own].mean())
        part = np.where(own, (below - values[-1]) / own.mean(), (above - values[-1]) / (~own).mean())
        influence += part / len(classes)
    return float(np.mean(values)), influence


class ClassScore(NamedTuple):
    label: str
    precision: float
    recall: float
    f1: float
    support: int


def per_class(truth: Any, answers: Any, labels: Sequence[str]) -> list[ClassScore]:
    """One row a class. A share of nothing is 0."""
    truth, answers = np.asarray(truth, np.int64), np.asarray(answers, np.int64)
    k = len(labels)
    support, answered = np.bincount(truth[truth >= 0], minlength=k), np.bincount(answers[answers >= 0], minlength=k)
    hits = np.bincount(truth[(truth == answers) & (truth >= 0)], minlength=k)
    precision, recall = _share(hits, answered, 0.0), _share(hits, support, 0.0)
    f1 = _share(2 * hits, support + answered, 0.0)
    columns = (precision.tolist(), recall.tolist(), f1.tolist(), support.tolist())
    return [ClassScore(*row) for row in zip(labels, *columns)]


def confusion(truth: Any, answers: Any, k: int) -> np.ndarray:
    """(K, K) counts, rows truth, columns answers. Rows whose label was never seen (-1) have no place in it."""
    truth, answers = np.asarray(truth, np.int64), np.asarray(answers, np.int64)
    known = (truth >= 0) & (answers >= 0)
    return np.bincount(truth[known] * k + answers[known], minlength=k * k).reshape(k, k)


def roc_curve(truth01: Any, score: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False and true positive rates by falling threshold, from (0, 0) at infinity to (1, 1); corners only.

    Rates of an absent class are NaN.
    """
    positive = np.asarray(truth01).ravel().astype(bool)
    levels, _, inverse = _ranked(np.asarray(score).ravel())
    right = np.cumsum(np.bincount(inverse, positive, len(levels))[::-1])
    wrong = np.cumsum(np.bincount(inverse, ~positive, len(levels))[::-1])
    turns = np.flatnonzero((np.diff(right, 2) != 0) | (np.diff(wrong, 2) != 0)) + 1
    corners = np.r_[0, turns, len(right) - 1] if len(right) > 2 else np.arange(len(right))
    right, wrong = np.r_[0.0, right[corners]], np.r_[0.0, wrong[corners]]
    thresholds = np.r_[np.inf, levels[::-1][corners]]
    return _share(wrong, np.full(len(wrong), wrong[-1])), _share(right, np.full(len(right), right[-1])), thresholds


def regression(truth: Any, answers: Any, *, seed: int = 0, resamples: int = 500) -> dict[str, Metric]:
    """mse, rmse, mae, r2 and median_absolute_error of numbers (N,) in raw units. Rows without a truth (NaN) are left out."""
    truth, answers = np.asarray(truth, float).ravel(), np.asarray(answers, float).ravel()
    if truth.shape != answers.shape:
        raise ValueError((truth.shape, answers.shape))
    known = np.isfinite(truth)
    left_out = int((~known).sum())
    truth, answers = truth[known], answers[known]
    names = ("mse", "rmse", "mae", "r2", "median_absolute_error")
    if not truth.size or not np.isfinite(answers).all():
        note = "metric.not_finite" if truth.size else "metric.no_rows"
        return {name: Metric(NAN, note=note) for name in names}
    statistic = _errors(truth, answers)
    samples = bootstrap(statistic, len(truth), resamples=resamples, seed=seed)
    values = statistic(np.ones((1, len(truth))))[0]
    note = "metric.missing_truth" if left_out else ""
    found = {}
    for i, name in enumerate(names):
        if math.isnan(values[i]):
            found[name] = Metric(NAN, note="metric.constant_truth")
        else:
            found[name] = Metric(
                float(values[i]), *(percentile(samples[:, i]) if len(truth) > 1 else ()), note=note, count=left_out
            )
    return found


def _errors(truth: np.ndarray, answers: np.ndarray):
    """Weights (R, N) -> (R, 5); the rows lie in the order of their errors, for the median."""
    order = np.argsort(np.abs(truth - answers), kind="stable")
    error, y = (truth - answers)[order], (truth - truth.mean())[order]
    size = np.abs(error)
    sums = np.column_stack([error**2, size, y, y**2])
    varies = bool(np.ptp(truth) > 0)

    def statistic(block: np.ndarray) -> np.ndarray:
        n = len(error)
        squared, absolute, total, spread = (block @ sums).T
        below = np.cumsum(block, axis=1)
        low, high = (below >= n / 2).argmax(axis=1), (below > n / 2).argmax(axis=1)
        variance = spread - total**2 / n
        r2 = (
            1 - _share(squared, np.where(variance > 1e-12 * spread, variance, 0))
            if varies
            else np.full(len(block), NAN)
        )
        return np.column_stack([squared / n, np.sqrt(squared / n), absolute / n, r2, (size[low] + size[high]) / 2])

    return statistic
