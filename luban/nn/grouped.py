"""Layers whose weights are stored in four bits: runs of `GROUP` weights of a row share one scale.

weight[o, i] = (q[o, i] - 8) * scale[o, i // GROUP], q from 0 to 15, two of them in a byte; scales in half precision: four and a half bits a
weight. Of the scales that were tried a run has the one that leaves the least squared error. Only storage: the product is made in floating point, as in `luban.nn.quantized`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.quantized import Stored

GROUP = 32
MOST, MIDDLE = 7, 8
# The weight of a run that is furthest from zero becomes -8 times the scale, which so has its sign (as in llama.cpp's
# Q4_0), divided by one of these: a smaller scale cuts it off and tells the others better apart.
TRIED = tuple(i / 20 for i in range(12, 25))


def packed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (O, I) -> q uint8 (O, ceil(I / GROUP) * GROUP / 2), scale float16 (O, ceil(I / GROUP))."""
    rows, columns = weight.shape
    groups = F.pad(weight.detach().float(), (0, -columns % GROUP)).view(rows, -1, GROUP)
    furthest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    best = groups.new_full(furthest.shape, torch.inf)
    q, scale = torch.zeros_like(groups, dtype=torch.uint8), torch.zeros_like(furthest, dtype=torch.half)
    for share in TRIED:
        tried = (furthest * share / -MIDDLE).half()
        over = torch.where(tried == 0, torch.ones_like(tried), tried).float()
        whole = torch.round(groups / over).clamp_(-MIDDLE, MOST)
        error = (whole * over - groups).square_().sum(2, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, tried, scale)
        q = torch.where(better, (whole + MIDDLE).to(torch.uint8), q)
    q, scale = q.flatten(1), scale[..., 0]
    return q[:, ::2] | (q[:, 1::2] << 4), scale


def unpacked_rows(q: Tensor, scale: Tensor, columns: int) -> Tensor:
    """q (..., I / 2), scale (..., G) -> weights (..., columns)."""
    high = (q.to(torch.float32) / 16).floor()  # no shift of bits, which the exporter makes a number with a sign
    both = torch.stack([q.to(torch.float32) - 16 * high, high], -1).flatten(-2) - MIDDLE
    return (both.unflatten(-1, (-1, GROUP)) * scale.float()[..., None]).flatten(-2)[..., :columns]


class Grouped(Stored):
    """What both layers share."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__(*packed(weight), bias)
        self.columns = weight.shape[1]

    def product(self) -> Tensor:
        return unpacked_rows(self.q, self.scale, self.columns)


class GroupedLinear(Grouped):
    """In the place of nn.Linear: (..., I) -> (..., O)."""

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.weight, layer.bias)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class GroupedEmbedding(Grouped):
    """In the place of nn.Embedding; only the rows that are looked up are made."""

    def __init__(self, layer: nn.Embedding):
        super().__init__(layer.weight)
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim

    def forward(self, x: Tensor) -> Tensor:
        if self.dense is not None:
            return F.embedding(x, self.dense)
        return unpacked_rows(self.q[x], self.scale[x], self.columns)


def in_groups(layer: Any) -> nn.Module | None:
    """The layer with weights in four bits that can stand in the place of this one; None where there is none."""
    if type(layer) is nn.Linear:
        return GroupedLinear(layer)
    if type(layer) is nn.Embedding and layer.max_norm is None and layer.embedding_dim >= GROUP:
        return GroupedEmbedding(layer)
    return None
