"""Several Tokens -> one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import nn

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
        self.pools = nn.ModuleList(Pool(e.pooling, e.size, e.length) for e in encoders)
        self.dropout = nn.Dropout(dropout)
        if layers == "auto":
            layers = [] if len(encoders) == 1 and encoders[0].deep else [width, max(1, width // 2)]
        self.layers = Dense(sum(p.size for p in self.pools), layers, activation, dropout, norm)
        self.size = self.layers.out

    def forward(self, tokens: Sequence[Tokens]) -> Tokens:
        h = torch.cat([pool(t) for pool, t in zip(self.pools, tokens)], dim=1)  # (B, sum of sizes)
        h = self.layers(self.dropout(h) if not len(self.layers) else h)
        return Tokens(h[:, None], h.new_ones(h.shape[0], 1, dtype=torch.bool))
