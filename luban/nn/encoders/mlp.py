"""Embeddings and dense layers: for numbers and categories, and for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from torch import Tensor

from luban.nn import forms
from luban.nn.tokens import Dense, Encoder, Tokens
from luban.settings import Count, Dial, Fraction


class MLP(Encoder):
    """Use for numbers and categories; for images only as a baseline. Instead: `cnn` for images.

    Every column gets an embedding of its own (`embedding`), then shared dense layers work on each. For a grid the
    pixels are flattened first. x (B, F) -> Tokens (B, F, D); grid -> Tokens (B, 1, D).
    """

    accepts = ("scalar", "index", "grid")

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        width: Annotated[Count, Dial(nano=8, small=16, base=32)] = None,
        embedding: Literal["piecewise", "linear", "none"] = "piecewise",
        bins: Count = 48,
        layers: list[Count] = (),
        activation: Literal["relu", "gelu", "sigmoid", "tanh"] = "relu",
        dropout: Fraction = 0.0,
    ):
        super().__init__()
        self.form = forms.make(columns, width=width, kind=embedding, bins=bins)
        self.flat = columns[0].form == "grid"
        inside = columns[0].pixels if self.flat else self.form.size
        self.layers = Dense(inside, layers, activation, dropout)
        self.size, self.length, self.pooling = self.layers.out, 1 if self.flat else len(columns), "flatten"

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.form.embed(x, mask)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tokens:
        h = self.form.lift(embedded, mask)
        h = h.flatten(1)[:, None] if self.flat else h  # (B, T, D)
        return Tokens(self.layers(h), h.new_ones(h.shape[:2], dtype=bool))
