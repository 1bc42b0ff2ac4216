"""shots: a language model is shown k examples in its prompt and asked about held-out rows, beside what learned from all rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np

from luban import registry
from luban.bundle import Bundle
from luban.columns.base import text_of, to_list
from luban.columns.examples import cells
from luban.console import tell
from luban.data import models
from luban.errors import DataError, RequestError, Unsupported, problem, raise_all
from luban.evaluation import intervals
from luban.evaluation.prompting import NOTHING, Shot, Template, tried
from luban.evaluation.seen import seen_rows, warn_seen
from luban.evaluation.table import table
from luban.files import MANIFEST
from luban.huggingface import imported
from luban.machine import wanted_device
from luban.markup import escape, tag
from luban.messages import say
from luban.report import Report
from luban.settings import Count, Model, Natural

WRITABLE = ("ids", "scalar", "index")  # forms of columns that a prompt can hold


def shots(
    bundle: Bundle,
    data: Any,
    *,
    model: Annotated[str, Model()],
    shots: list[Natural] = (0, 1, 4, 16),
    draws: Count = 3,
    rows: Count | None = 500,
    template: str | None = None,
    before: str = "",
    labels: dict[str, str] = None,
    output: str | None = None,
    seed: Natural | None = None,
) -> Report:
    """A Report of kind "shots": what `model` says of the held-out rows when it is shown so many examples of the training rows.

    `model`: a saved language model, or a checkpoint (a folder, a sample model, a name on the hub; in Python also a Bundle).
    `shots`: numbers of examples, as many of every class as of another, the mean of `draws` choices. `rows`: of the held-out
    ones at most so many, drawn at random. `template`: the text of a row, with {NAME} for each input, that ends with the
    output's; `before` stands above all. `labels`: what is written for a class instead of its name, {"0": bad}. `bundle`
    answers the same rows, if it is trained. How a class is scored: `luban.evaluation.prompting`.
    Raises RequestError for a template that names no column, DataError, Unsupported for a model that is no language model.
    """
    target = _target(bundle, output)
    inputs = _inputs(bundle)
    absent = [n for n in (*inputs, target) if n not in data.table.column_names]
    raise_all(DataError, [problem("data.no_column", place=data.rows.source, name=n, allowed=data.table.column_names) for n in absent])  # fmt: skip
    part, held = data.held_out()
    seed = bundle.recipe.seed if seed is None else seed
    pool = _labelled(bundle, data, data.part("train"), inputs, target)
    if max(shots, default=0) and not pool[0]:
        raise DataError("shots.no_examples")
    known = [*getattr(bundle.columns.get(target), "labels", ())] or sorted(set(pool[1]))
    held, (records, truth) = _drawn(bundle, data, held, inputs, target, rows, seed)
    how = _template(template, before, labels or {}, inputs, target, known)
    lm = _opened(model)
    report = Report("shots", say("shots.title", output=target))
    report.numbers = {"rows": len(truth), "part": part, "output": target, "model": str(lm.path or model)[:200]}
    right = np.array([known.index(t) if t in known else -1 for t in truth])
    usual = max(known, key=pool[1].count) if pool[1] else known[0]
    beside = {"majority": (right == known.index(usual)).astype(float)}
    if bundle.network is not None:
        beside["trained"] = _trained(bundle, data, held, target)
        report.numbers |= seen_rows(bundle, data, held)
        warn_seen(report)
    found = []
    for shot in tried(lm.engine.network, how, pool, records, shots, draws=draws, seed=seed):
        found.append(shot)
        mean = _right(shot.calibrated, right).mean()
        tell("shots.tried", k=shot.k, accuracy=f"{mean:.3f}", rows=len(truth))
    report.numbers |= numbers(found, right, beside, known, seed)
    report.numbers |= {"template": how.row, "labels": dict(how.labels), "before": how.before}
    _write(report, found, how, records)
    return report


# -- what is asked of whom ---------------------------------------------------------------------------------------------


def _target(bundle: Bundle, output: str | None) -> str:
    forms = {n: registry.schema("columns", p.type).get("x-form") for n, p in bundle.recipe.outputs.items()}
    classes = [n for n, form in forms.items() if form == "index"]
    if output is not None and output not in classes:
        raise RequestError(problem("shots.no_output", name=output, allowed=classes))
    if not classes:
        raise Unsupported("shots.no_classes", outputs=list(forms))
    return output or classes[0]


def _inputs(bundle: Bundle) -> list[str]:
    forms = {n: registry.schema("columns", p.type).get("x-form") for n, p in bundle.recipe.inputs.items()}
    cannot = [n for n, form in forms.items() if form not in WRITABLE]
    if cannot:
        raise Unsupported("shots.not_writable", inputs=cannot)
    return list(forms)


def _labelled(bundle: Bundle, data: Any, rows: np.ndarray, inputs: list[str], target: str) -> tuple[list, list]:
    """The inputs of rows, as texts, and their labels; rows without one are left out."""
    framed = data.framed(rows, bundle.recipe.frame).table
    texts = {n: [text_of(v) or "" for v in to_list(cells(framed[n]))] for n in inputs}
    labels = [text_of(v) or "" for v in to_list(cells(framed[target]))]
    kept = [i for i, label in enumerate(labels) if label]
    return [{n: texts[n][i] for n in inputs} for i in kept], [labels[i] for i in kept]


def _drawn(
    bundle: Bundle, data: Any, held: np.ndarray, inputs: list[str], target: str, most: int | None, seed: int
) -> tuple[np.ndarray, tuple[list, list]]:
    """The held-out rows that are asked about, in their order: those with a truth, at most so many."""
    known = [text_of(v) for v in to_list(cells(data.table[target].take(held)))]
    held = held[np.array([bool(v) for v in known], bool)]
    if most and most < len(held):
        held = np.sort(np.random.default_rng([seed, len(held)]).permutation(held)[:most])
    if not len(held):
        raise DataError("evaluate.no_truth", columns=target)
    return held, _labelled(bundle, data, held, inputs, target)


def _template(
    row: str | None, before: str, written: dict[str, str], inputs: list[str], target: str, labels: list[str]
) -> Template:
    strange = [problem("shots.no_label", name=n, allowed=labels) for n in written if n not in labels]
    usual = Template.usual(inputs, target, labels)
    how = Template(row or usual.row, target, {label: written.get(label, label) for label in labels}, before)
    raise_all(RequestError, [*strange, *how.mistakes(inputs)])
    return how


def _opened(model: Any) -> Bundle:
    if isinstance(model, Bundle):
        lm = model
    else:
        saved = (Path(model) / MANIFEST).is_file() or not models.possible(model)
        lm = Bundle.load(model) if saved else imported(model)
    if not lm.recipe.writes or lm.inputs:
        raise Unsupported("shots.no_language_model", model=str(model)[:200])
    device = wanted_device()
    return lm.on(device) if device else lm


def _trained(bundle: Bundle, data: Any, held: np.ndarray, target: str) -> np.ndarray:
    """Where the trained model is right, (N,)."""
    judged = table(bundle, data, held).outputs[target]
    return (judged.column.probabilities(judged.raw).argmax(1) == judged.truth - 1).astype(float)


# -- what comes of it ----------------------------------------------------------------------------------------------------


def _right(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(N,): the share of draws in which a row is answered rightly."""
    return (probabilities.argmax(2) == truth).mean(0)


def numbers(
    found: list[Shot], truth: np.ndarray, beside: dict[str, np.ndarray], labels: list[str], seed: int
) -> dict[str, Any]:
    """Accuracies with intervals, per number of examples, and what they are better by than the others on the same rows."""
    result: dict[str, Any] = {"shots": {}, "baselines": {}}
    for name, right in beside.items():
        result["baselines"][name] = {"accuracy": intervals.mean(right, seed=seed)}
    for shot in found:
        calibrated, plain = _right(shot.calibrated, truth), _right(shot.plain, truth)
        said = np.bincount(shot.calibrated.argmax(2).ravel(), minlength=len(labels)) / shot.calibrated[..., 0].size
        result["shots"][str(shot.k)] = {
            "accuracy": intervals.mean(calibrated, seed=seed),
            "uncalibrated": intervals.mean(plain, seed=seed),
            "draws": [float((p.argmax(1) == truth).mean()) for p in shot.calibrated],
            "examples": shot.used,
            "tokens": shot.tokens,
            "answers": dict(zip(labels, said.tolist())),
            "against": {n: intervals.paired_difference(calibrated, r, seed=seed) for n, r in beside.items()},
        }
    return result


def _write(report: Report, found: list[Shot], how: Template, records: list[Any]) -> None:
    told = report.numbers
    names = list(told["baselines"])
    report.text(say("shots.about", rows=told["rows"], model=told["model"], draws=max(len(s.plain) for s in found)))
    head = [say(f"shots.column.{c}") for c in ("k", "accuracy", "uncalibrated", "draws")]
    head += [say("shots.column.against", name=say(f"shots.{n}")) for n in names]
    body = []
    for k, n in told["shots"].items():
        spread = f"{min(n['draws']):.3f} – {max(n['draws']):.3f}" if len(n["draws"]) > 1 else ""
        beside = [n["against"][b].to_json() for b in names]
        body.append([k, n["accuracy"].to_json(), n["uncalibrated"].to_json(), spread, *beside])
    for name in names:
        body.append(
            [say(f"shots.{name}"), told["baselines"][name]["accuracy"].to_json(), None, "", *[None] * len(names)]
        )
    report.table(say("shots.table"), head, body)
    for shot in found:
        if shot.used < shot.k:
            report.note("warn", say("shots.no_room", k=shot.k, used=shot.used))
    if any(shot.cut for shot in found):
        report.note("warn", say("shots.cut"))
    best = max(told["shots"].values(), key=lambda n: n["accuracy"].value)
    low = best["against"]["majority"].low
    report.note(*("good", say("shots.beats")) if low is not None and low > 0 else ("warn", say("shots.no_better")))
    report.heading(say("shots.prompt"), 3)
    report.text(say("shots.scored", nothing=[w or "\u201c\u201d" for w in NOTHING]))
    shown = min(found, key=lambda s: (s.used < 1, s.used)).prompt
    report.html("", tag("pre", "<br>".join(escape(line) for line in shown.split("\n"))), "")
