"""Convolutions: over pixels (2-D) and over the positions of a sequence (1-D).

CNN layers correlate: y[o, i, j] = b[o] + sum over input channels c and offsets (u, v) of w[o, c, u, v] x[c, i + u, j + v].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import RecipeError, problem
from luban.nn import forms
from luban.nn.tokens import ACTIVATIONS, Dense, Encoder, Pyramid, Span, Tokens
from luban.settings import Count, Dial, Fraction, Natural

SMALL = 6  # `pool: auto` halves a side only while it is at least this long
WIDEST = 256  # channels that `channels: auto` stops doubling at
WIDTHS = (1, 3)  # positions that the filters over a sequence see at once


class CNN(Encoder):
    """Use for images, and as the first thing to try for text. Instead: `bilstm` where word order over long stretches
    matters, `mlp` for numbers.

    Grids: blocks of convolution, activation and max-pooling, then `dense` layers over all positions. `channels` auto
    doubles from `width` (image) until the map is small. Sequences: filters of several widths side by side, as in Kim
    2014, "Convolutional Neural Networks for Sentence Classification"; positions beyond the end count as zero. There
    `grams` adds what runs of tokens say, past the filters. Auto dropout: 0.2 over pixels, 0.7 over a sequence.
    grid (B, C, H, W) -> Tokens (B, 1, D) with `dense`, else (B, H'W', D); ids, vectors (B, T) -> Tokens (B, T, D).
    """

    accepts = ("grid", "ids", "vectors")
    deep = True
    sequences = True
    mapped = True

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        channels: list[Count] | Literal["auto"] = "auto",
        kernel: Count | list[Count] | Literal["auto"] = "auto",
        padding: Natural | Literal["same"] = "same",
        pool: Count | Literal["auto"] = "auto",
        convolutions: Count = 1,
        dense: list[Count] | Literal["auto"] = "auto",
        width: Annotated[Count, Dial(nano=16, small=32, base=64)] = 32,
        embedding: Annotated[Count, Dial(nano=16, small=32, base=64)] = 32,
        grams: Literal[1, 2, 3] = 3,
        activation: Literal["relu", "gelu", "sigmoid", "tanh"] = "relu",
        dropout: Fraction | Literal["auto"] = "auto",
        pooling: Literal["auto", "last", "mean", "root", "max", "attention", "flatten"] = "auto",
    ):
        super().__init__()
        self.form = forms.make(columns, width=embedding, grams=grams)
        self.grid = columns[0].form == "grid"
        dropout = (0.2 if self.grid else 0.7) if dropout == "auto" else dropout
        if self.grid:
            plan = _plan(columns[0], channels, kernel, padding, pool, width, convolutions)
            self.layers: nn.Module = Pixels(self.form.size, plan, activation, dropout)
            dense = [4 * width] if dense == "auto" else dense
            positions = plan[-1].out[0] * plan[-1].out[1]
            self.dense = Dense(
                plan[-1].channels * positions if dense else plan[-1].channels, dense, activation, dropout
            )
            self.length = 1 if dense else positions
            self.placeless = not dense
            self.span = Span(columns[0].name, 0, self.length, (1,) if dense else plan[-1].out)
            self.pyramid = Pyramid(*zip(*((b.channels, b.out) for b in plan)), tuple(columns[0].hw))
        else:
            widths = WIDTHS if kernel == "auto" else (kernel,) if isinstance(kernel, int) else tuple(kernel)
            sizes = [width] if channels == "auto" else list(channels)
            self.layers = Positions(self.form.size, sizes, widths, activation, dropout, getattr(self.form, "wide", 0))
            self.dense = Dense(self.layers.size, () if dense == "auto" else dense, activation, dropout)
            self.length = None
        self.size = self.dense.out
        self.pooling = ("flatten" if self.grid else "root") if pooling == "auto" else pooling
        if self.grid:
            self.feature_layer.local = bool(dense) or self.pooling == "flatten"  # each place has weights of its own

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.form.embed(x, mask)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tokens:
        if not self.grid:
            return Tokens(self.dense(self.layers(self.form.lift(embedded, mask), mask)), mask)  # (B, T, D)
        return self.read(embedded, mask)[1]

    def read(self, embedded: Tensor, mask: Tensor) -> tuple[list[Tensor], Tokens]:
        """Of an image: what each block gives (B, C', H', W'), and the Tokens of the last one."""
        maps = self.layers(self.form.lift(embedded, mask))
        h = maps[-1].permute(0, 2, 3, 1).flatten(1, 2)  # (B, H'W', C): a view, as channels lie last in memory
        if self.length == 1 and len(self.dense):
            h = h.flatten(1)[:, None]
        h = self.dense(h)  # (B, T, D)
        return maps, Tokens(h, h.new_ones(h.shape[:2], dtype=torch.bool), (self.span,))

    @property
    def feature_layer(self) -> nn.Module:
        return self.layers.features


class Block:
    """One block of a 2-D plan: what goes in, what comes out (height, width), whether it pools."""

    def __init__(self, channels: int, kernel: int, padding: int, pool: int, repeat: int, side: tuple[int, int]):
        self.channels, self.kernel, self.padding, self.pool, self.repeat = channels, kernel, padding, pool, repeat
        after = tuple(n + repeat * (2 * padding - kernel + 1) for n in side)
        self.out: tuple[int, int] = tuple(n // pool for n in after)  # type: ignore[assignment]


def _plan(
    column: Any, channels: Any, kernel: Any, padding: Any, pool: Any, width: int, convolutions: int
) -> list[Block]:
    """Every block with its sizes worked out. Raises RecipeError where nothing would be left of the image."""
    side = column.hw
    kernels = [3 if kernel == "auto" else kernel] if not isinstance(kernel, (list, tuple)) else list(kernel)
    plan: list[Block] = []
    while len(plan) < len(channels) if channels != "auto" else len(plan) < 2 or min(side) >= 2 * SMALL:
        i = len(plan)
        size = min(width << i, WIDEST) if channels == "auto" else channels[i]
        k = kernels[min(i, len(kernels) - 1)]
        halved = (2 if min(side) >= SMALL else 1) if pool == "auto" else pool
        plan.append(Block(size, k, k // 2 if padding == "same" else padding, halved, convolutions, side))
        side = plan[-1].out
        if min(side) < 1:
            raise RecipeError(problem("encoder.nothing_left", place=column.name, side=column.hw, block=i + 1))
    return plan


class Pixels(nn.Module):
    """(B, C, H, W) -> what each block gives, (B, C', H', W'). `features` is the last convolution with its activation, before its pooling."""

    def __init__(self, size: int, plan: Sequence[Block], activation: str, dropout: float):
        super().__init__()
        blocks, last = [], size
        for block in plan:
            layers: list[nn.Module] = []
            for _ in range(block.repeat):
                layers += [
                    nn.Conv2d(last, block.channels, block.kernel, padding=block.padding),
                    ACTIVATIONS[activation](),
                ]
                last = block.channels
            if block is not plan[-1]:
                layers.append(nn.MaxPool2d(block.pool))
                if (
                    activation != "gelu"
                ):  # the others are monotone: pooling first gives the same for a quarter of the work
                    layers[-2:] = layers[:-3:-1]
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(blocks)
        self.pool = nn.MaxPool2d(plan[-1].pool)
        self.dropout = nn.Dropout2d(dropout)  # whole maps (Tompson et al. 2015): neighbouring pixels say the same

    @property
    def features(self) -> nn.Module:
        return self.blocks[-1]

    def forward(self, x: Tensor) -> list[Tensor]:
        x = x.clone(
            memory_format=torch.channels_last
        )  # half the time on a CPU; `contiguous` would leave one channel as it is
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return [*found[:-1], self.dropout(self.pool(x))]


class Positions(nn.Module):
    """(B, T, D) -> (B, T, D'): in every layer one convolution per width, side by side, each seeing real positions only.

    The last `wide` features go past them.
    """

    def __init__(
        self,
        size: int,
        channels: Sequence[int],
        widths: Sequence[int],
        activation: str,
        dropout: float,
        wide: int = 0,
    ):
        super().__init__()
        self.widths, layers, last = widths, [], size - wide
        for out in channels:
            layers.append(nn.ModuleList(nn.Conv1d(last, out, k) for k in widths))
            last = out * len(widths)
        self.layers = nn.ModuleList(layers)
        self.activation, self.dropout = ACTIVATIONS[activation](), nn.Dropout(dropout)
        self.features = nn.Identity()
        self.wide, self.size = wide, last + wide

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        real = mask[:, None].to(x.dtype)  # (B, 1, T)
        x = x.transpose(1, 2)
        h, past = x[:, : x.shape[1] - self.wide], x[:, x.shape[1] - self.wide :]
        h = self.dropout(h)
        for layer in self.layers:
            h = h * real
            h = torch.cat(
                [conv(F.pad(h, ((k - 1) // 2, k // 2))) for conv, k in zip(layer, self.widths)], dim=1
            )  # (B, D', T)
            h = self.activation(h)
        return self.features(torch.cat([h, past], dim=1) if self.wide else h).transpose(1, 2)
