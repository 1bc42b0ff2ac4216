"""The first differentiable form of x, for each form that a column may have.

`embed` gives what integrated gradients and attacks work on: numbers and pixels as they are, ids as embeddings.
`lift` turns it into positions of D features. One class a form; encoders hold one and never ask for a modality.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

BUCKETS = 1 << 18  # rows that hashed runs share, at most: with a quarter of them, collisions cost a point of accuracy
RUN = 8  # numbers that a run of tokens has
GAIN = 4.0  # times the rate that a run's numbers learn at: the few texts with it are all that teach it
PRIME = 1_000_003
QUICK = 1500  # rows from which on fewer epochs do: rare runs are soon known by heart


class Scalars(nn.Module):
    """F numbers: (B, F) -> (B, F, D), each number with its own embedding.

    kind "piecewise": piecewise-linear over the column's own quantiles, then a linear map and ReLU (Gorishniy et al. 2022,
    "On Embeddings for Numerical Features"); "linear": w x + b; "none": the number itself, D = 1.
    """

    def __init__(self, columns: Sequence[Any], width: int, kind: str, bins: int):
        super().__init__()
        self.kind, self.size = kind, 1 if kind == "none" else width
        count = len(columns)
        if kind == "none":
            return
        if kind == "piecewise":
            low, span = self._bins([c.state.get("edges") or [0.0, 1.0] for c in columns], bins)
            self.register_buffer("low", low)  # (F, n)
            self.register_buffer("span", span)  # (F, n), infinite where a column has fewer bins
        inside = self.low.shape[1] if kind == "piecewise" else 1
        self.weight = nn.Parameter(torch.empty(count, inside, width).normal_(0, 1.0 if inside == 1 else inside**-0.5))
        self.bias = nn.Parameter(torch.zeros(count, width))
        self.missing = nn.Parameter(torch.zeros(count, width))

    @staticmethod
    def _bins(edges: list[list[float]], bins: int) -> tuple[Tensor, Tensor]:
        chosen = []
        for e in edges:
            e = torch.tensor(e if len(e) > 1 else [e[0] - 0.5, e[0] + 0.5])
            chosen.append(e[torch.linspace(0, len(e) - 1, min(bins, len(e) - 1) + 1).round().long()])
        n = max(len(e) for e in chosen) - 1
        low, span = torch.zeros(len(chosen), n), torch.full((len(chosen), n), float("inf"))
        for i, e in enumerate(chosen):
            low[i, : len(e) - 1], span[i, : len(e) - 1] = e[:-1], (e[1:] - e[:-1]).clamp(min=1e-6)
        return low, span

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        return x

    def lift(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.kind == "none":
            return x[..., None]  # (B, F, 1)
        if self.kind == "linear":
            h = x[..., None] * self.weight[:, 0] + self.bias
        else:
            part = (x[..., None] - self.low) / self.span  # (B, F, n)
            part = torch.cat([part[..., :1].clamp(-1, 1), part[..., 1:].clamp(0, 1)], dim=-1)
            h = torch.einsum("bfn,fnd->bfd", part, self.weight) + self.bias
        h = h + self.missing * (~mask)[..., None]
        return torch.relu(h) if self.kind == "piecewise" else h


class Indices(nn.Module):
    """F categories: (B, F) -> (B, F, D), one table with a stretch of rows for each column; row 0 of a stretch is "unknown"."""

    def __init__(self, columns: Sequence[Any], width: int, **_: Any):
        super().__init__()
        sizes = torch.tensor([c.size for c in columns])
        self.size = width
        self.register_buffer("start", torch.cumsum(sizes, 0) - sizes)  # (F,)
        self.table = nn.Embedding(sum(c.size for c in columns), width)
        nn.init.normal_(self.table.weight, 0, width**-0.5)

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.table(x + self.start)

    def lift(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return embedded


class Ids(nn.Module):
    """One sequence of ids: (B, T) -> (B, T, D). Word vectors that the column carries become the first weights.

    `grams` 2 or 3: the last `wide` of the D features say which runs of one, two (and three) tokens end at a position; each
    run has a row of a table, found by hashing (Joulin et al. 2017, "Bag of Tricks for Efficient Text Classification").
    Rows begin at zero, so that a run that training never saw adds nothing. An encoder that leads them past its own layers
    gives a small network the linear model over n-grams beside the deep one (Cheng et al. 2016, "Wide & Deep Learning").
    """

    def __init__(self, columns: Sequence[Any], width: int, grams: int = 1, **_: Any):
        super().__init__()
        vectors = getattr(columns[0], "table", None)  # (V, D) right after `fit`, None once saved
        narrow = columns[0].state.get("vector_size") or width
        self.table = nn.Embedding(columns[0].size, narrow)
        nn.init.normal_(self.table.weight, 0, narrow**-0.5)
        if vectors is not None:
            self.table.weight.data.copy_(torch.as_tensor(vectors))
        self.buckets = _buckets(columns[0].state.get("seen"))
        rows = [columns[0].size, *[self.buckets] * (grams - 1)] if grams > 1 else []
        self.runs = nn.ModuleList(nn.Embedding(count, RUN) for count in rows)
        for run in self.runs:
            nn.init.zeros_(run.weight)
        if grams > 1:
            self.plenty = QUICK
        self.wide = RUN if grams > 1 else 0
        self.size = narrow + self.wide

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        if not self.wide:
            return self.table(x)
        key = x.long()
        total = self.runs[0](key)
        for n, run in enumerate(self.runs[1:], 1):
            before = nn.functional.pad(x.long(), (n, 0))[
                :, : x.shape[1]
            ]  # the id n positions earlier, 0 before the first
            key = key * PRIME + before
            total = total + run(key % self.buckets)
        return torch.cat([self.table(x), GAIN * total], dim=2)

    def lift(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return embedded


def _buckets(seen: int | None) -> int:
    """Two for each token that was learned from, a power of two: so many runs there can be."""
    return BUCKETS if seen is None else min(BUCKETS, 1 << max(6, (2 * seen).bit_length()))


class Vectors(nn.Module):
    """A sequence of vectors is differentiable as it is: (B, T, D)."""

    def __init__(self, columns: Sequence[Any], **_: Any):
        super().__init__()
        self.size = columns[0].size

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        return x

    def lift(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return embedded


class Grid(nn.Module):
    """Pixels (B, C, H, W), uint8 or float -> standardised float32 by the column's own mean and deviation per channel."""

    def __init__(self, columns: Sequence[Any], **_: Any):
        super().__init__()
        state = columns[0].state
        self.size = columns[0].size
        self.register_buffer("mean", torch.tensor(state["mean"], dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("scale", 1 / torch.tensor(state["deviation"], dtype=torch.float32).view(-1, 1, 1))

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        return (x.to(self.mean.dtype) - self.mean) * self.scale

    def lift(self, embedded: Tensor, mask: Tensor) -> Tensor:
        return embedded


FORMS = {"scalar": Scalars, "index": Indices, "ids": Ids, "vectors": Vectors, "grid": Grid}
MANY = ("scalar", "index")  # forms of which several columns share one encoder: x (B, F)


def make(columns: Sequence[Any], **settings: Any) -> nn.Module:
    """The first form of some columns, which all have the same one."""
    return FORMS[columns[0].form](columns, **settings)
