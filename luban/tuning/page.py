"""What a search found, as a chapter of the report and a table on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luban import plots, search_plots
from luban.messages import listed, say
from luban.report import Report
from luban.space import label
from luban.tuning.search import Found
from luban.tuning.study import Trial

SHOWN = 100  # trials in the table, the best ones


def page(found: Found, settings: Mapping[str, Any], against: Mapping[str, Any] | None) -> Report:
    """Report of kind "tune". `against`: the best model minus the recipe's own settings on held-out rows, where both exist."""
    study, trials = found.study, found.study.trials()
    report = Report("tune", say("tune.title"))
    importance = study.importance()
    report.numbers = {
        "metric": found.goal.name, "higher": found.goal.higher, "judged_on": "validation", "trials": [_plain(t) for t in trials],
        "best": found.best.number, "value": found.best.score, "space": {d.path: d.said() for d in study.dimensions},
        "importance": importance, "seconds": study.spent, "settings": dict(settings), "against_first": against,
    }  # fmt: skip
    _summary(report, found, trials)
    if against:
        _against(report, against)
    _pictures(report, found, trials, importance)
    report.table(say("tune.trials"), head(found), rows(found)[:SHOWN])
    report.table(say("tune.space"), [say("report.settings"), ""], [[d.path, d.said()] for d in study.dimensions])
    return report


def _plain(t: Trial) -> dict[str, Any]:
    found = {k: v for k, v in t.found.items() if k != "state"}
    return {"number": t.number, "state": t.state, "settings": t.values, "validation_losses": t.losses, **found}


def _summary(report: Report, found: Found, trials: list[Trial]) -> None:
    count = lambda state: sum(t.state == state for t in trials)  # noqa: E731
    report.text(
        say(
            "tune.summary", count=len(trials), complete=count("complete"), pruned=count("pruned"), failed=count("failed"),
            minutes=f"{found.study.spent / 60:.1f}", metric=found.goal.name,
        )
    )  # fmt: skip
    best = listed(f"{k} = {label(v)}" for k, v in found.best.values.items())
    report.note("good", say("tune.best", number=found.best.number, settings=best, value=f"{found.best.score:.4f}"))
    report.note("info", say("tune.optimistic"))


def _against(report: Report, against: Mapping[str, Any]) -> None:
    level = {"better": "good", "worse": "warn"}.get(against["verdict"], "info")
    span = f"{against['value']:+.4f} ({against['low']:+.4f} – {against['high']:+.4f})"
    said = say(f"tune.against_{against['verdict']}")
    report.note(level, say("tune.against", metric=against["metric"], span=span, rows=against["rows"], verdict=said))


def _pictures(report: Report, found: Found, trials: list[Trial], importance: Mapping[str, float]) -> None:
    higher, name = found.goal.higher, found.goal.name
    drawn = search_plots.scores(
        [t.number for t in trials], [t.score for t in trials], higher=higher, title=say("tune.by_trial"),
        x_label=say("tune.trial_word"), y_label=name,
    )  # fmt: skip
    report.plot(say("tune.by_trial"), drawn, say("tune.by_trial_caption"))
    dimensions, ranked = found.study.dimensions, sorted(trials, key=found.study.rank)
    values = [[_drawn(t.values.get(d.path)) for t in ranked] for d in dimensions]
    drawn = search_plots.parallel(
        [d.path for d in dimensions], values, [t.score for t in ranked], higher=higher,
        logs=[d.scale == "log" for d in dimensions], score_name=name, title=say("tune.coordinates"),
    )  # fmt: skip
    report.plot(say("tune.coordinates"), drawn, say("tune.coordinates_caption"))
    if importance:
        drawn = plots.bars(list(importance), list(importance.values()), title=say("tune.importance"))
        report.plot(say("tune.importance"), drawn, say("tune.importance_caption"))


def _drawn(value: Any) -> Any:
    """Numbers stay numbers on an axis, everything else goes by its name."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if plain or value is None else str(label(value))


def head(found: Found) -> list[str]:
    names = [d.path for d in found.study.dimensions]
    first = [say("tune.trial_word"), say("tune.state"), found.goal.name, say("tune.loss"), say("report.seconds")]
    return [*first, *names, say("tune.why")]


def rows(found: Found) -> list[list[Any]]:
    """One row a trial, the best first; a pruned or failed one with its reason at the end."""
    return [_row(t, found) for t in sorted(found.study.trials(), key=found.study.rank)]


def _row(t: Trial, found: Found) -> list[Any]:
    result = t.found
    score = {k: result.get(k) for k in ("value", "low", "high")} if t.score is not None else None
    loss = result.get("loss") or (min(t.losses) if t.losses else None)
    seconds = f"{result.get('seconds', 0):.1f} s"
    settings = [label(t.values[d.path]) if d.path in t.values else None for d in found.study.dimensions]
    return [t.number, say(f"tune.state_{t.state}"), score, loss, seconds, *settings, result.get("why", "")]
