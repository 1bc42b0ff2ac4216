"""Texts that one encoder reads in one sequence: the control tokens between them, and how much room each has.

    [CLS] first [SEP] second [SEP]

A checkpoint's own control tokens where it has some (`<s> first </s></s> second </s>` of RoBERTa); two more ids at the end of a
vocabulary of Luban's own. Together they are no longer than the checkpoint's window: the first texts get as many positions as their longest
training text has, at most an even share, and the last one what is left. With `overlap` the last text may be longer: it is then
read in windows that share so many tokens, each behind the whole of the others (Devlin et al. 2019, of SQuAD).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from luban.columns.base import Column
from luban.console import tell
from luban.recipe import CUTTING, Recipe

WINDOW = 256  # tokens of a window where no checkpoint says how many it can take


def joined(recipe: Recipe, base: Any, own: Mapping[str, Any], cells: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The columns of `base` and of all that are read behind it, by name.

    `own`: the settings of each; `cells`: training cells, from which each learns how long it is. Without them all are as long as
    they may be.
    """
    base, names = _with_controls(base), [base.name, *recipe.together(base.name)]
    before, between, after = (base.state[k] for k in ("before", "between", "after"))
    found, lengths = {}, {}
    for i, name in enumerate(names):
        controls = {"before": [] if i else before, "after": after if name == names[-1] else between}
        column = replace(base, name=name, **own.get(name, {}))
        lengths[name] = np.array([column.length]) if cells is None else base.lengths_of(cells[name])
        found[name] = base.keeping(column.learned(**controls, longest=int(lengths[name].max(initial=1))))
    found = _with_room(found, base.state.get("window"), recipe.model[names[-1]].settings)
    for name, column in found.items():
        longer = float((lengths[name] > column.room).mean()) if cells is not None else 0.0
        found[name] = column.keeping(column.learned(cut=longer))
        piece = column.state["joint"].get("piece")
        if piece and cells is not None and (share := float((lengths[name] > piece).mean())):
            overlap = column.state["joint"]["overlap"]
            tell("columns.windows", name=name, share=f"{share:.1%}", window=piece, overlap=overlap)
    return found


def like(before: Any, fresh: Column) -> Column:
    """An earlier model's text column in the place of `fresh`, which is read jointly."""
    found = _with_controls(before)
    kept = {k: fresh.state[k] for k in ("joint", "window", "longest", "cut")}
    first, last = fresh.state["joint"]["first"], fresh.state["joint"]["last"]
    controls = {"before": found.state["before"] if first else [], "after": found.state["after" if last else "between"]}
    return found.keeping(replace(found, name=fresh.name, length=fresh.length).learned(**controls, **kept))


def before(written: Any, fresh: Any, **seen: Any) -> Any:
    """The column of a text that is read before one that is written (`luban.nn.before`): its tokens, without controls or an end.

    `fresh` says how long it is and what it is called; `seen`: what is known of its texts.
    """
    settings = {k: getattr(written, k) for k in CUTTING}
    state = {
        k: v for k, v in written.state.items() if k not in ("before", "between", "after", "longest", "cut", "window")
    }
    return written.keeping(replace(fresh, **settings, state={**state, "before": [], "after": [], **seen}))


def _with_controls(column: Any) -> Any:
    """A vocabulary of Luban's own gets an id that begins and one that parts."""
    if column.state.get("between") is not None:
        return column
    begin, part = column.size, column.size + 1
    learned = column.keeping(column.learned(size=column.size + 2, before=[begin], between=[part], after=[part]))
    if column.table is not None:
        more = np.random.default_rng(0).normal(0, column.table.std(), (2, column.table.shape[1]))
        object.__setattr__(learned, "_table", np.concatenate([column.table, more.astype(column.table.dtype)]))
    return learned


def _with_room(found: dict[str, Any], window: int | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    """How many positions each text may have, as `window` of its state, and what the windows of the last one are.

    `window`: positions that the encoder has for all of them, None where it takes any number.
    """
    names, result, left = list(found), {}, window
    overlap = asked.get("overlap")
    for i, name in enumerate(names):
        column, last = found[name], i == len(names) - 1
        state: dict[str, Any] = {"first": i == 0, "last": last}
        controls = len(column.state["before"]) + len(column.state["after"])
        most = column.length
        if last and overlap is not None:
            limits = [asked.get("window"), WINDOW if left is None else left - controls]
            piece = max(1, min(n for n in limits if n is not None))
            state |= {"piece": piece, "overlap": min(overlap, piece // 2)}
        elif left is not None:
            longest = column.state["longest"] + controls
            most = min(most, left if last else max(1 + controls, min(longest, left // (len(names) - i))))
            left -= most
        result[name] = column.keeping(column.learned(joint=state, window=most))
    return result
