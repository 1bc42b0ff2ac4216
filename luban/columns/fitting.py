"""Columns learn from training rows, and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luban.columns.base import Column, make
from luban.columns.examples import cells
from luban.console import tell
from luban.recipe import Recipe


def fit_columns(recipe: Recipe, data: Any, names: Sequence[str] | None = None) -> dict[str, Column]:
    """The columns of a recipe (or some of them), fitted on the training part of `data`. Raises DataError."""
    recipe = recipe.resolved()
    framed = data.framed("train", recipe.frame)
    parts = {**recipe.inputs, **recipe.outputs}
    chosen = parts if names is None else {n: parts[n] for n in parts if n in names}
    return {n: _fitted(make(n, p.type, dict(p.settings)), framed) for n, p in chosen.items()}


def _fitted(column: Column, framed: Any) -> Column:
    """One column after another, so that the cells of one are in memory; some of them where all are too many."""
    few = framed.some(column.sampled) if column.sampled else framed
    if len(few) < len(framed):
        tell("columns.sampled", name=column.name, count=len(few), rows=len(framed))
    fitted = column.fit(cells(few.only(column.name)))
    if cut := fitted.state.get("cut"):
        tell("columns.cut", name=column.name, share=f"{cut:.1%}", most=fitted.room)
    return fitted
