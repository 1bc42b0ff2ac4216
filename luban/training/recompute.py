"""Activations computed again in the backward pass instead of being kept (Chen et al. 2016, "Training Deep Nets with
Sublinear Memory Cost"): a third more work, and of a stack of layers only the inputs stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import nn


@contextmanager
def recomputed(network: nn.Module) -> Iterator[nn.Module]:
    """Inside, every layer of a stack of equal layers forgets what it computed until the backward pass asks for it.

    What is learned does not change: dropout draws the same numbers the second time.
    """
    layers = [layer for stack in stacks(network) for layer in stack]
    for layer in layers:
        layer.forward = MethodType(_again, layer)  # a method, so that a copied network has copied layers
    try:
        yield network
    finally:
        for layer in layers:
            del layer.forward


def _again(layer: nn.Module, *given: Any, **named: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    return checkpoint(type(layer).forward, layer, *given, use_reentrant=False, **named)


def stacks(network: nn.Module) -> list[nn.ModuleList]:
    """The lists of two or more layers of one class and one shape, the outermost ones."""
    found: list[nn.ModuleList] = []
    inside: set[int] = set()
    for module in network.modules():
        if isinstance(module, nn.ModuleList) and id(module) not in inside and _is_stack(module):
            found.append(module)
            inside |= {id(m) for m in module.modules()}
    return found


def _is_stack(layers: nn.ModuleList) -> bool:
    return len(layers) > 1 and len({_kind(m) for m in layers}) == 1 and any(True for _ in layers.parameters())


def _kind(layer: nn.Module) -> Any:
    return type(layer), tuple(tuple(p.shape) for p in layer.parameters())
