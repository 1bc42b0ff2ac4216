"""The running loss of an epoch. An accelerator's sums and weights stay tensors until somebody reads them, so nothing waits."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from luban.training.steps import Numbers

MOST = 1024  # updates whose numbers wait to be read at once


class Sums:
    """Per output the sum of the losses and their weight so far. Added in the order of the steps, in double precision."""

    def __init__(self) -> None:
        self.read_so_far: dict[str, list[float]] = {}
        self.waiting: list[Numbers] = []

    def add(self, numbers: Numbers) -> None:
        if all(total.device.type == "cpu" for total, _ in numbers.values()):
            self._count((name, float(_plain(t)), float(_plain(w))) for name, (t, w) in numbers.items())
            return  # kept, a thousand steps' tensors would have Python's garbage collector look through all there is
        self.waiting.append(numbers)
        if len(self.waiting) >= MOST:
            self.read()

    def read(self) -> dict[str, list[float]]:
        """{output: [sum, weight]} of every step so far."""
        if self.waiting:
            values = torch.stack([_plain(t) for n in self.waiting for pair in n.values() for t in pair]).tolist()
            names = [name for n in self.waiting for name in n]
            self._count(zip(names, values[::2], values[1::2]))
            self.waiting.clear()
        return self.read_so_far

    def _count(self, found: Iterable[tuple[str, float, float]]) -> None:
        for name, total, weight in found:
            sums = self.read_so_far.setdefault(name, [0.0, 0.0])
            sums[0] += total
            sums[1] += weight

    def take_up(self, sums: dict[str, list[float]]) -> None:
        """Go on from what was read once; what waits here is forgotten."""
        self.read_so_far = {name: [*pair] for name, pair in sums.items()}
        self.waiting.clear()

    def loss(self) -> float:
        return sum(total / max(weight, 1e-12) for total, weight in self.read().values())


def _plain(t: Tensor) -> Tensor:
    return t if t.dtype is torch.float32 and not t.requires_grad else t.detach().float()
