"""Fusion of two inputs of one kind that are compared: two texts, two images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import nn

from luban.errors import Unsupported
from luban.nn.tokens import Dense, Encoder, Pool, Tokens
from luban.settings import Count, Dial, Fraction


class Pair(nn.Module):
    """Use where the answer is what two inputs are to each other: entailment, similarity, the same or not. Instead: `concat`
    for inputs of different kinds.

    Each is pooled to one vector, u and v; then u, v, |u - v| and u * v side by side (Conneau et al. 2017, "InferSent"), then
    dense layers. `symmetric` leaves u and v out, so that the answer is the same whichever comes first. -> Tokens (B, 1, D).
    Raises Unsupported unless there are two inputs with vectors of one size.
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        *,
        symmetric: bool = False,
        layers: list[Count] | Literal["auto"] = "auto",
        width: Annotated[Count, Dial(nano=32, small=128, base=512)] = 128,
        activation: Literal["relu", "gelu", "sigmoid", "tanh"] = "relu",
        dropout: Fraction = 0.1,
        norm: bool = False,
    ):
        super().__init__()
        made = {id(e): Pool(e.pooling, e.size, e.length) for e in encoders}  # one for an encoder that both share
        self.pools = nn.ModuleList(made[id(e)] for e in encoders)
        sizes = [p.size for p in self.pools]
        if len(sizes) != 2 or sizes[0] != sizes[1]:
            raise Unsupported("pair.not_two", sizes=sizes)
        self.symmetric, self.dropout = symmetric, nn.Dropout(dropout)
        layers = [width] if layers == "auto" else layers
        self.layers = Dense(sizes[0] * (2 if symmetric else 4), layers, activation, dropout, norm)
        self.size = self.layers.out

    def forward(self, tokens: Sequence[Tokens]) -> Tokens:
        u, v = (pool(t) for pool, t in zip(self.pools, tokens))  # each (B, D)
        features = [(u - v).abs(), u * v]
        h = torch.cat(features if self.symmetric else [u, v, *features], 1)
        h = self.layers(h if len(self.layers) else self.dropout(h))
        return Tokens(h[:, None], h.new_ones(h.shape[0], 1, dtype=torch.bool))
