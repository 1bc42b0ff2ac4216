"""The feature pyramid (Lin et al. 2017, "Feature Pyramid Networks for Object Detection"): maps of several sizes, equally meaningful."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import RecipeError, problem
from luban.nn.tokens import Pyramid

GROUPS = 8  # of group normalisation, where they divide the channels
FEWEST = 2  # positions along a side that the finest level must have
COARSE = 4  # positions along the longer side of the coarsest level, where that is free


def normalised(size: int) -> nn.GroupNorm:
    """Group normalisation (Wu and He 2018): it mixes no examples."""
    return nn.GroupNorm(next(g for g in range(GROUPS, 0, -1) if size % g == 0), size)


class Levels(nn.Identity):
    """What Grad-CAM reads, level by level; `local`: an answer comes from one place of one of them."""

    local = True


class FPN(nn.Module):
    """Maps (B, C', H', W') of an encoder, finest first -> levels (B, `width`, H', W').

    Levels are the maps from `finest` pixels a position on; auto takes 8 for images of 128 pixels and above, else 4. Each gets a 1 x 1
    convolution, what the coarser one knows is added, a 3 x 3 convolution follows. `extra` coarser levels are made of the last one by
    strides of two; auto: until the longer side has 4 positions. `sizes`: (H', W') of each level, `strides`: pixels a position.
    Raises RecipeError where an image is too small for it.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        place: str,
        *,
        width: int,
        finest: int | Literal["auto"] = "auto",
        extra: int | Literal["auto"] = "auto",
    ):
        super().__init__()
        finest = (8 if max(pyramid.side) >= 128 else 4) if finest == "auto" else finest
        pixels = [pyramid.side[0] / size[0] for size in pyramid.sizes]
        coarser = [i for i, p in enumerate(pixels) if p > 0.75 * finest]  # a size that was rounded down counts, too
        last_of = {pyramid.sizes[i]: i for i in coarser}  # of maps of one size the last
        self.taken = list(last_of.values())
        self.sizes = list(last_of)
        if not self.taken or min(self.sizes[0]) < FEWEST:
            raise RecipeError(problem("detection.too_small", place=place, side=list(pyramid.side), finest=finest))
        self.lateral = nn.ModuleDict({str(i): nn.Conv2d(pyramid.channels[i], width, 1) for i in self.taken})
        self.smooth = nn.ModuleDict({str(i): nn.Conv2d(width, width, 3, padding=1) for i in self.taken})
        self.more = nn.ModuleDict()
        while len(self.more) < (8 if extra == "auto" else extra):
            if min(self.sizes[-1]) < FEWEST or (extra == "auto" and max(self.sizes[-1]) <= COARSE):
                break
            self.more[str(len(self.more))] = nn.Conv2d(width, width, 3, 2, 1)
            self.sizes.append(tuple(-(-n // 2) for n in self.sizes[-1]))
        self.strides = [pyramid.side[0] / size[0] for size in self.sizes]
        self.features = Levels()
        self.side = pyramid.side
        for layer in (*self.lateral.values(), *self.smooth.values(), *self.more.values()):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        above: Tensor | None = None
        levels = []
        for i in reversed(self.taken):
            h = self.lateral[str(i)](maps[i])
            if above is not None:
                h = h + F.interpolate(above, size=h.shape[2:], mode="nearest")
            above = h
            levels.insert(0, self.smooth[str(i)](h))
        for layer in self.more.values():
            levels.append(layer(F.relu(levels[-1])))
        return [self.features(level) for level in levels]

    def points(self) -> tuple[Tensor, Tensor]:
        """The middle of every position of every level in pixels (N, 2) as x, y, and its stride (N,)."""
        found, strides = [], []
        for (rows, columns), stride in zip(self.sizes, self.strides):
            y, x = ((torch.arange(n) + 0.5) * side / n for n, side in zip((rows, columns), self.side))
            y, x = torch.meshgrid(y, x, indexing="ij")
            found.append(torch.stack([x, y], -1).flatten(0, 1))
            strides.append(torch.full((rows * columns,), float(stride)))
        return torch.cat(found), torch.cat(strides)
