"""How one update is made: `step(state, batch, objective) -> {name: (sum, weight)}`.

A step calls the objective, fills the gradients and calls `state.update()`. Numbers stay tensors: reading one would
make an accelerator wait. A step may own modules, optimisers and state (see `Owner`), which `fit` checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from luban.nn.tokens import Batch

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
    sums = {name: (each.sum(), weight.sum()) for name, (each, weight) in losses.items()}
    loss, numbers = state.mean(sums, batch.counts)
    loss.backward()
    state.update()
    return numbers
