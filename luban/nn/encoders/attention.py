"""Attention over what another encoder has read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from luban import registry
from luban.nn.tokens import Encoder, Pool, Tokens
from luban.nn.transformer import Attention as Heads
from luban.nn.transformer import Shape, StochasticDepth, seen
from luban.part import Part
from luban.settings import Count, Fraction, Named


class Attention(Encoder):
    """Use to let a network choose which positions count, and to see which it chose. Instead: `transformer` for several
    layers of it.

    kind "additive": e_t = V tanh(W h_t + b), a = softmax of e over real positions, answer = sum of a_t h_t (Bahdanau et al.
    2015), Tokens (B, 1, D). kind "self": every state asks all others, softmax(Q K' / sqrt(d)) V, added to what it was
    (Vaswani et al. 2017), Tokens (B, T, D); `stochastic_depth` is for this kind.
    """

    accepts = ("ids", "vectors")
    deep = True
    sequences = True  # of kind "self"

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        over: Annotated[dict | str, Named("encoders")] = "lstm",
        kind: Literal["additive", "self"] = "additive",
        heads: Count = 4,
        dropout: Fraction = 0.0,
        stochastic_depth: Fraction = 0.0,
        pooling: Literal["last", "mean", "max", "attention"] = "mean",
    ):
        super().__init__()
        self.over = _built(over, columns)
        self.over.pooling = "mean"  # its states as they are, none prepared for "last"
        self.kind, self.size = kind, self.over.size
        if kind == "self":
            self.attention: nn.Module = Heads(Shape(self.size, 1, heads))
            self.length, self.pooling = None, pooling
        else:
            self.attention = Pool("attention", self.size)
            self.length, self.pooling = 1, "flatten"
        self.dropout, self.depth = nn.Dropout(dropout), StochasticDepth(stochastic_depth)

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.over.embed(x, mask)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tokens:
        states = self.over(embedded, mask)
        if self.kind == "self":
            change = self.dropout(self.attention(states.x, seen(states.mask)[:, None, None]))
            return Tokens(states.x + self.depth(change), states.mask)
        h = self.attention(states)[:, None]  # (B, 1, D)
        return Tokens(self.dropout(h), h.new_ones(h.shape[:2], dtype=bool))

    @property
    def feature_layer(self) -> nn.Module | None:
        return self.over.feature_layer


def _built(over: Any, columns: Sequence[Any]) -> Encoder:
    part = Part.of(over)
    settings = {k: v for k, v in part.settings.items() if v is not None}
    return registry.find("encoders", part.type)(columns, **settings)
