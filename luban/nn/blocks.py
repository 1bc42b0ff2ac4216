"""Self-attention and the transformer block: (B, T, D) and a mask in, (B, T, D) out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """softmax(Q K' / sqrt(d)) V over real positions, h heads of d = D / h features (Vaswani et al. 2017)."""

    def __init__(self, size: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = _dividing(size, heads), dropout
        self.inner = nn.Linear(size, 3 * size)
        self.outer = nn.Linear(size, size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.inner(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, heads, T, d)
        real = seen(mask)[:, None, None]  # (B, 1, 1, T)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=real, dropout_p=self.dropout if self.training else 0.0)
        return self.outer(h.transpose(1, 2).reshape(b, t, -1))


class StochasticDepth(nn.Module):
    """Leaves a residual branch out of some examples while training, the others 1 / (1 - rate) times (Huang et al. 2016)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)"""
        if not self.training or not self.rate:
            return branch
        kept = torch.empty(len(branch), *[1] * (branch.ndim - 1), device=branch.device).uniform_() >= self.rate
        return branch * (kept.to(branch.dtype) / max(1 - self.rate, 1e-12))


def rising(rate: float, layers: int) -> list[float]:
    """The rate of stochastic depth for each of some layers: it rises evenly, the last has it in full."""
    return [rate * (i + 1) / layers for i in range(layers)]


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + dense(norm(x)) (Xiong et al. 2020)."""

    def __init__(self, size: int, heads: int, wide: int, dropout: float, depth: float = 0.0):
        super().__init__()
        self.before, self.between = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention = SelfAttention(size, heads, dropout)
        self.dense = nn.Sequential(nn.Linear(size, wide), nn.GELU(), nn.Dropout(dropout), nn.Linear(wide, size))
        self.dropout, self.depth = nn.Dropout(dropout), StochasticDepth(depth)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.depth(self.dropout(self.attention(self.before(x), mask)))
        return x + self.depth(self.dropout(self.dense(self.between(x))))


def seen(mask: Tensor) -> Tensor:
    """The mask, but an example with nothing real sees its first position: a softmax over nothing is no number."""
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return mask | (first & ~mask.any(1, keepdim=True))


def sinusoids(length: int, size: int) -> Tensor:
    """Fixed positions (length, size): sines and cosines of wavelengths from 2 pi to 10,000 x 2 pi."""
    rate = torch.exp(torch.arange(0, size, 2) * (-math.log(10_000.0) / size))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :size]


def _dividing(size: int, heads: int) -> int:
    """The largest number of heads, at most `heads`, that divides the size."""
    return next(h for h in range(min(heads, size), 0, -1) if size % h == 0)
