"""Which precision trains this network fastest on this machine: measured on its own rows, then written down.

| name | what is computed in what | where |
|---|---|---|
| fp32 | everything in 32-bit floating point | everywhere |
| tf32 | inputs of matrix products and convolutions rounded to 10 bits of fraction | GPUs from Ampere on |
| medium | inputs of matrix products rounded to bf16, sums and all else in fp32 | processors with bf16 |
| bf16 | autocast: products and convolutions in bf16; weights, gradients and losses stay fp32 | bf16 in hardware |
| fp16 | autocast in fp16, with a loss scaled so that small gradients do not vanish (Micikevicius et al. 2018) | older GPUs |

`auto` takes another than fp32 only where a trial of this network is faster, and `tf32` and `medium`, which change every
product in silence, only where answers and gradients stay close to those of fp32, too.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from luban.columns.examples import Examples
from luban.machine import able, computes
from luban.nn.tokens import Batch
from luban.training.random import seed_torch

Precision = Literal["fp32", "tf32", "medium", "bf16", "fp16"]
PRODUCTS = {"tf32": "high", "medium": "medium"}  # torch's own names; "highest" for all others
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
CHECKED = ("tf32", "medium")  # chosen only with the accuracy test
GAIN = 1.15  # another precision has to be this much faster to be chosen
CLOSE = 0.02  # and its answers and gradients this close: largest difference / largest value, of each tensor
ROUNDS = 3
# Seconds that an fp32 step must take: of shorter ones the clock's noise would choose, differently each time, and the
# weights that a seed gives with it. On an accelerator nothing else runs, and its clock is that of the kernels.
WORTH, WORTH_ON_GPU = 0.02, 0.002


# -- what a precision means ------------------------------------------------------------------------------------------


def autocast(precision: str, device: str) -> Any:
    """The context that a step's forward pass runs in."""
    return torch.autocast(device.split(":")[0], HALF[precision]) if precision in HALF else nullcontext()


@contextmanager
def products(precision: str, device: str) -> Iterator[None]:
    """While it lasts fp32 matrix products are made as the precision says, whatever was set; then it is as it was.

    torch keeps this for the whole process, and for convolutions on a GPU apart.
    """
    gpu = device.startswith("cuda")
    before, convolutions = torch.get_float32_matmul_precision(), gpu and torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(PRODUCTS.get(precision, "highest"))
    if gpu:
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        if gpu:
            torch.backends.cudnn.allow_tf32 = convolutions


def refuse(precision: str, device: str) -> None:
    """Raises Unsupported where a precision was asked for that the device can only imitate, or not compute at all."""
    if precision != "auto":
        computes(device, precision, "train.precision", ("auto", "fp32", *PRODUCTS, *HALF))


# -- the trial -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A precision, and why: seconds of a step in each that was tried; how far from fp32 those that were checked are."""

    precision: str = "fp32"
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)


@contextmanager
def aside(network: Any, device: str) -> Iterator[Any]:
    """A copy to try something on: no weight, statistic or random state of the network or the process changes."""
    gpus = []
    if device.startswith("cuda"):
        index = torch.device(device).index
        gpus = [torch.cuda.current_device() if index is None else index]
    with torch.random.fork_rng(gpus, device_type="cuda"):
        trial = copy.deepcopy(network).to(device).train()
        for p in trial.parameters():
            p.grad = None
        yield trial


def choose(network: Any, examples: Examples, batch: int, device: str, objective: Callable[..., Any]) -> Choice:
    """The fastest precision for this network on a batch of its own rows, the longest; fp32 unless another is worth it."""
    tried = [p for p in ("bf16", "fp16", *CHECKED) if able(device, p) and not (p == "fp16" and able(device, "bf16"))]
    if not tried or not len(examples):
        return Choice()
    rows = np.arange(len(examples))[:batch] if examples.lengths() is None else np.argsort(examples.lengths())[-batch:]
    data = Batch.of(examples.arrays(rows), device)
    spent: dict[str, list[float]] = {p: [] for p in ("fp32", *tried)}
    with aside(network, device) as trial:
        for _ in range(ROUNDS + 1):  # the first of each warms up
            for precision, seconds in spent.items():
                seconds.append(_once(trial, data, precision, device, objective))
        least = {p: min(s[1:]) for p, s in spent.items()}
        fast = [p for p in tried if least["fp32"] >= GAIN * least[p]]
        if not fast or least["fp32"] < (WORTH_ON_GPU if device.startswith("cuda") else WORTH):
            return Choice("fp32", least)
        errors = {p: difference(trial, data, p, device, objective) for p in fast if p in CHECKED}
    good = [p for p in fast if errors.get(p, 0.0) <= CLOSE]
    return Choice(min(good, key=least.__getitem__, default="fp32"), least, errors)


def _once(network: Any, batch: Batch, precision: str, device: str, objective: Callable[..., Any]) -> float:
    """Seconds of a forward and a backward pass: of this process on a processor, of the wall on a GPU."""
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    began = clock()
    _pass(network, batch, precision, device, objective)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - began


def _pass(network: Any, batch: Batch, precision: str, device: str, objective: Callable[..., Any]) -> None:
    with products(precision, device):
        with autocast(precision, device):
            losses = objective(network, batch, np.random.default_rng(0))
        sum(each.float().sum() for each, _ in losses.values()).backward()


def difference(network: Any, batch: Batch, precision: str, device: str, objective: Callable[..., Any]) -> float:
    """How far answers and gradients are from those of fp32: of each tensor the largest difference over its largest value.

    A tensor whose values are all below a thousandth of the largest gradient is measured against that: it is nearly zero.
    """
    seen = []
    for p in ("fp32", precision):
        network.zero_grad(set_to_none=True)
        seed_torch(0, "trial")  # the same places are dropped out
        _pass(network, batch, p, device, objective)
        gradients = [p.grad.detach().clone() for p in network.parameters() if p.grad is not None]
        seed_torch(0, "trial")
        with torch.no_grad(), products(p, device), autocast(p, device):
            answers = [t.detach().float().clone() for o in network(batch).values() for t in _tensors(o)]
        seen.append((answers, gradients))
    (answers, gradients), (other_answers, other_gradients) = seen
    floor = 1e-3 * max((float(g.abs().max()) for g in gradients), default=0.0)
    return max(_furthest(answers, other_answers, 0.0), _furthest(gradients, other_gradients, floor))


def _tensors(o: Any) -> tuple[Tensor, ...]:
    """An output, or what a network returns in its stead where the truth is known."""
    return o if isinstance(o, tuple) else (o,)


def _furthest(exact: list[Tensor], other: list[Tensor], floor: float) -> float:
    far = [float((b - a).abs().max()) / max(float(a.abs().max()), floor, 1e-12) for a, b in zip(exact, other)]
    return max(far, default=0.0)


# -- fp16 ------------------------------------------------------------------------------------------------------------


class Scaler:
    """The factor on a loss under fp16: twice as large after 2,000 good updates, half after one whose gradients overflow.

    All of it is tensors, so nothing waits for a device, and what `tensors` gives goes into a checkpoint.
    """

    GROWTH, BACKOFF, INTERVAL, FIRST = 2.0, 0.5, 2000, 2.0**16

    def __init__(self, device: str):
        self.scale = torch.full((), self.FIRST, device=device)
        self.good = torch.zeros((), dtype=torch.int32, device=device)
        self.overflowed = torch.zeros((), device=device)  # 1 where the last gradients were not finite

    def unscale(self, flat: Tensor) -> Tensor:
        """The gradients as they would be without the factor, in place; 1 where one of them is not finite, else 0."""
        self.overflowed.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_([flat], self.overflowed, 1 / self.scale)
        return self.overflowed

    def adjust(self) -> None:
        """After an update that was made or left out."""
        torch._amp_update_scale_(self.scale, self.good, self.overflowed, self.GROWTH, self.BACKOFF, self.INTERVAL)

    def tensors(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "good": self.good}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for name, mine in self.tensors().items():
            mine.copy_(tensors[name])
