"""Fusion by attention: all positions of all inputs side by side, then transformer blocks over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from luban.nn.places import told
from luban.nn.tokens import Encoder, Tokens
from luban.nn.transformer import Shape, Transformer
from luban.settings import Count, Dial, Fraction


class Join(nn.Module):
    """Use where what one input says depends on a place in another (a word and a patch of the picture). Instead: `concat`,
    with few rows.

    Every position is projected to `width` and told which input it comes from, a place of a picture also where it is; a learnt summary position in front reads
    all others. Tokens of any lengths -> Tokens (B, 1 + T, width), the summary first, where heads look.
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        *,
        width: Annotated[Count, Dial(nano=32, small=64, base=256)] = 64,
        layers: Annotated[Count, Dial(nano=1, small=2, base=4)] = 2,
        heads: Count = 4,
        dropout: Fraction = 0.1,
        stochastic_depth: Fraction = 0.0,
    ):
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(e.size), nn.Linear(e.size, width)) for e in encoders
        )
        self.origin = nn.Parameter(torch.randn(len(encoders), width) * 0.02)
        self.places = nn.ModuleList(told(e, width) for e in encoders)
        self.summary = nn.Parameter(torch.randn(width) * 0.02)
        self.layers = Transformer(
            Shape(width, layers, heads, positions="none", dropout=dropout, depth=stochastic_depth)
        )
        self.size = width
        self.sizes = [width] * len(encoders)

    def forward(self, tokens: Sequence[Tokens]) -> Tokens:
        first = tokens[0].x
        parts: list[Tensor] = [self.summary.expand(len(first), 1, -1)]
        masks = [tokens[0].mask.new_ones(len(first), 1)]
        for project, place, origin, t in zip(self.projections, self.places, self.origin, tokens):
            parts.append(place(project(t.x), t) + origin)
            masks.append(t.mask)
        mask = torch.cat(masks, 1)
        return Tokens(self.layers(torch.cat(parts, 1), mask), mask)

    def positions(self, tokens: Sequence[Tokens], which: int) -> Tokens:
        """The positions of one encoder as all inputs' positions see them, (B, T, width)."""
        before = 1 + sum(t.x.shape[1] for t in tokens[:which])
        found, length = self(tokens), tokens[which].x.shape[1]
        return Tokens(found.x[:, before : before + length], tokens[which].mask, tokens[which].spans)
