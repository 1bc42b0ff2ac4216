"""Where in a picture a state stands, told to what reads all of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from luban.nn.tokens import Encoder, Tokens

WAVES = 100.0  # the longest wave, in rows or columns


class Places(nn.Module):
    """Adds to each state of a grid (B, H x W, D) sines and cosines of its row and of its column (Carion et al. 2020), as strongly as learned.

    The states of convolutions look alike wherever they stand; a reader that does not know where one is cannot say "on the left".
    """

    def __init__(self, size: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.size = size

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """x (B, T, size): the states, or a projection of them; `tokens`: where their grid is."""
        span = tokens.spans[0]
        if len(span.grid) != 2:
            return x
        there = waves(*span.grid, self.size, x.device, x.dtype)
        before, after = span.start, x.shape[1] - span.stop
        if before or after:
            there = nn.functional.pad(there, (0, 0, before, after))
        return x + self.gain.to(x.dtype) * there


def waves(height: int, width: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(height x width, size): a quarter each for sine and cosine of the row and of the column; zeros where size is no multiple of 4."""
    count = size // 4
    rate = torch.exp(-math.log(WAVES) * torch.arange(count, device=device) / max(count - 1, 1))
    rows, columns = (torch.arange(n, device=device)[:, None] * rate for n in (height, width))
    down = torch.cat([rows.sin(), rows.cos()], 1)[:, None].expand(-1, width, -1)
    across = torch.cat([columns.sin(), columns.cos()], 1)[None].expand(height, -1, -1)
    found = torch.cat([down, across], 2).flatten(0, 1).to(dtype)
    return nn.functional.pad(found, (0, size - found.shape[1]))


class Known(nn.Module):
    """For states that tell their places themselves."""

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        return x


def told(encoder: Encoder, size: int) -> nn.Module:
    """What tells a reader the places of an encoder's states, x (B, T, size)."""
    return Places(size) if encoder.placeless else Known()
