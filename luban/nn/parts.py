"""The parts of a network by the names that a recipe has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def parts(network: Any) -> Mapping[str, nn.Module]:
    """Each input's encoder (several inputs may share one), "fusion", each output's head; "module" of a network of one's own.

    A column of that name comes before `fusion` and `module`.
    """
    if hasattr(network, "module"):
        return {"module": network.module}
    names = [n for group in network.groups for n in group]
    found = {"fusion": network.fusion} | {n: network.encoder_of(n) for n in names}
    return found | dict(network._heads())
