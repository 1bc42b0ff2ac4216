"""One of K classes."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.tokens import Dense, Tokens
from luban.settings import Count, Fraction, Positive


class CategoryHead(nn.Module):
    """Tokens -> logits (B, K), or for two classes (B, 1): the log-odds of the last label, one sigmoid.

    `link`: softmax with cross-entropy, or sigmoid with binary cross-entropy (two classes only); auto takes the sigmoid
    for two classes. Losses are computed from logits (log-sum-exp), never from probabilities.
    """

    accepts = ("category",)

    def __init__(
        self,
        column: Any,
        size: int,
        *,
        hidden: list[Count] = (),
        dropout: Fraction = 0.0,
        link: Literal["auto", "softmax", "sigmoid"] = "auto",
        class_weights: Literal["none", "balanced"] = "none",
        label_smoothing: Fraction = 0.0,
        weight: Positive = 1.0,
    ):
        super().__init__()
        self.classes = len(column.labels)
        self.binary = self.classes == 2 and link != "softmax"
        self.smoothing, self.weight = label_smoothing, weight
        self.hidden = Dense(size, hidden, dropout=dropout)
        self.out = nn.Linear(self.hidden.out, 1 if self.binary else self.classes)
        counts = torch.tensor(column.state["counts"], dtype=torch.float32)
        balanced = counts.sum() / (len(counts) * counts) if class_weights == "balanced" else torch.ones(self.classes)
        self.register_buffer("class_weights", balanced)
        self.balanced = class_weights == "balanced"

    def forward(self, tokens: Tokens) -> Tensor:
        return self.out(self.hidden(tokens.x[:, 0]))

    def loss(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x: 1 + class number, 0 where the truth is missing -> (weighted sum (B,), weight (B,)).

        `weight` (of this output beside others) is in the sum alone: in both it would cancel.
        """
        truth = x * mask - 1  # -1 where missing
        weight = self.weigh(x, mask)
        if self.binary:
            soft = truth.clamp(min=0).to(o.dtype) * (1 - self.smoothing) + self.smoothing / 2
            each = F.binary_cross_entropy_with_logits(o[:, 0], soft, weight, reduction="none")
        else:
            each = F.cross_entropy(o, truth, reduction="none", label_smoothing=self.smoothing, ignore_index=-1)
            each = each * weight if self.balanced else each
        return (each if self.weight == 1 else each * self.weight), weight

    def weigh(self, x: Tensor, mask: Tensor) -> Tensor:
        """What each example counts for, (B,): its class's weight, 0 where the truth is missing."""
        counts = mask.to(self.class_weights.dtype)
        return self.class_weights[(x - 1).clamp(min=0)] * counts if self.balanced else counts

    def divergence(self, o: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(teacher || student), (B,), times temperature squared (Hinton et al. 2015)."""
        mine, theirs = (F.log_softmax(self._both(z) / temperature, dim=-1) for z in (o, teacher))
        return F.kl_div(mine, theirs, log_target=True, reduction="none").sum(-1) * temperature**2

    def score(self, o: Tensor, answers: Tensor) -> Tensor:
        """Log-odds of a fixed class: log p / (1 - p), (B,). answers: class numbers (B,), from 0."""
        if self.binary:
            return o[:, 0] * (2.0 * answers - 1)
        picked = F.one_hot(answers, self.classes).bool()
        others = o.masked_fill(picked, -math.inf).logsumexp(-1)
        return (o * picked).sum(-1) - others

    def glance(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[str, Tensor, Tensor]:
        return "accuracy", (self._both(o).argmax(-1) == x - 1) * mask, mask

    def _both(self, z: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(z), z], dim=-1) if self.binary else z
