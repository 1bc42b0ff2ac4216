"""The fold over a recipe's stages, the stage cache, and the public verbs `train`, `run`, `check`, `load`.

A stage takes a Bundle and gives a Bundle, a Report (kept in the Bundle) or a file. `run` keeps the Bundle after each
stage under `FOLDER/.stages/N-name-KEY/`; KEY hashes all that the stage depends on, so only what changed runs again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luban import console, files, registry
from luban.aliases import renamed
from luban.applying import apply, claimed
from luban.asking import (
    Ask,
    check,
    findings,
    is_recipe,
    keep_quarantine,
    mixtures,
    recipe_from,
    show_columns,
    tell_findings,
    tell_ledger,
    unbuildable,
)
from luban.columns.fitting import fit_columns
from luban.comparing import compare
from luban.data.prepare import Data, prepare
from luban.errors import RequestError, Unsupported, need, raise_all
from luban.pages import full_report, write_report
from luban.part import DEFAULT, Part
from luban.recipe import Recipe, fill
from luban.scale import unready
from luban.scaling.joined import leading
from luban.tuning import verbs

if TYPE_CHECKING:  # torch comes when all that was asked for is known to be right
    from luban.bundle import Bundle

BEGUN = "checkpoints/recipe.yaml"  # the resolved recipe, written before step 1, for `resume`
RUN = verbs.RUN  # the recipe of a whole run, and beside it the key of the stage whose checkpoints these are
KEY = "checkpoints/run.key"
__all__ = ["apply", "check", "compare", "full_report", "load", "resume", "run", "train", "write_report"]


def load(folder: str | Path, **options: Any) -> Bundle:
    """A saved Bundle; see `Bundle.load`."""
    from luban.bundle import Bundle

    return Bundle.load(folder, **options)


@leading()
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
    **settings: Any,
) -> Bundle:
    """Train a model on data (a file, a table, a recipe) and judge it beside simple baselines.

    `settings` are those of the train stage (`epochs=5`). `model`: names of encoders by column, or one's own
    `torch.nn.Module`, see `luban.nn.networks.own`. `start`: a Bundle whose columns and weights are taken where they fit.
    With `out` the Bundle is saved there, checkpoints on the way.
    Raises RecipeError, DataError before anything starts; Diverged when training does.
    """
    own = model if _is_module(model) else None
    ask = Ask(target, inputs, types, None if own is not None else model, size, seed, tuple(set))
    recipe, rows, inferred = recipe_from(data, ask)
    if own is not None:
        recipe = replace(recipe, fusion=Part("own"))
    if start is not None:
        from luban.bundle import Bundle
        from luban.huggingface import opened

        start = start if isinstance(start, Bundle) else opened(start)
        shaped = [s for s in set if s.split(".")[0] not in registry.STAGES]  # what the network is like was said
        if not (model or size or shaped or is_recipe(data) or str(data).endswith((".yaml", ".yml"))):
            recipe = _alike(recipe, start.recipe)
    stage = recipe.stage("train") or Part("train")
    recipe = recipe.with_stage(Part("train", {**stage.settings, **renamed(settings)}))
    raise_all(RequestError, [*_bad_settings(recipe), *unready(recipe.scale)])
    if recipe.tune and not resume:
        console.tell("train.tune_left")
    recipe = recipe.resolved()
    raise_all(Unsupported, mixtures(recipe))
    raise_all(RequestError, unbuildable(recipe))
    prepared = prepare(recipe, rows)
    show_columns(recipe, inferred)
    tell_ledger(prepared)
    tell_findings(findings(recipe, prepared))
    from luban.bundle import Bundle, build_network

    with claimed(out):
        if out:
            verbs.forget(Path(out))
            (Path(out) / RUN).unlink(missing_ok=True)  # these checkpoints will not be a whole run's
            keep_quarantine(prepared, Path(out))
        bundle = Bundle(recipe)
        if own is not None:
            bundle.columns = fit_columns(recipe, prepared)
            bundle.network = build_network(recipe, bundle.columns, (), own)
        if start is not None or recipe.stage("start"):
            bundle = _started(bundle, prepared, start, out)
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


def _alike(recipe: Recipe, before: Recipe) -> Recipe:
    """Where nothing is said about the network, it is built like the one whose weights it takes over."""
    model = {n: p for n, p in before.model.items() if n in recipe.inputs or n in recipe.outputs}
    return replace(recipe, size=before.size, model=model, fusion=before.fusion)


def _started(bundle: Bundle, data: Data, start: Bundle | None, out: str | Path | None) -> Bundle:
    """The stage `start`. What it starts from stands in the recipe, so that a resumed run takes the same."""
    if start is None:
        return registry.find("stages", "start")(bundle, data, **bundle.recipe.stage("start").settings)
    if out and start.path is None:
        start = replace(start)
        start.save(Path(out) / "checkpoints" / "start")
    if start.path is not None:
        stages = (Part("start", {"source": str(start.path)}), *(s for s in bundle.recipe.stages if s.type != "start"))
        bundle = replace(bundle, recipe=replace(bundle.recipe, stages=stages))
    return registry.find("stages", "start")(bundle, data, source=start)


def _is_module(model: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def _bad_settings(recipe: Recipe) -> list[Any]:
    from luban.checking import Check

    return Check().recipe(recipe.plain())


@leading()
def run(recipe: Any, out: str | Path, *, set: Sequence[str] = ()) -> Bundle:
    """The whole life that a recipe asks for, into `out`; stages whose settings, data and parents did not change are reused."""
    out = Path(out)
    asked, rows, inferred = recipe_from(recipe, Ask(changes=tuple(set)))
    plain = replace(asked, stages=asked.stages or DEFAULT)
    asked = plain.resolved()
    raise_all(RequestError, unready(asked.scale))
    raise_all(Unsupported, () if asked.tune else mixtures(asked))  # trials are not spread
    raise_all(RequestError, unbuildable(asked))
    if asked.tune:
        need("optuna", "tune")
    if asked.curve:
        console.tell("run.curve_left")
    show_columns(asked, inferred)
    with claimed(out):
        return _life(asked, plain, rows, out)


def _life(asked: Recipe, plain: Recipe, rows: Any, out: Path) -> Bundle:
    """`plain`: the recipe before sizes and defaults were filled in, which a search begins from."""
    from luban.bundle import Bundle

    prepared: Data | None = None
    key = _key(replace(asked, stages=(), scale={}).plain(), rows.fingerprint())  # spread or not, it is the same model
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
            keep_quarantine(prepared, out)
            tell_findings(findings(asked, prepared))
        console.tell("run.stage", stage=part.type)
        settings = dict(part.settings)
        if "out" in registry.schema("stages", part.type)["properties"] and not settings.get("out"):
            settings["out"] = str(out / _place(part.type, settings))
        if part.type == "train":
            settings["resume"] = _begun(plain if asked.tune else asked, key, out)
        if part.type == "train" and asked.tune:
            bundle = verbs.searched(plain, prepared, out)
        else:
            bundle = apply(bundle, prepared, Part(part.type, settings))
        if bundle.history[-1].get("stopped") == "signal":
            break  # half a stage is no result that another run could take for whole
        bundle.save(folder)
    bundle.save(out)
    _forget(out / ".stages", keep)
    write_report(bundle, out)
    return bundle


def _begun(asked: Recipe, key: str, out: Path) -> bool:
    """Whether the checkpoints in `out` are this very stage's, so that it goes on from them; from now on they are."""
    same = (out / KEY).is_file() and (out / KEY).read_text(encoding="utf-8") == key
    if not same and any((out / KEY).parent.glob("step-*")):
        console.tell("run.anew", path=str(out))
    files.write(out / RUN, asked.yaml())
    files.write(out / KEY, key)
    return same


def _place(stage: str, settings: Mapping[str, Any]) -> str:
    return {"train": "", "export": "model.onnx"}.get(stage, stage)


def _cached(folder: Path) -> Bundle | None:
    from luban.bundle import Bundle

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


@leading()
def resume(folder: str | Path, *, module: Any = None, set: Sequence[str] = ()) -> Bundle:
    """Go on with a run that was stopped or killed: from its newest good checkpoint, with the recipe it began with.

    What `run` began goes on to the end of its stages, what `train` began is trained and judged.
    `module`: one's own network, where the run began with one. `set`: changes of the recipe, such as `scale.ranks=4`; of those that
    change what is learned, training starts anew. Raises RequestError where nothing was begun.
    """
    folder = files.recovered(Path(folder))
    begun, whole = files.inside(folder, BEGUN), files.inside(folder, RUN)
    if whole.is_file() and module is None:
        return run(Recipe.load(whole, tuple(set)), folder)
    for verb, name in ((verbs.tune, verbs.TUNE), (verbs.curve, verbs.CURVE)):
        searched = files.inside(folder, f"{name}/{verbs.BEGUN}")
        if searched.is_file() and module is None:
            return verb(Recipe.load(searched, tuple(set)), out=folder)
    if not begun.is_file():
        raise RequestError("resume.nothing", path=str(folder))
    return train(Recipe.load(begun, tuple(set)), model=module, out=folder, resume=True)
