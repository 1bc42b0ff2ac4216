"""Optimisers.

The updates are PyTorch's own fused kernels, called directly: `torch.optim` imports the compiler when it makes its
first optimiser, which costs a small run more than its training (docs/decisions/0002-optimisers.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

OPTIMIZERS = ("adamw", "adam", "sgd", "rmsprop")
BETAS, EPSILON, SMOOTHING = (0.9, 0.999), 1e-8, 0.99


class Optimizer:
    """One of adamw (decoupled decay, Loshchilov & Hutter 2019), adam, sgd (momentum), rmsprop, over all trainable parameters.

    Weight decay spares biases, norms (one dimension) and embedding tables, but for a table with a `decay` of its own: that
    one is multiplied by 1 - rate x decay at every update, whatever the optimiser. Gradients are read from `p.grad`. The
    state is plain tensors, named for safetensors by `tensors`. `local` gives the part of a parameter that this process updates.
    """

    def __init__(
        self, network: nn.Module, *, name: str, momentum: float = 0.9, weight_decay: float = 0.0,
        local: Callable[[Tensor], Tensor] = lambda p: p,
    ):  # fmt: skip
        self.name, self.momentum, self.weight_decay = name, momentum, weight_decay
        tables = [m for m in network.modules() if isinstance(m, nn.Embedding)]
        spared = {id(m.weight) for m in tables}
        self.forgetting = [
            (local(m.weight), m.decay) for m in tables if getattr(m, "decay", 0.0) and m.weight.requires_grad
        ]
        trainable = [p for p in network.parameters() if p.requires_grad]
        decayed = [p for p in trainable if p.ndim > 1 and id(p) not in spared]
        kept = {id(p) for p in decayed}
        groups = ((decayed, weight_decay), ([p for p in trainable if id(p) not in kept], 0.0))
        self.groups = [([local(p) for p in params], decay) for params, decay in groups if params]
        slots = {"adamw": 2, "adam": 2, "sgd": 1 if momentum else 0, "rmsprop": 2 if momentum else 1}[name]
        self.slots = [[[torch.zeros_like(p) for p in params] for _ in range(slots)] for params, _ in self.groups]
        self.steps = [[torch.zeros((), device=p.device) for p in params] for params, _ in self.groups]

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """One step with the gradients that stand in `p.grad`."""
        for table, decay in self.forgetting:
            table.mul_(max(0.0, 1 - rate * decay))
        for (params, decay), slots, steps in zip(self.groups, self.slots, self.steps):
            grads = [p.grad for p in params]
            if self.name in ("adamw", "adam"):
                self._adam(params, grads, slots, steps, rate, decay)
            elif self.name == "sgd":
                first = not steps[0].item()
                torch._fused_sgd_(
                    params, grads, slots[0] if slots else [], weight_decay=decay, momentum=self.momentum, lr=rate,
                    dampening=0.0, nesterov=False, maximize=False, is_first_step=first,
                )  # fmt: skip
                steps[0].fill_(1)
            else:
                self._rmsprop(params, grads, slots, rate, decay)

    def _adam(self, params: Any, grads: Any, slots: Any, steps: Any, rate: float, decay: float) -> None:
        kernel = torch._fused_adamw_ if self.name == "adamw" else torch._fused_adam_
        torch._foreach_add_(steps, 1)
        kernel(
            params, grads, slots[0], slots[1], [], steps, lr=rate, beta1=BETAS[0], beta2=BETAS[1], weight_decay=decay,
            eps=EPSILON, amsgrad=False, maximize=False,
        )  # fmt: skip

    def _rmsprop(self, params: Any, grads: Any, slots: Any, rate: float, decay: float) -> None:
        if decay:
            grads = torch._foreach_add(grads, params, alpha=decay)
        torch._foreach_mul_(slots[0], SMOOTHING)
        torch._foreach_addcmul_(slots[0], grads, grads, value=1 - SMOOTHING)
        scale = torch._foreach_sqrt(slots[0])
        torch._foreach_add_(scale, EPSILON)
        if self.momentum:
            torch._foreach_mul_(slots[1], self.momentum)
            torch._foreach_addcdiv_(slots[1], grads, scale)
            torch._foreach_add_(params, slots[1], alpha=-rate)
        else:
            torch._foreach_addcdiv_(params, grads, scale, value=-rate)

    def tensors(self) -> dict[str, Tensor]:
        """The whole state as named tensors."""
        found = {}
        for g, (slots, steps) in enumerate(zip(self.slots, self.steps)):
            found |= {f"{g}.{s}.{i}": t for s, slot in enumerate(slots) for i, t in enumerate(slot)}
            found |= {f"{g}.step.{i}": t for i, t in enumerate(steps)}
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for name, mine in self.tensors().items():
            mine.copy_(tensors[name])
