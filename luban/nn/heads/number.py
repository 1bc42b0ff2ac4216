"""A number."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.tokens import Dense, Tokens
from luban.settings import Count, Fraction, Positive


class NumberHead(nn.Module):
    """Tokens -> (B, 1), in the column's standardised units. Loss: squared error (`mse`), Huber, or absolute error (`mae`)."""

    accepts = ("number",)

    def __init__(
        self,
        column: Any,
        size: int,
        *,
        hidden: list[Count] = (),
        dropout: Fraction = 0.0,
        loss: Literal["mse", "huber", "mae"] = "mse",
        delta: Positive = 1.0,
        weight: Positive = 1.0,
    ):
        super().__init__()
        self.kind, self.delta, self.weight = loss, delta, weight
        self.mean, self.deviation = column.state["mean"], column.state["deviation"]
        self.hidden = Dense(size, hidden, dropout=dropout)
        self.out = nn.Linear(self.hidden.out, 1)

    def forward(self, tokens: Tokens) -> Tensor:
        return self.out(self.hidden(tokens.x[:, 0]))

    def loss(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x: the standardised truth (B,) -> (weighted sum (B,), weight (B,)); `weight` is in the sum alone."""
        if self.kind == "mse":
            each = F.mse_loss(o[:, 0], x, reduction="none")
        elif self.kind == "mae":
            each = F.l1_loss(o[:, 0], x, reduction="none")
        else:
            each = F.huber_loss(o[:, 0], x, reduction="none", delta=self.delta)
        weight = self.weigh(x, mask)
        each = each * weight
        return (each if self.weight == 1 else each * self.weight), weight

    def weigh(self, x: Tensor, mask: Tensor) -> Tensor:
        """What each example counts for, (B,): 0 where the truth is missing."""
        return mask.to(x.dtype)

    def divergence(self, o: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        return (o[:, 0] - teacher[:, 0]) ** 2

    def score(self, o: Tensor, answers: Tensor) -> Tensor:
        """The value in raw units, (B,); a number has no other answer to fix."""
        return o[:, 0] * self.deviation + self.mean

    def glance(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[str, Tensor, Tensor]:
        return "mae", (o[:, 0] - x).abs() * self.deviation * mask, mask
