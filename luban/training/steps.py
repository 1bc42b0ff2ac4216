"""How one update is made: `step(state, batch, objective) -> {name: (sum, weight)}`.

A step calls the objective, fills the gradients and calls `state.update()`. Numbers stay tensors: reading one would
make an accelerator wait. A step may own modules, optimisers and state (see `Owner`), which `fit` checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
    if state.pieces > 1:
        return accumulated(state, batch, objective)
    with state.norms(batch.counts):
        with state.autocast():
            losses = objective(state.network, batch, state.rng())
        numbers = state.whole(summed(losses), batch.counts)
        backward(losses, numbers, batch.counts, state.scaler)
    state.update()
    return numbers


def accumulated(state: Any, batch: Batch, objective: Callable[..., Any]) -> Numbers:
    """The same update with the activations of `state.pieces` smaller batches, one after the other.

    The weight of the whole global batch is known before the first of them, so that a loss per token or per example is
    divided by what it would be divided by in one go. For networks whose examples do not depend on each other.
    """
    pieces = batch.cut(state.pieces)
    weighed = [weights_of(state, piece, objective, i) for i, piece in enumerate(pieces)]
    whole = state.whole(added([{n: (w * 0, w) for n, w in each.items()} for each in weighed]), batch.counts)
    sums = []
    for i, piece in enumerate(pieces):
        with state.autocast():
            losses = objective(state.network, piece, state.rng(i))
        backward(losses, whole, batch.counts, state.scaler)
        sums.append(summed(losses))
    numbers = state.whole(added(sums), batch.counts)
    state.update()
    return numbers


@torch.no_grad()
def weights_of(state: Any, batch: Batch, objective: Callable[..., Any], piece: int) -> dict[str, Tensor]:
    """{output: the weight of its targets}, from the truth alone where the objective can (`objective.weights`), else by a
    forward pass.
    """
    known = objective.weights(state.network, batch) if hasattr(objective, "weights") else None
    if known is not None:
        return {n: w.sum() for n, w in known.items()}
    with state.autocast():
        return {n: w.sum() for n, (_, w) in objective(state.network, batch, state.rng(piece)).items()}


def summed(losses: Losses) -> Numbers:
    return {name: (each.detach().sum(), weight.sum()) for name, (each, weight) in losses.items()}


def added(numbers: Sequence[Numbers]) -> Numbers:
    """The sums of several batches, output by output."""
    result: Numbers = {}
    for each in numbers:
        for name, (total, weight) in each.items():
            before = result.get(name)
            result[name] = (total, weight) if before is None else (before[0] + total, before[1] + weight)
    return result


def backward(losses: Losses, whole: Numbers, counts: bool = True, scaler: Any = None) -> None:
    """Add the gradients of the outputs' losses, each the sum over these examples divided by the weight in `whole`.

    The division is the seed of the backward pass (1 / weight for every example), so that it costs no node of the graph.
    Under fp16 it is times the scaler's factor.
    """
    roots = {name: each for name, (each, _) in losses.items() if each.requires_grad}
    seeds = [_seed(each, whole[name][1]) for name, each in roots.items()]
    seeds = [s * scaler.scale for s in seeds] if scaler else seeds
    seeds = seeds if counts else [s * 0 for s in seeds]
    _propagate(tuple(roots.values()), tuple(seeds))


def _engine() -> Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], None]:
    """`torch.autograd.backward` without its checks in Python, which cost a small network a sixth of its step; the call
    itself, where this version of torch has no such way.
    """
    run = getattr(getattr(torch.autograd.Variable, "_execution_engine", None), "run_backward", None)
    if run is None:
        return torch.autograd.backward
    return partial(run, keep_graph=False, create_graph=False, inputs=(), allow_unreachable=True, accumulate_grad=True)


_propagate = _engine()


def _seed(each: Tensor, weight: Tensor) -> Tensor:
    """1 / weight for every example. On a processor the number is read, which costs less than three operations on it."""
    if weight.device.type == "cpu":
        return torch.full(each.shape, 1.0 / max(float(weight), 1e-12), dtype=each.dtype)
    return weight.clamp(min=1e-12).reciprocal().to(each.dtype).expand_as(each)
