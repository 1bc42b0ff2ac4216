"""Integrated gradients (Sundararajan, Taly & Yan 2017) on the first differentiable form of every input.

Letters: R rows, K steps of the path, I intervals of it, B examples of a flat batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 0.005  # of the difference between score and baseline score ...
FLOOR = 2e-5  # ... or of the weights' own size, where they cancel out to nearly no difference
MOST = 40  # times `steps` that a row may cost

# (embedded of B examples, the row of each) -> score (B,)
Score = Callable[[Mapping[str, Tensor], Tensor], Tensor]
Named = Mapping[str, Tensor]


class Path(NamedTuple):
    """`weights`: per input the mean gradient times (x - baseline), float64, of the embedding's shape (R, ...)."""

    weights: dict[str, Tensor]
    score: np.ndarray  # (R,)
    baseline: np.ndarray  # (R,)
    gap: np.ndarray  # (R,) |sum of weights - (score - baseline)|
    steps: np.ndarray  # (R,) gradients that each row needed


class Intervals(NamedTuple):
    """Stretches of the rows' paths, with the score at both ends. All (I,)."""

    row: Tensor
    start: Tensor
    width: Tensor
    first: Tensor
    last: Tensor


def integrated_gradients(score: Score, x: Named, baseline: Named, *, steps: int = 50, batch: int = 2048) -> Path:
    """Each input's share of score(x) - score(baseline), by the integral of the gradient along the straight line.

    First `steps` Gauss-Legendre nodes, all rows in flat batches of `batch` examples. Rows whose weights miss the difference
    by more than 0.5 % (networks with ReLU have kinks on the path) are done again by the midpoint rule, halving just those
    intervals whose gradient misses their own difference of scores, until they are good enough or 40 times `steps` are spent.
    """
    any_x = next(iter(x.values()))
    every = torch.arange(len(any_x), device=any_x.device)
    with torch.no_grad():
        high, low = (score(e, every).double() for e in (x, baseline))
    weights = {n: torch.zeros_like(e, dtype=torch.float64) for n, e in x.items()}
    taken = torch.full_like(every, steps)
    _gauss(score, x, baseline, every, steps, batch, weights)
    limit = torch.maximum(TOLERANCE * (high - low).abs(), FLOOR * sum(_by_row(w.abs()) for w in weights.values()))
    bad = every[_gap(weights, high - low) > limit]
    if len(bad):
        _halving(score, x, baseline, bad, steps, batch, (low, high, limit), weights, taken)
    numbers = (high, low, _gap(weights, high - low), taken)
    return Path(weights, *(v.cpu().numpy() for v in numbers))


def _gap(weights: Named, difference: Tensor) -> Tensor:
    return (sum(_by_row(w) for w in weights.values()) - difference).abs()


def _by_row(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).sum(1)


def _gauss(
    score: Score, x: Named, baseline: Named, rows: Tensor, steps: int, batch: int, weights: dict[str, Tensor]
) -> None:
    nodes, shares = (torch.as_tensor(a / 2, device=rows.device) for a in np.polynomial.legendre.leggauss(steps))
    flat = rows.repeat_interleave(steps), (nodes + 0.5).repeat(len(rows)), shares.repeat(len(rows))
    for row, at, share in zip(*(v.split(batch) for v in flat)):
        for n, f in _shares(score, x, baseline, row, at)[1].items():
            weights[n].index_add_(0, row, f * _beside(share, f))


def _halving(
    score: Score, x: Named, baseline: Named, rows: Tensor, steps: int, batch: int, ends: tuple[Tensor, Tensor, Tensor],
    weights: dict[str, Tensor], taken: Tensor,
) -> None:  # fmt: skip
    """Adaptive midpoint rule for `rows`; writes into `weights` and `taken`.

    Good intervals are settled; the sum over the others stands for them until a row's whole gap is small enough.
    """
    low, high, limit = ends
    for n in weights:
        weights[n][rows] = 0
    todo = _cut(score, x, baseline, rows, steps, batch, low, high)
    while len(todo.row):
        taken.index_add_(0, todo.row, torch.ones_like(todo.row))
        rest, halves = {n: torch.zeros_like(w) for n, w in weights.items()}, []
        for part in (Intervals(*p) for p in zip(*(v.split(batch) for v in todo))):
            middle, found = _shares(score, x, baseline, part.row, part.start + part.width / 2)
            missed = part.width * sum(map(_by_row, found.values())) - (part.last - part.first)
            good = missed.abs() <= limit[part.row] / steps  # most have no kink
            for n, f in found.items():
                f = f * _beside(part.width, f)
                weights[n].index_add_(0, part.row[good], f[good])
                rest[n].index_add_(0, part.row[~good], f[~good])
            row, start, width, first, last = (v[~good] for v in part)
            middle, width = middle[~good], width / 2
            halves += [Intervals(row, start, width, first, middle), Intervals(row, start + width, width, middle, last)]
        whole = {n: w + rest[n] for n, w in weights.items()}
        done = (_gap(whole, high - low) <= limit) | (taken >= MOST * steps)
        for n, w in weights.items():
            w[done] = whole[n][done]
        todo = Intervals(*(torch.cat(v) for v in zip(*halves)))
        todo = Intervals(*(v[~done[todo.row]] for v in todo))


def _cut(
    score: Score, x: Named, baseline: Named, rows: Tensor, steps: int, batch: int, low: Tensor, high: Tensor
) -> Intervals:
    """`steps` equal intervals of each row."""
    inner = torch.arange(1, steps, device=rows.device, dtype=torch.float64) / steps
    row, at = rows.repeat_interleave(steps - 1), inner.repeat(len(rows))
    with torch.no_grad():
        points = [score(_points(x, baseline, r, a), r).double() for r, a in zip(row.split(batch), at.split(batch))]
    inside = torch.cat([*points, low[:0]]).view(len(rows), steps - 1)
    first, last = torch.cat([low[rows, None], inside], 1), torch.cat([inside, high[rows, None]], 1)
    start = torch.arange(steps, device=rows.device, dtype=torch.float64).repeat(len(rows)) / steps
    width = torch.full_like(start, 1 / steps)
    return Intervals(rows.repeat_interleave(steps), start, width, first.flatten(), last.flatten())


def _shares(score: Score, x: Named, baseline: Named, row: Tensor, at: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """At points `at` (B,) of the paths of `row` (B,): the score (B,), and per input gradient times (x - baseline)."""
    with torch.enable_grad():
        points = {n: p.requires_grad_(True) for n, p in _points(x, baseline, row, at).items()}
        scores = score(points, row)
        slopes = torch.autograd.grad(scores.sum(), list(points.values()), allow_unused=True)
    found = {n: s.double() * (x[n] - baseline[n])[row].double() for n, s in zip(points, slopes) if s is not None}
    return scores.detach().double(), found


def _points(x: Named, baseline: Named, row: Tensor, at: Tensor) -> dict[str, Tensor]:
    return {n: torch.lerp(baseline[n][row], e[row], _beside(at.to(e.dtype), e)) for n, e in x.items()}


def _beside(values: Tensor, like: Tensor) -> Tensor:
    """(B,) made to broadcast against (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))
