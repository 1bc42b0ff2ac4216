"""Two Bundles on the same rows: by how much one is better, with an interval, and a verdict that may be "cannot tell"."""

from __future__ import annotations

from typing import Any

import numpy as np

from luban.errors import Unsupported
from luban.evaluation import answers, intervals, paired, views
from luban.evaluation.entities import Counts
from luban.evaluation.table import Predictions, Table, table
from luban.space import HIGHER


def difference(
    before: Any, after: Any, data: Any, output: str, metric: str = "auto", rows: np.ndarray | None = None
) -> dict[str, Any]:
    """`after` minus `before` on `rows` (the held-out ones by default).

    {"metric", "value", "low", "high", "rows", "verdict": better | worse | cannot_tell}; better is meant, not larger.
    """
    rows = data.held_out()[1] if rows is None else rows
    return between(table(before, data, rows), table(after, data, rows), output, metric)


def between(before: Table, after: Table, output: str, metric: str = "auto", seed: int = 0) -> dict[str, Any]:
    """As `difference`, of two models that have answered the same rows already."""
    first, second = before.outputs[output], after.outputs[output]
    kind = second.column.type
    if kind in COMPARED and second.losses is None:
        name, compared, up = views.MAIN[kind][0], COMPARED[kind](first, second, seed), HIGHER[kind]
    else:
        name, compared, up = _viewed(before, after, output, seed)
    metric = name if metric == "auto" else metric
    found = compared[metric]
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    said = verdict(low, high, up[metric])
    return {"metric": metric, "value": found.value, "low": low, "high": high, "rows": len(after), "verdict": said}


def _viewed(before: Table, after: Table, output: str, seed: int) -> tuple[str, dict[str, Any], dict[str, bool]]:
    """The main metric, the differences and where higher is better, of kinds of answer that bring their own difference.

    Raises Unsupported for one that brings none.
    """
    if after.outputs[output].column.form == "grid":  # pictures that were made are judged by a third model
        raise Unsupported("compare.not_paired", output=output)
    one, other = (views.view(output, t.outputs[output], t, resamples=500, seed=seed) for t in (before, after))
    name, up = other.main
    return name, one.difference(other), {**HIGHER.get(other.kind, {}), name: up}


def verdict(low: float, high: float, higher: bool) -> str:
    if not higher:
        low, high = -high, -low
    return "better" if low > 0 else "worse" if high < 0 else "cannot_tell"


def _classes(first: Predictions, second: Predictions, seed: int) -> dict[str, Any]:
    """Two models may know different labels, where one has seen fewer rows: compared over all that either knows."""
    labels = list(dict.fromkeys([*second.column.labels, *first.column.labels]))
    known = first.known & second.known
    truth = np.full(len(known), -1)
    for p in (first, second):
        own = np.array([labels.index(v) for v in p.column.labels])
        told = p.known & (p.truth > 0)
        truth[told] = own[p.truth[told].astype(int) - 1]
    spread = [_over(p, labels)[known] for p in (first, second)]
    return paired.of_classes(truth[known], *spread, seed=seed)


def _tags(first: Predictions, second: Predictions, seed: int) -> dict[str, Any]:
    known = first.known & second.known
    counts = [
        Counts(
            [t for t, k in zip(p.truth, known) if k], [a.value for a, k in zip(p.answers, known) if k], p.column.kind
        )
        for p in (first, second)
    ]
    return paired.of_counts(*counts, seed=seed)


def _spans(first: Predictions, second: Predictions, seed: int) -> dict[str, Any]:
    known = first.known & second.known
    truth = [t for t, k in zip(second.truth, known) if k]
    scores = [answers.by_row(truth, [a.value for a, k in zip(p.answers, known) if k]) for p in (first, second)]
    there, every = np.array([bool(t) for t in truth], bool), np.ones(len(truth), bool)
    parts = {"exact_match": (0, every), "f1": (1, every), "has_answer_exact_match": (0, there)}
    parts |= {"has_answer_f1": (1, there), "no_answer_accuracy": (0, ~there)}
    return {n: intervals.paired_difference(scores[1][k][w], scores[0][k][w], seed=seed) for n, (k, w) in parts.items()}


def _over(p: Predictions, labels: list[str]) -> np.ndarray:
    found = np.zeros((len(p.known), len(labels)))
    found[:, [labels.index(v) for v in p.column.labels]] = p.column.probabilities(p.raw)
    return found


def _numbers(first: Predictions, second: Predictions, seed: int) -> dict[str, Any]:
    known = first.known & second.known
    state = second.column.state
    truth = second.truth[known].astype(np.float64) * state["deviation"] + state["mean"]
    answers = [np.array([a.value for a in p.answers], float)[known] for p in (first, second)]
    return paired.of_numbers(truth, *answers, seed=seed)


COMPARED = {"category": _classes, "tags": _tags, "span": _spans, "number": _numbers}
