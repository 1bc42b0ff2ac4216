"""A bag: what stands in a text, not where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from luban.nn import forms
from luban.nn.tokens import ACTIVATIONS, Dense, Encoder, Tokens
from luban.settings import Count, Dial, Fraction


class Bag(Encoder):
    """Use as the simplest network for text. Instead: `cnn` where "not good" must not be "good".

    kind "mean": the mean of embeddings (of word vectors, where the column has them), then `layers`. kind "counts": the V
    counts of the words are the input of the first of `layers`; as most of them are 0, W counts + b is computed as the sum
    of the columns of W that stand for the words. ids, vectors (B, T) -> Tokens (B, 1, D).
    """

    accepts = ("ids", "vectors")

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        kind: Literal["mean", "counts"] = "mean",
        embedding: Annotated[Count, Dial(nano=32, small=100, base=200)] = 100,
        layers: list[Count] = (),
        activation: Literal["relu", "gelu", "sigmoid", "tanh"] = "relu",
        grams: Literal[1, 2, 3] = 1,
        dropout: Fraction = 0.1,
    ):
        super().__init__()
        self.counts = kind == "counts" and columns[0].form == "ids"
        if self.counts:
            first = layers[0] if layers else embedding
            self.form: nn.Module = nn.Embedding(columns[0].size, first)  # W transposed: row v is what word v adds
            nn.init.normal_(self.form.weight, 0, 0.1)
            self.bias = nn.Parameter(torch.zeros(first))
            self.first = ACTIVATIONS[activation]() if layers else nn.Identity()
            self.layers = Dense(first, layers[1:], activation, dropout)
        else:
            self.form = forms.make(columns, width=embedding, grams=grams)
            self.layers = Dense(self.form.size, layers, activation, dropout)
        self.size, self.length, self.pooling = self.layers.out, 1, "flatten"

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.form(x) if self.counts else self.form.embed(x, mask)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tokens:
        real = mask[..., None].to(embedded.dtype)  # (B, T, 1)
        total = (embedded * real).sum(1)  # (B, D)
        if self.counts:
            h = self.first(total + self.bias)
        else:
            h = total / real.sum(1).clamp(min=1)
        h = self.layers(h)[:, None]
        return Tokens(h, h.new_ones(h.shape[:2], dtype=torch.bool))
