"""Where the network looked while it answered: attention as it is, layer by layer and head by head, and no explanation.

Attention weights tell what a position mixed together, not what the answer rests on: others with the same answer are easily
found (Jain and Wallace 2019). So they are drawn beside the explanation of a row, on a scale of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from luban import plots
from luban.columns.base import Column
from luban.errors import Unsupported
from luban.messages import say, together
from luban.nn.looking import Look, looking
from luban.report import Details, Html, Report
from luban.stages.explain.game import Example, Scorer

ROWS = 3  # rows that are drawn so
LONGEST = 48  # positions of an axis
MOST = 256  # heads
OPEN = 24  # heads that are shown without being asked for


@dataclass(frozen=True)
class Looked:
    """All layers of one stack on one row: what looks (`rows`) at what (`columns`), named by tokens.

    `cut`: of how many positions these are the first, or the last where `tail` (rows, columns); `more`: layers that are left out.
    """

    part: tuple[str, ...]
    kind: str
    rows: list[str]
    columns: list[str]
    weights: list[np.ndarray]  # per layer (H, T, S)
    cut: tuple[int, int]
    tail: bool
    more: int = 0

    @property
    def heads(self) -> int:
        return sum(len(w) for w in self.weights)

    def mean(self) -> np.ndarray:
        """Over all heads and layers, (T, S)."""
        return np.concatenate(self.weights).mean(0)

    def to_json(self) -> dict[str, Any]:
        told = {"part": ", ".join(self.part), "kind": self.kind, "rows": self.rows, "columns": self.columns}
        return told | {
            "of": list(self.cut),
            "layers": [np.round(w, 5) for w in self.weights],
            "layers_left_out": self.more,
        }


def attention(scorer: Scorer, columns: Mapping[str, Column], examples: list[Example]) -> dict[int, list[Looked]]:
    """Of the first rows, each read alone with the answer that is explained. Raises Unsupported where nothing is looked at."""
    found = {}
    for r, e in enumerate(examples[:ROWS]):
        batch = scorer.batch({n: [x] for n, x in e.x.items()}, 1)
        with torch.no_grad(), looking(scorer.network) as looks:
            scorer.score(batch, np.array([r]))
        if not looks:
            raise Unsupported("explain.no_attention")
        names = _names(scorer, columns, e, r)
        found[r] = [_looked(some, names) for some in _stacks(looks)]
    return found


def _names(scorer: Scorer, columns: Mapping[str, Column], e: Example, row: int) -> dict[str, list[str]]:
    """Of every input its positions; of an output that is written what is read to write it: the token before each of its own."""
    found = {n: columns[n].positions(x) for n, x in e.x.items()}
    answer = scorer.fixed(np.array([row]))
    if np.ndim(answer) == 2 and hasattr(columns[scorer.output], "begin"):
        column, ids = columns[scorer.output], answer[0][answer[0] >= 0]
        if hasattr(scorer.network, "read_as"):
            found[scorer.network.part] = scorer.network.read_as(e.x, ids)
        else:
            found[scorer.output] = column.positions(np.array([column.begin, *ids[:-1]]))
    return found


def _stacks(looks: list[Look]) -> list[list[Look]]:
    """Layers of one kind and size, in the order in which they looked."""
    found: dict[Any, list[Look]] = {}
    for look in looks:
        found.setdefault((look.part, look.kind, look.queries, look.keys, look.weights.shape[2:]), []).append(look)
    return list(found.values())


def _looked(some: list[Look], names: Mapping[str, list[str]]) -> Looked:
    first, kept, heads = some[0], [], 0
    for look in some:
        heads += look.weights.shape[1]
        if heads > MOST and kept:
            break
        kept.append(look.weights[0].float().cpu().numpy())
    sizes = first.weights.shape[2:]
    pool = first.kind == "pool"
    rows = [say("explain.attention.answer")] if pool else _labels(first.queries, names, sizes[0])
    columns = _labels(first.keys, names, sizes[1])
    real = len(rows), len(columns)  # what is behind them is padding
    tail = first.kind == "self" and real[0] == real[1] and _one_way(kept)
    at = [slice(max(0, n - LONGEST), n) if tail else slice(0, min(n, LONGEST)) for n in real]
    return Looked(
        first.part, first.kind, rows[at[0]], columns[at[1]], [w[:, at[0], at[1]] for w in kept],
        real, tail, len(some) - len(kept),
    )  # fmt: skip


def _one_way(weights: list[np.ndarray]) -> bool:
    """Whether nobody looks ahead: what was written last stands at the end, and that is what a reader wants to see."""
    return len(weights[0][0]) > 1 and all(not np.triu(w, 1).any() for w in weights)


def _labels(columns: tuple[str, ...], names: Mapping[str, list[str]], size: int) -> list[str]:
    """The names of the positions of some columns in their order; numbers where these are others than were read."""
    known = [n for c in columns for n in names.get(c, [])] if all(c in names for c in columns) else []
    return known if 0 < len(known) <= size else [str(i + 1) for i in range(size)]


# -- the page ----------------------------------------------------------------------------------------------------------


def draw(report: Report, looked: list[Looked]) -> None:
    """The mean over all heads with its tokens, then every head of every layer."""
    report.heading(say("explain.attention"), 4)
    report.text(say("explain.attention.about"))
    for one in looked:
        report.plot(say(f"explain.attention.{one.kind}", part=one.part), _overview(one), _caption(one))
        strips = [(i, _strip(one, i)) for i in range(len(one.weights))]
        if one.heads == 1:
            continue
        for i, strip in strips:
            title = say("explain.attention.layer", layer=i + 1, layers=len(strips) + one.more)
            if one.heads <= OPEN:
                report.html(title, strip)
            else:
                report.add(Details(title, [Html("", strip)]))
        if one.more:
            report.note("info", say("explain.attention.more", shown=len(strips), all=len(strips) + one.more))


def _overview(one: Looked) -> str:
    axes = {} if one.kind == "pool" else {"y_label": say("explain.attention.rows")}
    axes["x_label"] = say("explain.attention.columns")
    return plots.heatmap(one.mean(), one.rows, one.columns, show_values=False, root=True, **axes)


def _caption(one: Looked) -> str:
    said = [say("explain.attention.mean", heads=one.heads)] if one.heads > 1 else []
    for shown, all_, axis in ((len(one.rows), one.cut[0], "rows"), (len(one.columns), one.cut[1], "columns")):
        if shown < all_ and (axis == "columns" or one.cut[0] != one.cut[1]):
            said.append(say(f"explain.attention.cut.{'last' if one.tail else 'first'}", shown=shown, all=all_))
    return together(*said)


def _strip(one: Looked, layer: int) -> str:
    """Each head of a layer as a small picture of the same axes."""
    heads = [
        (say("explain.attention.head", head=h + 1), plots.shaded(w, say("explain.attention.head", head=h + 1)))
        for h, w in enumerate(one.weights[layer])
    ]
    return plots.strip(heads)
