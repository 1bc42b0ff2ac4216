"""The Transformer (Vaswani et al. 2017), once: encoder, decoder, and decoder that reads an encoder's states.

    h = embedding + positions
    each layer:  h = h + attention(norm(h)),  [h = h + attention to the memory(norm(h)),]  h = h + dense(norm(h))     (pre-norm)
                 h = norm(h + attention(h)) ...                                                                     (post-norm)

`Shape` says which of the known ones it is; `CLASSIC, BERT, GPT2, LLAMA` are what those four differ in. Shapes of tensors:
B examples, T positions, D = width, H heads of d = D / H features, K <= H heads of keys and values, M positions of memory.
Masks are bool, True = real.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.past import Past

Norm = Literal["layer", "rms"]
Positions = Literal["sinusoidal", "learnt", "rotary", "none"]
Activation = Literal["relu", "gelu", "gelu_tanh", "swiglu"]


@dataclass(frozen=True)
class Shape:
    """One Transformer. `kv_heads` < `heads`: several heads share keys and values (Ainslie et al. 2023). `hidden`: of the dense
    layers. `order`: the norm before each branch (Xiong et al. 2020) or behind it. `length`: positions that there are.
    `base`: of rotary positions (Su et al. 2021). `depth`: stochastic depth of the last layer. `memory`: features of what
    is read beside, 0 = nothing. `qkv_bias`: one of queries, keys and values alone, where there is no other (Qwen2).
    `scaling`: of rotary positions, see `angles`.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int = 0
    hidden: int = 0
    norm: Norm = "layer"
    order: Literal["pre", "post"] = "pre"
    activation: Activation = "gelu"
    positions: Positions = "sinusoidal"
    length: int = 512
    bias: bool = True
    qkv_bias: bool = False
    dropout: float = 0.0
    depth: float = 0.0
    epsilon: float = 1e-5
    base: float = 10_000.0
    scaling: Mapping[str, float] | None = None
    causal: bool = False
    memory: int = 0


CLASSIC = {"norm": "layer", "order": "post", "activation": "relu", "positions": "sinusoidal"}
BERT = {"norm": "layer", "order": "post", "activation": "gelu", "positions": "learnt", "epsilon": 1e-12}
GPT2 = {"norm": "layer", "order": "pre", "activation": "gelu_tanh", "positions": "learnt", "causal": True}
LLAMA = {"norm": "rms", "order": "pre", "activation": "swiglu", "positions": "rotary", "bias": False, "causal": True}


class Transformer(nn.Module):
    """Embeddings (B, T, D) -> states (B, T, D). The embedding itself, and what is made of the states, belong to others."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.head = shape.width // dividing(shape.width, shape.heads)  # features of a head
        if shape.positions == "learnt":
            self.positions = nn.Parameter(torch.randn(shape.length, shape.width) * 0.02)
        elif shape.positions == "sinusoidal":
            self.register_buffer("positions", sinusoids(shape.length, shape.width), persistent=False)
        elif shape.positions == "rotary":
            self.register_buffer("angles", angles(shape.length, self.head, shape.base, shape.scaling), persistent=False)
        post = shape.order == "post"
        self.before = normed(shape) if post and shape.positions == "learnt" else nn.Identity()  # as BERT has it
        self.dropout = nn.Dropout(shape.dropout)
        self.layers = nn.ModuleList(Layer(shape, rate) for rate in rising(shape.depth, shape.layers))
        self.norm = nn.Identity() if post else normed(shape)

    def forward(
        self,
        h: Tensor,
        mask: Tensor,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """mask (B, T); memory (B, M, shape.memory) with its mask (B, M). With `past`, h are the positions that follow it.

        A causal one needs no mask beside the past: padding stands at the end, where no real position sees it.
        """
        at = past.places(h.shape[1]) if past else slice(h.shape[1])  # (B, T), or a slice where all rows are equally far
        if self.shape.positions in ("learnt", "sinusoidal"):
            h = h + self.positions[at]
        h = self.dropout(self.before(h))
        turn = self.angles[at] if self.shape.positions == "rotary" else None
        if turn is not None and turn.ndim == 4:
            turn = turn[:, None]  # (B, 1, T, d / 2, 2): the same for all heads
        if self.shape.causal:
            real = past.visible(h.shape[1]) if past else None
        else:
            real = seen(mask)[:, None, None]  # (B, 1, 1, T)
        read = seen(memory_mask)[:, None, None] if memory_mask is not None else None
        for i, layer in enumerate(self.layers):
            h = layer(h, real, turn, memory, read, past.of(i) if past else None)
        if past:
            past.read(mask)
        return self.norm(h)


class Layer(nn.Module):
    """Attention, attention to a memory where there is one, and two dense layers, each with its norm and added to what was."""

    def __init__(self, shape: Shape, depth: float = 0.0):
        super().__init__()
        self.pre, self.causal = shape.order == "pre", shape.causal
        self.before, self.attention = normed(shape), Attention(shape)
        if shape.memory:
            self.aside, self.reading = normed(shape), Attention(shape, memory=shape.memory)
        self.between, self.dense = normed(shape), Dense(shape)
        self.dropout, self.depth = nn.Dropout(shape.dropout), StochasticDepth(depth)

    def forward(
        self,
        h: Tensor,
        real: Tensor | None = None,
        turn: Tensor | None = None,
        memory: Tensor | None = None,
        read: Tensor | None = None,
        past: tuple[Past, int] | None = None,
    ) -> Tensor:
        causal = self.causal and real is None and (past is None or past[0].longest == 0)
        h = self._add(h, self.before, lambda x: self.attention(x, real, causal, turn, past))
        if memory is not None:
            h = self._add(h, self.aside, lambda x: self.reading(x, read, memory=memory, past=past))
        return self._add(h, self.between, self.dense)

    def _add(self, h: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        change = branch(norm(h) if self.pre else h)
        if self.training:  # else both do nothing, and a token is soon written
            change = self.depth(self.dropout(change))
        return h + change if self.pre else norm(h + change)


class Attention(nn.Module):
    """softmax(Q K' / sqrt(d)) V over real positions (Vaswani et al. 2017); queries from x, keys and values from x or a memory."""

    def __init__(self, shape: Shape, memory: int = 0):
        super().__init__()
        self.heads = dividing(shape.width, shape.heads)
        self.kv = dividing(self.heads, shape.kv_heads or self.heads)
        self.size, self.memory = shape.width // self.heads, memory
        both = 2 * self.kv * self.size
        if memory:
            self.query = nn.Linear(shape.width, shape.width, shape.bias)
            self.inner = nn.Linear(memory, both, shape.bias)
        else:
            self.inner = nn.Linear(
                shape.width, shape.width + both, shape.bias or shape.qkv_bias
            )  # queries, keys, values
        self.outer = nn.Linear(shape.width, shape.width, shape.bias)

    def forward(
        self,
        x: Tensor,
        real: Tensor | None,
        causal: bool = False,
        turn: Tensor | None = None,
        past: tuple[Past, int] | None = None,
        memory: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, D); real: True where a query may look, (B, 1, T or 1, positions of keys)."""
        if self.memory:
            q, (k, v) = self._split(self.query(x), self.heads), self._remembered(memory, past)
        else:
            both = self.heads + self.kv
            wide = self._split(self.inner(x), both + self.kv)  # (B, heads of q, k, v, T, d)
            if turn is not None:
                q, k = turned(wide[:, :both], turn).split([self.heads, self.kv], 1)
                v = wide[:, both:]
            else:
                q, k, v = wide.split([self.heads, self.kv, self.kv], 1)
            if past is not None:
                k, v = past[0].put(past[1], k, v)
        h = F.scaled_dot_product_attention(q, k, v, real, is_causal=causal, enable_gqa=self.kv != self.heads)
        return self.outer(h.transpose(1, 2).flatten(2))

    def _remembered(self, memory: Tensor | None, past: tuple[Past, int] | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the memory; computed once where there is a past to keep them in."""
        if past is not None and past[0].memory[past[1]] is not None:
            return past[0].memory[past[1]]
        k, v = (self._split(part, self.kv) for part in self.inner(memory).chunk(2, 2))
        if past is not None:
            like = past[0].kept.dtype  # as the past itself, also where products are made in bf16
            past[0].memory[past[1]] = (k, v) = (k.to(like).contiguous(), v.to(like).contiguous())
        return k, v

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """(B, T, heads x d) -> (B, heads, T, d)"""
        return x.view(*x.shape[:2], heads, self.size).transpose(1, 2)


class Dense(nn.Module):
    """Two linear maps with an activation between; `swiglu` multiplies by a second one (Shazeer 2020)."""

    def __init__(self, shape: Shape):
        super().__init__()
        hidden = shape.hidden or hidden_of(shape.width, shape.activation)
        self.gated = shape.activation == "swiglu"
        self.inner = nn.Linear(shape.width, hidden * (2 if self.gated else 1), shape.bias)
        self.outer = nn.Linear(hidden, shape.width, shape.bias)
        self.tanh, self.relu = "tanh" if shape.activation == "gelu_tanh" else "none", shape.activation == "relu"
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        if self.gated:
            gate, h = h.chunk(2, -1)
            h = F.silu(gate) * h
        else:
            h = F.relu(h) if self.relu else F.gelu(h, approximate=self.tanh)
        return self.outer(self.dropout(h) if self.training else h)


# -- pieces ------------------------------------------------------------------------------------------------------------


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


def normed(shape: Shape) -> nn.Module:
    if shape.norm == "rms":
        return nn.RMSNorm(shape.width, eps=shape.epsilon)
    return nn.LayerNorm(shape.width, eps=shape.epsilon, bias=shape.bias)


def hidden_of(width: int, activation: str) -> int:
    """Four times the width; with a gate two thirds of that, so that the number of weights stays the same."""
    return 4 * width if activation != "swiglu" else -(-8 * width // 3 // 8) * 8


def seen(mask: Tensor) -> Tensor:
    """The mask, but an example with nothing real sees its first position: a softmax over nothing is no number."""
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return mask | (first & ~mask.any(1, keepdim=True))


def sinusoids(length: int, size: int) -> Tensor:
    """Fixed positions (length, size): sines and cosines of wavelengths from 2 pi to 10,000 x 2 pi."""
    rate = torch.exp(torch.arange(0, size, 2) * (-math.log(10_000.0) / size))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :size]


def angles(length: int, size: int, base: float, scaling: Mapping[str, float] | None = None) -> Tensor:
    """Rotary positions (length, size / 2, 2): cosine and sine of the angle by which each pair of features turns.

    `scaling` stretches a model learned at `original` positions (Llama 3.1): pairs that turn fewer than `low` times in these
    turn `factor` times slower, those that turn more than `high` times as before, between the two it goes over evenly.
    """
    rate = base ** (-torch.arange(0, size, 2).double() / size)
    if scaling:
        turns = scaling["original"] * rate / (2 * math.pi)
        low, high = scaling["low"], scaling["high"]
        kept = ((turns - low) / max(high - low, 1e-9)).clamp(0, 1)
        rate = rate * (kept + (1 - kept) / scaling["factor"])
    angle = torch.arange(length).double()[:, None] * rate
    return torch.stack([angle.cos(), angle.sin()], dim=2).float()


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """x (B, H, T, d): feature i and feature i + d / 2 are a pair that turns with its position (Su et al. 2021)."""
    a, b = x.chunk(2, -1)
    cos, sin = turn[..., 0].to(x.dtype), turn[..., 1].to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def dividing(size: int, heads: int) -> int:
    """The largest number of heads, at most `heads`, that divides the size."""
    return next(h for h in range(min(heads, size), 0, -1) if size % h == 0)
