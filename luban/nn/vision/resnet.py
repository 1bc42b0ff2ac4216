"""ResNet (He et al. 2016), with the stride in the 3 x 3 convolution; parameter names of torchvision and timm."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from luban.nn.transformer import StochasticDepth, rising
from luban.nn.vision.backbone import Backbone, initialised, small
from luban.settings import Count, Dial, Fraction, Weights

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
PUBLISHED = 64  # channels of the first layer


class ResNet(Backbone):
    """Use for images when `cnn` is not good enough and there is more time; 18 layers first, then 34 or 50.

    `width`: channels of the first layer (64 with `weights`). `stem`: small leaves a small image its size at first, where
    imagenet shrinks it four times; auto takes small below 64 pixels. `weights`: a file (.safetensors, .pth), a sample model or
    a name on the hub, such as timm/resnet18.a1_in1k; its classes are left out. grid (B, C, H, W) -> Tokens (B, H'W', 8 or 32 width).
    """

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        depth: Literal[18, 34, 50] = 18,
        width: Annotated[Count, Dial(nano=8, small=32, base=64)] = 32,
        stem: Literal["auto", "small", "imagenet"] = "auto",
        stochastic_depth: Fraction = 0.0,
        pooling: Literal["mean", "max", "attention"] = "mean",
        weights: Annotated[str, Weights()] | None = None,
    ):
        width = PUBLISHED if weights else width
        plain = small(columns[0], stem, weights)
        make = lambda channels: initialised(Net(channels, depth, width, plain, stochastic_depth))  # noqa: E731
        super().__init__(columns, make, weights=weights, pooling=pooling)


class Net(nn.Module):
    def __init__(self, channels: int, depth: int, width: int, small: bool, drop: float):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        block, counts = (Bottleneck if depth == 50 else Basic), BLOCKS[depth]
        rates, begins = rising(drop, sum(counts)), [0, *accumulate(counts)]
        size = width
        for i, count in enumerate(counts):
            inside, layers = width << i, []
            for j in range(count):
                stride = 2 if i and not j else 1
                layers.append(block(size, inside, stride, rates[begins[i] + j]))
                size = inside * block.wider
            setattr(self, f"layer{i + 1}", nn.Sequential(*layers))

    def maps(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        found = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            found.append(x)
        return found


class Residual(nn.Module):
    """relu(x + branch(x)); x through a 1 x 1 convolution where its shape changes.

    That convolution has no stride of its own, but reads the positions that `pick` leaves (a pool of 1 x 1): with a stride, few channels and several threads
    oneDNN 3.12 (torch 2.13) writes beyond its memory in the backward pass, channels last, which ends the process.
    """

    wider = 1

    def __init__(self, size: int, out: int, stride: int, drop: float):
        super().__init__()
        self.relu, self.depth = nn.ReLU(), StochasticDepth(drop)
        self.pick = nn.MaxPool2d(1, stride) if stride != 1 else nn.Identity()
        self.downsample = None
        if stride != 1 or size != out:
            self.downsample = nn.Sequential(nn.Conv2d(size, out, 1, bias=False), nn.BatchNorm2d(out))

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(self.pick(x))
        return self.relu(self.depth(self.branch(x)) + kept)


class Basic(Residual):
    def __init__(self, size: int, inside: int, stride: int, drop: float):
        super().__init__(size, inside, stride, drop)
        self.conv1, self.bn1 = nn.Conv2d(size, inside, 3, stride, 1, bias=False), nn.BatchNorm2d(inside)
        self.act1 = nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(inside, inside, 3, 1, 1, bias=False), nn.BatchNorm2d(inside)

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))


class Bottleneck(Residual):
    wider = 4

    def __init__(self, size: int, inside: int, stride: int, drop: float):
        super().__init__(size, self.wider * inside, stride, drop)
        out = self.wider * inside
        self.conv1, self.bn1 = nn.Conv2d(size, inside, 1, bias=False), nn.BatchNorm2d(inside)
        self.conv2, self.bn2 = nn.Conv2d(inside, inside, 3, stride, 1, bias=False), nn.BatchNorm2d(inside)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        self.conv3, self.bn3 = nn.Conv2d(inside, out, 1, bias=False), nn.BatchNorm2d(out)

    def branch(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))
