"""Optimisers (fused, from torch) and schedules of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

OPTIMIZERS = ("adamw", "adam", "sgd", "rmsprop")
SCHEDULES = ("cosine", "linear", "constant")


def make(network: nn.Module, *, name: str, rate: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """The optimiser; weight decay spares biases, norms and embeddings (parameters of one dimension, and tables)."""
    spared = {id(p) for m in network.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    decayed, other = [], []
    for p in network.parameters():
        if p.requires_grad:
            (other if p.ndim < 2 or id(p) in spared else decayed).append(p)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, fused=True)
    if name == "adam":
        return torch.optim.Adam(groups, lr=rate, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, fused=True)
    return torch.optim.RMSprop(groups, lr=rate, momentum=momentum)


def schedule(name: str, warmup: float, total: int) -> Callable[[int], float]:
    """step (from 0) -> factor on the rate: a linear warm-up over `warmup` x total steps, then the named shape."""
    rise = max(1, round(warmup * total)) if warmup else 0

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        if name == "constant":
            return 1.0
        part = min(1.0, (step - rise) / max(1, total - rise))
        return 1.0 - part if name == "linear" else 0.5 * (1 + math.cos(math.pi * part))

    return factor


def tensors_of(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as named tensors, for safetensors."""
    return {
        f"{i}.{name}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for i, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if value is not None
    }


def restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        i, _, name = key.partition(".")
        state.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
