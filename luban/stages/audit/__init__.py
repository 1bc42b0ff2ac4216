"""audit: can the model's confidence be believed, how does it treat groups of people, what does it give back of its training texts."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np

from luban.bundle import Bundle
from luban.columns.examples import cells
from luban.errors import DataError, RequestError, Unsupported, problem
from luban.evaluation import fairness
from luban.evaluation.seen import seen_rows, warn_seen
from luban.evaluation.table import Predictions, Table, table
from luban.messages import listed, say
from luban.report import Report
from luban.settings import Count, Natural
from luban.stages.audit import calibrate as calibrating
from luban.stages.audit import groups as grouping
from luban.stages.audit import memory as remembered


def audit(
    bundle: Bundle,
    data: Any,
    *,
    sensitive: str | None = None,
    calibrate: bool = True,
    output: str | None = None,
    positive: str | None = None,
    passages: Natural = 200,
    context: Count = 50,
    follow: Count = 50,
    seed: Natural | None = None,
) -> Bundle | Report:
    """A Report of kind "audit"; a Bundle that holds it when calibration changed the model.

    `sensitive`: the column that tells groups apart, an input or not. `positive`: the label that counts as selected (the last
    of two when not named). `calibrate`: fit a temperature per output on validation rows and keep it when the held-out loss
    falls; no answer changes by it, only its probability. `output`: one output only. `passages`: of a
    model that writes, so many of the training texts and as many of others are begun with `context` tokens, and the next
    `follow` that it writes held against the text (`luban.evaluation.memory`). `seed`: of the resampling and of passages, the
    recipe's unless given.
    Raises DataError without truth or such a column, RequestError for an output or a label that is not there, Unsupported for a
    model that makes something new.
    """
    if "score" in getattr(bundle.network, "lacks", ()):
        raise Unsupported("audit.no_score", outputs=list(bundle.outputs))
    part, rows = data.held_out()
    judged = table(bundle, data, rows)
    if not judged.outputs:
        raise DataError("evaluate.no_truth", columns=listed(bundle.outputs))
    chosen = _chosen(bundle, judged, output)
    report = Report("audit", say("audit.title", task=bundle.recipe.task()))
    report.numbers = {
        "rows": len(judged),
        "part": part,
        "outputs": {n: {} for n in chosen},
        **seen_rows(bundle, data, rows),
    }
    warn_seen(report)
    temperatures = _calibration(report, bundle.seeded(seed), data, judged, chosen, calibrate)
    if sensitive is not None:
        _groups(report, bundle.seeded(seed), judged, chosen, sensitive, positive)
    writes = bool(passages) and hasattr(bundle.network, "advance") and not bundle.recipe.prefers
    if sensitive is None:
        looked = writes or any("calibration" in found for found in report.numbers["outputs"].values())
        said = (
            say("audit.no_sensitive") if looked else say("audit.nothing_else", outputs=list(chosen), rows=len(judged))
        )
        report.note("info", said)
    if writes:
        asked = {"passages": passages, "context": context, "follow": follow}
        remembered.audit(report, bundle.seeded(seed), data, rows, **asked)
    if not temperatures:
        return report
    return warmed(bundle, temperatures).with_report(report).with_history("audit", temperatures=temperatures)


def _chosen(bundle: Bundle, judged: Table, output: str | None) -> dict[str, Predictions]:
    if output is None:
        return judged.outputs
    if output not in judged.outputs:
        raise RequestError(problem("audit.no_output", name=output, allowed=bundle.outputs))
    return {output: judged.outputs[output]}


# -- calibration -------------------------------------------------------------------------------------------------------


def _calibration(
    report: Report, bundle: Bundle, data: Any, judged: Table, chosen: dict[str, Predictions], calibrate: bool
) -> dict[str, float]:
    """Write what was found; gives the temperatures to keep."""
    temperatures: dict[str, float] = {}
    fit = _fit_rows(bundle, data, judged) if calibrate else None
    for name, predictions in chosen.items():
        if not hasattr(predictions.column, "probabilities") or not predictions.known.any():
            continue
        sides = (predictions, fit.outputs.get(name) if fit else None)
        if fit is judged:  # validation rows are all there are: fit on one half, judge on the other
            sides = tuple(_half(predictions, first) for first in (1, 0))
        found = calibrating.calibrated(name, *sides)
        report.numbers["outputs"][name]["calibration"] = found.numbers(bundle.recipe.seed)
        calibrating.write(report, found, bundle.recipe.seed)
        if found.kept:
            temperatures[name] = found.temperature
    return temperatures


def _fit_rows(bundle: Bundle, data: Any, judged: Table) -> Table | None:
    """Predictions for the validation rows; `judged` itself where those are the ones judged; None where there are none."""
    rows = data.part("validation")
    if not len(rows):
        return None
    return judged if np.array_equal(rows, judged.rows) else table(bundle, data, rows)


def _half(p: Predictions, first: int) -> Predictions:
    every = slice(first, None, 2)
    return p.take(np.arange(len(p.known))[every])


def warmed(bundle: Bundle, temperatures: dict[str, float]) -> Bundle:
    """The Bundle whose outputs divide their logits by these temperatures."""
    columns = bundle.columns | {n: bundle.columns[n].learned(temperature=t) for n, t in temperatures.items()}
    network = copy.copy(bundle.network)
    if hasattr(network, "outputs"):
        network.outputs = {n: columns[n] for n in network.outputs}
    return replace(bundle, columns=columns, network=network)


# -- groups ------------------------------------------------------------------------------------------------------------


def _groups(
    report: Report, bundle: Bundle, judged: Table, chosen: dict[str, Predictions], sensitive: str, positive: str | None
) -> None:
    names = judged.cells.column_names
    if sensitive not in names:
        raise DataError(problem("audit.no_column", name=sensitive, allowed=names))
    is_input = sensitive in bundle.inputs
    groups = grouping.groups_of(cells(judged.cells[sensitive]).to_pylist(), sensitive)
    report.heading(say("audit.sensitive", name=sensitive), 2)
    report.note(
        "warn" if is_input else "info", say("audit.is_input" if is_input else "audit.not_input", name=sensitive)
    )
    report.numbers["sensitive"] = {"column": sensitive, "is_input": is_input, "groups": sorted(set(groups))}
    for name in chosen:
        report.numbers["outputs"][name] |= _one_output(report, bundle, name, judged, groups, positive)
    report.text(say("audit.what_it_is_not"))


def _one_output(
    report: Report, bundle: Bundle, name: str, judged: Table, groups: list[str], positive: str | None
) -> dict[str, Any]:
    seed, predictions = bundle.recipe.seed, judged.outputs[name]
    column = predictions.column
    if column.form == "scalar":
        found = grouping.of_numbers(predictions, groups, seed)
        grouping.write_numbers(report, name, found)
        return {"groups": found}
    if not hasattr(column, "probabilities"):
        found = grouping.of_view(name, judged, groups, seed)
        grouping.write_view(report, name, found)
        return {"groups": found}
    favour = grouping.favoured(column.labels, positive, name)
    rates = grouping.of_classes(predictions, groups, favour)
    summary = fairness.summary(rates, seed=seed)
    label = None if favour is None else column.labels[favour]
    verdict = grouping.write_classes(report, name, rates, summary, label)
    by_group = {
        g: {"rows": int(rates.counts[i]), **{r: rates.metric(r, i) for r in rates.of}}
        for i, g in enumerate(rates.groups)
    }
    return {"positive": label, "groups": by_group, **summary, "four_fifths": verdict}
