"""VGG (Simonyan and Zisserman 2015): 3 x 3 convolutions and pooling; parameter names of torchvision and timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from luban.nn.vision.backbone import Backbone, initialised
from luban.nn.vision.weights import HEADS, Table
from luban.settings import Count, Dial, Fraction, Weights

PLANS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
PUBLISHED = 64
LEAST = 2  # a side below this is not halved any more


class VGG(Backbone):
    """Use where a plain stack of convolutions is wanted, as feature extractor or for what is known about it. Instead: `resnet`,
    better for less work.

    `norm`: batch normalisation behind each convolution. `width`: channels of the first layers (64 with `weights`). `dense`: layers over the last map,
    as the two of 4,096 in the paper; none: the mean of the map. `weights`: see `resnet`. grid (B, C, H, W) -> Tokens (B, H'W', 8 width).
    """

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        depth: Literal[11, 13, 16, 19] = 11,
        norm: bool = True,
        width: Annotated[Count, Dial(nano=4, small=32, base=64)] = 32,
        dense: list[Count] = (),
        dropout: Fraction = 0.0,
        pooling: Literal["mean", "max", "attention"] = "mean",
        weights: Annotated[str, Weights()] | None = None,
    ):
        width, side = PUBLISHED if weights else width, min(columns[0].hw)
        make = lambda channels: initialised(Net(channels, depth, width, norm, side))  # noqa: E731
        super().__init__(
            columns,
            make,
            weights=weights,
            dense=dense,
            dropout=dropout,
            pooling=pooling,
            tables=(Table(extra=(*HEADS, "pre_logits")),),
        )


class Net(nn.Module):
    def __init__(self, channels: int, depth: int, width: int, norm: bool, side: int):
        super().__init__()
        layers: list[nn.Module] = []
        for i, count in enumerate(PLANS[depth]):
            out = width * min(1 << i, 8)
            for _ in range(count):
                layers += [nn.Conv2d(channels, out, 3, padding=1), *([nn.BatchNorm2d(out)] if norm else []), nn.ReLU()]
                channels = out
            layers.append(
                nn.MaxPool2d(2) if side >= LEAST else nn.Identity()
            )  # its place keeps the names of what follows
            side //= 2
        self.features = nn.Sequential(*layers)

    def maps(self, x: Tensor) -> list[Tensor]:
        found = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, (nn.MaxPool2d, nn.Identity)):
                found.append(x)
        return found
