"""How the answers fall for groups of rows that share a value of one column, whether the model reads that column or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from luban.columns.base import text_of
from luban.errors import DataError, RequestError, problem
from luban.evaluation import fairness, intervals, views
from luban.evaluation.table import Predictions, Table
from luban.messages import say

MANY = 10  # different numbers above which they are cut into quarters
MOST = 50  # groups


def groups_of(values: Sequence[Any], name: str) -> list[str]:
    """A group's name for every row: the value; a quarter of the range for columns of many numbers; one for missing ones.

    Raises DataError where there would be more than 50.
    """
    texts = [text_of(v) for v in values]
    found = {t for t in texts if t}
    numbers = _numbers(found) if len(found) > MANY else None
    names = {t: _quarter(numbers, numbers[t]) for t in found} if numbers else {t: t for t in found}
    if len(set(names.values())) > MOST:
        raise DataError("audit.too_many_groups", name=name, count=len(set(names.values())), most=MOST)
    missing = say("audit.missing")
    return [names[t] if t else missing for t in texts]


def _numbers(texts: set[str]) -> dict[str, float] | None:
    try:
        return {t: float(t) for t in texts}
    except ValueError:
        return None


def _quarter(numbers: dict[str, float], value: float) -> str:
    """Quarters of the different values, so that a crowd at one value does not swallow an edge."""
    edges = np.quantile(list(numbers.values()), [0, 0.25, 0.5, 0.75, 1])
    at = min(int(np.searchsorted(edges[1:-1], value, side="right")), 3)
    return f"{at + 1}: {edges[at]:.4g} – {edges[at + 1]:.4g}"


def favoured(labels: Sequence[str], positive: str | None, name: str) -> int | None:
    """The class number that counts as selected: the named one, the last of two, None where neither.

    Raises RequestError for a label that is not there.
    """
    if positive is None:
        return 1 if len(labels) == 2 else None
    if positive not in labels:
        raise RequestError(problem("audit.no_label", place=name, name=positive, allowed=labels))
    return labels.index(positive)


def of_classes(predictions: Predictions, groups: list[str], positive: int | None) -> fairness.Rates:
    """Rates of the rows whose truth is known."""
    known = predictions.known
    truth = predictions.truth[known] - 1
    answer = predictions.column.probabilities(predictions.raw)[known].argmax(1)
    kept = [g for g, k in zip(groups, known) if k]
    if positive is None:
        return fairness.rates(None, None, kept, right=answer == truth)
    return fairness.rates(truth == positive, answer == positive, kept, right=answer == truth)


def of_numbers(predictions: Predictions, groups: list[str], seed: int) -> dict[str, dict[str, Any]]:
    """Per group the mean absolute error and the mean error (answer - truth), in raw units."""
    known = predictions.known
    truth = np.array([predictions.column.decode(t).value for t in predictions.truth[known]], float)
    answers = np.array([a.value for a, k in zip(predictions.answers, known) if k], float)
    names = np.array(groups, object)[known]
    result = {}
    for name in sorted(set(names)):
        error = (answers - truth)[names == name]
        result[name] = {
            "rows": len(error),
            "mae": intervals.mean(np.abs(error), seed=seed),
            "mean_error": intervals.mean(error, seed=seed),
        }
    return result


def write_classes(report: Any, name: str, found: fairness.Rates, summary: dict[str, Any], favour: str | None) -> str:
    """Tables and the verdict on the four-fifths rule; gives the verdict."""
    report.heading(say("audit.groups", name=name), 3)
    rates = [r for r in fairness.RATES if r in found.of]
    rows = [
        [group, int(found.counts[i]), *(found.metric(r, i).to_json() for r in rates), _small(found, i)]
        for i, group in enumerate(found.groups)
    ]
    report.table(say("audit.by_group"), [say("audit.group"), say("evaluate.rows"), *rates, ""], rows)
    told = [[m, v.to_json()] for m, v in summary.items() if v.value == v.value]
    report.table(say("audit.over_groups"), [say("evaluate.metric"), say("card.value")], told)
    if favour is None:
        report.note("info", say("audit.accuracy_only"))
        return "cannot_tell"
    parity = summary["demographic_parity_ratio"]
    verdict = fairness.four_fifths(found, parity)
    values = {"label": favour, "least": fairness.LEAST} | {
        k: "-" if getattr(parity, k) is None else f"{getattr(parity, k):.2f}" for k in ("value", "low", "high")
    }
    level = {"kept": "good", "broken": "bad", "cannot_tell": "warn"}[verdict]
    unknown = parity.note if parity.value != parity.value else None  # why there is no such share
    report.note(level, say(unknown) if unknown else say(f"audit.four_fifths.{verdict}", **values))
    return verdict


def _small(found: fairness.Rates, group: int) -> str:
    return say("evaluate.cannot_tell") if found.counts[group] < fairness.LEAST else ""


def write_numbers(report: Any, name: str, found: dict[str, dict[str, Any]]) -> None:
    report.heading(say("audit.groups", name=name), 3)
    rows = [[group, n["rows"], n["mae"].to_json(), n["mean_error"].to_json()] for group, n in found.items()]
    report.table(say("audit.by_group"), [say("audit.group"), say("evaluate.rows"), "mae", "mean_error"], rows)


def of_view(output: str, judged: Table, groups: list[str], seed: int) -> dict[str, dict[str, Any]]:
    """Per group every metric that its rows are judged by, those whose truth is known."""
    names, known, result = np.array(groups, object), judged.outputs[output].known, {}
    for name in sorted(set(names[known])):
        some = judged.take(np.flatnonzero((names == name) & known))
        seen = views.view(output, some.outputs[output], some, resamples=500, seed=seed)
        result[name] = {"rows": len(some), **seen.metrics}
    return result


def write_view(report: Any, name: str, found: dict[str, dict[str, Any]]) -> None:
    report.heading(say("audit.groups", name=name), 3)
    metrics = list(dict.fromkeys(m for n in found.values() for m in n if m != "rows"))
    small = lambda n: say("evaluate.cannot_tell") if n["rows"] < fairness.LEAST else ""  # noqa: E731
    told = lambda n, m: n[m].to_json() if m in n else ""  # noqa: E731
    rows = [[g, n["rows"], *(told(n, m) for m in metrics), small(n)] for g, n in found.items()]
    report.table(say("audit.by_group"), [say("audit.group"), say("evaluate.rows"), *metrics, ""], rows)
