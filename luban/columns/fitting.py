"""Columns learn from training rows, and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luban.columns.base import Column, make
from luban.columns.examples import cells
from luban.recipe import Recipe


def fit_columns(recipe: Recipe, data: Any, names: Sequence[str] | None = None) -> dict[str, Column]:
    """The columns of a recipe (or some of them), fitted on the training part of `data`. Raises DataError."""
    recipe = recipe.resolved()
    table = data.framed("train", recipe.frame).table
    parts = {**recipe.inputs, **recipe.outputs}
    chosen = parts if names is None else {n: parts[n] for n in parts if n in names}
    return {n: make(n, p.type, dict(p.settings)).fit(cells(table[n])) for n, p in chosen.items()}
