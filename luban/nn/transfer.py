"""Weights of one network put into another, where inputs and outputs are the same."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from luban.nn.before import Before
from luban.nn.forms import Indices, Scalars
from luban.nn.joint import Joint

POSITIONS = "layers.positions"  # of a Transformer


def take_over(new: Any, old: Any, names: Collection[str]) -> dict[str, bool]:
    """Copy the weights of the encoders of `names`, then of fusion and heads where all before them are the same.

    Per input, "fusion" and output: whether its weights were taken. A shared encoder's columns are copied one by one; a language
    model writes on behind inputs that it has never read.
    """
    if not hasattr(new, "groups") or not hasattr(old, "groups"):
        taken = _copied(new, old) if type(new) is type(old) else False
        return dict.fromkeys([*getattr(new, "inputs", ()), *new.outputs], taken)
    done = {n: isinstance(e, Before) for group, e in zip(new.groups, new.encoders) for n in group}
    mine = [g for g, e in zip(new.groups, new.encoders) if not isinstance(e, Before)]  # the others have no weights
    theirs = [g for g, e in zip(old.groups, old.encoders) if not isinstance(e, Before)]
    for group, encoder in zip(new.groups, new.encoders):
        for names_before, before in zip(old.groups, old.encoders):
            common = [n for n in group if n in names_before and n in names]
            if common and isinstance(encoder, Joint) and type(encoder.encoder) is type(before):
                done |= dict.fromkeys(common, _widened(encoder.encoder, before))
            if not common or type(encoder) is not type(before):
                continue
            same = group == names_before and len(common) == len(group)
            taken = _copied(encoder, before) if same else _by_column(encoder, before, group, names_before, common)
            done |= dict.fromkeys(common, taken)
    whole = mine == theirs and all(done.values()) and type(new.fusion) is type(old.fusion)
    whole = whole and _copied(new.fusion, old.fusion)
    done.setdefault("fusion", whole)
    before_heads = dict(old._heads())
    for name, head in new._heads():
        before = before_heads.get(name)
        # a language model, whatever is put in front of its text now
        itself = not theirs and bool(getattr(head, "before", 0))
        done[name] = (whole or itself) and name in names and type(head) is type(before) and _copied(head, before)
    return done


def _copied(new: nn.Module, old: nn.Module) -> bool:
    """Copy all weights, or none where a name or a shape differs; of learnt positions as many as there are now."""
    mine, theirs = new.state_dict(), old.state_dict()
    theirs |= {k: theirs[k][: len(mine[k])] for k in mine if k.endswith(POSITIONS) and k in theirs}
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in theirs.items()}:
        return False
    new.load_state_dict(theirs)
    return True


@torch.no_grad()
def _widened(new: nn.Module, old: nn.Module) -> bool:
    """Copy all weights into a network with more ids and positions, whose further rows stay as they are; none where others differ."""
    mine, theirs = new.state_dict(), old.state_dict()
    fits = lambda a, b: a.shape[1:] == b.shape[1:] and len(a) >= len(b) if a.ndim else b.ndim == 0  # noqa: E731
    if mine.keys() != theirs.keys() or not all(fits(mine[k], theirs[k]) for k in mine):
        return False
    for key, value in theirs.items():
        if value.ndim:
            mine[key][: len(value)] = value
        else:
            mine[key].copy_(value)
    return True


@torch.no_grad()
def _by_column(new: Any, old: Any, group: list[str], group_before: list[str], common: list[str]) -> bool:
    """Some columns of an encoder that others share: each column's own embedding, and the layers they share."""
    form, before = getattr(new, "form", None), getattr(old, "form", None)
    if type(form) is not type(before) or not isinstance(form, (Scalars, Indices)):
        return False
    if [p.shape for p in new.layers.parameters()] != [
        p.shape for p in old.layers.parameters()
    ] or form.size != before.size:
        return False
    pairs = [(group.index(n), group_before.index(n)) for n in common]
    if isinstance(form, Indices):
        ends = lambda f: [*f.start.tolist(), f.table.num_embeddings]  # noqa: E731
        mine, theirs = ends(form), ends(before)
        if any(mine[i + 1] - mine[i] != theirs[j + 1] - theirs[j] for i, j in pairs):
            return False
        for i, j in pairs:
            form.table.weight[mine[i] : mine[i + 1]] = before.table.weight[theirs[j] : theirs[j + 1]]
    else:
        mine, theirs = form.state_dict(), before.state_dict()
        if any(k not in theirs or mine[k].shape[1:] != theirs[k].shape[1:] for k in mine):
            return False
        for key in mine:
            for i, j in pairs:
                mine[key][i] = theirs[key][j]
    new.layers.load_state_dict(old.layers.state_dict())
    return True
