"""DenseNet (Huang et al. 2017): each layer reads all before it; parameter names of torchvision and timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.vision.backbone import Backbone, initialised, small
from luban.nn.vision.weights import Table
from luban.settings import Count, Dial, Weights

BLOCKS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
PUBLISHED = 32
WITHIN = 4  # a layer's inner channels, in growths
OLD = (r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2")  # names of the first published files


class DenseNet(Backbone):
    """Use where weights must be few for what they do: layers share their features. Instead: `resnet`, faster for as many.

    `growth`: channels that a layer adds (32 with `weights`). `stem`, `weights`: see `resnet`. grid (B, C, H, W) -> Tokens (B, H'W', D).
    """

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        depth: Literal[121, 169, 201] = 121,
        growth: Annotated[Count, Dial(nano=4, small=12, base=32)] = 12,
        stem: Literal["auto", "small", "imagenet"] = "auto",
        pooling: Literal["mean", "max", "attention"] = "mean",
        weights: Annotated[str, Weights()] | None = None,
    ):
        growth, plain = PUBLISHED if weights else growth, small(columns[0], stem, weights)
        make = lambda channels: initialised(Net(channels, depth, growth, plain))  # noqa: E731
        super().__init__(columns, make, weights=weights, pooling=pooling, tables=(Table((OLD,)),))


class Net(nn.Module):
    def __init__(self, channels: int, depth: int, growth: int, small: bool):
        super().__init__()
        size, f = 2 * growth, nn.Sequential()
        f.conv0 = nn.Conv2d(channels, size, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        f.norm0, f.relu0 = nn.BatchNorm2d(size), nn.ReLU()
        f.pool0 = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        for i, count in enumerate(BLOCKS[depth], 1):
            block = Block(size, count, growth)
            f.add_module(f"denseblock{i}", block)
            size += count * growth
            if i < len(BLOCKS[depth]):
                f.add_module(f"transition{i}", Transition(size, size // 2))
                size //= 2
        f.norm5 = nn.BatchNorm2d(size)
        self.features = f

    def maps(self, x: Tensor) -> list[Tensor]:
        found = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, Block):
                found.append(x)
        return [*found[:-1], F.relu(x)]


class Block(nn.Sequential):
    def __init__(self, size: int, count: int, growth: int):
        super().__init__()
        for i in range(count):
            self.add_module(f"denselayer{i + 1}", Layer(size + i * growth, growth))


class Layer(nn.Module):
    """(B, C, H, W) -> (B, C + growth, H, W)"""

    def __init__(self, size: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(size), nn.Conv2d(size, WITHIN * growth, 1, bias=False)
        self.norm2, self.conv2 = (
            nn.BatchNorm2d(WITHIN * growth),
            nn.Conv2d(WITHIN * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(h)))], 1)


class Transition(nn.Module):
    """Half the channels, half the side."""

    def __init__(self, size: int, out: int):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(size), nn.Conv2d(size, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2, ceil_mode=min(x.shape[2:]) < 2)
