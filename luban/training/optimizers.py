"""The optimiser of a run: which parameter follows which rule, with which decay and which share of the rate.

The updates are PyTorch's own fused kernels, called directly: `torch.optim` imports the compiler when it makes its
first optimiser, which costs a small run more than its training (docs/decisions/0002-optimisers.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luban import registry
from luban.part import Part
from luban.training.rules import Rule


@dataclass
class Group:
    """Parameters that are treated alike. `share`: of the rate."""

    rule: Rule
    params: list[Tensor]
    decay: float
    share: float
    slots: list[list[Tensor]]


class Optimizer:
    """A rule by name (`adamw`, or `{sgd: {momentum: 0.9}}`) over all trainable parameters.

    Weight decay spares biases, norms (one dimension) and embedding tables. Gradients are read from `p.grad`. The state is
    plain tensors, named for safetensors by `tensors`. `local` gives the part of a parameter that this process updates;
    `shares` a factor on the rate for parameters by id.
    """

    def __init__(
        self, network: nn.Module, *, name: Any = "adamw", weight_decay: float = 0.0, shares: Mapping[int, float] | None = None,
        local: Callable[[Tensor], Tensor] = lambda p: p,
    ):  # fmt: skip
        part, shares = Part.of(name), shares or {}
        rule = registry.find("optimizers", part.type)(**{k: v for k, v in part.settings.items() if v is not None})
        spared = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
        hidden = {id(p) for p in hidden_weights(network)} if rule.hidden else set()
        found: dict[tuple[bool, float, float], list[Tensor]] = {}
        for p in network.parameters():
            if p.requires_grad:
                decay = weight_decay if p.ndim > 1 and id(p) not in spared else 0.0
                key = (not rule.hidden or id(p) in hidden, decay, shares.get(id(p), 1.0))
                found.setdefault(key, []).append(local(p))
        self.groups = [self._group(rule if mine else rule.rest, *key, p) for (mine, *key), p in found.items()]
        first = self.groups[0].params[0] if self.groups else None
        self.step = torch.zeros((), device=first.device if first is not None else None)

    @staticmethod
    def _group(rule: Any, decay: float, share: float, params: list[Tensor]) -> Group:
        return Group(rule, params, decay, share, [[torch.zeros_like(p) for p in params] for _ in range(rule.slots)])

    @torch.no_grad()
    def update(self, rate: float, bad: Tensor | None = None) -> None:
        """One step with the gradients that stand in `p.grad`. Where `bad`, one number on the device, is 1, nothing changes."""
        self.step.add_(1)
        for group in self.groups:
            grads = [p.grad for p in group.params]
            asked = (group.params, grads, group.slots, [self.step] * len(grads), rate * group.share, group.decay)
            if bad is None:
                group.rule.update(*asked)
            elif group.rule.skips:
                group.rule.update(*asked, found_inf=bad)
            else:
                _unless(bad, [*group.params, *(t for slot in group.slots for t in slot)], group.rule.update, asked)
        if bad is not None:
            self.step.sub_(bad)

    @torch.no_grad()
    def clamp(self, most: float) -> None:
        """Every weight between -most and most (Arjovsky et al. 2017)."""
        for group in self.groups:
            torch._foreach_clamp_min_(group.params, -most)
            torch._foreach_clamp_max_(group.params, most)

    def tensors(self) -> dict[str, Tensor]:
        """The whole state as named tensors."""
        slots = {
            f"{g}.{s}.{i}": t
            for g, group in enumerate(self.groups)
            for s, slot in enumerate(group.slots)
            for i, t in enumerate(slot)
        }
        return {"step": self.step, **slots}

    def owners(self) -> dict[str, Tensor]:
        """Of the tensors that have a parameter's shape: which parameter's each is."""
        return {
            f"{g}.{s}.{i}": p
            for g, group in enumerate(self.groups)
            for s in range(len(group.slots))
            for i, p in enumerate(group.params)
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for name, mine in self.tensors().items():
            mine.copy_(tensors[name])


def _unless(bad: Tensor, touched: list[Tensor], update: Callable[..., None], asked: tuple[Any, ...]) -> None:
    """An update that is taken back on the device where `bad` is 1, so that nobody has to wait for it."""
    before = [t.clone() for t in touched]
    update(*asked)
    for now, then in zip(touched, before):
        torch.where(bad.bool(), then, now, out=now)


def hidden_weights(network: nn.Module) -> list[Tensor]:
    """The matrices of hidden layers: weights of linear, convolutional and recurrent layers, heads apart.

    In a network of one's own the last such weight stands for the head.
    """
    ends = [last for head in getattr(network, "heads", ()) for last in getattr(head, "last", [head])]
    heads = {id(p) for end in ends for p in end.parameters()}
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase)
    found = [
        p
        for m in network.modules()
        if isinstance(m, kinds)
        for p in m.parameters(recurse=False)
        if p.ndim > 1 and id(p) not in heads
    ]
    return found if hasattr(network, "heads") else found[:-1]
