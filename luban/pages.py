"""Pages about Bundles: the whole report, models side by side, the few lines that a terminal shows."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luban import files, registry
from luban.command import table
from luban.errors import shortened
from luban.messages import say, spoken, together
from luban.report import Note, Report, Table, combine, jsonable

if TYPE_CHECKING:
    from luban.bundle import Bundle

ORDER = ("evaluate", "shots", "tune", "curve", "explain", "compress", "audit", "export")
HEADLINE = {
    "category": ("accuracy", True),
    "number": ("r2", True),
    "match": ("mrr", True),
    "tags": ("f1", True),
    "span": ("f1", True),
    "labels": ("f1_micro", True),
}


def first_metric(output: Mapping[str, Any]) -> tuple[str, bool]:
    """The metric that a person looks at first, and whether higher is better; `output`: its entry in evaluate.json."""
    told = output.get("headline")
    return (told["metric"], told["higher"]) if told else HEADLINE.get(output.get("kind"), ("", True))


def write_report(bundle: Bundle, folder: Path) -> Path:
    """FOLDER/report.html: everything that is known about the model on one page."""
    path = folder / "report.html"
    files.write(path, full_report(bundle).to_html())
    return path


def full_report(bundle: Bundle) -> Report:
    """Everything that is known about a model: a summary, each report it has, its recipe, its life."""
    reports = sorted(bundle.reports.values(), key=lambda r: ORDER.index(r.kind) if r.kind in ORDER else len(ORDER))
    title = say("report.title", task=bundle.recipe.task())
    return combine(title, [_summary(bundle), *reports, _recipe(bundle), _life(bundle)])


def _recipe(bundle: Bundle) -> Report:
    page = Report("recipe", say("report.recipe"))
    page.html("", f"<pre>{html.escape(bundle.recipe.yaml())}</pre>", "")
    inputs, outputs = bundle.recipe.inputs, bundle.recipe.outputs
    rows = [
        [n, p.type, registry.schema("columns", p.type).get("x-form", ""), say("report.input")]
        for n, p in inputs.items()
    ]
    rows += [[n, p.type, "", say("report.output")] for n, p in outputs.items()]
    return page.table(say("report.columns"), [say("report.column"), say("report.type"), "", ""], rows)


def _life(bundle: Bundle) -> Report:
    page = Report("life", say("report.life"))
    told = any("energy" in h for h in bundle.history)  # no column of blanks where the machine tells nothing
    rows = [
        [
            h["stage"],
            f"{h.get('seconds', 0):.1f} s",
            *([energy_of(h)] if told else []),
            _settings(h.get("settings") or {}),
        ]
        for h in bundle.history
    ]
    spent = [say("report.energy")] if told else []
    page.table("", [say("report.stage"), say("report.seconds"), *spent, say("report.settings")], rows)
    where = next((h["environment"] for h in reversed(bundle.history) if "environment" in h), None)
    if where:
        processor = f"{where['processor']['name']} {' '.join(where['processor']['flags'])}"
        facts = [[say("report.system"), where["system"]], [say("report.processor"), processor]]
        page.table(say("report.environment"), ["", ""], facts + [[k, v] for k, v in where["versions"].items()])
    return page


def energy_of(entry: Mapping[str, Any]) -> str:
    """What the machine's counters said about a stage: joules, and kWh where they are many."""
    joules = (entry.get("energy") or {}).get("joules")
    if not isinstance(joules, (int, float)):
        return ""
    return f"{joules:,.0f} J" if joules < 36_000 else f"{joules / 3.6e6:.3g} kWh"


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in settings.items() if v not in (None, [], ""))


def first_table(report: Report, most: int = 10) -> str:
    """The first table of a report for a terminal, its first rows."""
    found = next(b for b in report.blocks if isinstance(b, Table))
    return Report(report.kind, found.title).table("", found.columns, found.rows[:most]).to_text()


def notes(report: Report) -> str:
    """What a report remarks, a line each."""
    return "\n".join(b.text for b in report.blocks if isinstance(b, Note))


def headline(bundle: Bundle) -> Iterator[str]:
    """The lines a terminal shows after training: the first metric of each output beside the baselines'."""
    report = bundle.reports.get("evaluate")
    for name, output in (report.numbers["outputs"] if report else {}).items():
        metric, higher = first_metric(output)
        rows = {say("evaluate.model"): output["metrics"][metric]} | {
            spoken("baseline.name.", b): m[metric] for b, m in output["baselines"].items()
        }
        yield say("headline", output=name, metric=metric, rows=report.numbers["rows"], part=report.numbers["part"])
        yield from table([(label, with_interval(m)) for label, m in rows.items() if m.get("value") is not None])
        better = [
            b
            for b, m in output["baselines"].items()
            if (v := m[metric].get("value")) is not None
            and (v > output["metrics"][metric]["value"] if higher else v < output["metrics"][metric]["value"])
        ]
        if better:
            yield say("evaluate.beaten", baselines=better, metric=metric)


def _summary(bundle: Bundle) -> Report:
    """What someone who reads one paragraph should know."""
    first = Report("summary", say("report.summary"))
    first.text(_about(bundle))
    trained = next((h for h in reversed(bundle.history) if h["stage"] == "train"), {})
    if trained:
        rows = trained["rows"]
        first.text(
            say(
                "report.trained",
                parameters=f"{bundle.parameters():,}",
                rows=f"{rows['train']:,}",
                seconds=f"{trained['seconds']:.1f}",
            )
        )
        for name, count in trained.get("learned_from", {}).items():
            first.text(say("columns.sampled", name=name, count=count, rows=rows["train"]))
    judged, now = bundle.reports.get("evaluate"), judged_now(bundle.history, bundle.reports)
    for name, output in (judged.numbers["outputs"] if judged else {}).items():
        if name not in now["outputs"]:
            continue
        metric, higher = first_metric(output)
        mine = now["outputs"][name]["metrics"][metric]
        rivals = {b: m[metric]["value"] for b, m in output["baselines"].items() if m[metric].get("value") is not None}
        best = (max if higher else min)(rivals, key=rivals.get, default=None)
        if mine.get("value") is None:
            first.note("warn", say("report.not_finite", output=name, metric=metric, rows=f"{now['rows']:,}"))
            continue
        seen = judged.numbers.get("part") == "train" or judged.numbers.get("trained_on")
        id = "report.reached_seen" if seen else "report.reached"
        said = say(id, output=name, metric=metric, value=with_interval(mine), rows=f"{now['rows']:,}")
        if best is not None:
            won = mine["value"] >= rivals[best] if higher else mine["value"] <= rivals[best]
            beside = say("report.ahead" if won else "report.behind", baseline=best, value=f"{rivals[best]:.4f}")
            first.note("good" if won else "warn", together(said, beside))
        else:
            first.text(said)
    return first


def _about(bundle: Bundle) -> str:
    """What is answered from what, out of which rows."""
    rows = bundle.recipe.data.get("rows") or say("report.rows_in_memory")
    inputs, outputs = shortened(bundle.inputs, 6), shortened(bundle.outputs, 6)
    id = "report.about" if inputs and outputs else "report.about_inputs" if inputs else "report.about_outputs"
    return say(id, outputs=outputs, inputs=inputs, rows=Path(str(rows)).name)


def judged_now(history: Sequence[Mapping[str, Any]], reports: Mapping[str, Report]) -> dict[str, Any]:
    """The numbers of `evaluate` as they are true of a model now: rows, part, and per output its kind and metrics.

    What was found before `compress` changed the model is no longer true of it; `compress` measured it again.
    """
    numbers = {k: jsonable(reports[k].numbers) if k in reports else {} for k in ("evaluate", "compress")}
    stages = [h.get("stage") for h in history]
    last = {k: max((i for i, s in enumerate(stages) if s == k), default=-1) for k in numbers}
    if last["compress"] <= last["evaluate"]:
        return numbers["evaluate"]
    kinds = {n: o.get("kind") for n, o in (numbers["evaluate"].get("outputs") or {}).items()}
    after = {n: {k: m["after"] for k, m in o.items()} for n, o in (numbers["compress"].get("outputs") or {}).items()}
    outputs = {n: {"kind": kinds.get(n), "metrics": m, "baselines": {}} for n, m in after.items()}
    return {"rows": numbers["compress"].get("rows"), "part": numbers["compress"].get("part"), "outputs": outputs}


def with_interval(metric: Mapping[str, Any]) -> str:
    interval = f" ({metric['low']:.4f} – {metric['high']:.4f})" if metric.get("low") is not None else ""
    return f"{metric['value']:.4f}{interval}"
