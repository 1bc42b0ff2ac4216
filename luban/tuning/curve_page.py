"""What a learning curve says, as a chapter of the report: scores with intervals, three pictures, two sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from luban import search_plots
from luban.data.prepare import Data
from luban.evaluation import pairs
from luban.evaluation.table import Table, table
from luban.messages import say, together
from luban.report import Report
from luban.settings import SIZES
from luban.tuning.curve import Curve, Point
from luban.tuning.verdicts import Step, interval, larger_network, more_rows, step

NAMES = ("more_rows", "larger_network")


def answers(curve: Curve, data: Data) -> dict[str, Step | None]:
    """The two steps, each decided on the validation rows that both of its models have answered."""
    from luban.bundle import Bundle

    told: dict[tuple[int, str, int], Table] = {}

    def answered(point: Point, repeat: int) -> Table:
        at = (point.rows, point.size, repeat)
        if at not in told:
            told[at] = table(Bundle.load(curve.home(point, repeat)), data, data.part("validation"))
        return told[at]

    def compare(before: Point, after: Point, repeat: int) -> dict[str, Any]:
        both = answered(before, repeat), answered(after, repeat)
        return pairs.between(*both, curve.goal.output, curve.goal.metric)

    steps = (more_rows(curve), larger_network(curve))
    return {name: step(curve, *s, compare) if s else None for name, s in zip(NAMES, steps)}


def page(curve: Curve, steps: Mapping[str, Step | None], settings: Mapping[str, Any]) -> Report:
    """Report of kind "curve"."""
    report = Report("curve", say("curve.title"))
    facts = [_facts(p, curve) for p in curve.points]
    report.numbers = {
        "metric": curve.goal.name, "higher": curve.goal.higher, "judged_on": "validation", "repeats": curve.repeats,
        "points": facts, "settings": dict(settings), **{n: _plain(s) for n, s in steps.items()},
    }  # fmt: skip
    for name, found in steps.items():
        if found:
            report.note(
                {"helps": "good", "no": "info", "cannot_tell": "warn"}[found.verdict], sentence(name, found, curve)
            )
    report.text(
        say("curve.how" if curve.repeats > 1 else "curve.how_once", repeats=curve.repeats, metric=curve.goal.name)
    )
    _pictures(report, curve, facts)
    head = [
        say("curve.rows"),
        say("curve.size"),
        say("compare.parameters"),
        curve.goal.name,
        say("curve.epochs"),
        say("report.seconds"),
    ]
    body = [
        [
            f["rows"],
            f["size"],
            f["parameters"],
            {k: f[k] for k in ("value", "low", "high")},
            f["epochs"],
            f"{f['seconds']:.1f} s",
        ]
        for f in sorted(facts, key=lambda f: (SIZES.index(f["size"]), f["rows"]))
    ]
    return report.table(say("curve.points"), head, body)


def _facts(point: Point, curve: Curve) -> dict[str, Any]:
    most = 1.0 if curve.goal.higher else math.inf  # shares, and the share of variance that r2 is
    value, low, high = interval(point, curve.points, most)
    return {
        "rows": point.rows, "size": point.size, "parameters": int(point.mean("parameters")), "value": value, "low": low,
        "high": high, "scores": point.scores.tolist(), "epochs": round(point.mean("epochs"), 1), "seconds": point.mean("seconds"),
    }  # fmt: skip


def _plain(found: Step | None) -> dict[str, Any] | None:
    if found is None:
        return None
    side = lambda p: {"rows": p.rows, "size": p.size}  # noqa: E731
    return asdict(found) | {"before": side(found.before), "after": side(found.after)}


def sentence(name: str, found: Step, curve: Curve) -> str:
    """The verdict, and the step that it rests on."""
    values = {
        "metric": curve.goal.name, "gain": f"{found.gain:+.4f}", "low": f"{found.low:+.4f}", "high": f"{found.high:+.4f}",
        "enough": f"{found.enough:.4g}",
    }  # fmt: skip
    where = (
        say("curve.step_rows", before=f"{found.before.rows:,}", after=f"{found.after.rows:,}", **values)
        if name == "more_rows"
        else say("curve.step_size", before=found.before.size, after=found.after.size, **values)
    )
    return together(say(f"curve.{name}_{found.verdict}", **values), where)


def _pictures(report: Report, curve: Curve, facts: list[dict[str, Any]]) -> None:
    name = curve.goal.name
    point = lambda f, x: (f[x], f["value"], f["low"], f["high"])  # noqa: E731
    sizes = [s for s in SIZES if any(f["size"] == s for f in facts)]
    most = max(f["rows"] for f in facts)
    by_rows = {s: sorted(point(f, "rows") for f in facts if f["size"] == s) for s in sizes}
    report.plot(
        say("curve.by_rows"),
        search_plots.whiskers(by_rows, title=say("curve.by_rows"), x_label=say("curve.rows"), y_label=name),
        say("curve.caption"),
    )
    if len(sizes) > 1:
        by_parameters = {say("curve.all_rows"): sorted(point(f, "parameters") for f in facts if f["rows"] == most)}
        title = say("curve.by_parameters")
        drawn = search_plots.whiskers(by_parameters, title=title, x_label=say("compare.parameters"), y_label=name)
        report.plot(title, drawn)
    by_time = {
        s: sorted((max(f["seconds"], 1e-3) / 60, *point(f, "rows")[1:]) for f in facts if f["size"] == s) for s in sizes
    }
    title = say("curve.by_time")
    report.plot(title, search_plots.whiskers(by_time, title=title, x_label=say("curve.minutes"), y_label=name))
