"""Inception v3 (Szegedy et al. 2016): filters of several shapes side by side; parameter names of torchvision and timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.vision.backbone import HALF, Backbone, initialised, small
from luban.settings import Count, Dial, Weights

PUBLISHED = 32


class Inception(Backbone):
    """Use where what matters in an image comes in several sizes. Instead: `resnet`, simpler and as good.

    `width`: channels of the first layer, to which all others are in proportion (32 with `weights`). `stem`, `weights`: see `resnet`; with the
    imagenet stem images have 75 pixels or more. grid (B, C, H, W) -> Tokens (B, H'W', 64 width).
    """

    usual = HALF

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        width: Annotated[Count, Dial(nano=2, small=8, base=32)] = 8,
        stem: Literal["auto", "small", "imagenet"] = "auto",
        pooling: Literal["mean", "max", "attention"] = "mean",
        weights: Annotated[str, Weights()] | None = None,
    ):
        width, plain = PUBLISHED if weights else width, small(columns[0], stem, weights)
        make = lambda channels: initialised(Net(channels, width, plain))  # noqa: E731
        super().__init__(columns, make, weights=weights, pooling=pooling)


class Net(nn.Module):
    def __init__(self, channels: int, width: int, small: bool):
        super().__init__()
        n = lambda published: max(1, published * width // PUBLISHED)  # noqa: E731
        edge = 1 if small else 0
        self.Conv2d_1a_3x3 = Conv(channels, n(32), 3, stride=1 if small else 2, padding=edge)
        self.Conv2d_2a_3x3 = Conv(n(32), n(32), 3, padding=edge)
        self.Conv2d_2b_3x3 = Conv(n(32), n(64), 3, padding=1)
        self.maxpool1 = nn.Identity() if small else nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = Conv(n(64), n(80), 1)
        self.Conv2d_4a_3x3 = Conv(n(80), n(192), 3, padding=edge)
        self.maxpool2 = nn.Identity() if small else nn.MaxPool2d(3, 2)
        size = n(192)
        for name, pooled in zip("bcd", (32, 64, 64)):
            setattr(self, f"Mixed_5{name}", A(size, n, pooled))
            size = n(64) + n(64) + n(96) + n(pooled)
        self.Mixed_6a = B(size, n, edge)
        size += n(384) + n(96)
        for name, inside in zip("bcde", (128, 160, 160, 192)):
            setattr(self, f"Mixed_6{name}", C(size, n, inside))
            size = 4 * n(192)
        self.Mixed_7a = D(size, n, edge)
        size += n(320) + n(192)
        for name in "bc":
            setattr(self, f"Mixed_7{name}", E(size, n))
            size = n(320) + 4 * n(384) + n(192)

    def maps(self, x: Tensor) -> list[Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(x)))
        first = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(self.maxpool2(x))))
        second = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(first)))))
        return [first, second, self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(second)))]


class Conv(nn.Module):
    def __init__(self, size: int, out: int, kernel: int | tuple[int, int], **more: Any):
        super().__init__()
        self.conv = nn.Conv2d(size, out, kernel, bias=False, **more)
        self.bn, self.act = nn.BatchNorm2d(out, eps=0.001), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class A(nn.Module):
    def __init__(self, size: int, n: Any, pooled: int):
        super().__init__()
        self.branch1x1 = Conv(size, n(64), 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(size, n(48), 1), Conv(n(48), n(64), 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(size, n(64), 1), Conv(n(64), n(96), 3, padding=1)
        self.branch3x3dbl_3 = Conv(n(96), n(96), 3, padding=1)
        self.branch_pool = Conv(size, n(pooled), 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pooled = self.branch_pool(F.avg_pool2d(x, 3, 1, 1))
        return torch.cat([self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, pooled], 1)


class B(nn.Module):
    """Half the side."""

    def __init__(self, size: int, n: Any, edge: int):
        super().__init__()
        self.edge = edge  # a small image keeps its margin
        self.branch3x3 = Conv(size, n(384), 3, stride=2, padding=edge)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(size, n(64), 1), Conv(n(64), n(96), 3, padding=1)
        self.branch3x3dbl_3 = Conv(n(96), n(96), 3, stride=2, padding=edge)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2, self.edge)], 1)


class C(nn.Module):
    def __init__(self, size: int, n: Any, inside: int):
        super().__init__()
        row, column = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        i = n(inside)
        self.branch1x1 = Conv(size, n(192), 1)
        self.branch7x7_1, self.branch7x7_2, self.branch7x7_3 = (
            Conv(size, i, 1),
            Conv(i, i, **row),
            Conv(i, n(192), **column),
        )
        self.branch7x7dbl_1, self.branch7x7dbl_2, self.branch7x7dbl_3 = (
            Conv(size, i, 1),
            Conv(i, i, **column),
            Conv(i, i, **row),
        )
        self.branch7x7dbl_4, self.branch7x7dbl_5 = Conv(i, i, **column), Conv(i, n(192), **row)
        self.branch_pool = Conv(size, n(192), 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(F.avg_pool2d(x, 3, 1, 1))], 1)


class D(nn.Module):
    """Half the side."""

    def __init__(self, size: int, n: Any, edge: int):
        super().__init__()
        self.edge = edge
        self.branch3x3_1, self.branch3x3_2 = Conv(size, n(192), 1), Conv(n(192), n(320), 3, stride=2, padding=edge)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(size, n(192), 1), Conv(n(192), n(192), (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(n(192), n(192), (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(n(192), n(192), 3, stride=2, padding=edge)

    def forward(self, x: Tensor) -> Tensor:
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), long, F.max_pool2d(x, 3, 2, self.edge)], 1)


class E(nn.Module):
    def __init__(self, size: int, n: Any):
        super().__init__()
        row, column = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
        c = n(384)
        self.branch1x1, self.branch3x3_1 = Conv(size, n(320), 1), Conv(size, c, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(c, c, **row), Conv(c, c, **column)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(size, n(448), 1), Conv(n(448), c, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(c, c, **row), Conv(c, c, **column)
        self.branch_pool = Conv(size, n(192), 1)

    def forward(self, x: Tensor) -> Tensor:
        once, twice = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        wide = [
            self.branch3x3_2a(once),
            self.branch3x3_2b(once),
            self.branch3x3dbl_3a(twice),
            self.branch3x3dbl_3b(twice),
        ]
        return torch.cat([self.branch1x1(x), *wide, self.branch_pool(F.avg_pool2d(x, 3, 1, 1))], 1)
