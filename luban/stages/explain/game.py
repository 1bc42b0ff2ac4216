"""A row as a game: which of its segments are there, and what the network's score of a fixed answer is then.

Works for every column through `segments`, `ablate` and `spread`, and for every network through `score`. Letters: R rows,
S segments of a row over all its columns, n masks of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luban.columns.base import Column, Segments
from luban.columns.examples import Arrays
from luban.nn.tokens import Batch

CELLS = 1 << 22  # numbers of one input in a batch
EXAMPLES = 4096  # examples in a batch; more of them fall out of a processor's cache


@contextmanager
def still(network: nn.Module) -> Iterator[nn.Module]:
    """The network in eval mode with frozen weights; afterwards every flag is what it was, and so is every gradient."""
    modes = [(m, m.training) for m in network.modules()]
    wanted = [(p, p.requires_grad, p.grad) for p in network.parameters()]
    network.eval()
    for p, _, _ in wanted:
        p.requires_grad_(False)
    try:
        with torch.backends.cudnn.flags(enabled=False):  # its recurrent layers have no backward in eval mode
            yield network
    finally:
        for module, training in modes:
            module.training = training
        for p, flag, grad in wanted:
            p.requires_grad_(flag)
            p.grad = grad


@dataclass(frozen=True)
class Example:
    """One row: per input the encoded value, what stands where a segment is gone, and its segments."""

    row: int
    raw: Mapping[str, Any]
    x: Mapping[str, np.ndarray]
    blank: Mapping[str, np.ndarray]
    segments: Mapping[str, Segments]
    replaced: bool = False  # by another row's values instead of the column's "nothing"

    @property
    def players(self) -> int:
        return sum(len(s.names) for s in self.segments.values())

    def split(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Weights (..., S) of all segments, by column."""
        stops = np.cumsum([len(s.names) for s in self.segments.values()])
        return dict(zip(self.segments, np.split(weights, stops[:-1], axis=-1)))


def example(
    columns: Mapping[str, Column],
    row: int,
    raw: Mapping[str, Any],
    x: Mapping[str, np.ndarray],
    background: Mapping[str, np.ndarray] | None = None,
) -> Example:
    """An Example of a row; `background` holds encoded values that replace what is gone, else it is the column's "nothing"."""
    segments = {n: columns[n].segments(raw[n]) for n in x}
    gone = {n: np.zeros(len(s.names), bool) for n, s in segments.items()}
    blank = {n: columns[n].ablate(v, segments[n].index, gone[n]) for n, v in x.items()}
    if background is not None:
        blank = {n: _instead(columns[n], b, background[n], segments[n].index) for n, b in blank.items()}
    return Example(row, raw, x, blank, segments, background is not None)


def _instead(column: Column, blank: np.ndarray, other: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The other value at every position of a segment; positions of none stay."""
    return np.where(column.spread(index < 0, blank), blank, other).astype(np.asarray(blank).dtype)


class Scorer:
    """The score of one output's fixed answers, for batches in numpy. Use inside `still`.

    `choices`: what the network chose by looking at each whole row (R, ...), by output. It is held while parts of the row are gone: the
    n-th region of what is left would be another one.
    """

    def __init__(
        self,
        network: Any,
        columns: Mapping[str, Column],
        output: str,
        answers: Any,
        choices: Mapping[str, Tensor] = MappingProxyType({}),
    ):
        self.network, self.columns, self.output = network, columns, output
        # of each row what `score` takes: (R,) numbers, (R, T) ids of a text, or R arrays that differ in length
        self.answers, self.choices = answers, choices
        first = next(network.parameters(), None)
        self.device = first.device if first is not None else torch.device("cpu")

    def batch(self, inputs: Mapping[str, Any], size: int) -> Batch:
        """inputs: name -> encoded values of `size` examples (an array, or a list of arrays that differ in length)."""
        pairs = {n: self.columns[n].collate(v) for n, v in inputs.items()}
        return Batch.of(Arrays(pairs, {}, size), self.device)

    def score(self, batch: Batch, rows: np.ndarray, embedded: Mapping[str, Tensor] | None = None) -> Tensor:
        """(B,): the score of the answers of `rows`, one for each example of the batch."""
        answers = torch.as_tensor(self.fixed(rows), device=self.device)
        held = {n: c[torch.as_tensor(rows, device=c.device)] for n, c in self.choices.items()}
        with self.network.holding(held) if held else nullcontext():
            o = self.network(batch.answered(self.output, answers), embedded)
        return self.network.score(o, {self.output: answers})[self.output]

    def fixed(self, rows: np.ndarray) -> np.ndarray:
        if isinstance(self.answers, np.ndarray):
            return self.answers[rows]
        return self.columns[self.output].collate([self.answers[r] for r in rows])[0]

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any], rows: np.ndarray) -> np.ndarray:
        return self.score(self.batch(inputs, len(rows)), rows).double().cpu().numpy()


class Masked:
    """Scores of masked examples, float64. Rows of one segment a column are masked together, all others row by row."""

    def __init__(self, scorer: Scorer, examples: Sequence[Example]):
        self.scorer, self.examples = scorer, examples
        columns = scorer.columns
        self.flat = bool(examples) and all(
            len(s.names) == 1 and not columns[n].ragged for e in examples for n, s in e.segments.items()
        )
        if self.flat:
            stack = lambda side: {n: np.stack([getattr(e, side)[n] for e in examples]) for n in examples[0].x}  # noqa: E731
            self.x, self.blank = stack("x"), stack("blank")

    def groups(self) -> list[np.ndarray]:
        """Rows with the same number of segments: they can share masks."""
        players = np.array([e.players for e in self.examples])
        return [np.flatnonzero(players == s) for s in np.unique(players)]

    def __call__(self, rows: np.ndarray, keep: np.ndarray) -> np.ndarray:
        """rows: (R,) positions among the examples; keep: bool (n, S) for all of them or (R, n, S) -> scores (R, n)."""
        each = np.broadcast_to(keep, (len(rows), *keep.shape[-2:]))
        if self.flat:
            return self._together(rows, each)
        return np.stack([self._one(r, k) for r, k in zip(rows, each)]) if len(rows) else np.zeros(each.shape[:2])

    def _together(self, rows: np.ndarray, keep: np.ndarray) -> np.ndarray:
        n = keep.shape[1]
        scores = np.empty(len(rows) * n)
        size = max(1, min(EXAMPLES, CELLS // max(v[0].size for v in self.x.values())) // n)  # rows at a time
        for start in range(0, len(rows), size):
            part, shown = rows[start : start + size], keep[start : start + size]
            inputs = {}
            for j, (name, x) in enumerate(self.x.items()):
                there = shown[..., j].reshape(*shown.shape[:2], *[1] * (x.ndim - 1))
                mixed = np.where(there, x[part][:, None], self.blank[name][part][:, None])
                inputs[name] = mixed.reshape(-1, *x.shape[1:])
            scores[start * n : start * n + shown.shape[0] * n] = self.scorer(inputs, np.repeat(part, n))
        return scores.reshape(len(rows), n)

    def _one(self, row: int, keep: np.ndarray) -> np.ndarray:
        e, parts = self.examples[row], []
        size = max(1, min(EXAMPLES, CELLS // max(np.asarray(v).size + 1 for v in e.x.values())))
        for start in range(0, len(keep), size):
            shown = e.split(keep[start : start + size])
            inputs = {n: self._masked(e, n, k) for n, k in shown.items()}
            parts.append(self.scorer(inputs, np.full(len(keep[start : start + size]), row)))
        return np.concatenate(parts) if parts else np.zeros(0)

    def _masked(self, e: Example, name: str, keep: np.ndarray) -> Any:
        """(m, *x.shape): the value under m masks of its segments."""
        column, index = self.scorer.columns[name], e.segments[name].index
        if not e.replaced:
            mixed = column.ablate(e.x[name], index, keep)
            return list(mixed) if column.ragged else mixed
        shown = np.concatenate([keep, np.ones((len(keep), 1), bool)], axis=1)[:, index]  # (m, *positions)
        mixed = np.where(column.spread(shown, e.x[name]), e.x[name], e.blank[name])
        return list(mixed) if column.ragged else mixed
