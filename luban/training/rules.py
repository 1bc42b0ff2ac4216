"""How a weight follows its gradient: the optimisers' formulas, as functions over lists of tensors.

    rule.update(params, grads, slots, steps, rate, decay)

w: a weight, g: its gradient, r: the rate, d: the weight decay; each list has one tensor a parameter. `slots` are the
rule's memories (momenta, mean squares), `steps` the number of updates, this one included. Nothing here reads a number back
from a device, and nothing loops over parameters in Python but Muon, which works on matrices of one shape at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from luban.settings import Fraction, Natural, Positive, Range

Beta = Annotated[float, Range(low=0, high=0.999999)]


@dataclass(frozen=True)
class Rule:
    """`slots`: memories a parameter. `skips`: the kernel itself leaves everything as it is where `found_inf` is 1.

    `hidden`: for the matrices of hidden layers only; all other parameters follow `rest`.
    """

    update: Callable[..., None]
    slots: int
    skips: bool = False
    hidden: bool = False
    rest: Rule | None = None


def adamw(*, beta1: Beta = 0.9, beta2: Beta = 0.999, epsilon: Positive = 1e-8) -> Rule:
    """w -= r d w; w -= r m' / (sqrt(v') + epsilon), m', v' the means of g and g^2 without their bias (Loshchilov & Hutter 2019)."""
    return _adam(torch._fused_adamw_, beta1, beta2, epsilon)


def adam(*, beta1: Beta = 0.9, beta2: Beta = 0.999, epsilon: Positive = 1e-8) -> Rule:
    """As adamw, but the decay is added to the gradient: g + d w (Kingma & Ba 2015)."""
    return _adam(torch._fused_adam_, beta1, beta2, epsilon)


def _adam(kernel: Callable[..., None], beta1: float, beta2: float, epsilon: float) -> Rule:
    def update(
        params: Any, grads: Any, slots: Any, steps: Any, rate: float, decay: float, found_inf: Any = None
    ) -> None:
        kernel(
            params, grads, slots[0], slots[1], [], steps, lr=rate, beta1=beta1, beta2=beta2, weight_decay=decay,
            eps=epsilon, amsgrad=False, maximize=False, found_inf=found_inf,
        )  # fmt: skip

    return Rule(update, 2, skips=True)


def sgd(*, momentum: Fraction = 0.9, nesterov: bool = False) -> Rule:
    """b = momentum b + g; w -= r b, with Nesterov w -= r (g + momentum b) (Sutskever et al. 2013). The decay is added to g."""
    ahead = nesterov and momentum > 0

    def update(
        params: Any, grads: Any, slots: Any, steps: Any, rate: float, decay: float, found_inf: Any = None
    ) -> None:
        torch._fused_sgd_(
            params, grads, slots[0] if slots else [], weight_decay=decay, momentum=momentum, lr=rate, dampening=0.0,
            nesterov=ahead, maximize=False, is_first_step=False, found_inf=found_inf,
        )  # fmt: skip

    return Rule(update, 1 if momentum else 0, skips=True)


def rmsprop(*, smoothing: Fraction = 0.99, momentum: Fraction = 0.9, epsilon: Positive = 1e-8) -> Rule:
    """v = smoothing v + (1 - smoothing) g^2; w -= r g / (sqrt(v) + epsilon), through a momentum (Tieleman & Hinton 2012)."""

    def update(params: Any, grads: Any, slots: Any, steps: Any, rate: float, decay: float) -> None:
        grads = _decayed(grads, params, decay)
        torch._foreach_mul_(slots[0], smoothing)
        torch._foreach_addcmul_(slots[0], grads, grads, value=1 - smoothing)
        scale = torch._foreach_sqrt(slots[0])
        torch._foreach_add_(scale, epsilon)
        if momentum:
            torch._foreach_mul_(slots[1], momentum)
            torch._foreach_addcdiv_(slots[1], grads, scale)
            torch._foreach_add_(params, slots[1], alpha=-rate)
        else:
            torch._foreach_addcdiv_(params, grads, scale, value=-rate)

    return Rule(update, 2 if momentum else 1)


def adagrad(*, epsilon: Positive = 1e-10) -> Rule:
    """v += g^2; w -= r g / (sqrt(v) + epsilon) (Duchi et al. 2011). The decay is added to g."""

    def update(params: Any, grads: Any, slots: Any, steps: Any, rate: float, decay: float) -> None:
        grads = _decayed(grads, params, decay)
        torch._foreach_addcmul_(slots[0], grads, grads)
        scale = torch._foreach_sqrt(slots[0])
        torch._foreach_add_(scale, epsilon)
        torch._foreach_addcdiv_(params, grads, scale, value=-rate)

    return Rule(update, 1)


def lion(*, beta1: Beta = 0.9, beta2: Beta = 0.99) -> Rule:
    """w -= r d w; w -= r sign(b1 m + (1 - b1) g); m = b2 m + (1 - b2) g (Chen et al. 2023). Wants a rate 3 to 10 times below adamw's."""

    def update(params: Any, grads: Any, slots: Any, steps: Any, rate: float, decay: float) -> None:
        way = torch._foreach_lerp(slots[0], grads, 1 - beta1)
        torch._foreach_sign_(way)
        if decay:
            torch._foreach_mul_(params, 1 - rate * decay)
        torch._foreach_add_(params, way, alpha=-rate)
        torch._foreach_lerp_(slots[0], grads, 1 - beta2)

    return Rule(update, 1)


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def muon(
    *,
    momentum: Fraction = 0.95,
    nesterov: bool = True,
    iterations: Natural = 5,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
) -> Rule:
    """b += (1 - momentum) (g - b); u = g or b + momentum (b - g); w -= 0.2 sqrt(max(rows, columns)) r U V' where u = U S V'.

    (Jordan et al. 2024; scaled as Liu et al. 2025 so that rate and decay mean what they mean for adamw.) For the matrices
    of hidden layers, convolutions as (out, in x kernel); tables, biases, norms and heads follow adamw. U V' comes from
    Newton-Schulz iterations, in bf16 on a GPU, else in fp32 (auto).
    """

    def update(params: Any, grads: Any, slots: Any, steps: Any, rate: float, decay: float) -> None:
        torch._foreach_lerp_(slots[0], grads, 1 - momentum)
        ways = torch._foreach_lerp(grads, slots[0], momentum) if nesterov else slots[0]
        if decay:
            torch._foreach_mul_(params, 1 - rate * decay)
        shapes: dict[tuple[int, int], list[int]] = {}
        for i, way in enumerate(ways):
            shapes.setdefault((way.shape[0], way[0].numel()), []).append(i)
        for (rows, columns), places in shapes.items():
            stacked = torch.stack([ways[i].reshape(rows, columns) for i in places])  # (P, rows, columns)
            found = orthogonal(stacked, iterations, precision).to(params[0].dtype)
            scale = -rate * 0.2 * max(rows, columns) ** 0.5
            torch._foreach_add_(
                [params[i] for i in places], [f.view(params[i].shape) for f, i in zip(found, places)], alpha=scale
            )

    return Rule(update, 1, hidden=True, rest=adamw())


def orthogonal(x: torch.Tensor, iterations: int, precision: str = "auto") -> torch.Tensor:
    """(P, A, B) -> about U V' of each x = U S V': S becomes numbers around 1."""
    low = x.is_cuda if precision == "auto" else precision == "bf16"
    x = x.bfloat16() if low else x
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _decayed(grads: Any, params: Any, decay: float) -> Any:
    return torch._foreach_add(grads, params, alpha=decay) if decay else grads
