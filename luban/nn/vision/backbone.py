"""What the families share: pixels in, feature maps out, the last of them as Tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luban.errors import RecipeError, problem
from luban.nn import forms
from luban.nn.tokens import Dense, Encoder, Pyramid, Span, Tokens
from luban.nn.vision import weights as files

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # mean and deviation of its pixels, 0 to 255
HALF = ((127.5,) * 3, (127.5,) * 3)  # pixels from -1 to 1
SMALL = 64  # sides below this get a first layer that does not shrink them, unless published weights are asked for


class Backbone(Encoder):
    """grid (B, C, H, W) -> Tokens (B, H'W', D), or (B, 1, D) with `dense` layers over the last map.

    A family's network has the parameter names of its public checkpoints and one method, `maps(x) -> list of (B, C', H', W')`,
    finest first. `usual`: mean and deviation per channel of the pixels that the published weights learned from.
    """

    accepts = ("grid",)
    mapped = True
    deep = True
    plenty = 2000
    sized: ClassVar[bool] = False  # weights are of images of one size
    usual: ClassVar[tuple[tuple[float, ...], tuple[float, ...]]] = IMAGENET

    def __init__(
        self,
        columns: Sequence[Any],
        make: Callable[[int], nn.Module],
        *,
        weights: str | None,
        dense: Sequence[int] = (),
        dropout: float = 0.0,
        pooling: str = "mean",
        tables: Sequence[files.Table] = (files.Table(),),
    ):
        """`make(channels of the image)` gives the network; `tables`: layouts of checkpoints that are known. Raises RecipeError where nothing is left of the image."""
        super().__init__()
        column = columns[0]
        self.form = forms.make(columns)
        channels = 3 if weights else self.form.size
        if weights:
            mean, deviation = (torch.tensor(v).view(-1, 1, 1) for v in self.usual)
            self.register_buffer("usual_mean", mean)
            self.register_buffer("usual_scale", 1 / deviation)
        self.net = make(channels)
        shapes = _shapes(make, channels, column)
        self.pyramid = Pyramid(*zip(*((s[0], tuple(s[1:])) for s in shapes)), tuple(column.hw))
        size, *grid = shapes[-1]
        positions = grid[0] * grid[1]
        self.last = nn.Identity()  # what Grad-CAM reads
        self.dense = Dense(size * positions if dense else size, dense, dropout=dropout)
        self.size, self.pooling = self.dense.out, "flatten" if dense else pooling
        self.last.local = self.pooling == "flatten"  # each place has weights of its own
        self.length = 1 if dense else positions
        self.placeless = not dense
        self.span = Span(column.name, 0, self.length, (1,) if dense else tuple(grid))
        self.published = (weights, column.name, tables) if weights else None
        if self.published and torch.get_default_device().type != "meta":
            files.put(self.named, *self.published)
            self.learned = True  # worth keeping: LoRA may stand beside them

    @property
    def named(self) -> nn.Module:
        """What has the parameter names of its public checkpoints."""
        return getattr(self.net, "inner", self.net)

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.form.embed(x, mask)

    def pixels(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """What the network reads: (B, C, H, W), scaled as its published weights want it, channels last in memory."""
        x = self.form.lift(embedded, mask)
        if hasattr(self, "usual_mean"):
            x = (
                x / self.form.scale + self.form.mean - self.usual_mean
            ) * self.usual_scale  # grey becomes three channels
        return x.clone(memory_format=torch.channels_last)  # `contiguous` would leave one channel as it is

    def maps(self, embedded: Tensor, mask: Tensor) -> list[Tensor]:
        """The feature maps (B, C', H', W'), finest first."""
        *finer, last = self.net.maps(self.pixels(embedded, mask))
        return [*finer, self.last(last)]

    def read(self, embedded: Tensor, mask: Tensor) -> tuple[list[Tensor], Tokens]:
        """Both that heads may read, of one pass: the maps, and the Tokens of the last one."""
        maps = self.maps(embedded, mask)
        h = maps[-1].permute(0, 2, 3, 1).flatten(1, 2)  # (B, H'W', C')
        h = self.dense(h.flatten(1)[:, None] if len(self.dense) else h)
        return maps, Tokens(h, h.new_ones(h.shape[:2], dtype=torch.bool), (self.span,))

    def forward(self, embedded: Tensor, mask: Tensor) -> Tokens:
        return self.read(embedded, mask)[1]

    @property
    def feature_layer(self) -> nn.Module:
        return self.last


def _shapes(make: Callable[[int], nn.Module], channels: int, column: Any) -> list[tuple[int, ...]]:
    """(C', H', W') of each map, worked out without computing anything."""
    with torch.device("meta"):
        twin = make(channels).eval()
        try:
            return [tuple(m.shape[1:]) for m in twin.maps(torch.empty(1, channels, *column.hw))]
        except RuntimeError as e:  # a map smaller than a filter
            raise RecipeError(problem("vision.too_small", place=column.name, side=list(column.hw))) from e


def small(column: Any, stem: str, weights: str | None) -> bool:
    """Whether the first layers leave a small image its size."""
    return stem == "small" or (stem == "auto" and not weights and min(column.hw) < SMALL)


def initialised(net: nn.Module) -> nn.Module:
    """Convolutions as He et al. 2015 have them, for what follows them is a ReLU."""
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    return net
