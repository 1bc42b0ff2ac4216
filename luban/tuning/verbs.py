"""`luban tune` and `luban curve`: what was asked for becomes a search, the search an ordinary Bundle with its report."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from luban import console, files, scaling
from luban.applying import apply, claimed
from luban.asking import Ask, findings, recipe_from, show_columns, tell_findings, tell_ledger, unbuildable
from luban.data.prepare import Data, prepare
from luban.energy import Meter
from luban.errors import RequestError, need, raise_all
from luban.part import Part
from luban.recipe import Recipe, fill
from luban.scale import world
from luban.tuning.asked import counts_for, judgeable

TUNE, CURVE, BEGUN = ".tune", ".curve", "recipe.yaml"
RUN = "checkpoints/run.yaml"  # the recipe of a whole run, for `resume`


def tune(
    data: Any,
    target: str | Sequence[str] | None = None,
    *,
    inputs: Sequence[str] = (),
    types: Mapping[str, str] | None = None,
    model: Any = None,
    size: str | None = None,
    seed: int | None = None,
    set: Sequence[str] = (),
    out: str | Path | None = None,
    **settings: Any,
) -> Any:
    """Search settings on the training rows, judged on the validation rows; the best model as a Bundle, judged on test rows.

    `settings` are those of a recipe's `tune` (`trials=20, minutes=10, search={"train.rate": [1e-4, 1e-2, "log"]}`), see
    `luban.tuning.search`. With `out` the Bundle is saved there and a search that was killed goes on when called again.
    Raises RecipeError, DataError before anything starts, MissingExtra without Optuna, Stopped on a signal.
    """
    _not_in_ranks()
    need("optuna", "tune")
    recipe, rows, inferred = recipe_from(data, Ask(target, inputs, types, model, size, seed, tuple(set)))
    recipe = Recipe.of({**recipe.plain(), "tune": {**recipe.tune, **settings}})
    if recipe.fusion.type == "own":
        raise RequestError("tune.own_module")
    prepared = _prepared(recipe, rows, inferred)
    judgeable(prepared)
    with tempfile.TemporaryDirectory() if out is None else nullcontext(out) as folder, claimed(out):
        return _tuned(recipe, prepared, Path(folder), keep=out is not None)


def curve(
    data: Any,
    target: str | Sequence[str] | None = None,
    *,
    inputs: Sequence[str] = (),
    types: Mapping[str, str] | None = None,
    model: Any = None,
    size: str | None = None,
    seed: int | None = None,
    set: Sequence[str] = (),
    out: str | Path | None = None,
    **settings: Any,
) -> Any:
    """One recipe at several row counts and sizes: what more rows and a larger network would bring.

    A Bundle: the recipe trained on all rows at its own size, with a report "curve". `settings` are those of a recipe's `curve`
    (`rows=[0.25, 0.5, 1], sizes=["nano", "small"], repeats=3`), see `luban.tuning.curve`. Goes on and raises as `tune` does.
    """
    _not_in_ranks()
    recipe, rows, inferred = recipe_from(data, Ask(target, inputs, types, model, size, seed, tuple(set)))
    recipe = Recipe.of({**recipe.plain(), "curve": {**recipe.curve, **settings}})
    if recipe.fusion.type == "own":
        raise RequestError("tune.own_module")
    prepared = _prepared(recipe, rows, inferred)
    judgeable(prepared)
    counts_for(len(prepared.part("train")), fill("search", Part("curve", recipe.curve), recipe.size).settings["rows"])
    with tempfile.TemporaryDirectory() if out is None else nullcontext(out) as folder, claimed(out):
        return _curved(recipe, prepared, Path(folder), keep=out is not None)


def _not_in_ranks() -> None:
    """Raises RequestError in the ranks of somebody's torchrun: each would search, and write, by itself."""
    if world() > 1:
        raise RequestError("tune.in_ranks", world=world())


def _curved(recipe: Recipe, data: Data, folder: Path, *, keep: bool) -> Any:
    from luban.bundle import Bundle
    from luban.tuning.curve import curve as measure
    from luban.tuning.curve_page import answers, page

    _told_of(recipe)
    settings = dict(fill("search", Part("curve", recipe.curve), recipe.size).settings)
    with _begun(folder, CURVE, recipe), Meter() as meter:
        found = measure(recipe, data, folder / CURVE, **settings)
    report = page(found, answers(found, data), settings)
    own = next(p for p in found.points if p.size == recipe.size and p.rows == len(data.part("train")))
    bundle = Bundle.load(found.home(own, 0))
    seconds = sum(r["seconds"] for p in found.points for r in p.results)
    entry = {"stage": "curve", "settings": settings, "seconds": round(seconds, 1), **meter.entry()}
    entry |= {k: report.numbers[k]["verdict"] for k in ("more_rows", "larger_network") if report.numbers[k]}
    history = [entry, *(_of_all_rows(h, data) for h in bundle.history)]
    asked = recipe.resolved()
    whole = replace(bundle.recipe, data=asked.data, scale=asked.scale, curve=recipe.curve, tune=recipe.tune)
    bundle = replace(bundle, recipe=whole, history=history, path=None).with_report(report)
    bundle = apply(bundle, data, fill("stages", recipe.stage("evaluate") or Part("evaluate"), recipe.size))
    if keep:
        bundle.save(folder)
    return bundle


def _prepared(recipe: Recipe, rows: Any, inferred: Mapping[str, Any]) -> Data:
    raise_all(RequestError, unbuildable(recipe.resolved()))
    prepared = prepare(recipe.resolved(), rows)
    show_columns(recipe, inferred)
    tell_ledger(prepared)
    tell_findings(findings(recipe, prepared))
    return prepared


def _tuned(recipe: Recipe, data: Data, folder: Path, *, keep: bool) -> Any:
    """Search, take over the best trial's model, judge it once on rows that chose nothing."""
    with _begun(folder, TUNE, recipe):
        bundle = searched(recipe, data, folder)
    bundle = apply(bundle, data, fill("stages", recipe.stage("evaluate") or Part("evaluate"), recipe.size))
    if keep:
        bundle.save(folder)
    return bundle


def searched(recipe: Recipe, data: Data, folder: Path) -> Any:
    """The best trial's Bundle, the search in its history and its reports. `recipe`: as asked for, not resolved."""
    from luban.bundle import Bundle
    from luban.tuning.page import page
    from luban.tuning.search import search

    _told_of(recipe)

    settings = dict(fill("search", Part("tune", recipe.tune), recipe.size).settings)
    with Meter() as meter:
        found = search(recipe, data, folder / TUNE, **settings)
    bundle = Bundle.load(found.home)
    asked = recipe.resolved()
    whole = replace(bundle.recipe, data=asked.data, scale=asked.scale, tune={**recipe.tune, "search": found.space})
    entry = {
        "stage": "tune", "settings": settings, "trials": len(found.study.trials()), "best": found.best.number,
        "metric": found.goal.name, "value": found.best.score, "judged_on": "validation", "chosen": found.best.values,
        "seconds": found.study.spent, **meter.entry(),
    }  # fmt: skip
    history = [entry, *(_of_all_rows(h, data) for h in bundle.history)]
    bundle = replace(bundle, recipe=whole, history=history, path=None)
    return bundle.with_report(page(found, settings, against_first(bundle, found, data)))


def _told_of(recipe: Recipe) -> None:
    if scaling.spread(recipe.resolved()):
        console.tell("tune.not_spread")


@contextmanager
def _begun(folder: Path, name: str, recipe: Recipe) -> Iterator[None]:
    """What `resume` goes on with from here on; where this search is refused, since another one stands there, that one as before."""
    path = folder / name / BEGUN
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    _alone(folder, name)
    files.write(path, recipe.yaml())
    try:
        yield
    except RequestError:
        if before is not None:
            files.write(path, before)
        raise


def _alone(folder: Path, name: str) -> None:
    """What was begun in the folder before is not what `resume` is to go on with."""
    (folder / RUN).unlink(missing_ok=True)
    for other in (n for n in (TUNE, CURVE) if n != name):
        shutil.rmtree(folder / other, ignore_errors=True)


def forget(folder: Path) -> None:
    """What stands in a folder will not be a search's."""
    for name in (TUNE, CURVE):
        shutil.rmtree(folder / name, ignore_errors=True)


def _of_all_rows(entry: Mapping[str, Any], data: Data) -> dict[str, Any]:
    """A trial did not see the test rows; what its line of history says of the rows is said of all of them."""
    if "rows" not in entry:
        return dict(entry)
    rows = {p: len(data.part(p)) for p in ("train", "validation", "test")}
    ledger = {"in": data.rows.rows_in, "used": data.table.num_rows, "quarantined": len(data.rows.quarantine)}
    return {**entry, "rows": rows, "ledger": ledger, "data": data.rows.fingerprint()}


def against_first(bundle: Any, found: Any, data: Data) -> dict[str, Any] | None:
    """The tuned model minus the one with the recipe's own settings, on the same held-out rows."""
    from luban.bundle import Bundle
    from luban.evaluation.pairs import difference

    if found.first is None or found.best.number == 0 or data.held_out()[0] != "test":
        return None
    name = found.goal.output or next(iter(bundle.outputs))
    return difference(Bundle.load(found.first), bundle, data, name, found.goal.metric if found.goal.output else "auto")
