"""The report of an explanation: over all rows, then row by row, each with its own error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from luban import plots
from luban.columns.base import Column
from luban.markup import number
from luban.messages import say
from luban.report import Report

if TYPE_CHECKING:
    from luban.stages.explain import Explanation

SHOWN = 50  # rows drawn; all of them stand in the numbers
BARS = 20
GOOD_GAP, GOOD_FIT, GOOD_Z = 0.01, 0.8, 2.0


def page(found: Explanation, columns: Mapping[str, Column], settings: Mapping[str, Any]) -> Report:
    report = Report("explain", say("explain.title", output=found.output), numbers(found, settings))
    report.text(say(f"explain.about.{found.method}"))
    report.text(say("explain.scale.class" if hasattr(columns[found.output], "labels") else "explain.scale.number"))
    verdict(report, found)
    overall(report, found)
    report.heading(say("explain.rows"))
    report.table("", *summary(found))
    for i in range(min(len(found.examples), SHOWN)):
        one(report, found, columns, i)
    if len(found.examples) > SHOWN:
        report.note("info", say("explain.more_rows", shown=SHOWN, all=len(found.examples)))
    return report


def numbers(found: Explanation, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything for machines; weights per row, column and segment."""
    rows = []
    for i, (e, parts) in enumerate(zip(found.examples, found.by_column())):
        row: dict[str, Any] = {"row": e.row, "answer": found.answers[i].value, "explained": found.explained[i]}
        row |= {"probability": found.answers[i].probability, "score": found.score[i], "baseline": found.baseline[i]}
        row |= {"weights": parts, "segments": {n: s.names for n, s in e.segments.items() if len(s.names) != 1}}
        if found.error is not None:
            row["standard_errors"] = e.split(found.error[i])
        rows.append(row | errors(found, i))
    return {
        "method": found.method,
        "output": found.output,
        **settings,
        "columns": dict(importance(found)),
        "without": list(found.without),
        "error": {n: float(np.nanmax(v)) for n, v in _errors(found).items() if np.isfinite(v).any()},
        "rows": rows,
    }


def _errors(found: Explanation) -> dict[str, np.ndarray]:
    result = {}
    if found.completeness is not None:
        result |= {"gap": found.completeness.gap, "gap_relative": found.completeness.relative}
    result |= dict(found.own)
    return result | {
        "deletion": found.deletion.own,
        "deletion_random": found.deletion.chance,
        "deletion_z": found.deletion.z,
    }


def errors(found: Explanation, i: int) -> dict[str, Any]:
    return {n: v[i].item() for n, v in _errors(found).items()}


def importance(found: Explanation) -> list[tuple[str, float]]:
    """Mean over the rows of the column's share: the sum of its segments' absolute weights, largest first."""
    sizes: dict[str, list[float]] = {}
    for parts in found.by_column():
        for name, w in parts.items():
            if name not in found.without:
                sizes.setdefault(name, []).append(float(np.abs(w).sum()))
    return sorted(((n, float(np.mean(v))) for n, v in sizes.items()), key=lambda pair: -pair[1])


def verdict(report: Report, found: Explanation) -> None:
    """The method's own error over all rows, as one remark each."""
    z = found.deletion.z[np.isfinite(found.deletion.z)]
    if found.completeness is not None:
        worst = np.nanmax(found.completeness.relative, initial=0.0)
        values = {"gap": number(float(found.completeness.gap.max())), "percent": f"{100 * worst:.2g}"}
        report.note("good" if worst <= GOOD_GAP else "warn", say("explain.error.completeness", **values))
    if "standard_error" in found.own:
        exact = bool(np.all(found.own["exact"]))
        worst = number(float(found.own["standard_error"].max()))
        report.note(
            "good" if exact else "info", say("explain.error.exact" if exact else "explain.error.sampling", error=worst)
        )
    if "fit" in found.own:
        fit = float(np.median(found.own["fit"]))
        values = {"fit": f"{fit:.3f}", "error": number(float(np.median(found.own["surrogate_error"])))}
        report.note("good" if fit >= GOOD_FIT else "warn", say("explain.error.fit", **values))
    if found.method == "grad-cam":
        report.note("warn", say("explain.error.none"))
    if found.without:
        report.note("warn", say("explain.without", inputs=list(found.without)))
    if len(z):
        mean = float(z.mean())
        report.note("good" if mean >= GOOD_Z else "warn", say("explain.error.deletion", z=f"{mean:.1f}", orders=20))


def overall(report: Report, found: Explanation) -> None:
    ranked = importance(found)
    if len(ranked) > 1:
        names, values = zip(*ranked[:BARS])
        title = say("explain.importance", rows=len(found.examples))
        report.plot(title, plots.bars(names, values, x_label=say("explain.importance.axis")))


def summary(found: Explanation) -> tuple[list[str], list[list[Any]]]:
    """One line a row: what was answered and explained, from which score to which, and the errors."""
    own = {n: v for n, v in _errors(found).items() if n not in ("deletion", "deletion_random", "exact")}
    heads = ["row", "answer", "probability", "explained", "baseline", "score", *own]
    lines = []
    for i, e in enumerate(found.examples):
        a = found.answers[i]
        line = [e.row, _value(a.value), a.probability, _value(found.explained[i])]
        lines.append([*line, float(found.baseline[i]), float(found.score[i]), *(v[i].item() for v in own.values())])
    return [say(f"explain.column.{h}") for h in heads], lines


def _value(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def one(report: Report, found: Explanation, columns: Mapping[str, Column], i: int) -> None:
    """One row: a bar for each column, and every column with several segments as a person sees it."""
    e, parts = found.examples[i], found.by_column()[i]
    parts = {n: w for n, w in parts.items() if n not in found.without}
    report.heading(say("explain.row", row=e.row, answer=_value(found.explained[i])), 3)
    for name, w in parts.items():
        if len(w) > 1:
            most = np.abs(w).max()
            report.html(
                name, columns[name].render(e.raw[name], (w / most if most > 0 else w).tolist()), _said(found, i)
            )
    ranked = sorted(parts, key=lambda n: -abs(parts[n].sum()))
    if len(ranked) == 1 and len(parts[ranked[0]]) > 1:
        return
    bars = {_label(name, e, parts[name]): float(parts[name].sum()) for name in ranked[:BARS]}
    if len(ranked) > BARS:
        bars[say("explain.others", count=len(ranked) - BARS)] = sum(float(parts[n].sum()) for n in ranked[BARS:])
    whiskers = None
    if found.error is not None and not found.own["exact"][i] and len(ranked) <= BARS:
        error = {n: 1.96 * float(np.sqrt((s**2).sum())) for n, s in e.split(found.error[i]).items()}
        whiskers = [[bars[_label(n, e, parts[n])] - error[n], bars[_label(n, e, parts[n])] + error[n]] for n in ranked]
    report.plot("", plots.bars(list(bars), list(bars.values()), whiskers, signed=True), _said(found, i))


def _label(name: str, e: Any, weights: np.ndarray) -> str:
    value = e.raw[name]
    return (
        name
        if len(weights) != 1 or not isinstance(value, (str, int, float, bool, type(None)))
        else f"{name} = {_value(value)}"
    )


def _said(found: Explanation, i: int) -> str:
    """The row's own error in words."""
    own = errors(found, i)
    parts = [say("explain.said.ends", score=number(float(found.score[i])), baseline=number(float(found.baseline[i])))]
    if "gap" in own:
        percent = own["gap_relative"]
        parts.append(
            say(
                "explain.said.gap",
                gap=number(own["gap"]),
                percent="–" if percent != percent else f"{100 * percent:.2g}",
            )
        )
    if "fit" in own:
        parts.append(say("explain.said.fit", fit=f"{own['fit']:.3f}", error=number(own["surrogate_error"])))
    if "standard_error" in own and not own["exact"]:
        parts.append(say("explain.said.sampling", error=number(own["standard_error"])))
    if own["deletion_z"] == own["deletion_z"]:
        parts.append(say("explain.said.deletion", z=f"{own['deletion_z']:.1f}"))
    return " ".join(parts)
