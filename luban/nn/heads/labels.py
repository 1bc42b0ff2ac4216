"""Any number of K labels, each by itself."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.tokens import Dense, Tokens
from luban.settings import Count, Fraction, Positive


class LabelsHead(nn.Module):
    """Tokens -> logits (B, K). Loss: binary cross-entropy, the mean over the labels; `balance` weighs the rarer side of each
    label up to its own share.
    """

    accepts = ("labels",)

    def __init__(
        self,
        column: Any,
        size: int,
        *,
        hidden: list[Count] = (),
        dropout: Fraction = 0.0,
        balance: bool = False,
        weight: Positive = 1.0,
    ):
        super().__init__()
        self.weight = weight
        self.hidden = Dense(size, hidden, dropout=dropout)
        self.out = nn.Linear(self.hidden.out, column.size)
        share = torch.tensor(column.state["counts"], dtype=torch.float32) / max(1, column.state["rows"])
        share = share.clamp(1e-4, 1 - 1e-4)
        with torch.no_grad():
            self.out.bias.copy_(torch.logit(share))  # what is known before any row was looked at
        self.register_buffer("up", ((1 - share) / share).clamp(max=100.0) if balance else torch.ones(column.size))

    def forward(self, tokens: Tokens) -> Tensor:
        return self.out(self.hidden(tokens.x[:, 0]))

    def loss(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, K) of 0 and 1 -> (weighted sum (B,), weight (B,), 0 where the truth is missing)."""
        weight = self.weigh(x, mask)
        each = F.binary_cross_entropy_with_logits(o, x.clamp(min=0), reduction="none", pos_weight=self.up).mean(1)
        each = each * weight
        return (each if self.weight == 1 else each * self.weight), weight

    def weigh(self, x: Tensor, mask: Tensor) -> Tensor:
        return mask.to(x.dtype)

    def divergence(self, o: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(teacher || student) of each label, the mean over them, (B,), times temperature squared."""
        found = 0.0
        for sign in (1.0, -1.0):
            mine, theirs = (F.logsigmoid(sign * z / temperature) for z in (o, teacher))
            found = found + theirs.exp() * (theirs - mine)
        return found.mean(1) * temperature**2

    def score(self, o: Tensor, answers: Tensor) -> Tensor:
        """Log-odds of a fixed label, (B,). answers: label numbers (B,), from 0."""
        return o.gather(1, answers[:, None])[:, 0]

    def glance(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[str, Tensor, Tensor]:
        return "label_accuracy", ((o > 0) == (x > 0)).float().mean(1) * mask, mask
