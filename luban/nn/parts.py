"""The parts of a network by the names that a recipe has for them."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Joined(nn.Identity):
    """Where a sum or a concatenation is complete; a module, so that others find the place."""


def same_padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(B, C, H, W) padded as TensorFlow does it: so much that the side is divided by the stride, the odd pixel at the end."""
    tall, wide = (max((ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
    return F.pad(x, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))


def parts(network: Any) -> Mapping[str, nn.Module]:
    """Each input's encoder (several inputs may share one), "fusion", each output's head; "module" of a network of one's own.

    A column of that name comes before `fusion` and `module`.
    """
    if hasattr(network, "module"):
        return {"module": network.module}
    names = [n for group in network.groups for n in group]
    found = {"fusion": network.fusion} | {n: network.encoder_of(n) for n in names}
    return found | dict(network._heads())
