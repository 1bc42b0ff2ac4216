"""Columns learn from training rows, and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from luban.columns import joining
from luban.columns.base import Column, make, to_list
from luban.columns.examples import cells
from luban.columns.windows import SPLIT
from luban.console import tell
from luban.data.blocks import some
from luban.recipe import Recipe


def fit_columns(recipe: Recipe, data: Any, names: Sequence[str] | None = None) -> dict[str, Column]:
    """The columns of a recipe (or some of them), fitted on the training part of `data`. Raises DataError."""
    recipe = recipe.resolved()
    framed = data.framed("train", recipe.frame)
    parts = {**recipe.inputs, **recipe.outputs}
    chosen = parts if names is None else {n: parts[n] for n in parts if n in names}
    own = [n for n in chosen if not (n in recipe.inputs and (recipe.shared(n) or recipe.before(n)))]
    sharers = {n: [m for m in recipe.inputs if n in (recipe.shared(m), recipe.before(m))] for n in parts}
    found: dict[str, Column] = {}
    for n in own:  # inputs come first, so that an output finds the one that it is `of:`
        if n in recipe.outputs:
            found |= _shared(recipe, chosen, found)
        column = make(n, chosen[n].type, dict(chosen[n].settings)).beside(found)
        found[n] = _fitted(column, framed, sharers.get(n, ()))
        if any(recipe.before(m) == n for m in recipe.inputs):  # the tokens are those of other texts, too
            found[n] = found[n].keeping(found[n].learned(**measured(found[n], found[n], framed)))
        if n in recipe.inputs and recipe.together(n):
            found |= _joined(recipe, found[n], framed)
        else:
            _told(found[n], framed, recipe)
    found |= _shared(recipe, chosen, found)
    for n in chosen:
        if n in recipe.inputs and (written := recipe.before(n)) in found:
            found[n] = before(found[written], make(n, chosen[n].type, dict(chosen[n].settings)), framed)
            _told(found[n], framed, recipe)
    return {n: found[n] for n in chosen}


def before(written: Any, fresh: Any, framed: Any) -> Any:
    """The column of a text that is read before one that is written, with how long its training texts are in that one's tokens."""
    return joining.before(written, fresh, **measured(written, fresh, framed))


def measured(tokens: Any, column: Any, framed: Any) -> dict[str, Any]:
    """How long the training texts of a column are, cut into another's tokens, and the share that is too long."""
    lengths = tokens.lengths_of(cells(framed.some(_enough(column, framed)).only(column.name)))
    return {
        "longest": int(lengths.max(initial=1)),
        "cut": float((lengths > column.room).mean()) if len(lengths) else 0.0,
    }


def _shared(recipe: Recipe, chosen: Mapping[str, Any], found: Mapping[str, Column]) -> dict[str, Column]:
    """Inputs that take what another's column has learned."""
    pairs = {n: recipe.shared(n) for n in chosen if n in recipe.inputs}
    return {n: replace(found[of], name=n) for n, of in pairs.items() if of and of in found and n not in found}


def _joined(recipe: Recipe, base: Any, framed: Any) -> dict[str, Any]:
    """The columns of texts that are read in one sequence."""
    names = [base.name, *recipe.together(base.name)]
    few = framed.some(base.sampled)
    own = {n: {k: recipe.inputs[n].settings[k] for k in ("length", "keep", "long")} for n in names}
    found = joining.joined(recipe, base, own, {n: cells(few.only(n)) for n in names})
    for column in found.values():
        _told(column, framed, recipe)
    return found


def sampled(columns: Mapping[str, Column], framed: Any) -> dict[str, int]:
    """Column -> from how many training rows it learned, where those were not all."""
    found = {n: _enough(c, framed) for n, c in columns.items() if n in framed.source.column_names}
    return {n: count for n, count in found.items() if count < len(framed)}


def _enough(column: Column, framed: Any) -> int:
    """Training rows that a column learns from, evenly spaced: few where their cells are wide."""
    return some(framed.source.select([column.name]), column.sampled) if column.sampled else len(framed)


def _fitted(column: Column, framed: Any, sharers: Sequence[str] = ()) -> Column:
    """One column after another, so that the cells of one are in memory; some of them where all are too many.

    `sharers`: columns that it is fitted for as well, so that the same word has the same number in all of them.
    """
    if column.drawn and column.name not in framed.source.column_names:
        return column.fit(())
    few = framed.some(_enough(column, framed))
    if len(few) < len(framed):
        tell("columns.sampled", name=column.name, count=len(few), rows=len(framed))
    values, of = cells(few.only(column.name)), getattr(column, "of", None)
    for name in sharers:
        values = [*to_list(values), *to_list(cells(few.only(name)))]
    return column.fit(values, of=cells(few.only(of))) if of else column.fit(values)


def _told(column: Any, framed: Any, recipe: Recipe) -> None:
    """Say how many texts lose something."""
    if (cut := column.state.get("cut")) and not framed.pack:
        learned = column.long == SPLIT and not recipe.writes  # nobody knows what of an answer belongs to which window
        tell(
            "columns.windows_learned" if learned else f"columns.{column.long}",
            name=column.name,
            share=f"{cut:.1%}" if cut >= 0.001 else f"{cut:.3%}",
            most=column.room,
        )
