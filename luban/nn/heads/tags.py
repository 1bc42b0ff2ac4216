"""A tag for each position of a text."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.columns.chain import EXTRA
from luban.nn.chain import NEVER, Chain, packed
from luban.nn.tokens import Dense, Tokens
from luban.settings import Count, Fraction, Positive


class TagsHead(nn.Module):
    """Tokens of a text, before any pooling -> potentials (B, K + 2 + T, K), see `luban.columns.chain`.

    Without `crf` every position is a class of its own (cross-entropy), and only the best legal sequence is answered. With it
    the order of the tags is learned, too (a linear-chain conditional random field, Lafferty et al. 2001): slower, better
    where names are long. A position that has no tag, a further piece of a word, takes no part in loss and answer.
    """

    accepts = ("tags",)
    positions = True  # it reads the positions of the column that its own is `of:`
    ahead = 0  # what a module of one's own gives before the first position

    def __init__(
        self,
        column: Any,
        size: int,
        *,
        crf: bool = False,
        hidden: list[Count] = (),
        dropout: Fraction = 0.0,
        label_smoothing: Fraction = 0.0,
        weight: Positive = 1.0,
    ):
        super().__init__()
        self.classes, self.crf = len(column.labels), crf
        self.smoothing, self.weight = label_smoothing, weight
        self.dropout = nn.Dropout(dropout)
        self.hidden = Dense(size, hidden, dropout=dropout)
        self.out = nn.Linear(self.hidden.out, self.classes)
        legal = np.concatenate([column.legal[0], np.stack(column.legal[1:])])  # (K + 2, K)
        self.register_buffer("illegal", torch.as_tensor(np.where(legal, 0.0, NEVER), dtype=torch.float32))
        self.order = nn.Parameter(torch.zeros(self.classes + EXTRA, self.classes)) if crf else None

    def forward(self, tokens: Tokens) -> Tensor:
        return self.framed(self.out(self.hidden(self.dropout(tokens.x))), tokens.mask)

    def framed(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, T, K), zero at padding, below the worth of their order: (B, K + 2 + T, K)."""
        logits = logits.float() * mask[..., None]
        head = self.illegal if self.order is None else self.illegal + self.order
        return torch.cat([head.expand(logits.shape[0], -1, -1), logits], dim=1)

    def _chain(self, o: Tensor, mask: Tensor) -> tuple[Chain, Tensor]:
        """The chain of the positions of a mask (B, T), and where each of its units comes from."""
        k = self.classes
        at, real = packed(mask)
        units = o[:, k + EXTRA :].gather(1, at[..., None].expand(-1, -1, k))
        return Chain(units, real, o[:, :k], o[:, k], o[:, k + 1]), at

    def loss(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, T), 1 + tag, 0 where there is none -> (sum over the tags (B,), how many there are (B,))."""
        if self.crf:
            chain, at = self._chain(o, mask)
            each = chain.total() - chain.path((x.gather(1, at) - 1).clamp(min=0))
        else:
            logits = o[:, self.classes + EXTRA :].transpose(1, 2)
            truth = x * mask - 1
            each = F.cross_entropy(logits, truth, reduction="none", label_smoothing=self.smoothing, ignore_index=-1)
            each = each.sum(1)
        return (each if self.weight == 1 else each * self.weight), self.weigh(x, mask)

    def weigh(self, x: Tensor, mask: Tensor) -> Tensor:
        """How many tags each example has, (B,)."""
        return mask.sum(1).float()

    def divergence(self, o: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(teacher || student) of whole sequences over the number of positions, (B,), times temperature squared."""
        real = (teacher[:, self.classes + EXTRA :] != 0).any(-1)  # padding is zero
        (mine, _), (theirs, _) = (self._chain(z / temperature, real) for z in (o, teacher))
        return theirs.divergence(mine) / real.sum(1).clamp(min=1) * temperature**2

    def score(self, o: Tensor, answers: Tensor) -> Tensor:
        """Log-odds of some fixed tags, (B,). answers: (B, T), 1 + tag; K + 1 where any will do; 0 where there is none."""
        chain, at = self._chain(o, answers > 0)
        fixed = answers.gather(1, at) - 1
        return chain.log_odds(torch.where(fixed == self.classes, -1, fixed))

    def glance(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[str, Tensor, Tensor]:
        """Tags that are right, of the best legal sequence."""
        chain, at = self._chain(o.detach(), mask)
        right = (chain.best() == x.gather(1, at) - 1) & chain.mask
        return "accuracy", right.sum(1), mask.sum(1)
