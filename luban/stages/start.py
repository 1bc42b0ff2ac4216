"""start: what another model has learned, where inputs and outputs are the same."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from luban import registry
from luban.bundle import Bundle, build_network
from luban.columns.base import Column
from luban.columns.fitting import before as column_before
from luban.columns.fitting import fit_columns, measured
from luban.console import tell
from luban.errors import RequestError, Unsupported, problem, raise_all
from luban.huggingface import opened
from luban.messages import say
from luban.nn.floating import multiplied_out, stored_layers
from luban.nn.lora import merge_lora
from luban.nn.transfer import take_over
from luban.part import Part
from luban.recipe import Recipe, fill
from luban.training.random import seed_torch

SMALLER = ("prune_channels", "low_rank")  # edits that leave layers of other sizes than a recipe's


def start(bundle: Bundle, data: Any, *, source: str, names: dict[str, str] = None) -> Bundle:
    """An untrained Bundle with the fitted columns and the weights of `source`, a folder (in Python also a Bundle);
    of a GPT-2, Llama or BERT checkpoint in the Hugging Face layout, a GGUF file or a sample model, too.

    An input of the same name and type keeps its vocabulary and its encoder's weights; an output keeps its column where it
    knows every label of the training rows. Everything else is fitted and starts anew, and both are told.
    `names`: what a column of this recipe is called there, where that differs, such as {sentence: text}.
    Quantised layers are taken over as floating-point weights. Raises BundleError for a folder that is no Bundle, DataError,
    RequestError for a name that is not there, and where nothing could be taken, Unsupported for a model whose layers were made smaller.
    """
    before = source if isinstance(source, Bundle) else opened(source)
    path = str(before.path or ("" if isinstance(source, Bundle) else source))  # a checkpoint was never a saved model
    before = _floating(before, path or "-", getattr(bundle.network, "module", None))
    before = _called(before, bundle, names or {})
    fresh = bundle.columns or fit_columns(bundle.recipe, data)
    found = {n: _kept(before.columns[n], c, n in bundle.outputs) for n, c in fresh.items() if n in before.columns}
    for n in [n for n in found if n in bundle.inputs]:  # what is read in one sequence has one vocabulary
        found |= {m: before.columns[n].becomes(fresh[m]) for m in bundle.recipe.together(n) if m not in found}
    found |= _read_before(bundle.recipe, found, fresh, data)
    kept = {n: c for n, c in found.items() if c is not None}
    columns = {**fresh, **kept}
    recipe = _with_sizes(_with_settings(bundle.recipe, kept), before.recipe, kept)
    seed_torch(recipe.seed, "weights")
    network = build_network(recipe, columns, bundle.edits, getattr(bundle.network, "module", None))
    taken = take_over(network, merge_lora(before.copy_network()), kept)
    weights = [n for n, done in taken.items() if done]
    if not kept and not weights:
        raise RequestError(problem("start.nothing", place=path, here=list(fresh), there=list(before.columns)))
    new = [n for n in columns if n not in kept or not taken.get(n)]
    tell("start.taken", source=path or say("start.given"), columns=list(kept) or "-", weights=weights or "-")
    if new:
        tell("start.new", names=new)
    result = replace(bundle, recipe=recipe, columns=columns, network=network)
    return result.with_history("start", settings={"source": path}, columns=list(kept), weights=weights)


def _floating(before: Bundle, place: str, module: Any) -> Bundle:
    """The model with ordinary layers; the Bundle itself where all are. `module`: one's own network, as it was.

    Raises Unsupported where layers were made smaller, or its own network is another one.
    """
    if cut := [e["edit"] for e in before.edits if e["edit"] in SMALLER]:
        raise Unsupported("start.smaller", source=place, edit=cut[0])
    count = stored_layers(before.network)
    if not count:
        return before
    norms = {layer: norm for e in before.edits for layer, norm in e.get("norms", {}).items()}
    plain = build_network(before.recipe, before.columns, (), copy.deepcopy(module))
    try:
        network = multiplied_out(before.network, plain, norms)
    except (AttributeError, ValueError) as e:
        raise Unsupported("start.unlike", source=place, layer=str(e)[:80]) from e
    tell("start.floating", count=count)
    return replace(before, network=network.to(next(before.network.buffers()).device), edits=[])


def _kept(before: Column, fresh: Column, output: bool) -> Column | None:
    """The earlier column, where it can stand for the one that was fitted on these rows."""
    if output and not set(getattr(fresh, "labels", ())) <= set(getattr(before, "labels", ())):
        return None
    return before.becomes(fresh)


def _read_before(
    recipe: Recipe, found: Mapping[str, Column | None], fresh: Mapping[str, Any], data: Any
) -> dict[str, Column]:
    """Texts that are read before one that is written, in the tokens of its earlier column, and that one as long as asked for."""
    pairs = {n: w for n in recipe.inputs if (w := recipe.before(n)) and found.get(w) is not None}
    if not pairs:
        return {}
    framed = data.framed("train", recipe.resolved().frame)
    result: dict[str, Any] = {n: column_before(found[w], fresh[n], framed) for n, w in pairs.items()}
    for w in dict.fromkeys(pairs.values()):
        whole: Any = found[w]
        asked = replace(whole, length=fresh[w].length, beams=fresh[w].beams)
        result[w] = whole.keeping(asked.learned(**measured(whole, fresh[w], framed)))
    return result


def _with_sizes(recipe: Recipe, before: Recipe, kept: Collection[str]) -> Recipe:
    """What writes an output is as large as before, where the recipe leaves all of its settings at their defaults."""
    model = dict(recipe.model)
    for name in kept:
        part = model.get(name)
        if name not in recipe.outputs or part is None or not recipe.writes or name not in before.model:
            continue
        usual = fill("heads", Part(part.type), recipe.size)
        if part == usual and part.type in (
            registry.schema("columns", recipe.outputs[name].type)["x-head"],
            before.model[name].type,
        ):
            model[name] = before.model[name]
    return replace(recipe, model=model)


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
    model = {called(n): p for n, p in before.recipe.model.items()}
    return replace(before, network=network, columns=columns, recipe=replace(before.recipe, model=model))
