"""Fusion by modulation: what some inputs say scales and shifts the features of another's positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import Unsupported
from luban.nn.places import told
from luban.nn.tokens import Dense, Encoder, Pool, Tokens
from luban.settings import Count, Dial, Fraction


class FiLM(nn.Module):
    """Use where one input says what to look for in another: a question about a picture. Instead: `join`, where words and places
    must be compared one by one.

    Looked at is the first picture, where there is none the first input. Every position of it is projected to `width`, and told where it is; all others, each pooled to one vector, give for
    every block a factor and a summand of each feature (Perez et al. 2018, "FiLM"). The positions' mean, their maximum and what the others
    look at with `heads` queries (Yang et al. 2016, "Stacked Attention Networks") stand side by side before one dense layer. -> Tokens (B, 1, width).
    Raises Unsupported for one input alone.
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        *,
        width: Annotated[Count, Dial(nano=32, small=64, base=256)] = 64,
        layers: Annotated[Count, Dial(nano=1, small=2, base=4)] = 2,
        heads: Count = 4,
        dropout: Fraction = 0.1,
    ):
        super().__init__()
        if len(encoders) < 2:
            raise Unsupported("film.alone")
        self.at = next((i for i, e in enumerate(encoders) if e.mapped), 0)
        seen, *others = self._in_order(encoders)
        self.pools = nn.ModuleList(Pool(e.pooling, e.size, e.length, e.ways) for e in others)
        self.project = nn.Sequential(nn.LayerNorm(seen.size), nn.Linear(seen.size, width))
        self.places = told(seen, width)
        said = sum(p.size for p in self.pools)
        self.blocks = nn.ModuleList(Block(width, said) for _ in range(layers))
        self.queries, self.keys, self.heads = nn.Linear(said, heads * width), nn.Linear(width, width), heads
        self.dropout = nn.Dropout(dropout)
        self.layers = Dense((2 + heads) * width, [width], dropout=dropout)
        self.size = width

    def forward(self, tokens: Sequence[Tokens]) -> Tokens:
        seen, *others = self._in_order(tokens)
        said = torch.cat([pool(t) for pool, t in zip(self.pools, others)], 1)  # (B, sum of sizes)
        there = h = self.places(self.dropout(self.project(seen.x)), seen)
        for block in self.blocks:
            h = block(h, said)
        h = self.layers(self._pooled(h, self._energy(there, said), seen.mask))
        return Tokens(h[:, None], h.new_ones(h.shape[0], 1, dtype=torch.bool))

    def _in_order(self, each: Sequence[Any]) -> list[Any]:
        """What is looked at, and behind it the others."""
        return [each[self.at], *each[: self.at], *each[self.at + 1 :]]

    def _energy(self, there: Tensor, said: Tensor) -> Tensor:
        """How well each position (B, T, D), as it is and where it is, fits what is asked for: (B, T, heads)."""
        asked = self.queries(said).unflatten(1, (self.heads, -1))  # (B, heads, D)
        return self.keys(there) @ asked.transpose(1, 2) * self.size**-0.5

    def _pooled(self, h: Tensor, energy: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) -> (B, (2 + heads) x D), of real positions; zeros where there are none."""
        real = mask[..., None].to(h.dtype)
        mean = (h * real).sum(1) / real.sum(1).clamp(min=1)
        most = (h + (real - 1) * 1e4).amax(1) * mask.any(1, keepdim=True)  # finite: no gradient becomes none
        weights = (energy + (real - 1) * 1e4).softmax(1) * real  # (B, T, heads)
        return torch.cat([mean, most, (weights.transpose(1, 2) @ h).flatten(1)], 1)


class Block(nn.Module):
    """u = relu(A h);  h = u + relu((1 + factor) * norm(B u) + summand), both from what is said; positions (B, T, D), said (B, S)."""

    def __init__(self, width: int, said: int):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(said, 2 * width)

    def forward(self, h: Tensor, said: Tensor) -> Tensor:
        factor, summand = self.modulate(said)[:, None].chunk(2, 2)
        u = F.relu(self.first(h))
        return u + F.relu((1 + factor) * self.norm(self.second(u)) + summand)
