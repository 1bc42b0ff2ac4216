"""Where an answer begins and ends among the positions of a text."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.chain import NEVER
from luban.nn.tokens import Dense, Tokens
from luban.settings import Count, Fraction, Positive


class SpanHead(nn.Module):
    """Tokens of a text, before any pooling -> what beginning and ending there is worth, (B, 1 + T, 2), "no answer" first.

    Two numbers for each position (Devlin et al. 2019, of SQuAD); those of "no answer" come from the mean of the text's states, and
    are out of the question where every training row has an answer. Padding and control tokens are no part of an answer. The
    loss is the cross-entropy of the true beginning and that of the true end, halved.
    """

    accepts = ("span",)
    positions = True  # it reads the positions of the column that its own is `of:`
    classes = 2  # beginning and end

    def __init__(
        self,
        column: Any,
        size: int,
        *,
        hidden: list[Count] = (),
        dropout: Fraction = 0.0,
        weight: Positive = 1.0,
    ):
        super().__init__()
        self.weight, self.most = weight, column.state["most"]
        self.before, self.after = column.state["controls"]
        self.ahead = int(column.optional)
        self.dropout = nn.Dropout(dropout)
        self.hidden = Dense(size, hidden, dropout=dropout)
        self.out = nn.Linear(self.hidden.out, 2)
        self.none = nn.Linear(self.hidden.out, 2) if column.optional else None

    def forward(self, tokens: Tokens) -> Tensor:
        h = self.hidden(self.dropout(tokens.x))
        logits = self.out(h).float()
        if self.none is not None:
            there = tokens.mask[..., None].to(h.dtype)
            none = self.none((h * there).sum(1) / there.sum(1).clamp(min=1))[:, None]
            logits = torch.cat([none.float(), logits], 1)
        return self.framed(logits, tokens.mask)

    def framed(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, T, 2), or with those of "no answer" (B, 1 + T, 2), out of the question where no answer can be -> (B, 1 + T, 2)."""
        if logits.shape[1] == mask.shape[1]:
            logits = torch.cat([torch.full_like(logits[:, :1], NEVER), logits], 1)
        place = torch.arange(mask.shape[1], device=mask.device)
        real = (place >= self.before) & (place < mask.sum(1, keepdim=True) - self.after)
        return torch.where(F.pad(real, (1, 0), value=True)[..., None], logits, NEVER)

    def loss(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 2): positions, -1 for no answer, below where the truth is missing -> (sum (B,), weight (B,))."""
        truth = (x + 1).clamp(min=0)
        each = (F.cross_entropy(o, truth, reduction="none")).mean(1) * mask
        return (each if self.weight == 1 else each * self.weight), self.weigh(x, mask)

    def weigh(self, x: Tensor, mask: Tensor) -> Tensor:
        return mask.float()

    def divergence(self, o: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(teacher || student) of beginning and end, the mean of both, (B,), times temperature squared."""
        mine, theirs = (F.log_softmax(z / temperature, 1) for z in (o, teacher))
        return F.kl_div(mine, theirs, log_target=True, reduction="none").sum(1).mean(1) * temperature**2

    def score(self, o: Tensor, answers: Tensor) -> Tensor:
        """Log-odds of a fixed answer among all legal ones, (B,). answers: (B, 2), -1 twice for no answer."""
        start, end = o[:, 1:, 0], F.pad(o[:, 1:, 1], (0, self.most - 1), value=2 * NEVER)
        worth = start[..., None] + end.unfold(1, self.most, 1)  # (B, T, most): beginning at t, so many tokens more
        place, size = (answers[:, :1]).clamp(min=0), (answers[:, 1:] - answers[:, :1]).clamp(min=0)
        none = answers[:, 0] < 0
        rows, more = torch.arange(o.shape[1] - 1, device=o.device), torch.arange(self.most, device=o.device)
        fixed = (rows[:, None] == place[..., None]) & (more == size[..., None]) & ~none[:, None, None]
        chosen = torch.where(none, o[:, 0].sum(1), (worth * fixed).sum((1, 2)))
        others = worth.masked_fill(fixed, 4 * NEVER).flatten(1)
        empty = torch.where(none, 4 * NEVER, o[:, 0].sum(1))
        return chosen - torch.logsumexp(torch.cat([others, empty[:, None]], 1), 1)

    def glance(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[str, Tensor, Tensor]:
        """Answers of which beginning and end are right."""
        return "exact", (o.argmax(1) == x + 1).all(1) * mask, mask
