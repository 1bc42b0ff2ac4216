"""Layers whose weights are stored in four bits: runs of `GROUP` weights of a row share one scale and one zero point.

weight[o, i] = (q[o, i] - zero[o, i // GROUP]) * scale[o, i // GROUP], q and zero from 0 to 15, two of them in a byte; scales in half
precision: 4.625 bits a weight. Of the pairs that were tried a run has the one that leaves the least squared error; a weight of zero stays
zero. Only storage: the product is made in floating point, as in `luban.nn.quantized`. Models that were saved before there were zero points have none: 8 everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.quantized import Stored

GROUP = 32
MOST, MIDDLE = 15, 8
# The scale of a run reaches over all its weights, times one of these: a smaller one cuts the furthest off and tells the others better apart.
TRIED = tuple(i / 20 for i in range(13, 21))
SHIFTS = (-1, 0, 1)  # of the zero point from where the weights' own ends have it


def packed(weight: Tensor, zeros: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    """weight (O, I) -> q uint8 (O, G * GROUP / 2), scale float16 (O, G), zero uint8 (O, ceil(G / 2)), G = ceil(I / GROUP).

    Without `zeros` there is none, and it is 8 everywhere.
    """
    rows, columns = weight.shape
    groups = F.pad(weight.detach().float(), (0, -columns % GROUP)).view(rows, -1, GROUP)
    best = groups.new_full((*groups.shape[:2], 1), torch.inf)
    q, zero = torch.zeros_like(groups, dtype=torch.uint8), torch.zeros_like(best, dtype=torch.uint8)
    scale = torch.zeros_like(best, dtype=torch.half)
    for step, middle in _tried(groups, zeros):
        whole = torch.round(groups / step + middle).clamp_(0, MOST)
        error = ((whole - middle) * step - groups).square_().sum(2, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, step.half(), scale)
        zero = torch.where(better, middle.to(torch.uint8), zero)
        q = torch.where(better, whole.to(torch.uint8), q)
    return _in_bytes(q.flatten(1)), scale[..., 0], _in_bytes(zero[..., 0]) if zeros else None


def _tried(groups: Tensor, zeros: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Scales, as half precision has them, and zero points: (O, G, 1) each, for groups (O, G, GROUP)."""
    low, high = groups.amin(2, keepdim=True).clamp(max=0), groups.amax(2, keepdim=True).clamp(min=0)
    if not zeros:
        high = torch.maximum(high, -low)
        low = -high
    for share in TRIED:
        step = ((high - low) * share / MOST).half().float()
        step = torch.where(step == 0, torch.ones_like(step), step)
        for shift in SHIFTS if zeros else ():
            yield step, (torch.round(-low * share / step) + shift).clamp_(0, MOST)
        if not zeros:
            yield step, torch.full_like(step, MIDDLE)


def _in_bytes(numbers: Tensor) -> Tensor:
    """(O, N) from 0 to 15 -> (O, ceil(N / 2)), two in a byte."""
    numbers = F.pad(numbers, (0, numbers.shape[1] % 2))
    return numbers[:, ::2] | (numbers[:, 1::2] << 4)


def _apart(stored: Tensor) -> Tensor:
    """(..., N / 2) -> (..., N) floats. Without a shift of bits, which the exporter makes a number with a sign."""
    both = stored.to(torch.float32)
    high = (both / 16).floor()
    return torch.stack([both - 16 * high, high], -1).flatten(-2)


def unpacked_rows(q: Tensor, scale: Tensor, zero: Tensor | None, columns: int) -> Tensor:
    """q (..., I / 2), scale (..., G), zero (..., G / 2) -> weights (..., columns)."""
    groups = _apart(q).unflatten(-1, (-1, GROUP))
    middle = MIDDLE if zero is None else _apart(zero)[..., : scale.shape[-1], None]
    return ((groups - middle) * scale.float()[..., None]).flatten(-2)[..., :columns]


class Grouped(Stored):
    """What both layers share. `zeros`: whether each run has a zero point of its own; without, as models had them that were saved earlier."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, zeros: bool = True):
        q, scale, zero = packed(weight, zeros)
        super().__init__(q, scale, bias)
        self.register_buffer("zero", zero)
        self.columns = weight.shape[1]

    def product(self) -> Tensor:
        return unpacked_rows(self.q, self.scale, self.zero, self.columns)


class GroupedLinear(Grouped):
    """In the place of nn.Linear: (..., I) -> (..., O)."""

    def __init__(self, layer: nn.Linear, zeros: bool = True):
        super().__init__(layer.weight, layer.bias, zeros)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class GroupedEmbedding(Grouped):
    """In the place of nn.Embedding; only the rows that are looked up are made."""

    def __init__(self, layer: nn.Embedding, zeros: bool = True):
        super().__init__(layer.weight, None, zeros)
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim

    def forward(self, x: Tensor) -> Tensor:
        if self.dense is not None:
            return F.embedding(x, self.dense)
        zero = None if self.zero is None else self.zero[x]
        return unpacked_rows(self.q[x], self.scale[x], zero, self.columns)


def in_groups(layer: Any, zeros: bool = True) -> nn.Module | None:
    """The layer with weights in four bits that can stand in the place of this one; None where there is none."""
    if type(layer) is nn.Linear:
        return GroupedLinear(layer, zeros)
    if type(layer) is nn.Embedding and layer.max_norm is None and layer.embedding_dim >= GROUP:
        return GroupedEmbedding(layer, zeros)
    return None
