"""What a frozen encoder says of an example is worked out once: later epochs, and other rows with the same picture, find it.

Keyed by what the encoder reads, to the bit, so that nothing stale is found. An example is computed by itself: what is remembered does not
depend on its neighbours in a batch, and a resumed run, which remembers nothing, goes on with the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luban.nn.tokens import Encoder, Tokens
from luban.training.plan import Plan

DRAWN = ("p", "rate", "drop_prob")  # what dropout, stochastic depth, and that of timm, call their share
ROOM = 2 << 30  # bytes that one encoder may keep; what comes later is computed each time


@contextmanager
def remembering(network: Any, plan: Plan, *, changing: bool, alone: bool) -> Iterator[list[Memory]]:
    """While it lasts, encoders that always say the same of the same example are asked once.

    On a processor (a GPU would have to be waited for), uncompiled, in one process (`alone`), where examples do not change at random
    (`changing`); encoders of feature maps, whose pass costs much more than comparing what they read.
    """
    off = changing or not alone or plan.compile == "on" or not str(plan.device).startswith("cpu")
    found = [] if off else [Memory(e) for e in dict.fromkeys(getattr(network, "encoders", ())) if fixed(e)]
    for memory in found:
        memory.encoder.forward = memory
    try:
        yield found
    finally:
        for memory in found:
            del memory.encoder.forward  # the class's own again


def fixed(encoder: Encoder) -> bool:
    """Whether nothing of it learns, and nothing in it is drawn anew each time or mixes examples, in training mode either."""
    if not encoder.mapped or any(p.requires_grad for p in encoder.parameters()):
        return False
    found = (getattr(m, name, 0) for m in encoder.modules() for name in DRAWN)
    drawn = (rate for rate in found if isinstance(rate, float))
    norms = (m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return not any(drawn) and all(list(m.parameters(recurse=False)) for m in norms)  # such norms are `still`


class Memory:
    """Stands for an encoder's `forward`. `found`: what was read, as a digest -> its Tokens (T, D) and mask (T,)."""

    def __init__(self, encoder: Encoder):
        self.encoder, self.compute = encoder, encoder.forward
        self.found: dict[bytes, tuple[Tensor, Tensor]] = {}
        self.spans: Any = ()
        self.bytes = self.asked = self.computed = 0

    def __call__(self, embedded: Tensor, mask: Tensor) -> Tokens:
        """embedded (B, ...), mask (B, ...) -> Tokens (B, T, D)."""
        if embedded.requires_grad:
            return self.compute(embedded, mask)
        each = [self._one(embedded[i : i + 1], mask[i : i + 1]) for i in range(len(embedded))]
        return Tokens(torch.stack([x for x, _ in each]), torch.stack([real for _, real in each]), self.spans)

    @torch.no_grad()
    def _one(self, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        self.asked += 1
        key = _digest(embedded, mask)
        if key in self.found:
            return self.found[key]
        self.computed += 1
        tokens = self.compute(embedded, mask)
        self.spans, result = tokens.spans, (tokens.x[0], tokens.mask[0])
        size = sum(t.numel() * t.element_size() for t in result)
        if self.bytes + size <= ROOM:
            self.found[key] = result
            self.bytes += size
        return result


def _digest(embedded: Tensor, mask: Tensor) -> bytes:
    """Of what is read, its shape, and the precision that it would be read in."""
    precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else embedded.dtype
    seen = hashlib.sha256(repr((tuple(embedded.shape), precision)).encode())
    for t in (embedded, mask):
        seen.update(t.contiguous().view(torch.uint8).numpy())
    return seen.digest()
