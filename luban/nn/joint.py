"""Texts that one encoder reads in one sequence, so that every word of one may look at every word of the others (a cross-encoder).

Each text is embedded by itself, padded as it comes; the real positions of all are moved together, the encoder sees one text with padding
at its end, and its states go back to where the positions stood. So padding between the texts changes nothing, for any encoder.
Letters: B examples, T positions of all texts, W windows of the last one, P positions of a window, E features of an embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luban.errors import Unsupported
from luban.nn.tokens import Encoder, Tokens


class Joint(Encoder):
    """`make`: builds the encoder for a column as long as all texts together; `columns`: theirs, in the order of the sequence.

    Which text a position belongs to is told by token types where a checkpoint has two of them, and by a learnt vector for each text
    where the encoder is Luban's own. A last text with windows (`luban.columns.joining`) is read window by window, each behind the
    whole of the others; a position's state is that of the window whose middle it is nearest to (Devlin et al. 2019), and the
    states of the other texts are the means over the windows. Forward: embeddings (B, T_i, E) and masks of each text -> Tokens
    (B, T, D), one text's positions after another's. Raises Unsupported for an encoder that gives one vector for all.
    """

    accepts = ("ids",)
    sequences = True

    def __init__(self, make: Callable[[Any], Any], columns: Sequence[Any]):
        super().__init__()
        last = columns[-1]
        told = last.state.get("joint") or {}
        self.piece, self.overlap = told.get("piece", 0), told.get("overlap", 0)
        self.closing = len(last.state.get("after", ()))
        most = [c.most for c in columns[:-1]] + [self.piece + self.closing if self.piece else last.most]
        self.encoder = make(_as_long(columns[0], sum(most)))
        if self.encoder.length is not None:
            raise Unsupported("joint.no_places", encoder=type(self.encoder).__name__)
        self.size, self.deep, self.ways = self.encoder.size, self.encoder.deep, self.encoder.ways
        self.pooling = self.encoder.pooling
        self.origin = None
        if not hasattr(self.encoder, "typed"):
            nothing = torch.zeros(1, 1, dtype=torch.long)
            features = self.encoder.embed(nothing, nothing > 0).shape[-1]
            self.origin = nn.Parameter(torch.randn(len(columns), features) * 0.02)

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.encoder.embed(x, mask)

    def forward(self, embedded: Sequence[Tensor], mask: Sequence[Tensor]) -> Tokens:  # type: ignore[override]
        if not self.piece:
            return self._read(embedded, mask)
        return self._by_windows(list(embedded), list(mask))

    def alone(self, embedded: Tensor, mask: Tensor) -> Tokens:
        """One of the texts without the others."""
        return self._read([embedded], [mask])

    def _read(self, parts: Sequence[Tensor], masks: Sequence[Tensor]) -> Tokens:
        """One sequence for each example."""
        counts = [m.sum(1) for m in masks]
        index, real, which = together(counts, [m.shape[1] for m in masks])
        e = _at(torch.cat(list(parts), 1), index)
        if self.origin is not None:
            t = self.encoder(e + self.origin[which].to(e.dtype), real)
        elif self.encoder.typed:
            t = self.encoder(e, real, which.clamp(max=1))
        else:
            t = self.encoder(e, real)
        return Tokens(_at(t.x, apart(counts, [m.shape[1] for m in masks])), torch.cat(list(masks), 1))

    def _by_windows(self, parts: list[Tensor], masks: list[Tensor]) -> Tokens:
        """The last text in windows of `piece` tokens and its closing control tokens."""
        last, step, size = parts[-1], self.piece - self.overlap, masks[-1].shape[1]
        content = (masks[-1].sum(1) - self.closing).clamp(min=0)  # (B,)
        count = 1 + (max(size - self.closing - self.piece, 0) + step - 1) // step
        start = torch.arange(count, device=last.device) * step  # (W,)
        there = (start == 0) | (content[:, None] > start + self.overlap)  # (B, W): those that bring something new
        inside = (content[:, None] - start).clamp(0, self.piece) * there
        place = torch.arange(self.piece + self.closing, device=last.device)  # (P,)
        closing = content[:, None, None] + place - inside[..., None]
        index = torch.where(place < inside[..., None], start[:, None] + place, closing).clamp(0, size - 1)  # (B, W, P)
        real = (place < (inside + self.closing)[..., None]) & there[..., None] & masks[-1].any(1)[:, None, None]
        windows = _at(last, index.flatten(1)).unflatten(1, index.shape[1:])  # (B, W, P, E)
        many = lambda t: t[:, None].expand(-1, count, *t.shape[1:]).flatten(0, 1)  # noqa: E731
        others = [many(m) & there.flatten()[:, None] for m in masks[:-1]]
        t = self._read([*map(many, parts[:-1]), windows.flatten(0, 1)], [*others, real.flatten(0, 1)])
        states = t.x.unflatten(0, (last.shape[0], count))  # (B, W, T' + P, D)
        before = sum(m.shape[1] for m in masks[:-1])
        share = there.to(states.dtype)[..., None, None]
        ahead = (states[:, :, :before] * share).sum(1) / share.sum(1)
        return Tokens(
            torch.cat([ahead, self._nearest(states[:, :, before:], content, inside, size)], 1), torch.cat(masks, 1)
        )

    def _nearest(self, states: Tensor, content: Tensor, inside: Tensor, size: int) -> Tensor:
        """The state of each position of the last text (B, size, D), from the window that it is nearest to the middle of."""
        step = self.piece - self.overlap
        place = torch.arange(size, device=states.device)[None]
        final = (inside > 0).sum(1, keepdim=True).clamp(min=1) - 1  # (B, 1): the last window with something in it
        middle = ((2 * place - self.piece + 1 + step) // (2 * step)).clamp(min=0)
        window = torch.where(place < content[:, None], torch.minimum(middle, final), final)
        offset = torch.where(
            place < content[:, None], place - window * step, inside.gather(1, final) + place - content[:, None]
        ).clamp(0, states.shape[2] - 1)
        return _at(states.flatten(1, 2), window * states.shape[2] + offset)


def _as_long(column: Any, length: int) -> Any:
    """The column of a text that is `length` positions long."""
    found = copy.copy(column)
    object.__setattr__(found, "length", length)
    object.__setattr__(found, "state", {k: v for k, v in column.state.items() if k not in ("window", "joint")})
    return found


def together(counts: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Padded texts side by side -> where each position of the sequence without padding between comes from (B, T), which of them
    are real, and the number of the text that each belongs to. counts: real positions (B,) of each text, padded to `sizes`.
    """
    length = sum(sizes)
    place = torch.arange(length, device=counts[0].device).expand(counts[0].shape[0], -1)
    index, which = place, torch.zeros_like(place)
    start, offset = torch.zeros_like(counts[0])[:, None], 0
    for count, size in zip(counts[:-1], sizes[:-1]):
        start, offset = start + count[:, None], offset + size
        index = torch.where(place >= start, place - start + offset, index)
        which = which + (place >= start)
    total = start + counts[-1][:, None]
    return index.clamp(max=length - 1), place < total, which


def apart(counts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """The way back: where in the sequence each padded position stands, (B, T); padding anywhere."""
    parts, start, length = [], torch.zeros_like(counts[0])[:, None], sum(sizes)
    for count, size in zip(counts, sizes):
        parts.append(start + torch.arange(size, device=start.device))
        start = start + count[:, None]
    return torch.cat(parts, 1).clamp(max=length - 1)


def _at(x: Tensor, index: Tensor) -> Tensor:
    """x (B, T, D), index (B, N) -> (B, N, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
