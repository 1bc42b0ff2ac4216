"""What a network must be for several ranks to train it, each on a part of every batch."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from luban.errors import Problem, problem


def unfit(network: nn.Module, strategy: str) -> Iterator[Problem]:
    """Why ranks cannot train a network, from its structure alone: a network on the meta device will do."""
    if getattr(network, "compares", False):
        yield problem("scale.compares")
    if strategy == "fsdp" and (found := scalars(network)):
        yield problem("scale.scalar", names=found)


def scalars(network: nn.Module) -> list[str]:
    """Weights without dimensions, which cannot be cut."""
    return [n for n, p in network.named_parameters() if p.ndim == 0]
