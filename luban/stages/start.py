"""start: what another model has learned, where inputs and outputs are the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from luban.bundle import Bundle, build_network
from luban.columns.base import Column
from luban.columns.fitting import fit_columns
from luban.console import tell
from luban.errors import RequestError, problem, raise_all
from luban.nn.lora import merge_lora
from luban.nn.transfer import take_over
from luban.recipe import Part, Recipe
from luban.training.random import seed_torch


def start(bundle: Bundle, data: Any, *, source: str, names: dict[str, str] = None) -> Bundle:
    """An untrained Bundle with the fitted columns and the weights of `source`, a folder (in Python also a Bundle).

    An input of the same name and type keeps its vocabulary and its encoder's weights; an output keeps its column where it
    knows every label of the training rows. Everything else is fitted and starts anew, and both are told.
    `names`: what a column of this recipe is called there, where that differs, such as {sentence: text}.
    Raises BundleError for a folder that is no Bundle, DataError, RequestError for a name that is not there.
    """
    before = _called(source if isinstance(source, Bundle) else Bundle.load(source), bundle, names or {})
    fresh = bundle.columns or fit_columns(bundle.recipe, data)
    kept = {
        n: before.columns[n]
        for n, c in fresh.items()
        if n in before.columns and _fits(before.columns[n], c, n in bundle.outputs)
    }
    columns = {**fresh, **kept}
    recipe = _with_settings(bundle.recipe, kept)
    seed_torch(recipe.seed, "weights")
    network = build_network(recipe, columns, bundle.edits, getattr(bundle.network, "module", None))
    taken = take_over(network, merge_lora(before.copy_network()), kept)
    weights = [n for n, done in taken.items() if done]
    new = [n for n in columns if n not in kept or not taken.get(n)]
    tell("start.taken", source=str(before.path or ""), columns=list(kept) or "-", weights=weights or "-")
    if new:
        tell("start.new", names=new)
    result = replace(bundle, recipe=recipe, columns=columns, network=network)
    return result.with_history(
        "start", settings={"source": str(before.path or "")}, columns=list(kept), weights=weights
    )


def _fits(before: Column, fresh: Column, output: bool) -> bool:
    """Whether the earlier column can stand for the one that was fitted on these rows."""
    if before.type != fresh.type:
        return False
    return not output or set(getattr(fresh, "labels", ())) <= set(getattr(before, "labels", ()))


def _with_settings(recipe: Recipe, kept: dict[str, Column]) -> Recipe:
    """The recipe says what the columns that were kept are."""
    side = lambda parts: {n: Part(p.type, _plain(kept[n])) if n in kept else p for n, p in parts.items()}  # noqa: E731
    return replace(recipe, inputs=side(recipe.inputs), outputs=side(recipe.outputs))


def _plain(column: Column) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in column.settings().items()}


def _called(before: Bundle, now: Bundle, names: Mapping[str, str]) -> Bundle:
    """The earlier model with its columns called as in this recipe."""
    here = [*now.recipe.inputs, *now.recipe.outputs]
    wrong = [problem("start.no_name", name=n, allowed=here) for n in names if n not in here]
    wrong += [
        problem("start.no_source", name=n, allowed=list(before.columns))
        for n in names.values()
        if n not in before.columns
    ]
    raise_all(RequestError, wrong)
    new = {old: n for n, old in names.items()}
    if not new:
        return before
    network = before.copy_network()
    called = lambda n: new.get(n, n)  # noqa: E731
    network.groups = [[called(n) for n in group] for group in getattr(network, "groups", ())]
    network.outputs = {called(n): c for n, c in network.outputs.items()}
    columns = {called(n): replace(c, name=called(n)) for n, c in before.columns.items()}
    return replace(before, network=network, columns=columns)
