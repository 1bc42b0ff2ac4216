"""An average of the weights along the run, which often answers better than the last of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """a = d a + (1 - d) w after every update, d = min(decay, (1 + step) / (10 + step)) (Polyak & Juditsky 1992; the slow
    start as in TensorFlow's ExponentialMovingAverage). `live`: the tensors that are averaged, which stay the network's own.
    """

    def __init__(self, live: Sequence[Tensor], decay: float):
        self.live, self.decay = list(live), decay
        self.kept = [t.detach().clone() for t in self.live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """`step`: how many updates there were before this one."""
        torch._foreach_lerp_(self.kept, self.live, 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the network has the averaged weights."""
        with torch.no_grad():
            before = [t.detach().clone() for t in self.live]
            torch._foreach_copy_(self.live, self.kept)
            try:
                yield
            finally:
                torch._foreach_copy_(self.live, before)

    @torch.no_grad()
    def settle(self) -> None:
        """The network has the averaged weights from here on."""
        torch._foreach_copy_(self.live, self.kept)

    def tensors(self) -> dict[str, Tensor]:
        return {str(i): t for i, t in enumerate(self.kept)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for name, mine in self.tensors().items():
            mine.copy_(tensors[name])
