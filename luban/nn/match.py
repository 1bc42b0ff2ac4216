"""Fusion of inputs that are to lie close to each other: every input becomes a vector of length 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from luban.nn.tokens import Encoder, Pool, Tokens
from luban.settings import Natural, Positive


class Match(nn.Module):
    """Use to search: questions and answers, titles and texts. Instead: `pair` where two texts are there and their relation is asked.

    Each input is pooled, projected to `width` numbers (0: as many as its encoder gives; the inputs need equally many) and
    scaled to length 1. Two inputs of a row are learned to be closer than those of different rows of the batch: the cross-entropy
    of u_i v_j / `temperature` with the row's own partner as the truth, both ways (van den Oord et al. 2018, "InfoNCE";
    Henderson et al. 2017, "multiple negatives ranking"). -> Tokens (B, inputs, D).
    """

    def __init__(self, encoders: Sequence[Encoder], *, width: Natural = 0, temperature: Positive = 0.05):
        super().__init__()
        made = {id(e): _Vector(e, width) for e in encoders}  # one for an encoder that inputs share
        self.vectors = nn.ModuleList(made[id(e)] for e in encoders)
        self.size, self.temperature = self.vectors[0].size, temperature

    def forward(self, tokens: Sequence[Tokens]) -> Tokens:
        x = torch.stack([vector(t) for vector, t in zip(self.vectors, tokens)], 1)
        return Tokens(x, x.new_ones(x.shape[:2], dtype=torch.bool))


class _Vector(nn.Module):
    """Tokens -> a vector of length 1, (B, D)."""

    def __init__(self, encoder: Encoder, width: int):
        super().__init__()
        self.pool = Pool(encoder.pooling, encoder.size, encoder.length)
        self.project = nn.Linear(self.pool.size, width, bias=False) if width else nn.Identity()
        self.size = width or self.pool.size

    def forward(self, tokens: Tokens) -> torch.Tensor:
        return F.normalize(self.project(self.pool(tokens)), dim=1)
