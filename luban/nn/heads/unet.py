"""A class for every pixel: the expanding path of a U-Net (Ronneberger et al. 2015) over an encoder's feature maps.

B images, K classes, H x W pixels of the image.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.columns.mask import NOTHING
from luban.settings import Count, Dial, Fraction, Positive

GROUPS, WIDEST = 8, 256


def block(size: int, width: int) -> nn.Sequential:
    """Two convolutions, each with group normalisation, which mixes no examples (Wu and He 2018), and ReLU."""
    groups = next(g for g in range(GROUPS, 0, -1) if width % g == 0)
    layers: list[nn.Module] = []
    for inside in (size, width):
        layers += [nn.Conv2d(inside, width, 3, padding=1, bias=False), nn.GroupNorm(groups, width), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Use for the class of every pixel.

    From the coarsest of the encoder's maps up: twice the side, beside it the encoder's map of that side, two convolutions; at the end up to
    the image's own side. maps (B, C', H', W'), finest first -> (B, K, H, W). `width`: channels at the image's side, twice as many
    for each halving. Loss: cross-entropy over the pixels, `dice` of it replaced by the soft Dice loss (Milletari et al. 2016);
    `balance: classes`: pixels of rare classes count for more, by the square root of how rare they are.
    """

    accepts = ("unet",)
    reads = "maps"

    def __init__(
        self,
        column: Any,
        pyramid: Any,
        *,
        width: Annotated[Count, Dial(nano=8, small=16, base=32)] = 16,
        dice: Fraction = 0.0,
        balance: Literal["none", "classes"] = "none",
        weight: Positive = 1.0,
    ):
        """`pyramid`: channels, sizes (H', W') of the maps, and the side (H, W) of the image."""
        super().__init__()
        self.side, self.dice, self.weight = tuple(pyramid.side), dice, weight
        self.classes, self.column = column.size, column.name
        last_of = {tuple(size): i for i, size in enumerate(pyramid.sizes)}  # of maps of one size the last
        self.taken = sorted(last_of.values(), reverse=True)
        self.sizes = [tuple(pyramid.sizes[i]) for i in self.taken[1:]]
        self.skips = [True] * len(self.sizes)
        here = self.sizes[-1] if self.sizes else tuple(pyramid.sizes[self.taken[0]])
        while here != self.side:
            here = tuple(min(s, 2 * n) for s, n in zip(self.side, here))
            self.sizes.append(here)
            self.skips.append(False)
        size, blocks = pyramid.channels[self.taken[0]], []
        for i, (h, _) in enumerate(self.sizes):
            halvings = round(math.log2(self.side[0] / h))
            wide = min(WIDEST, width << halvings)
            blocks.append(block(size + (pyramid.channels[self.taken[i + 1]] if self.skips[i] else 0), wide))
            size = wide
        self.blocks = nn.ModuleList(blocks)
        self.out = nn.Conv2d(size, self.classes, 1)
        shares = torch.tensor(column.state["shares"])
        rare = (1 / (self.classes * shares.clamp(min=1e-4))).sqrt() if balance == "classes" else torch.ones_like(shares)
        self.register_buffer("rare", rare, persistent=False)

    def forward(self, maps: list[Tensor], truth: Any = None) -> Tensor:
        h = maps[self.taken[0]]
        for i, (size, layers) in enumerate(zip(self.sizes, self.blocks)):
            h = F.interpolate(h, size=size, mode="nearest")
            h = layers(torch.cat([h, maps[self.taken[i + 1]]], 1) if self.skips[i] else h)
        return self.out(h).float()

    def _pixels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The classes (B, H, W), 0 where a pixel counts for nothing; what each pixel counts for."""
        known = x != NOTHING
        classes = torch.where(known, x, 0).long()
        return classes, known * self.rare[classes]

    def loss(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x: uint8 (B, H, W) -> (weighted sum over pixels (B,), weight (B,))."""
        classes, counts = self._pixels(x)
        weight = counts.sum((1, 2))
        each = (F.cross_entropy(o, classes, reduction="none") * counts).sum((1, 2))
        if self.dice:
            each = (1 - self.dice) * each + self.dice * self._dice(o, classes, counts > 0) * weight
        return (each if self.weight == 1 else each * self.weight), weight

    @staticmethod
    def _dice(o: Tensor, classes: Tensor, known: Tensor) -> Tensor:
        """1 - the mean over classes that are there of 2 sum p t / (sum p + sum t), (B,)."""
        p = o.softmax(1) * known[:, None]
        t = F.one_hot(classes, o.shape[1]).permute(0, 3, 1, 2) * known[:, None]
        both, sizes, there = (p * t).sum((2, 3)), (p + t).sum((2, 3)), t.sum((2, 3)) > 0
        share = torch.where(there, 2 * both / sizes.clamp(min=1e-6), 0.0).sum(1)
        return 1 - share / there.sum(1).clamp(min=1)

    def weigh(self, x: Tensor, mask: Tensor) -> Tensor:
        return self._pixels(x)[1].sum((1, 2))

    def divergence(self, o: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(teacher || student), the mean over pixels, times temperature squared."""
        mine, theirs = (F.log_softmax(v / temperature, 1) for v in (o, teacher))
        return F.kl_div(mine, theirs, log_target=True, reduction="none").sum(1).mean((1, 2)) * temperature**2

    def score(self, o: Tensor, answers: Tensor) -> Tensor:
        """The mean log-odds of a class over fixed pixels. answers (B, H, W): 1 + the class there, 0 elsewhere."""
        where = (answers > 0).to(o.dtype)
        k = (answers.flatten(1).amax(1) - 1).clamp(min=0)[:, None, None, None].expand(-1, 1, *o.shape[2:])
        mine = o.gather(1, k)[:, 0]
        others = o.scatter(1, k, float("-inf")).logsumexp(1)
        return ((mine - others) * where).sum((1, 2)) / where.sum((1, 2)).clamp(min=1)

    def glance(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[str, Tensor, Tensor]:
        known = x != NOTHING
        return "accuracy", ((o.argmax(1) == x) & known).sum((1, 2)).float(), known.sum((1, 2)).float()
