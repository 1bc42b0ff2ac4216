"""The Vision Transformer (Dosovitskiy et al. 2021): an image as a text of patches; parameter names of timm, torchvision's are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.tokens import Span, Tokens
from luban.nn.transformer import StochasticDepth, dividing, rising
from luban.nn.vision.backbone import HALF, Backbone
from luban.nn.vision.weights import HEADS, Table
from luban.settings import Count, Dial, Fraction, Weights

TORCHVISION = (
    (r"^class_token$", "cls_token"), (r"^conv_proj\.", "patch_embed.proj."), (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."), (r"\.ln_([12])\.", r".norm\1."), (r"^encoder\.ln\.", "norm."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."), (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:linear_1|0)\.", ".mlp.fc1."), (r"\.mlp\.(?:linear_2|3)\.", ".mlp.fc2."),
)  # fmt: skip


class ViT(Backbone):
    """Use with published weights, or with very many images. Instead: `resnet`, which learns from fewer.

    `patch`: side of a patch; auto cuts the longer side into 8, or is 16 with `weights`, which also ask for `width`, `layers` and `heads` as published
    (192, 12, 3 for the tiny one) and for images of the size that they learned from. `pooling` first reads the class token.
    grid (B, C, H, W) -> Tokens (B, 1 + patches, width).
    """

    usual = HALF
    sized = True

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        width: Annotated[Count, Dial(nano=32, small=128, base=192)] = 128,
        layers: Annotated[Count, Dial(nano=2, small=6, base=12)] = 6,
        heads: Annotated[Count, Dial(nano=2, small=4, base=3)] = 4,
        patch: Count | Literal["auto"] = "auto",
        dropout: Fraction = 0.0,
        stochastic_depth: Fraction = 0.0,
        pooling: Literal["mean", "first", "max", "attention"] = "mean",
        weights: Annotated[str, Weights()] | None = None,
    ):
        side = columns[0].hw
        patch = (16 if weights else max(1, round(max(side) / 8))) if patch == "auto" else patch
        make = lambda c: Net(c, side, patch, width, layers, heads, dropout, stochastic_depth)  # noqa: E731
        tables = (Table(extra=(*HEADS, "fc_norm", "pre_logits")), Table(TORCHVISION))
        super().__init__(columns, make, weights=weights, pooling=pooling, tables=tables)
        self.placeless = False
        self.span = Span(self.span.name, 1, 1 + self.length, self.span.grid)
        self.length += 1
        self.net.features = self.last

    def maps(self, embedded: Tensor, mask: Tensor) -> list[Tensor]:
        return self.read(embedded, mask)[0]

    def read(self, embedded: Tensor, mask: Tensor) -> tuple[list[Tensor], Tokens]:
        h = self.net(self.pixels(embedded, mask))
        return [self.net.map(h)], Tokens(h, h.new_ones(h.shape[:2], dtype=torch.bool), (self.span,))


class Net(nn.Module):
    def __init__(
        self,
        channels: int,
        side: tuple[int, int],
        patch: int,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        drop: float,
    ):
        super().__init__()
        self.grid = tuple(-(-n // patch) for n in side)
        self.short = tuple(g * patch - n for g, n in zip(self.grid, side))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(channels, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + self.grid[0] * self.grid[1], width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, rate) for rate in rising(drop, layers)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.features: nn.Module | None = None  # what Grad-CAM reads: the patches before the last block, as a map

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + patches, D), the class token first."""
        h = self.patch_embed.proj(F.pad(x, (0, self.short[1], 0, self.short[0]))).flatten(2).transpose(1, 2)
        h = torch.cat([self.cls_token.expand(h.shape[0], -1, -1), h], 1) + self.pos_embed
        h = self.blocks[:-1](h)
        if self.features is not None:
            seen = self.features(self.map(h))
            h = torch.cat([h[:, :1], seen.flatten(2).transpose(1, 2)], 1)
        return self.norm(self.blocks[-1](h))

    def maps(self, x: Tensor) -> list[Tensor]:
        return [self.map(self(x))]

    def map(self, h: Tensor) -> Tensor:
        return h[:, 1:].transpose(1, 2).unflatten(2, self.grid)


class Block(nn.Module):
    """The norm before each branch."""

    def __init__(self, width: int, heads: int, dropout: float, drop: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, dividing(width, heads)), MLP(width, dropout)
        self.dropout, self.depth = nn.Dropout(dropout), StochasticDepth(drop)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.depth(self.dropout(self.attn(self.norm1(h))))
        return h + self.depth(self.dropout(self.mlp(self.norm2(h))))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.fc1, self.fc2, self.dropout = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(F.gelu(self.fc1(x))))
