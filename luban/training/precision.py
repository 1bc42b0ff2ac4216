"""Which precision trains this network fastest on this machine: measured on one of its own batches, then written down.

bf16 autocast keeps weights, gradients and losses in fp32; only matrix products and convolutions run in bf16. On a
processor with AMX or AVX512-BF16 that is up to four times faster for wide layers, and slower for tiny ones.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from luban import machine
from luban.columns.examples import Examples
from luban.nn.tokens import Batch

GAIN = 1.15  # bf16 has to be this much faster to be chosen
ROUNDS = 3
WORTH = (
    0.02  # seconds that an fp32 step must take: of shorter ones the clock's noise would choose, differently each time
)


def autocast(precision: str, device: str) -> Any:
    """The context that a step's forward pass runs in."""
    return torch.autocast(device.split(":")[0], torch.bfloat16) if precision == "bf16" else nullcontext()


def able(device: str) -> bool:
    """Whether bf16 is computed, not imitated, there."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and bool({"avx512_bf16", "amx_bf16"} & set(machine.processor()["flags"]))


def choose(network: Any, examples: Examples, batch: int, device: str, objective: Callable[..., Any]) -> str:
    """ "bf16" where the device can and a trial of this network on its own rows is faster, else "fp32".

    Small networks train in fp32 without a trial's luck, so that a seed gives them the same weights every time.
    The trial works on a copy: no weight, statistic or random state of the network changes.
    """
    if not able(device) or not len(examples):
        return "fp32"
    trial = copy.deepcopy(network).to(device).train()
    rows = np.arange(len(examples))[:batch] if examples.lengths() is None else np.argsort(examples.lengths())[-batch:]
    data = Batch.of(examples.arrays(rows), device)
    spent: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(ROUNDS + 1):  # the first of each warms up
        for precision, seconds in spent.items():
            seconds.append(_once(trial, data, precision, device, objective))
    least = {p: min(s[1:]) for p, s in spent.items()}
    return "bf16" if least["fp32"] >= max(WORTH, GAIN * least["bf16"]) else "fp32"


def _once(network: Any, batch: Batch, precision: str, device: str, objective: Callable[..., Any]) -> float:
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    began = clock()
    with autocast(precision, device):
        losses = objective(network, batch, np.random.default_rng(0))
    sum(each.sum() for each, _ in losses.values()).backward()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - began
