"""What a decoder has read: the keys and values of its layers, which it need not make again for the next token.

Letters as in `transformer`: L layers, B rows, K heads of keys and values of d features, M positions of memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Past:
    """Keys and values of every layer, how far each row is (B,), and the memory's. `longest` is the furthest row.

    Rows may be of different lengths: each writes behind its own end and looks no further.
    """

    kept: Tensor  # (L, 2, B, K, slots, d): keys, values
    lengths: Tensor
    longest: int = 0
    even: bool = True  # all rows are equally far: plain slices do
    memory: list[tuple[Tensor, Tensor] | None] = field(default_factory=list)
    memory_mask: Tensor | None = None
    source: Tensor | None = None  # the memory itself (B, M, D), until its keys and values are there
    rewinds: ClassVar[bool] = True
    step: Any = None  # how one further token is read quickly, see `decoding`; False where it cannot be

    @classmethod
    def empty(cls, layers: int, rows: int, heads: int, slots: int, size: int, like: Tensor) -> Past:
        """Nothing read; `size`: features of a head."""
        lengths = torch.zeros(rows, dtype=torch.long, device=like.device)
        return cls(_zeros((layers, 2, rows, heads, slots, size), like), lengths, memory=[None] * layers)

    def of(self, layer: int) -> tuple[Past, int]:
        return self, layer

    @property
    def slots(self) -> int:
        return self.kept.shape[4]

    def places(self, count: int) -> Tensor | slice:
        """Where `count` further positions stand in each row."""
        if self.even:
            return slice(self.longest, self.longest + count)
        return self.lengths[:, None] + torch.arange(count, device=self.lengths.device)

    def visible(self, count: int) -> Tensor | None:
        """Which positions each of the next `count` sees: all before it and itself, (B or 1, 1, count, longest + count).

        None where plain causal attention is the same: at the very beginning, and for one position of even rows.
        """
        if self.even and (self.longest == 0 or count == 1):
            return None
        at = self.places(count)
        end = self.longest + count
        if isinstance(at, slice):
            at = torch.arange(at.start, at.stop, device=self.lengths.device)[None]
        return (torch.arange(end, device=self.lengths.device) <= at[..., None])[:, None]

    def room(self, count: int) -> int:
        """Make room for `count` further positions; where the furthest row then ends."""
        end = self.longest + count
        if end > self.slots:
            self._grow(max(end, 2 * self.slots))
        return end

    def put(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep (B, K, n, d) of the next positions; all there are up to them."""
        count = k.shape[2]
        end, at = self.room(count), self.places(count)
        keys, values = self.kept[layer, 0], self.kept[layer, 1]
        if isinstance(at, slice):
            keys.narrow(2, self.longest, count).copy_(k)
            values.narrow(2, self.longest, count).copy_(v)
        else:
            for kept, new in ((keys, k), (values, v)):
                kept.scatter_(2, at[:, None, :, None].expand_as(new), new.to(kept.dtype))
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def read(self, mask: Tensor) -> None:
        """The positions just put count where they are real, mask (B, n)."""
        self.lengths = self.lengths + mask.sum(1)
        if self.even and bool(mask.all()):
            self.longest += mask.shape[1]
            return
        self.rewind(self.lengths)

    def rewind(self, lengths: Tensor) -> None:
        """The rows end there again, (B,): what they read beyond is forgotten."""
        self.lengths = lengths
        self.longest = int(lengths.max()) if len(lengths) else 0
        self.even = bool((lengths == self.longest).all())

    def take(self, rows: Tensor) -> Past:
        """Some rows in this order, several times where they are named so: beams, and rows that are done dropped."""
        pick = lambda t: t.index_select(0, rows)  # noqa: E731
        lengths = pick(self.lengths)
        longest = int(lengths.max()) if len(rows) else 0
        return Past(
            self.kept.index_select(2, rows),
            lengths,
            longest,
            bool((lengths == longest).all()),
            [pair and (pick(pair[0]), pick(pair[1])) for pair in self.memory],
            None if self.memory_mask is None else pick(self.memory_mask),
            None if self.source is None else pick(self.source),
            self.step,
        )

    def join(self, other: Past) -> Past:
        """The rows of both, one below the other."""
        slots = max(self.slots, other.slots)
        for past in (self, other):
            if past.slots < slots:
                past._grow(slots)
        memory, mask, source = _memories(self, other)
        lengths = torch.cat([self.lengths, other.lengths])
        longest = max(self.longest, other.longest)
        even = bool((lengths == longest).all())
        kept = torch.cat([self.kept, other.kept], 2)
        return Past(kept, lengths, longest, even, memory, mask, source, self.step)

    def _grow(self, slots: int) -> None:
        kept = _zeros((*self.kept.shape[:4], slots, self.kept.shape[5]), self.kept)
        kept.narrow(4, 0, self.longest).copy_(self.kept.narrow(4, 0, self.longest))
        self.kept = kept


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Of NumPy, on a processor: the system gives zeros page by page as they are used; torch writes all of them at once."""
    if like.device.type == "cpu" and like.dtype is torch.float32:
        return torch.from_numpy(np.zeros(shape, np.float32))
    return like.new_zeros(shape)


def _memories(a: Past, b: Past) -> tuple[list[tuple[Tensor, Tensor] | None], Tensor | None, Tensor | None]:
    """The memories of two pasts one below the other, the shorter one padded."""
    if a.memory_mask is None or b.memory_mask is None:
        return list(a.memory), a.memory_mask, a.source
    longest = max(a.memory_mask.shape[1], b.memory_mask.shape[1])
    mask = torch.cat([F.pad(m, (0, longest - m.shape[1])) for m in (a.memory_mask, b.memory_mask)])
    wide = lambda t: F.pad(t, (0, 0, 0, longest - t.shape[-2]))  # noqa: E731
    pairs = [tuple(torch.cat([wide(x), wide(y)]) for x, y in zip(p, q)) for p, q in zip(a.memory, b.memory)]
    return pairs, mask, torch.cat([wide(a.source), wide(b.source)])
