"""What a frozen encoder says of an example is worked out once: later epochs, and other rows with the same picture, find it.

Keyed by what the encoder reads, to the bit, so that nothing stale is found. Examples are computed in passes of always as many: what is
remembered does not depend on the neighbours in a batch, and a resumed run, which remembers nothing, goes on with the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luban.machine import free_memory
from luban.nn.tokens import Encoder, Tokens
from luban.training.plan import Plan

DRAWN = ("p", "rate", "drop_prob")  # what dropout, stochastic depth, and that of timm, call their share
ROOM = (
    2 << 30
)  # bytes that one encoder may keep, and no more than a quarter of what is free; what comes later is computed each time
TOGETHER = 8  # examples of a pass: nearly as fast as more, and little is wasted where fewer are new


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
        self.room = min(ROOM, (free_memory() or 4 * ROOM) // 4)
        self.bytes = self.asked = self.computed = 0
        self.together = 0  # examples of a pass; not known yet

    def __call__(self, embedded: Tensor, mask: Tensor) -> Tokens:
        """embedded (B, ...), mask (B, ...) -> Tokens (B, T, D)."""
        return self.compute(embedded, mask) if embedded.requires_grad else self._told(embedded, mask)

    @torch.no_grad()
    def _told(self, embedded: Tensor, mask: Tensor) -> Tokens:
        keys = [_digest(embedded[i : i + 1], mask[i : i + 1]) for i in range(len(embedded))]
        first = {k: i for i, k in reversed([*enumerate(keys)])}
        each = {k: self.found[k] for k in first if k in self.found}
        new = [k for k in first if k not in each]
        self.together = self.together or self._alike(embedded[:1], mask[:1])
        for some in (new[at : at + self.together] for at in range(0, len(new), self.together)):
            each |= zip(some, self._pass(embedded, mask, [first[k] for k in some]))
        self._keep({k: each[k] for k in new})
        self.asked += len(keys)
        self.computed += len(new)
        return Tokens(*(torch.stack(found) for found in zip(*(each[k] for k in keys))), self.spans)

    def _pass(self, embedded: Tensor, mask: Tensor, rows: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Of each of at most `together` rows. Where there are fewer, the last stands for those that lack: sums of as many are made alike."""
        filled = rows + rows[-1:] * (self.together - len(rows))
        tokens = self.compute(embedded[filled], mask[filled])
        self.spans = tokens.spans
        return [(x.clone(), real.clone()) for x, real in zip(tokens.x[: len(rows)], tokens.mask)]

    def _alike(self, x: Tensor, mask: Tensor) -> int:
        """`TOGETHER` where an example gets the same bits in every place among so many, whatever the others are; else 1. Looked at on
        noise, so that every run of a recipe finds the same."""
        one = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        masks = mask.expand(TOGETHER, *mask.shape[1:])
        alone = self.compute(one.expand(TOGETHER, *x.shape[1:]).contiguous(), masks).x
        among = self.compute(torch.cat([one, *(one * i for i in range(1, TOGETHER))]), masks).x
        return TOGETHER if all(torch.equal(alone[0], other) for other in (*alone, among[0])) else 1

    def _keep(self, found: Mapping[bytes, tuple[Tensor, Tensor]]) -> None:
        for key, result in found.items():
            size = sum(t.numel() * t.element_size() for t in result)
            if self.bytes + size <= self.room:
                self.found[key] = result
                self.bytes += size


def _digest(embedded: Tensor, mask: Tensor) -> bytes:
    """Of what is read, its shape, and the precision that it would be read in."""
    precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else embedded.dtype
    seen = hashlib.sha256(repr((tuple(embedded.shape), precision)).encode())
    for t in (embedded, mask):
        seen.update(t.contiguous().view(torch.uint8).numpy())
    return seen.digest()
