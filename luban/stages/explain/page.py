"""The report of an explanation: over all rows, then row by row, each with its own error."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from luban import plots
from luban.columns.base import Column
from luban.markup import number
from luban.messages import say, together
from luban.report import Report
from luban.stages.explain.attention import draw

if TYPE_CHECKING:
    from luban.stages.explain import Explanation
    from luban.stages.explain.game import Example

SHOWN = 50  # rows drawn; all of them stand in the numbers
BARS = 20
GOOD_GAP, GOOD_SHARE, GOOD_FIT, GOOD_Z, FAIR_Z = 0.01, 0.001, 0.8, 2.0, 1.0


def page(found: Explanation, columns: Mapping[str, Column], settings: Mapping[str, Any]) -> Report:
    report = Report("explain", say("explain.title", output=found.output), numbers(found, settings))
    report.text(say(f"explain.about.{found.method}"))
    answer = columns[found.output]
    kind = "class" if hasattr(answer, "labels") else "written" if hasattr(answer, "begin") else "number"
    kind = "map" if found.method == "grad-cam" else kind
    report.text(say(f"explain.scale.{kind}"))
    verdict(report, found)
    overall(report, found)
    report.heading(say("explain.rows"))
    report.table("", *summary(found, columns[found.output]))
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
        row |= {"probability": probability(found, i), "score": found.score[i], "baseline": found.baseline[i]}
        row |= {"weights": parts, "segments": {n: s.names for n, s in e.segments.items() if len(s.names) != 1}}
        if found.error is not None:
            row["standard_errors"] = e.split(found.error[i])
        if i in found.by_token:
            row["by_token"] = dict(zip(("tokens", "weights"), found.by_token[i]))
        if i in found.attention:
            row["attention"] = [look.to_json() for look in found.attention[i]]
        if nothing := empty(found, i):
            row["empty"] = nothing
        rows.append(row | errors(found, i))
    return {
        "method": found.method,
        "output": found.output,
        **settings,
        "columns": dict(importance(found)),
        "without": list(found.without),
        "error": {n: overall_error(n, v) for n, v in _errors(found).items() if np.isfinite(v).any()},
        "rows": rows,
    }


def _errors(found: Explanation) -> dict[str, np.ndarray]:
    result = {}
    if found.completeness is not None:
        result |= {"gap": found.completeness.gap, "gap_relative": found.completeness.relative}
        result["gap_share"] = found.completeness.share
    result |= dict(found.own)
    return result | {
        "deletion": found.deletion.own,
        "deletion_random": found.deletion.chance,
        "deletion_z": found.deletion.z,
    }


def empty(found: Explanation, i: int) -> list[str]:
    """Inputs of a row whose map is zero everywhere: what speaks for the answer is cut off at zero, and sometimes nothing is left."""
    parts = found.by_column()[i] if found.method == "grad-cam" else {}
    return [n for n, w in parts.items() if n not in found.without and not np.any(w)]


def overall_error(name: str, values: np.ndarray) -> float | bool:
    """The worst row's; the mean for the deletion check."""
    if name == "exact":
        return bool(values.all())
    return float(
        np.nanmean(values) if name.startswith("deletion") else np.nanmin(values) if name == "fit" else np.nanmax(values)
    )


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
        gap, relative, share = found.completeness
        good = (gap <= 1e-9) | (relative <= GOOD_GAP) | (share <= GOOD_SHARE)
        values = {"gap": number(float(gap.max()), 2), "share": _percent(np.nanmax(share, initial=0.0))}
        values["percent"] = _percent(np.nanmax(relative, initial=0.0))
        report.note("good" if good.all() else "warn", say("explain.error.completeness", **values))
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
        if count := sum(bool(empty(found, i)) for i in range(len(found.examples))):
            report.note("warn", say("explain.empty", rows=count, all=len(found.examples)))
    if found.without:
        report.note("warn", say("explain.without", inputs=list(found.without)))
    if len(z):
        mean = float(z.mean())
        report.note(
            "good" if mean >= GOOD_Z else "info" if mean >= FAIR_Z else "warn",
            say("explain.error.deletion", z=f"{mean:.1f}", orders=20),
        )


def overall(report: Report, found: Explanation) -> None:
    ranked = importance(found)
    if len(ranked) > 1 and found.method != "grad-cam":  # maps of several inputs have no common scale
        names, values = zip(*ranked[:BARS])
        title = say("explain.importance", rows=len(found.examples))
        report.plot(title, plots.bars(names, values, x_label=say("explain.importance.axis")))


def probability(found: Explanation, i: int) -> float | None:
    """That of what is explained, which need not be what was answered; None where the answer does not tell it."""
    answer, explained = found.answers[i], found.explained[i]
    if isinstance(explained, Mapping):
        return explained.get("score")
    return answer.probability if explained == answer.value else dict(answer.candidates).get(explained)


def summary(found: Explanation, column: Column) -> tuple[list[str], list[list[Any]]]:
    """One line a row: what was answered and explained, from which score to which, and the errors."""
    hidden = ("deletion", "deletion_random", "exact", "steps", "gap", "gap_share")
    own = {n: v for n, v in _errors(found).items() if n not in hidden}
    answered = [_value(column.legible(a)) for a in found.answers]
    chances = [probability(found, i) for i in range(len(found.answers))]
    told: dict[str, list[Any]] = {"row": [e.row for e in found.examples], "answer": answered}
    if any(p is not None for p in chances):
        told["probability"] = chances
    if (explained := [_value(column.named(a, e)) for a, e in zip(found.answers, found.explained)]) != answered:
        told["explained"] = explained
    told |= {"baseline": found.baseline.tolist(), "score": found.score.tolist()} | {
        n: v.tolist() for n, v in own.items()
    }
    return [say(f"explain.column.{h}") for h in told], [list(line) for line in zip(*told.values())]


def _value(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def one(report: Report, found: Explanation, columns: Mapping[str, Column], i: int) -> None:
    """One row: its own error, every column with several segments as a person sees it, and a bar for each column."""
    e, answer, explained, column = found.examples[i], found.answers[i], found.explained[i], columns[found.output]
    parts = {n: w for n, w in e.split(found.weights[i]).items() if n not in found.without}
    report.heading(say("explain.row", row=e.row, answer=_value(column.named(answer, explained))), 3)
    report.text(_said(found, i))
    for name, w in parts.items():
        if len(w) > 1:
            most = np.abs(w).max()
            drawn = columns[name].render(e.raw[name], (w / most if most > 0 else w).tolist())
            its = column.of_form and name == column.of  # type: ignore[attr-defined]
            report.html(name, column.marked(drawn, answer, explained, e.raw[name]) if its else drawn)
    if i in found.by_token and found.method == "grad-cam":
        report.html(say("explain.words"), _strip(found, columns, i))
        if words := [word for word, weights in zip(*found.by_token[i]) if not np.nan_to_num(weights).any()]:
            report.text(say("explain.empty_words", words=words))
    elif i in found.by_token and len(found.by_token[i][0]) > 1:  # of one token it says what stands above
        tokens, matrix = found.by_token[i]
        segments = [n for s in e.segments.values() for n in s.names]
        axes = {"x_label": say("explain.segments"), "y_label": say("explain.tokens")}
        drawn = plots.heatmap(matrix, tokens, segments, show_values=False, signed=True, **axes)
        report.plot(say("explain.matrix"), drawn, say("explain.matrix_caption"))
    if found.method != "grad-cam" and (len(parts) > 1 or any(len(w) == 1 for w in parts.values())):
        report.plot("", _bars(found, e, parts, i))
    if i in found.attention:
        draw(report, found.attention[i])


def _strip(found: Explanation, columns: Mapping[str, Column], i: int) -> str:
    """What each word of the answer was read off, side by side; the strongest place of each map is 1."""
    e, shown = found.examples[i], []
    for word, weights in zip(*found.by_token[i]):
        for name, w in e.split(weights).items():
            if name not in found.without:
                most = np.abs(w).max()
                drawn = columns[name].render(e.raw[name], (w / most if most > 0 else w).tolist())
                shown.append(f"<figure>{drawn}<figcaption>{html.escape(word)}</figcaption></figure>")
    return f'<div class="strip">{"".join(shown)}</div>'


def _bars(found: Explanation, e: Example, parts: Mapping[str, np.ndarray], i: int) -> str:
    """A signed bar a column, the sum of its segments; whiskers are 95 % of the sampling error."""
    sums = {n: float(w.sum()) for n, w in parts.items()}
    ranked = sorted(sums, key=lambda n: -abs(sums[n]))
    shown, rest = ranked[:BARS], ranked[BARS:]
    names, values = [_label(n, e, parts[n]) for n in shown], [sums[n] for n in shown]
    whiskers = None
    if found.error is not None and not found.own["exact"][i]:
        error = {n: 1.96 * float(np.sqrt((s**2).sum())) for n, s in e.split(found.error[i]).items()}
        whiskers = [[sums[n] - error[n], sums[n] + error[n]] for n in shown] + [[np.nan, np.nan]] * bool(rest)
    if rest:
        names, values = [*names, say("explain.others", count=len(rest))], [*values, sum(sums[n] for n in rest)]
    return plots.bars(names, values, whiskers, signed=True)


def _label(name: str, e: Example, weights: np.ndarray) -> str:
    value = e.raw[name]
    return (
        name
        if len(weights) != 1 or not isinstance(value, (str, int, float, bool, type(None)))
        else f"{name} = {_value(value)}"
    )


def _percent(share: float) -> str:
    return number(100 * share, 2) if share != share or share > 1e-5 else "< 0.001"


def _said(found: Explanation, i: int) -> str:
    """The row's own error in words."""
    own = errors(found, i)
    parts = [say("explain.said.ends", score=number(float(found.score[i])), baseline=number(float(found.baseline[i])))]
    if "gap" in own:
        parts.append(say("explain.said.gap", gap=number(own["gap"], 2), percent=_percent(own["gap_relative"])))
    if "fit" in own:
        parts.append(say("explain.said.fit", fit=f"{own['fit']:.3f}", error=number(own["surrogate_error"])))
    if "standard_error" in own and not own["exact"]:
        parts.append(say("explain.said.sampling", error=number(own["standard_error"])))
    if nothing := empty(found, i):
        parts.append(say("explain.said.empty", inputs=nothing))
    if own["deletion_z"] == own["deletion_z"]:
        parts.append(say("explain.said.deletion", z=f"{own['deletion_z']:.1f}"))
    return together(*parts)
