"""The fold over a recipe's stages, the stage cache, and the public verbs `train`, `run`, `check`, `load`.

A stage takes a Bundle and gives a Bundle, a Report (kept in the Bundle) or a file. `run` keeps the Bundle after each
stage under `FOLDER/.stages/N-name-KEY/`; KEY hashes all that the stage depends on, so only what changed runs again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luban import console, machine, registry
from luban.bundle import Bundle
from luban.data.prepare import Data, prepare, read_for
from luban.data.quality import Finding
from luban.errors import DataError, RequestError, problem, raise_all
from luban.messages import say
from luban.recipe import Part, Recipe, fill
from luban.report import Report, combine

DEFAULT = (Part("train"), Part("evaluate"))


def load(folder: str | Path, **options: Any) -> Bundle:
    """A saved Bundle; see `Bundle.load`."""
    return Bundle.load(folder, **options)


@dataclass(frozen=True)
class Ask:
    """What `train` was asked for on the command line or in Python, apart from a recipe."""

    target: str | Sequence[str] | None = None
    inputs: Sequence[str] = ()
    types: Mapping[str, str] | None = None
    model: Mapping[str, Any] | None = None
    size: str | None = None
    seed: int | None = None
    changes: Sequence[str] = ()


def recipe_from(source: Any, ask: Ask) -> tuple[Recipe, Any, dict[str, Any]]:
    """The recipe that a recipe file, or data and a target, stand for; its rows; and what was inferred.

    Raises RecipeError, DataError with every mistake.
    """
    name = str(source) if isinstance(source, (str, Path)) else None
    if name and name.endswith((".yaml", ".yml")):
        recipe = Recipe.load(name, tuple(ask.changes))
        recipe = replace(recipe, data=_beside(recipe.data, Path(name).parent))
    elif isinstance(source, (Recipe, Mapping)):
        recipe = source if isinstance(source, Recipe) else Recipe.of(source, changes=tuple(ask.changes))
    else:
        recipe = Recipe.of({"luban": 1, "data": {"rows": name} if name else {}}, changes=tuple(ask.changes))
    rows = read_for(recipe) if name or isinstance(source, (Recipe, Mapping)) else None
    if rows is None:
        from luban.data.sources import read

        rows = read(source)
    recipe, inferred = _with_columns(recipe, rows, ask)
    plain = recipe.plain() | ({"model": dict(ask.model)} if ask.model else {})
    if ask.size:
        plain["size"] = ask.size
    if ask.seed is not None:
        plain["seed"] = ask.seed
    return Recipe.of(plain), rows, inferred


def _beside(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Paths in a recipe are relative to the recipe's file."""
    rows = data.get("rows")
    if rows and not Path(rows).exists() and (folder / rows).exists():
        return {**data, "rows": str(folder / rows)}
    return dict(data)


def _with_columns(recipe: Recipe, rows: Any, ask: Ask) -> tuple[Recipe, dict[str, Any]]:
    """Inputs and outputs filled in by inference where the recipe names none."""
    from luban.columns.infer import infer

    found = list(rows.table.column_names)
    targets = [ask.target] if isinstance(ask.target, str) else list(ask.target or [])
    if not targets and not recipe.outputs and {"image", "label"} <= set(found):
        targets = ["label"]
    wrong = [n for n in (*targets, *ask.inputs, *(ask.types or {})) if n not in found]
    raise_all(DataError, [problem("data.no_column", place=rows.source, name=n, allowed=found) for n in wrong])
    kinds = registry.names("columns")
    raise_all(
        RequestError,
        [
            problem("cli.no_type", place=f"--type {n}", name=t, allowed=kinds)
            for n, t in (ask.types or {}).items()
            if t not in kinds
        ],
    )
    outputs = dict(recipe.outputs)
    if not outputs and not targets:
        raise RequestError(problem("train.no_target", allowed=found))
    inferred = infer(rows, target=targets[0] if targets else next(iter(outputs)))
    given = {n: Part(t) for n, t in (ask.types or {}).items()}
    for name in targets:
        kind = inferred[name].type
        outputs[name] = given.get(name) or outputs.get(name) or Part("number" if kind == "number" else "category")
    inputs = dict(recipe.inputs)
    if not inputs:
        named = list(ask.inputs) or [n for n in found if n not in outputs]
        used = {n: inferred[n] for n in named}
        inputs = {
            n: given.get(n) or Part(i.type, i.settings)
            for n, i in used.items()
            if n in given or i.type != "skip" or n in ask.inputs
        }
        inputs = {n: (p if p.type != "skip" else Part("category")) for n, p in inputs.items()}
    if not inputs:
        raise DataError("data.no_inputs", found=found)
    return replace(recipe, inputs=inputs, outputs=outputs), inferred


def train(
    data: Any,
    target: str | Sequence[str] | None = None,
    *,
    inputs: Sequence[str] = (),
    types: Mapping[str, str] | None = None,
    model: Any = None,
    size: str | None = None,
    seed: int | None = None,
    start: str | Path | Bundle | None = None,
    set: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    evaluate: bool = True,
    outputs: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Bundle:
    """Train a model on data (a file, a table, a recipe) and judge it beside simple baselines.

    `settings` are those of the train stage (`epochs=5`). `model`: names of encoders by column, or one's own
    `torch.nn.Module`. `start`: a Bundle to go on from. With `out` the Bundle is saved there, checkpoints on the way.
    Raises RecipeError, DataError before anything starts; Diverged when training does.
    """
    own = model if _is_module(model) else None
    ask = Ask(target, inputs, types, None if own is not None else model, size, seed, tuple(set))
    recipe, rows, inferred = recipe_from(data, ask)
    if own is not None:
        recipe = replace(recipe, fusion=Part("own"))
    stage = recipe.stage("train") or Part("train")
    recipe = recipe.with_stage(Part("train", {**stage.settings, **settings})).resolved()
    raise_all(RequestError, _bad_settings(recipe))
    prepared = prepare(recipe, rows)
    show_columns(recipe, inferred)
    tell_ledger(prepared)
    bundle = Bundle(recipe)
    if own is not None:
        bundle.network = own
    if start is not None:
        bundle = registry.find("stages", "start")(bundle, prepared, source=start)
    chosen = dict(recipe.stage("train").settings) | {"out": str(out) if out else None, "resume": resume}
    bundle = apply(bundle, prepared, Part("train", chosen))
    if out:
        bundle.save(out)
    if evaluate and bundle.history[-1].get("stopped") != "signal":
        part = recipe.stage("evaluate") or Part("evaluate")
        bundle = apply(bundle, prepared, fill("stages", part, recipe.size))
        if out:
            bundle.save(out)
    return bundle


def _is_module(model: Any) -> bool:
    import torch

    return isinstance(model, torch.nn.Module)


def _bad_settings(recipe: Recipe) -> list[Any]:
    from luban.recipe import Check

    return Check().recipe(recipe.plain())


def apply(bundle: Bundle, data: Data, part: Part) -> Bundle:
    """One stage. A Report is kept in the Bundle; each stage leaves a line of history."""
    function = registry.find("stages", part.type)
    settings = {k: v for k, v in part.settings.items() if v is not None}
    began, cpu = time.monotonic(), time.process_time()
    result = function(bundle, data, **settings)
    seconds = {"seconds": round(time.monotonic() - began, 3), "cpu_seconds": round(time.process_time() - cpu, 3)}
    if isinstance(result, Report):
        return bundle.with_report(result).with_history(part.type, settings=settings, **seconds)
    if isinstance(result, Bundle):
        if len(result.history) == len(bundle.history):
            return result.with_history(part.type, settings=settings, **seconds)
        result.history[-1] |= {**seconds, "environment": machine.environment(), "data": data.rows.fingerprint()}
        return result
    return bundle.with_history(part.type, settings=settings, wrote=str(result), **seconds)


def run(recipe: Any, out: str | Path, *, set: Sequence[str] = ()) -> Bundle:
    """The whole life that a recipe asks for, into `out`; stages whose settings, data and parents did not change are reused."""
    out = Path(out)
    asked, rows, inferred = recipe_from(recipe, Ask(changes=tuple(set)))
    asked = replace(asked, stages=asked.stages or DEFAULT).resolved()
    prepared: Data | None = None
    show_columns(asked, inferred)
    key = _key(replace(asked, stages=()).plain(), rows.fingerprint())
    bundle = Bundle(asked)
    keep = []
    for number, part in enumerate(asked.stages, 1):
        key = _key(
            key,
            part.plain(),
            registry.schema("stages", part.type),
            getattr(registry.find("stages", part.type), "version", 1),
        )
        folder = out / ".stages" / f"{number}-{part.type}-{key[:12]}"
        keep.append(folder.name)
        reused = _cached(folder)
        if reused is not None:
            console.tell("run.reused", stage=part.type)
            bundle = reused
            continue
        if prepared is None:
            prepared = prepare(asked, rows)
            tell_ledger(prepared)
        console.tell("run.stage", stage=part.type)
        settings = dict(part.settings)
        if "out" in registry.schema("stages", part.type)["properties"] and not settings.get("out"):
            settings["out"] = str(out / _place(part.type, settings))
        bundle = apply(bundle, prepared, Part(part.type, settings))
        bundle.save(folder)
        if bundle.history[-1].get("stopped") == "signal":
            break
    if prepared is not None:
        out.mkdir(parents=True, exist_ok=True)
        prepared.rows.save_quarantine(out / "quarantine.csv")
    bundle.save(out)
    _forget(out / ".stages", keep)
    write_report(bundle, out)
    return bundle


def _place(stage: str, settings: Mapping[str, Any]) -> str:
    return {"train": "", "export": "model.onnx"}.get(stage, stage)


def _cached(folder: Path) -> Bundle | None:
    if not (folder / "MANIFEST.json").is_file():
        return None
    try:
        return Bundle.load(folder)
    except RequestError:
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _forget(folder: Path, keep: Sequence[str]) -> None:
    """Stages of earlier recipes go; those of this one stay."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def write_report(bundle: Bundle, folder: Path) -> Path:
    """FOLDER/report.html: everything that is known about the model on one page."""
    from luban import files

    path = folder / "report.html"
    files.write(path, full_report(bundle).to_html())
    return path


def full_report(bundle: Bundle) -> Report:
    front = Report("report", say("report.title", task=bundle.recipe.task()))
    front.heading(say("report.recipe"), 2).html("", f"<pre>{_escaped(bundle.recipe.yaml())}</pre>", "")
    rows = [
        [n, p.type, registry.schema("columns", p.type).get("x-form", ""), say("report.input")]
        for n, p in bundle.recipe.inputs.items()
    ]
    rows += [[n, p.type, "", say("report.output")] for n, p in bundle.recipe.outputs.items()]
    front.table(say("report.columns"), [say("report.column"), say("report.type"), "", ""], rows)
    life = [
        [
            h["stage"],
            f"{h.get('seconds', 0):.1f} s",
            ", ".join(f"{k}={v}" for k, v in (h.get("settings") or {}).items() if v not in (None, [], "")),
        ]
        for h in bundle.history
    ]
    last = Report("life", say("report.life"))
    last.heading(say("report.life"), 2).table(
        "", [say("report.stage"), say("report.seconds"), say("report.settings")], life
    )
    where = next((h["environment"] for h in reversed(bundle.history) if "environment" in h), None)
    if where:
        facts = [
            [say("report.system"), where["system"]],
            [say("report.processor"), f"{where['processor']['name']} {' '.join(where['processor']['flags'])}"],
        ]
        last.table(say("report.environment"), ["", ""], facts + [[k, v] for k, v in where["versions"].items()])
    order = ["evaluate", "explain", "compress", "audit", "export"]
    reports = sorted(bundle.reports.values(), key=lambda r: order.index(r.kind) if r.kind in order else len(order))
    return combine(front.title, [*reports, front, last])


def _escaped(text: str) -> str:
    import html

    return html.escape(text)


def check(source: Any, ask: Ask = Ask()) -> tuple[Recipe, list[Finding], Data]:
    """Everything that can be said before training: the recipe, what the data check found, the prepared data."""
    from luban.data.quality import check as look

    recipe, rows, inferred = recipe_from(source, ask)
    recipe = recipe.resolved()
    prepared = prepare(recipe, rows)
    show_columns(recipe, inferred)
    tell_ledger(prepared)
    types = {n: p.type for n, p in {**recipe.inputs, **recipe.outputs}.items()}
    return recipe, look(prepared.rows, types, next(iter(recipe.outputs)), prepared.splits), prepared


def show_columns(recipe: Recipe, inferred: Mapping[str, Any]) -> None:
    """Say what each column is taken for, and why, before anything is trained."""
    from luban.command import table

    rows = []
    for side, parts in (("report.input", recipe.inputs), ("report.output", recipe.outputs)):
        for name, part in parts.items():
            reason = (
                inferred[name].reason if name in inferred and inferred[name].type == part.type else say("columns.asked")
            )
            rows.append((f"{name} ({say(side)})", f"{part.type}: {reason}"))
    rows += [
        (name, say("columns.skipped", reason=i.reason))
        for name, i in inferred.items()
        if name not in recipe.inputs and name not in recipe.outputs
    ]
    console.tell("columns.title")
    shown = rows if len(rows) <= 40 else rows[:39] + [("...", say("columns.more", count=len(rows) - 39))]
    console.block("\n".join(table(shown)))


def tell_ledger(data: Data) -> None:
    rows = data.rows
    for note in rows.notes:
        console.block(str(note))
    console.tell("data.ledger", rows_in=rows.rows_in, used=len(rows.table), quarantined=len(rows.quarantine))
    for bad in rows.quarantine[:3]:
        console.tell("data.quarantined", line=bad.line, reason=bad.reason)
    if data.splits is not None:
        console.tell(
            "data.split",
            how=data.splits.how,
            train=len(data.part("train")),
            validation=len(data.part("validation")),
            test=len(data.part("test")),
        )
