"""evaluate: how good the model is, beside simple baselines, on rows it has not seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from luban import plots
from luban.bundle import Bundle
from luban.columns.examples import records
from luban.errors import DataError, Unsupported, problem
from luban.evaluation import retrieval, robustness, views
from luban.evaluation.made_view import witness
from luban.evaluation.seen import seen_rows, warn_seen
from luban.evaluation.table import Table, table
from luban.markup import escape, tag
from luban.messages import listed, say
from luban.report import Report, drawn_cell
from luban.settings import Count, Natural
from luban.training.random import rng


def evaluate(
    bundle: Bundle,
    data: Any,
    *,
    slices: list[str] = (),
    baselines: bool = True,
    resamples: Count = 500,
    worst: Natural = 10,
    judge: str | None = None,
    corruptions: bool = False,
    rows: Natural = 0,
    seed: Natural | None = None,
) -> Report:
    """A Report of kind "evaluate": per output metrics with bootstrap intervals, baselines, plots, worst examples, slices.

    `slices`: columns whose values the score is split by. `judge`: the folder of a model that tells classes apart, by whose
    features pictures that were made are judged; without one a small network is taught on the training rows. `corruptions`: how the
    score falls when inputs get worse on their way, where a column knows how they do (`luban.evaluation.robustness`).
    Judged on the held-out rows, or on all rows of a file of its own; `rows`: on at most so many of them, drawn by chance (0 = all).
    `seed`: of that and of the resampling, the recipe's unless given.
    Raises DataError when the data have no column of truth or no such slice column.
    """
    part, held = data.held_out()
    unknown = [c for c in slices if c not in data.table.column_names]
    if unknown:
        raise DataError(*(problem("evaluate.no_slice", name=c, allowed=data.table.column_names) for c in unknown))
    seed = bundle.recipe.seed if seed is None else seed
    whole = len(held) if 0 < rows < len(held) else 0
    if whole:
        held = np.sort(rng(seed, "evaluate").choice(held, rows, replace=False))
    if bundle.recipe.fusion.type == retrieval.KIND:
        report = retrieval.judged(bundle, data, part, held, baselines=baselines, resamples=resamples, seed=seed)
        report.numbers |= seen_rows(bundle, data, held)
        warn_seen(report)
        return _drawn(report, whole)
    judged = table(bundle, data, held)
    if not judged.outputs:
        raise DataError("evaluate.no_truth", columns=listed(bundle.outputs))
    if hasattr(bundle.network, "drawn"):
        judged = replace(judged, witness=witness(bundle, data, judged, judge))
    elif judge:
        raise Unsupported("judge.nothing_made", outputs=list(bundle.outputs))
    report = Report("evaluate", say("evaluate.title", task=bundle.recipe.task()))
    report.numbers = {"rows": len(judged), "part": part, "outputs": {}, **seen_rows(bundle, data, held)}
    warn_seen(report)
    report = _drawn(report, whole)
    rivals = views.rivals(bundle, data, judged) if baselines and data.splits is not None else {}
    robust = robustness.robustness(bundle, data, held, seed) if corruptions else {}
    report.numbers |= {"robustness": robust} if robust else {}
    for name, predictions in judged.outputs.items():
        view = views.view(name, predictions, judged, resamples=resamples, seed=seed)
        report.numbers["outputs"][name] = view.numbers(rivals.get(name, []))
        view.write(report, rivals.get(name, []))
        view.samples(report, bundle)
        if worst:
            _worst(report, bundle, judged, view, worst)
            _mistaken(report, bundle, judged, view)
        if name in robust:
            robustness.write(report, name, robust[name])
        if slices:
            view.write_slices(report, judged, slices)
    if bundle.metrics:
        _training(report, bundle)
    return report


def _drawn(report: Report, whole: int) -> Report:
    """With how many rows there were, where it was judged on some of them."""
    if whole:
        report.numbers["rows_of"] = whole
        report.note("info", say("evaluate.drawn", count=report.numbers["rows"], rows=whole))
    return report


SHOWN = 8  # input columns of a worst example, the first ones


def _worst(report: Report, bundle: Bundle, judged: Table, view: Any, count: int) -> None:
    """The rows that the model is most wrong about, each input as its column shows it to a person."""
    order = view.worst(count)
    if not len(order):
        return
    names = _inputs(bundle, judged)
    values = records(judged.cells.select(names).take(order)) if names else [{}] * len(order)
    head = [say("evaluate.row"), *view.row_names(), *names]
    body = []
    for i, value in zip(order, values):
        told = (int(judged.rows[i]), *view.row(int(i)))
        drawn = [v if isinstance(v, views.Shown) else escape(v) for v in told]
        drawn += [bundle.columns[n].render(value[n]) for n in names]
        body.append(tag("tr", *map(drawn_cell, drawn)))
    table = tag("table", tag("thead", tag("tr", *(tag("th", escape(h)) for h in head))), tag("tbody", *body))
    report.heading(say("evaluate.worst"), 3)
    report.html("", tag("div", table, class_="wide"), "")


def _inputs(bundle: Bundle, judged: Table) -> list[str]:
    return [n for n in bundle.inputs if n in judged.cells.column_names and n not in judged.outputs][:SHOWN]


PAIRS, OF_EACH = 8, 3  # answers that are taken for each other, and examples of each


def _mistaken(report: Report, bundle: Bundle, judged: Table, view: Any) -> None:
    """Which answers are taken for which others most often, with some rows of each, where that can be said."""
    names, pairs = _inputs(bundle, judged)[:1], view.mistaken(PAIRS)
    if not pairs:
        return
    body = []
    for truth, answer, where in pairs:
        values = records(judged.cells.select(names).take(where[:OF_EACH])) if names else []
        shown = [drawn_cell(bundle.columns[n].render(v[n])) for v in values for n in names]
        shown += [tag("td")] * (OF_EACH * len(names) - len(shown))
        body.append(tag("tr", *(drawn_cell(escape(v)) for v in (truth, answer, len(where))), *shown))
    head = [say("evaluate.truth"), say("evaluate.answer"), say("evaluate.rows"), *[""] * (OF_EACH * len(names))]
    table = tag("table", tag("thead", tag("tr", *(tag("th", escape(h)) for h in head))), tag("tbody", *body))
    report.heading(say("evaluate.mistaken"), 3)
    report.html("", tag("div", table, class_="wide"), say("evaluate.mistaken_text"))


def _training(report: Report, bundle: Bundle) -> None:
    epochs = [e["epoch"] for e in bundle.metrics]
    series = {
        say("evaluate.curve." + k): (epochs, [e[k] for e in bundle.metrics])
        for k in (("generator", "critic") if "critic" in bundle.metrics[0] else ("loss", "validation_loss"))
        if k in bundle.metrics[0]
    }
    report.heading(say("evaluate.training"), 2)
    report.plot(say("evaluate.curve"), plots.lines(series, x_label=say("evaluate.epoch"), y_label=say("evaluate.loss")))
    if "frechet" in bundle.metrics[0]:
        curve = {say("evaluate.curve.frechet"): (epochs, [e["frechet"] for e in bundle.metrics])}
        labels = {"x_label": say("evaluate.epoch"), "y_label": say("evaluate.curve.frechet")}
        report.plot(say("evaluate.frechet"), plots.lines(curve, **labels), say("evaluate.frechet_caption"))
    entry = next((h for h in reversed(bundle.history) if h["stage"] == "train"), {})
    if entry.get("diagnosis"):
        d = entry["diagnosis"]
        report.text(
            say(
                "evaluate.gap",
                gap=f"{d['gap']:.3g}",
                train=f"{d['train_loss']:.3g}",
                validation=f"{d['validation_loss']:.3g}",
            )
        )
        report.text(say(d["remedy"]))
