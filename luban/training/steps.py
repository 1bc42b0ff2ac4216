"""How one update is made: `step(state, batch, objective) -> {name: (sum, weight)}`.

A step calls the objective, fills the gradients and calls `state.update()`. Numbers stay tensors: reading one would
make an accelerator wait. A step may own modules, optimisers and state (see `Owner`), which `fit` checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from luban.nn.tokens import Batch

Losses = Mapping[str, tuple[Tensor, Tensor]]
Numbers = dict[str, tuple[Tensor, Tensor]]


class Owner(Protocol):
    """An objective or step with things of its own."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, Any]

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


def plain(state: Any, batch: Batch, objective: Callable[..., Any]) -> Numbers:
    """One batch, one update. Each output's loss is its sum over the global batch divided by its weight over it."""
    with state.autocast():
        losses = objective(state.network, batch, state.rng())
    sums = {name: (each.detach().sum(), weight.sum()) for name, (each, weight) in losses.items()}
    numbers = state.whole(sums, batch.counts)
    backward(losses, numbers, batch.counts)
    state.update()
    return numbers


def backward(losses: Losses, whole: Numbers, counts: bool = True) -> None:
    """Add the gradients of the outputs' losses, each the sum over these examples divided by the weight in `whole`.

    The division is the seed of the backward pass (1 / weight for every example), so that it costs no node of the graph.
    """
    roots = {name: each for name, (each, _) in losses.items() if each.requires_grad}
    seeds = [
        whole[name][1].clamp(min=1e-12).reciprocal().to(each.dtype).expand_as(each) for name, each in roots.items()
    ]
    torch.autograd.backward(list(roots.values()), seeds if counts else [s * 0 for s in seeds])
