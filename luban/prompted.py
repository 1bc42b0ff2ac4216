"""What the verb `shots` asks about: the rows of a recipe or a file, with their parts, and the model that learned them, if there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luban import registry
from luban.asking import Ask, is_recipe, recipe_from
from luban.bundle import Bundle
from luban.data.prepare import Data, missing_words, prepare
from luban.data.sources import read
from luban.report import Report


def shots(
    model: Any,
    data: Any,
    target: str | None = None,
    *,
    inputs: Sequence[str] = (),
    types: Mapping[str, str] | None = None,
    beside: Any = None,
    set: Sequence[str] = (),
    **settings: Any,
) -> Report:
    """A language model is shown examples of a table in its prompt and asked about its held-out rows; see the stage `shots`.

    `data`: a recipe, or rows with `target`. `beside`: a model that was trained on them, which answers the same rows; rows of a
    file are then cut into parts as it did. Raises RecipeError, DataError, RequestError, Unsupported.
    """
    bundle, prepared = labelled(data, Ask(target, inputs, types, changes=tuple(set)), beside)
    return registry.find("stages", "shots")(bundle, prepared, model=model, **settings)


def labelled(source: Any, ask: Ask, beside: Any = None) -> tuple[Bundle, Data]:
    """A Bundle of the recipe and its data with their parts. Without `beside` it was never built: it answers nothing itself."""
    bundle = beside if beside is None or isinstance(beside, Bundle) else Bundle.load(beside)
    if bundle is None or is_recipe(source) or str(source).endswith((".yaml", ".yml")):
        recipe, rows, _ = recipe_from(source, ask)
        recipe = recipe.resolved()
    else:
        recipe, rows = bundle.recipe, read(source, missing=missing_words(bundle.recipe))
    return bundle or Bundle(recipe), prepare(recipe, rows)
