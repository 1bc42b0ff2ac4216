"""On which rows the model does worse: the score by value of a column, with what can and cannot be told from so few rows.

A slice is compared with all other rows. With many slices some look bad by chance, so the comparison is as strict as their
number asks (Bonferroni: 0.05 over the number of slices). A small group gets no verdict.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np

from luban.evaluation.intervals import Metric, mean
from luban.markup import number, visible
from luban.messages import say

FEW_VALUES = 12  # a number column with no more distinct values than this is sliced value by value


@dataclass(frozen=True)
class Slice:
    """`count` rows whose `column` is `value`: their mean score with interval, and its difference from all other rows.

    `verdict` is worse, better, same (no difference seen) or cannot_tell (too few rows here or elsewhere).
    """

    column: str
    value: str
    count: int
    metric: Metric
    difference: Metric
    verdict: str

    @property
    def score(self) -> float:
        return self.metric.value

    @property
    def cannot_tell(self) -> bool:
        return self.verdict == "cannot_tell"

    def to_json(self) -> dict[str, Any]:
        found = {"column": self.column, "value": self.value, "count": self.count, "verdict": self.verdict}
        return found | {"score": self.metric.to_json(), "difference": self.difference.to_json()}


def slices(
    columns: Mapping[str, Sequence[Any]],
    scores: Any,
    *,
    bins: int = 4,
    smallest: int = 30,
    most: int = 20,
    seed: int = 0,
) -> list[Slice]:
    """The slices of each column, lowest mean score first.

    columns hold one value a row; numbers are cut at quantiles into `bins`, texts that hardly repeat by their length, beyond `most`
    values the rarest are taken together. scores (N,): higher is better; NaN rows are left out. Groups of fewer than `smallest`
    rows cannot be told.
    """
    scores = np.asarray(scores, float).ravel()
    real = np.isfinite(scores)
    found = []
    for column, values in columns.items():
        if len(values) != len(scores):
            raise ValueError((column, len(values), len(scores)))
        name, labels = _labelled(column, values, bins, most)
        groups: dict[str, list[int]] = {}
        for i in np.flatnonzero(real).tolist():
            groups.setdefault(labels[i], []).append(i)
        found += [(name, label, np.asarray(rows)) for label, rows in groups.items()]
    z = NormalDist().inv_cdf(1 - 0.025 / max(len(found), 1))
    result = []
    for name, label, rows in found:
        others = real.copy()
        others[rows] = False
        result.append(_slice(name, label, scores[rows], scores[others], z, smallest, seed))
    return sorted(result, key=lambda s: s.score)


def _slice(
    column: str, value: str, inside: np.ndarray, outside: np.ndarray, z: float, smallest: int, seed: int
) -> Slice:
    difference = _difference(inside, outside, z)
    if min(len(inside), len(outside)) < smallest:
        verdict = "cannot_tell"
    elif difference.high < 0:
        verdict = "worse"
    elif difference.low > 0:
        verdict = "better"
    else:
        verdict = "same"
    return Slice(column, value, len(inside), mean(inside, seed=seed, resamples=200), difference, verdict)


def _difference(inside: np.ndarray, outside: np.ndarray, z: float) -> Metric:
    """Difference of two means. Right/wrong scores get one more of each (Agresti and Caffo 2000), which keeps 0 and 1 honest."""
    if not inside.size or not outside.size:
        return Metric(math.nan, note="metric.no_rows")
    value = float(inside.mean() - outside.mean())
    if np.isin(inside, (0, 1)).all() and np.isin(outside, (0, 1)).all():
        inside, outside = np.append(inside, (0, 1)), np.append(outside, (0, 1))
    middle = float(inside.mean() - outside.mean())
    half = z * math.sqrt(inside.var() / inside.size + outside.var() / outside.size)
    return Metric(value, middle - half, middle + half)


def _labelled(column: str, values: Sequence[Any], bins: int, most: int) -> tuple[str, list[str]]:
    """The name of the slicing and the label of each row."""
    filled = [v for v in values if not _missing(v)]
    distinct = Counter(map(_key, filled))
    if filled and all(isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in filled):
        if len(distinct) > FEW_VALUES:
            return column, _by_quantile(values, bins)
        return column, [say("slice.missing") if _missing(v) else number(float(v)) for v in values]
    if filled and all(isinstance(v, str) for v in filled) and len(distinct) > max(most, 0.5 * len(filled)):
        lengths = [None if _missing(v) else len(v) for v in values]
        return say("slice.length", column=column), _by_quantile(lengths, bins)
    kept = {key for key, _ in distinct.most_common(most)}
    return column, [_value_label(v, kept) for v in values]


def _value_label(value: Any, kept: set[str]) -> str:
    if _missing(value):
        return say("slice.missing")
    return visible(_key(value)) if _key(value) in kept else say("slice.other")


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, (float, np.floating)) and not math.isfinite(value))


def _key(value: Any) -> str:
    return str(value)[:120]


def _by_quantile(values: Sequence[Any], bins: int) -> list[str]:
    """Labels such as `1.5 – 3`: equally many rows each, as far as equal values allow."""
    numbers = np.array([math.nan if _missing(v) else float(v) for v in values])
    known = numbers[np.isfinite(numbers)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, max(len(edges) - 2, 0))
    names = [f"{number(float(a))} – {number(float(b))}" for a, b in pairwise(edges)] or [number(float(edges[0]))]
    return [names[p] if math.isfinite(v) else say("slice.missing") for p, v in zip(place.tolist(), numbers.tolist())]
