"""EfficientNet-Lite (Tan and Le 2019; Lite: no squeeze-and-excitation, ReLU6); parameter names of timm."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Annotated, Any, Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.parts import Joined, same_padded
from luban.nn.transformer import StochasticDepth, rising
from luban.nn.vision.backbone import Backbone, initialised, small
from luban.nn.vision.depthwise import Depthwise
from luban.nn.vision.weights import Table
from luban.settings import Fraction, Weights

FIRST, LAST = 32, 1280  # channels of the first and the last layer, the same in all sizes
SIZES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2), "lite3": (1.2, 1.4), "lite4": (1.4, 1.8)}


class Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    wider: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 6, 40), Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112), Stage(4, 5, 2, 6, 192), Stage(1, 3, 1, 6, 320),
)  # fmt: skip


def _flat(size: str) -> list[tuple[int, int, bool]]:
    """(stage, number in it, whether it has no first 1 x 1) of every block, as files that count blocks through have them."""
    return [(s, i, STAGES[s].wider == 1) for s, count in enumerate(_repeats(size)) for i in range(count)]


def _repeats(size: str) -> list[int]:
    return [s.repeats if i in (0, len(STAGES) - 1) else ceil(s.repeats * SIZES[size][1]) for i, s in enumerate(STAGES)]


def _counted(size: str) -> Table:
    """The names of files converted from TensorFlow, `_blocks.5._expand_conv.weight`."""
    names = [
        (r"^_conv_stem\.", "conv_stem."),
        (r"^_bn0\.", "bn1."),
        (r"^_conv_head\.", "conv_head."),
        (r"^_bn1\.", "bn2."),
        (r"^_fc\.", "fc."),
    ]
    for flat, (stage, i, narrow) in enumerate(_flat(size)):
        parts = (
            ["_depthwise_conv conv_dw", "_bn1 bn1", "_project_conv conv_pw", "_bn2 bn2"]
            if narrow
            else [
                "_expand_conv conv_pw",
                "_bn0 bn1",
                "_depthwise_conv conv_dw",
                "_bn1 bn2",
                "_project_conv conv_pwl",
                "_bn2 bn3",
            ]
        )
        names += [(rf"^_blocks\.{flat}\.{a}\.", f"blocks.{stage}.{i}.{b}.") for a, b in map(str.split, parts)]
    return Table(tuple(names))


class EfficientNet(Backbone):
    """Use where a network must be small and quick on a processor, or to begin from its published weights with few images
    (`weights: efficientnet-lite0`). Instead: `resnet` from nothing.

    `variant`: lite0 (4.7 million weights) to lite4 (13). `stem`, `weights`: see `resnet`. grid (B, C, H, W) -> Tokens (B, H'W', 1280).
    """

    usual = ((127.0,) * 3, (128.0,) * 3)
    share = 0.1  # of the rate, for published weights

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        variant: Literal["lite0", "lite1", "lite2", "lite3", "lite4"] = "lite0",
        stem: Literal["auto", "small", "imagenet"] = "auto",
        stochastic_depth: Fraction = 0.0,
        pooling: Literal["mean", "max", "attention"] = "mean",
        weights: Annotated[str, Weights()] | None = None,
    ):
        plain = small(columns[0], stem, weights)
        make = lambda channels: initialised(Net(channels, variant, plain, stochastic_depth))  # noqa: E731
        super().__init__(columns, make, weights=weights, pooling=pooling, tables=(Table(), _counted(variant)))


class Net(nn.Module):
    def __init__(self, channels: int, variant: str, small: bool, drop: float):
        super().__init__()
        self.conv_stem, self.bn1 = Same(channels, FIRST, 3, 1 if small else 2), _norm(FIRST)
        size, rates, stages = FIRST, iter(rising(drop, len(_flat(variant)))), []
        for stage, repeats in zip(STAGES, _repeats(variant)):
            out, blocks = _eights(stage.channels * SIZES[variant][0]), []
            for i in range(repeats):
                blocks.append(Block(size, out, stage, 1 if i else stage.stride, next(rates)))
                size = out
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = nn.Conv2d(size, LAST, 1, bias=False), _norm(LAST)
        self.act1, self.act2 = nn.ReLU6(), nn.ReLU6()

    def maps(self, x: Tensor) -> list[Tensor]:
        x = self.act1(self.bn1(self.conv_stem(x)))
        found = []
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if i + 1 == len(STAGES) or STAGES[i + 1].stride == 2:  # the last of its size
                found.append(x)
        return [*found[:-1], self.act2(self.bn2(self.conv_head(x)))]


class Block(nn.Module):
    """An inverted residual (Sandler et al. 2018): wider by a 1 x 1, a filter for each channel, narrower by a 1 x 1."""

    def __init__(self, size: int, out: int, stage: Stage, stride: int, drop: float):
        super().__init__()
        inside = size * stage.wider
        self.wide = stage.wider > 1
        self.adds = stride == 1 and size == out
        self.depth, self.sum = StochasticDepth(drop), Joined()
        self.act1 = nn.ReLU6()
        depthwise = Same(inside, inside, stage.kernel, stride, groups=inside)
        if self.wide:
            self.conv_pw, self.bn1 = nn.Conv2d(size, inside, 1, bias=False), _norm(inside)
            self.conv_dw, self.bn2 = depthwise, _norm(inside)
            self.act2 = nn.ReLU6()
            self.conv_pwl, self.bn3 = nn.Conv2d(inside, out, 1, bias=False), _norm(out)
        else:
            self.conv_dw, self.bn1 = depthwise, _norm(inside)
            self.conv_pw, self.bn2 = nn.Conv2d(inside, out, 1, bias=False), _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        if self.wide:
            h = self.act2(self.bn2(self.conv_dw(self.act1(self.bn1(self.conv_pw(x))))))
            h = self.bn3(self.conv_pwl(h))
        else:
            h = self.bn2(self.conv_pw(self.act1(self.bn1(self.conv_dw(x)))))
        return self.sum(x + self.depth(h)) if self.adds else h


class Same(nn.Conv2d):
    """Padding as TensorFlow has it, see `same_padded`."""

    same = True

    def __init__(self, size: int, out: int, kernel: int, stride: int, groups: int = 1):
        super().__init__(size, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        k, s = self.kernel_size[0], self.stride[0]
        even = k // 2 if s == 1 else 0  # on both sides: the convolution does it itself
        x = x if even else same_padded(x, k, s)
        if self.groups > 1 and self.training and self.bias is None and x.device.type == "cpu":
            return Depthwise.apply(x, self.weight, s, even)
        return F.conv2d(x, self.weight, self.bias, self.stride, even, 1, self.groups)


def _norm(size: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(size, eps=1e-3)


def _eights(channels: float) -> int:
    """The nearest multiple of 8, not more than a tenth below."""
    found = max(8, int(channels + 4) // 8 * 8)
    return found + 8 if found < 0.9 * channels else found
