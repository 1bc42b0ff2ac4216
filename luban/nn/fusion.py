"""Several Tokens -> one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import nn

from luban.nn.places import told
from luban.nn.tokens import Dense, Encoder, Pool, Tokens
from luban.settings import Count, Dial, Fraction


class Concat(nn.Module):
    """Use first: each input pooled to one vector, the vectors side by side, then dense layers. -> Tokens (B, 1, D).

    `layers` auto: none behind one encoder that is `deep` (a network over a text or an image by itself), else two layers,
    of `width` and half as many.
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        *,
        layers: list[Count] | Literal["auto"] = "auto",
        width: Annotated[Count, Dial(nano=32, small=128, base=512)] = 128,
        activation: Literal["relu", "gelu", "sigmoid", "tanh"] = "relu",
        dropout: Fraction = 0.1,
        norm: bool = False,
    ):
        super().__init__()
        self.pools = nn.ModuleList(Pool(e.pooling, e.size, e.length, e.ways) for e in encoders)
        self.dropout = nn.Dropout(dropout)
        if layers == "auto":
            layers = [] if len(encoders) == 1 and encoders[0].deep else [width, max(1, width // 2)]
        self.layers = Dense(sum(p.size for p in self.pools), layers, activation, dropout, norm)
        self.size = self.layers.out
        self.sizes = [e.size + (self.size if len(encoders) > 1 else 0) for e in encoders]

    def forward(self, tokens: Sequence[Tokens]) -> Tokens:
        h = torch.cat([pool(t) for pool, t in zip(self.pools, tokens)], dim=1)  # (B, sum of sizes)
        h = self.layers(self.dropout(h) if not len(self.layers) else h)
        return Tokens(h[:, None], h.new_ones(h.shape[0], 1, dtype=torch.bool))

    def positions(self, tokens: Sequence[Tokens], which: int) -> Tokens:
        """The positions of one encoder, (B, T, sizes[which]): as they are; beside them, of several inputs, what all say."""
        found = tokens[which]
        if len(tokens) == 1:
            return found
        whole = self(tokens).x.expand(-1, found.x.shape[1], -1)
        return found._replace(x=torch.cat([found.x, whole], dim=2))


class Memory(nn.Module):
    """Use where an answer looks at every position: a text that is written, a tag for each word. -> Tokens (B, T, D).

    The positions of all inputs side by side, as their encoders left them; several inputs are projected to `width` (auto: the
    widest) and told which they come from; places of a picture are told where they are. Without inputs there is nothing to read.
    """

    def __init__(self, encoders: Sequence[Encoder], *, width: Count | Literal["auto"] = "auto"):
        super().__init__()
        sizes = [e.size for e in encoders]
        self.size = max(sizes, default=0) if width == "auto" else width
        bare = bool(sizes) and all(getattr(e, "bare", False) for e in encoders)
        alike = bare or (len(sizes) == 1 and sizes[0] == self.size)
        self.projections = nn.ModuleList(nn.Linear(s, self.size) for s in ([] if alike else sizes))
        self.origin = nn.Parameter(torch.randn(len(sizes), self.size) * 0.02) if len(sizes) > 1 and not bare else None
        self.places = nn.ModuleList(told(e, self.size) for e in encoders)
        self.sizes = [self.size] * len(sizes)

    def forward(self, tokens: Sequence[Tokens]) -> Tokens:
        parts, spans, start = [], [], 0
        for i, t in enumerate(tokens):
            x = self.projections[i](t.x) if len(self.projections) else t.x
            x = self.places[i](x, t)
            parts.append(x if self.origin is None else x + self.origin[i])
            spans += [s._replace(start=s.start + start, stop=s.stop + start) for s in t.spans]
            start += t.x.shape[1]
        if len(parts) == 1:
            return Tokens(parts[0], tokens[0].mask, tuple(spans))
        return Tokens(torch.cat(parts, 1), torch.cat([t.mask for t in tokens], 1), tuple(spans))

    def positions(self, tokens: Sequence[Tokens], which: int) -> Tokens:
        """The positions of one encoder, (B, T, D)."""
        before = sum(t.x.shape[1] for t in tokens[:which])
        found, length = self(tokens), tokens[which].x.shape[1]
        return Tokens(found.x[:, before : before + length], tokens[which].mask, tokens[which].spans)
