"""What the user asks for becomes a recipe with its rows; what can be said before training. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luban import console, registry
from luban.checking import KEYS
from luban.data.prepare import Data, gathered, prepare, read_for
from luban.errors import DataError, Problem, RecipeError, RequestError, Unsupported, problem, raise_all
from luban.messages import say, together
from luban.part import BORROWED, Part
from luban.recipe import UNTOLD, Recipe, usual_fusion
from luban.scale import chosen, clashes

if TYPE_CHECKING:
    from luban.data.quality import Finding


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
        recipe = _beside(recipe, Path(name).parent)
    elif is_recipe(source):
        recipe = source if isinstance(source, Recipe) else Recipe.of(source, changes=tuple(ask.changes))
    else:
        recipe = Recipe.of({"luban": 1, "data": {"rows": name} if name else {}}, changes=tuple(ask.changes))
    raise_all(RecipeError, [*_absent_files(recipe), *_lacking(recipe)])
    rows = read_for(recipe) if name or is_recipe(source) else None
    if rows is None:
        from luban.data.sources import read

        rows = read(source)
    rows = gathered(rows, {n: p.type for n, p in recipe.outputs.items()} | dict(ask.types or {}))
    recipe, inferred = _with_columns(recipe, rows, ask)
    plain = recipe.plain() | ({"model": dict(ask.model)} if ask.model else {})
    if ask.size:
        plain["size"] = ask.size
    if ask.seed is not None:
        plain["seed"] = ask.seed
    recipe = Recipe.of(plain)
    raise_all(RecipeError, _lacking(recipe))  # of the networks that were asked for beside a recipe
    return recipe, rows, inferred


def is_recipe(source: Any) -> bool:
    """A mapping with the keys of a recipe is one; any other holds columns."""
    return isinstance(source, Recipe) or (
        isinstance(source, Mapping) and ("luban" in source or set(source) <= set(KEYS))
    )


def _beside(recipe: Recipe, folder: Path) -> Recipe:
    """Paths in a recipe are relative to the recipe's file."""

    def near(path: str) -> str:  # of a file, or of the folder of a model
        return str(folder / path) if not Path(path).exists() and (folder / path).exists() else path

    data, rows = dict(recipe.data), recipe.data.get("rows")
    if rows:
        data["rows"] = near(rows)

    def beside(room: str, part: Part) -> Part:
        named = _named(room, part, "path", "model", "weights") if part.type not in BORROWED else ()
        return Part(part.type, {k: near(v) if k in named else v for k, v in part.settings.items()})

    inputs = {n: beside("columns", p) for n, p in recipe.inputs.items()}
    model = {n: beside("heads" if n in recipe.outputs else "encoders", p) for n, p in recipe.model.items()}
    return replace(recipe, data=data, inputs=inputs, model=model)


def _named(room: str, part: Part, *formats: str) -> list[str]:
    """The settings of a part that name a file, or a model."""
    shapes = registry.schema(room, part.type)["properties"]
    named = lambda s: s.get("format") in formats or any(map(named, s.get("anyOf", ())))  # noqa: E731
    return [k for k, v in part.settings.items() if v and named(shapes[k])]


def _files(part: Part) -> list[str]:
    return _named("columns", part, "path")


def _encoders(recipe: Recipe) -> Iterator[tuple[str, str, Part]]:
    """The encoders that a recipe names, those inside of others too: (column, place, part)."""
    waiting = [(n, f"model.{n}", p) for n, p in recipe.model.items() if n not in recipe.outputs]
    while waiting:
        name, place, part = waiting.pop(0)
        if part.type not in registry.names("encoders"):
            continue  # borrowed of another column; what is no encoder was told
        yield name, place, part
        shapes = registry.schema("encoders", part.type)["properties"]
        inner = [k for k, v in part.settings.items() if v and shapes.get(k, {}).get("x-part") == "encoders"]
        waiting += [(name, f"{place}.{part.type}.{k}", Part.of(part.settings[k])) for k in inner]


def _lacking(recipe: Recipe) -> Iterator[Problem]:
    """Libraries and weights of encoders that are not there, as far as names tell."""
    from luban.data import models

    for _, place, part in _encoders(recipe):
        library = registry.schema("encoders", part.type).get("x-needs")
        if library and find_spec(library) is None:
            yield problem("extra.missing", place=place, module=library, extra=library)
        for key in _named("encoders", part, "weights"):
            named, at = part.settings[key], f"{place}.{part.type}.{key}"
            if wrong := models.weightless(named, at):
                yield wrong
            elif not Path(named).exists() and named not in models.MODELS and find_spec("huggingface_hub") is None:
                yield problem("extra.missing", place=at, module="huggingface_hub", extra="transformers")


def unbuildable(recipe: Recipe, fetch: bool = True) -> list[Problem]:
    """What stops encoders of a resolved recipe that lean on a library or on weights of others. Imports torch for such ones alone.

    `fetch` False: weights that are not on this machine are not looked at. Raises WorkError where weights cannot be had.
    """
    leaning = {
        name
        for name, _, part in _encoders(recipe)
        if registry.schema("encoders", part.type).get("x-needs") or _named("encoders", part, "weights")
    }
    if not leaning:
        return []
    from luban.columns.base import make
    from luban.nn.vision.trial import mistakes

    columns = {n: make(n, recipe.inputs[n].type, dict(recipe.inputs[n].settings)) for n in sorted(leaning)}
    return [wrong for n, column in columns.items() for wrong in mistakes(recipe.model[n], column, f"model.{n}", fetch)]


def unfetched(recipe: Recipe) -> list[Finding]:
    """Weights and models that are not on this machine, so that training would fetch them first."""
    from luban.data import models
    from luban.data.quality import Finding

    asked = _models(recipe)
    asked += [
        (f"{place}.{p.type}.{k}", p.settings[k])
        for _, place, p in _encoders(recipe)
        for k in _named("encoders", p, "weights")
    ]
    absent = [(place, name) for place, name in dict.fromkeys(asked) if not models.here(name)]
    return [Finding("model.to_fetch", "info", "", models.to_fetch(name, place)) for place, name in absent]


def _models(recipe: Recipe) -> list[tuple[str, str]]:
    """The pretrained models that columns, encoders and heads name: (place, name)."""
    places = [(f"inputs.{n}", "columns", p) for n, p in recipe.inputs.items()]
    places += [
        (f"model.{n}", "heads" if n in recipe.outputs else "encoders", p)
        for n, p in recipe.model.items()
        if p.type not in BORROWED
    ]
    return [(f"{place}.{p.type}.{k}", p.settings[k]) for place, room, p in places for k in _named(room, p, "model")]


def _absent_files(recipe: Recipe) -> list[Problem]:
    """Files that columns are to learn from, and models, that are not there: told before anything is read."""
    from luban.data import models

    return [models.absent(v, place) for place, v in _models(recipe) if not models.possible(v)] + [
        problem("recipe.no_file", place=f"inputs.{n}.{p.type}.{k}", name=Path(p.settings[k]).name, path=p.settings[k], allowed=_beside_it(p.settings[k]))
        for n, p in recipe.inputs.items() for k in _files(p) if not Path(p.settings[k]).is_file()
    ]  # fmt: skip


def _beside_it(path: str) -> list[str]:
    folder = Path(path).parent
    return sorted(f.name for f in folder.iterdir() if f.is_file()) if folder.is_dir() else []


def _with_columns(recipe: Recipe, rows: Any, ask: Ask) -> tuple[Recipe, dict[str, Any]]:
    """Inputs and outputs filled in by inference where the recipe names none."""
    from luban.columns.infer import infer

    found = list(rows.table.column_names)
    targets = [ask.target] if isinstance(ask.target, str) else list(ask.target or [])
    if not targets and not recipe.outputs and {"image", "video"} & set(found):
        targets = [n for n in ("objects", "label") if n in found][:1]
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
    untold = recipe.fusion.type in (*UNTOLD, "match")  # what inputs hold, or that they lie close, is what is learned
    if not outputs and not targets and not untold:
        raise RequestError(problem("train.no_target", allowed=found))
    inferred = infer(rows, target=targets[0] if targets else next(iter(outputs), None))
    given = {n: Part(t) for n, t in (ask.types or {}).items()}
    for name in targets:
        kind = inferred[name].type
        outputs[name] = (
            given.get(name)
            or outputs.get(name)
            or Part(kind if kind in ("number", "labels", "tags", "chat", "boxes") else "category")
        )
    alone = [registry.schema("columns", p.type).get("x-alone", False) for p in outputs.values()]
    inputs, packs = dict(recipe.inputs), recipe.frame.type == "pack" or alone == [True]  # they stand for themselves
    if not inputs and not packs:
        named = list(ask.inputs) or [n for n in found if n not in outputs]
        used = {n: inferred[n] for n in named}
        inputs = {
            n: given.get(n) or Part(i.type)
            for n, i in used.items()
            if n in given or i.type != "skip" or n in ask.inputs
        }
        inputs = {n: (p if p.type != "skip" else Part("category")) for n, p in inputs.items()}
    if not inputs and not packs:
        raise DataError("data.no_inputs", found=found)
    fusion = usual_fusion(outputs) if recipe.fusion == Part("concat") else recipe.fusion  # a text needs another one
    recipe = replace(recipe, inputs=inputs, outputs=outputs, fusion=fusion)
    return _with_decimal(_with_parts(recipe, rows), rows, inferred), inferred


def _with_parts(recipe: Recipe, rows: Any) -> Recipe:
    """Data that come in parts of their own, as MNIST does, keep them, unless the recipe says how to split."""
    named = next((n.values["column"] for n in rows.notes if n.id == "data.split_column"), None)
    split = {k: v for k, v in (recipe.data.get("split") or {}).items() if v is not None}
    if named is None or named not in rows.table.column_names or {"by", "time", "column", "test"} & set(split):
        return recipe
    return replace(recipe, data={**recipe.data, "split": {**split, "column": named}})


def _with_decimal(recipe: Recipe, rows: Any, inferred: Mapping[str, Any]) -> Recipe:
    """The decimal sign that the number columns are written with becomes the recipe's, unless it names one."""
    numbers = [n for n, p in {**recipe.inputs, **recipe.outputs}.items() if p.type == "number"]
    signs = {inferred[n].settings["decimal"]: n for n in numbers if n in inferred and "decimal" in inferred[n].settings}
    if not signs or recipe.data.get("decimal"):
        return recipe
    ((sign, name),) = signs.items()
    rows_of = rows.table[name].drop_null().to_pylist()
    console.tell("data.decimal", sign=sign, column=name, example=next(v for v in rows_of if sign in v))
    return replace(recipe, data={**recipe.data, "decimal": sign})


def findings(recipe: Recipe, data: Data) -> list[Any]:
    """What the data check has to say, errors first."""
    from luban.data.quality import check as look

    types = {n: p.type for n, p in recipe.read.items()}
    target = None if recipe.draws else next(iter(recipe.outputs), None)  # what is made new has no one right answer
    return look(data.rows, types, target, data.splits)


def tell_findings(found: list[Any], most: int = 6) -> None:
    """Errors and warnings of the data check on stderr; notes are left to `luban check`."""
    told = [f for f in found if f.level != "info"]
    for f in told[:most]:
        console.block(together(say(f"check.{f.level}"), str(f.problem)))
    if len(told) > most:
        console.tell("check.more", count=len(told) - most)


def mixtures(recipe: Recipe) -> list[Problem]:
    """What of a recipe, defaults included, cannot be trained with its strategy, or would do nothing: known before anything is read."""
    train = recipe.with_stage_default("train").resolved().stage("train")
    alone = recipe.outputs if not recipe.inputs else {}  # nothing is answered, so nothing is searched
    unused = [n for n, p in alone.items() if p.settings.get("beams", 1) > 1]
    found = [problem("text.beams_alone", place=f"outputs.{n}.{alone[n].type}.beams") for n in unused]
    return [*found, *clashes(chosen(recipe.scale)["strategy"], train.settings)]


def check(source: Any, ask: Ask = Ask()) -> tuple[Recipe, list[Any], Data]:
    """Everything that can be said before training: the recipe, what the data check found, the prepared data. No weights are fetched.

    Raises Unsupported where the recipe mixes what cannot be trained together.
    """
    recipe, rows, inferred = recipe_from(source, ask)
    recipe = recipe.resolved()
    raise_all(Unsupported, mixtures(recipe))
    raise_all(RequestError, unbuildable(recipe, fetch=False))
    prepared = prepare(recipe, rows)
    show_columns(recipe, inferred)
    tell_ledger(prepared)
    return recipe, [*findings(recipe, prepared), *unfetched(recipe)], prepared


def show_columns(recipe: Recipe, inferred: Mapping[str, Any]) -> None:
    """Say what each column is taken for, and why, before anything is trained."""
    from luban.command import table
    from luban.errors import shortened

    alike: dict[tuple[str, str], list[str]] = {}  # thirty columns of numbers are one line
    for side, parts in (("report.input", recipe.inputs), ("report.output", recipe.outputs)):
        for name, part in parts.items():
            reason = (
                inferred[name].reason if name in inferred and inferred[name].type == part.type else say("columns.asked")
            )
            alike.setdefault((say("columns.side", side=say(side), type=part.type), reason), []).append(name)
    for name, i in inferred.items():
        if name not in recipe.inputs and name not in recipe.outputs:
            alike.setdefault((say("columns.skipped"), i.reason), []).append(name)
    console.tell("columns.title")
    lines = [(what, say("columns.why", names=shortened(names, 8), why=why)) for (what, why), names in alike.items()]
    console.block("\n".join(table(lines)))


def keep_quarantine(data: Data, folder: Path) -> None:
    """FOLDER/quarantine.csv: line, reason and text of every row that could not be used; no file where there is none."""
    path, count = folder / "quarantine.csv", len(data.rows.quarantine)
    path.unlink(missing_ok=True)
    if count:
        folder.mkdir(parents=True, exist_ok=True)
        data.rows.save_quarantine(path)
        console.tell("data.quarantine_file", count=count, path=str(path))


def tell_ledger(data: Data) -> None:
    rows = data.rows
    for note in rows.notes:
        console.block(str(note))
    console.tell("data.ledger", rows_in=rows.rows_in, used=len(rows.table), quarantined=len(rows.quarantine))
    for bad in rows.quarantine[:3]:
        console.tell("data.quarantined", line=bad.line, reason=bad.reason)
    if data.splits is not None:
        console.block(data.splits.how)
