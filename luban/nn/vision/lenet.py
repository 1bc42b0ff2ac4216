"""LeNet-5 (LeCun et al. 1998) and AlexNet (Krizhevsky et al. 2012, as in "One weird trick", the names of torchvision)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from luban.nn.tokens import ACTIVATIONS
from luban.nn.vision.backbone import Backbone, initialised, small
from luban.settings import Count, Dial, Fraction, Weights


class LeNet(Backbone):
    """Use as the textbook's first convolutional network, for small grey images. Instead: `cnn`.

    Two convolutions of 5 x 5, each with its pooling, and dense layers of 120 and 84. Its own activation is tanh and its pooling the mean;
    relu and max learn faster. grid (B, C, H, W) -> Tokens (B, 1, last of `dense`).
    """

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        activation: Literal["tanh", "relu", "sigmoid"] = "tanh",
        pool: Literal["mean", "max"] = "mean",
        dense: list[Count] = (120, 84),
        dropout: Fraction = 0.0,
    ):
        super().__init__(columns, lambda c: LeNetMaps(c, activation, pool), weights=None, dense=dense, dropout=dropout)


class LeNetMaps(nn.Module):
    def __init__(self, channels: int, activation: str, pool: str):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=2)  # 28 pixels are as 32 without a margin
        self.conv2 = nn.Conv2d(6, 16, 5, padding=2)
        self.activation = ACTIVATIONS[activation]()
        self.pool = nn.AvgPool2d(2) if pool == "mean" else nn.MaxPool2d(2)

    def maps(self, x: Tensor) -> list[Tensor]:
        first = self.pool(self.activation(self.conv1(x)))
        return [first, self.pool(self.activation(self.conv2(first)))]


class AlexNet(Backbone):
    """Use to see what began deep vision. Instead: `resnet`.

    `stem`: small has a 5 x 5 filter and no stride in the first layer, imagenet 11 x 11 and 4; auto takes small below 64 pixels. `dense`: layers over the
    last map, as the two of 4,096 in the paper; none: the mean of the map. `width`: channels of the first layer (64 with `weights`, see `resnet`).
    """

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        width: Annotated[Count, Dial(nano=8, small=32, base=64)] = 32,
        stem: Literal["auto", "small", "imagenet"] = "auto",
        dense: list[Count] = (),
        dropout: Fraction = 0.0,
        pooling: Literal["mean", "max", "attention"] = "mean",
        weights: Annotated[str, Weights()] | None = None,
    ):
        width, plain = 64 if weights else width, small(columns[0], stem, weights)
        make = lambda channels: initialised(AlexNetMaps(channels, width, plain))  # noqa: E731
        super().__init__(columns, make, weights=weights, dense=dense, dropout=dropout, pooling=pooling)


class AlexNetMaps(nn.Module):
    def __init__(self, channels: int, width: int, small: bool):
        super().__init__()
        pool = lambda: nn.MaxPool2d(3, 2, 1 if small else 0)  # noqa: E731
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 5 if small else 11, 1 if small else 4, 2), nn.ReLU(), pool(),
            nn.Conv2d(width, 3 * width, 5, padding=2), nn.ReLU(), pool(),
            nn.Conv2d(3 * width, 6 * width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(6 * width, 4 * width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1), nn.ReLU(), pool(),
        )  # fmt: skip

    def maps(self, x: Tensor) -> list[Tensor]:
        found = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
        return found
