"""Inputs of any kind as positions in front of the text that a network writes, in its own sequence (Mokady et al. 2021; Liu et al. 2023, LLaVA).

    places of the picture | tokens of a question | begin | tokens of the text that is written

What an encoder gives is projected into the embedding of the writer, which reads it like words; a text that is read `joint` is looked up in
that embedding. So a network that has learned a language writes about pictures, sounds and tables without a new weight inside.
B examples, T positions of an encoder, D features of it, E of the writer's embedding, H x W places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from luban.nn.tokens import Encoder, Tokens
from luban.settings import Fraction, Natural


class Prefix(nn.Module):
    """Use to begin from a language model (`start`) that is to tell what a picture, a sound or a row shows. Instead: `memory`, for a decoder from nothing.

    `width`: E. `grid`: the places of a picture are averaged into so many rows and columns, 0 leaves all of them. `hidden`: features of the layer
    between (auto: E; 0: one linear map alone). `dropout`: of what the encoders give. -> Tokens (B, N, E) of all inputs, one behind another.
    """

    ahead = True

    def __init__(
        self,
        encoders: Sequence[Encoder],
        width: int,
        *,
        grid: Natural = 0,
        hidden: Natural | Literal["auto"] = "auto",
        dropout: Fraction = 0.0,
    ):
        super().__init__()
        hidden = width if hidden == "auto" else hidden
        make = lambda e: nn.Identity() if _looked_up(e) else projection(e.size, hidden, width, dropout)  # noqa: E731
        self.projections = nn.ModuleList(make(e) for e in encoders)
        self.grid, self.size, self.sizes = grid, width, [width] * len(encoders)

    def forward(self, tokens: Sequence[Tokens]) -> Tokens:
        parts, spans, start = [], [], 0
        for project, t in zip(self.projections, tokens):
            t = coarser(t, self.grid) if self.grid else t
            parts.append(Tokens(project(t.x), t.mask))
            spans += [s._replace(start=s.start + start, stop=s.stop + start) for s in t.spans]
            start += t.x.shape[1]
        if len(parts) == 1:
            return parts[0]._replace(spans=tuple(spans))
        return Tokens(torch.cat([p.x for p in parts], 1), torch.cat([p.mask for p in parts], 1), tuple(spans))


def _looked_up(encoder: Encoder) -> bool:
    """Whether its states stand in the embedding of the writer already."""
    return getattr(encoder, "bare", False)


def projection(size: int, hidden: int, width: int, dropout: float) -> nn.Sequential:
    """(B, T, size) -> (B, T, width): a norm, as encoders differ in how large their states are, then one or two linear maps."""
    layers: list[nn.Module] = [nn.LayerNorm(size), nn.Dropout(dropout)]
    if hidden:
        layers += [nn.Linear(size, hidden), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(hidden or size, width))


def coarser(tokens: Tokens, grid: int) -> Tokens:
    """The places of a picture averaged into at most grid x grid cells; other positions, and Tokens without places, stay."""
    if len(tokens.spans) != 1 or len(tokens.spans[0].grid) != 2 or max(tokens.spans[0].grid) <= grid:
        return tokens
    (span,) = tokens.spans
    down, across = (cells(n, grid, tokens.x) for n in span.grid)
    cut = lambda x: (x[:, : span.start], x[:, span.start : span.stop], x[:, span.stop :])  # noqa: E731
    (before, places, after), (real_before, real, real_after) = cut(tokens.x), cut(tokens.mask)
    x = torch.einsum("ih,jw,bhwd->bijd", down, across, places.unflatten(1, span.grid)).flatten(1, 2)
    found = real.any(1, keepdim=True).expand(-1, x.shape[1])
    smaller = span._replace(stop=span.start + x.shape[1], grid=(len(down), len(across)))
    return Tokens(torch.cat([before, x, after], 1), torch.cat([real_before, found, real_after], 1), (smaller,))


def cells(count: int, most: int, like: Tensor) -> Tensor:
    """What share each of `count` places has in each of at most `most` cells, (cells, count); neighbouring cells share a place where they must."""
    most = min(most, count)
    found = like.new_zeros(most, count)
    for i in range(most):
        first, end = i * count // most, -(-(i + 1) * count // most)
        found[i, first:end] = 1 / (end - first)
    return found
