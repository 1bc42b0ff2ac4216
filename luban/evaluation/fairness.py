"""How a model treats groups: Fairlearn's metrics under Fairlearn's names, each with an interval and an honest "cannot tell".

Every number of a group is a share k of n (its selection rate, true and false positive rate, accuracy). Intervals come from
draws of Beta(k + 1/2, n - k + 1/2) for each group (Jeffreys; Brown, Cai, DasGupta 2001), which stay honest at 0 and 1.
A difference over groups is the largest of all pairs. A bootstrap of that maximum lies above zero even where all groups are
alike, so each pair gets the interval of its *signed* difference, at a level shared out over the pairs (Bonferroni), and these
are put together: the maximum is at least every pair's low end and at most the largest high end.

A rate with nothing to be a share of (the true positive rate of a group without positives) is NaN and left out, where
Fairlearn takes it as 0, which would make a difference out of an absence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from luban.evaluation.intervals import Metric, wilson

DRAWS = 4000
FOUR_FIFTHS = 0.8
LEAST = 30  # rows (for rates: rows that the rate is a share of) below which nothing is said of a group
RATES = ("selection_rate", "true_positive_rate", "false_positive_rate", "accuracy")


@dataclass(frozen=True)
class Rates:
    """Counts of G groups: `hits` of `of`, int (G,) each, by rate; `counts` rows of each group."""

    groups: tuple[str, ...]
    counts: np.ndarray
    hits: dict[str, np.ndarray]
    of: dict[str, np.ndarray]

    def values(self, rate: str) -> np.ndarray:
        """(G,), NaN where a group has nothing that the rate could be a share of."""
        of = self.of[rate].astype(float)
        return np.divide(self.hits[rate], of, out=np.full(len(of), np.nan), where=of > 0)

    def metric(self, rate: str, group: int) -> Metric:
        value = float(self.values(rate)[group])
        if math.isnan(value):
            return Metric(math.nan, note="audit.nothing_to_share")
        return Metric(value, *wilson(self.hits[rate][group], self.of[rate][group]))


def rates(truth: Any, answer: Any, groups: Sequence[Any], right: Any = None) -> Rates:
    """truth, answer: 0 or 1 (N,), or None where no answer is the favoured one; groups: one name a row.

    `right`: bool (N,) where "right" is not `truth == answer` (more than two classes).
    """
    names, index = np.unique(np.asarray([str(g) for g in groups], dtype=object), return_inverse=True)
    count = lambda which: np.bincount(index[np.asarray(which, bool)], minlength=len(names))  # noqa: E731
    every = np.ones(len(index), bool)
    hits, of = {}, {}
    if answer is not None:
        truth, answer = np.asarray(truth, bool).ravel(), np.asarray(answer, bool).ravel()
        hits = {
            "selection_rate": count(answer),
            "true_positive_rate": count(answer & truth),
            "false_positive_rate": count(answer & ~truth),
        }
        of = {"selection_rate": count(every), "true_positive_rate": count(truth), "false_positive_rate": count(~truth)}
        right = truth == answer if right is None else right
    hits["accuracy"], of["accuracy"] = count(right), count(every)
    return Rates(tuple(names), count(every), hits, of)


def difference(found: Rates, rate: str, *, seed: int = 0, share: int = 1) -> Metric:
    """Largest minus smallest value over groups. `share`: how many of these are looked at together."""
    values, draws = _drawn(found, rate, seed)
    if len(values) < 2:
        return Metric(math.nan, note="audit.one_group")
    tail = _tail(len(values), share)
    lows, highs = [], []
    for i, j in combinations(range(len(values)), 2):
        low, high = np.quantile(draws[i] - draws[j], [tail, 1 - tail])
        lows.append(max(0.0, low, -high))
        highs.append(max(abs(low), abs(high)))
    value = float(values.max() - values.min())
    return Metric(value, min(float(max(lows)), value), max(float(max(highs)), value))


def ratio(found: Rates, rate: str, *, seed: int = 0, share: int = 1) -> Metric:
    """Smallest over largest value; 1 is alike. NaN where all are zero."""
    values, draws = _drawn(found, rate, seed)
    if len(values) < 2 or not values.max() > 0:
        return Metric(math.nan, note="audit.one_group" if len(values) < 2 else "audit.nothing_selected")
    tail = _tail(len(values), share)
    lows, highs = [], []
    for i, j in combinations(range(len(values)), 2):
        low, high = np.quantile(draws[i] / draws[j], [tail, 1 - tail])  # of i over j; j over i is its inverse
        lows.append(min(low, 1 / high))
        highs.append(min(1.0, max(high, 1 / low)) if low <= 1 <= high else high if high < 1 else 1 / low)
    value = float(values.min() / values.max())
    return Metric(value, min(float(min(lows)), value), max(float(min(highs)), value))


def _drawn(found: Rates, rate: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of the groups that have one, (g,), and draws of what they may be, (g, DRAWS)."""
    of, hits = found.of[rate], found.hits[rate]
    there = of > 0
    rng = np.random.default_rng([seed, RATES.index(rate)])
    k, n = hits[there][:, None], of[there][:, None]
    return found.values(rate)[there], rng.beta(k + 0.5, n - k + 0.5, (int(there.sum()), DRAWS))


def _tail(groups: int, share: int) -> float:
    return 0.025 / (share * groups * (groups - 1) / 2)


def _worst(parts: Sequence[Metric], pick: Any) -> Metric:
    """The larger (or smaller) of several metrics, its interval put together likewise."""
    there = [p for p in parts if not math.isnan(p.value)]
    if not there:
        return parts[0]
    return Metric(*(pick(getattr(p, side) for p in there) for side in ("value", "low", "high")))


def summary(found: Rates, *, seed: int = 0) -> dict[str, Metric]:
    """Fairlearn's numbers over groups. Equalised odds take the worse of both rates (Hardt, Price, Srebro 2016)."""
    result = {"accuracy_score_difference": difference(found, "accuracy", seed=seed)}
    if "selection_rate" not in found.of:
        return result
    odds = ("true_positive_rate", "false_positive_rate")
    return {
        "demographic_parity_difference": difference(found, "selection_rate", seed=seed),
        "demographic_parity_ratio": ratio(found, "selection_rate", seed=seed),
        "equalized_odds_difference": _worst([difference(found, r, seed=seed, share=2) for r in odds], max),
        "equalized_odds_ratio": _worst([ratio(found, r, seed=seed, share=2) for r in odds], min),
        "equal_opportunity_difference": difference(found, odds[0], seed=seed),
        "equal_opportunity_ratio": ratio(found, odds[0], seed=seed),
        **result,
    }


def four_fifths(found: Rates, parity: Metric) -> str:
    """The verdict on the 0.8 rule: "kept", "broken" or "cannot_tell": a group too small, or an interval that spans 0.8."""
    if math.isnan(parity.value) or parity.low is None or found.counts.min() < LEAST:
        return "cannot_tell"
    if parity.low >= FOUR_FIFTHS:
        return "kept"
    return "broken" if parity.high < FOUR_FIFTHS else "cannot_tell"
