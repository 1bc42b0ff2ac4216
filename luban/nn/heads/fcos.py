"""Boxes from every position of a feature pyramid at once, without anchors."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.detection.answers import Found
from luban.nn.detection.assignment import aligned
from luban.nn.detection.boxes import Truth, giou
from luban.nn.tokens import Pyramid
from luban.nn.vision.fpn import FPN, normalised
from luban.settings import Count, Dial, Natural, Positive

PRIOR = 0.01  # how likely anything is anywhere before training (Lin et al. 2017, "Focal Loss")
FURTHEST = 6.0  # the log of how many strides a side may be away
BOX = 2.0  # how much the overlap counts beside the class


class FCOS(Found):
    """Use first to find things in an image, and where many images a second are wanted. Instead: `faster_rcnn`.

    Every position of every level says how far the four sides of the box around it are, and how likely each class is (Tian et al. 2019,
    "FCOS"). Which positions learn a box is settled by how well they answer it already (`luban.nn.detection.assignment`), and the
    probability of a class is taught to be the overlap that its box will have (Li et al. 2020, "Generalized Focal Loss"), so it needs
    no centre-ness beside it. maps -> (B, N, 4 + K). `width`: channels of the pyramid and the towers, of `layers` convolutions each.
    `finest`, `extra`: see `luban.nn.vision.fpn`. `positives`: positions that learn one box at most.
    """

    def __init__(
        self,
        column: Any,
        pyramid: Pyramid,
        *,
        width: Annotated[Count, Dial(nano=32, small=64, base=128)] = 64,
        layers: Count = 2,
        finest: Count | Literal["auto"] = "auto",
        extra: Natural | Literal["auto"] = "auto",
        positives: Count = 10,
        weight: Positive = 1.0,
    ):
        super().__init__(column, weight)
        self.fpn = FPN(pyramid, column.name, width=width, finest=finest, extra=extra)
        self.positives = positives
        self.class_tower, self.box_tower = _tower(width, layers), _tower(width, layers)
        self.class_out, self.box_out = (nn.Conv2d(width, n, 3, padding=1) for n in (self.classes, 4))
        for layer in (self.class_out, self.box_out):
            nn.init.normal_(layer.weight, 0, 0.01)
        nn.init.constant_(self.class_out.bias, math.log(PRIOR / (1 - PRIOR)))
        nn.init.constant_(self.box_out.bias, math.log(2.0))  # a box of four strides
        self.scale = nn.Parameter(torch.ones(len(self.fpn.sizes)))  # of the distances of each level
        points, strides = self.fpn.points()
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("strides", strides, persistent=False)

    def forward(self, maps: list[Tensor], truth: tuple[Tensor, Tensor] | None = None) -> Tensor:
        logits, far = [], []
        for level, scale in zip(self.fpn(maps), self.scale):
            logits.append(self.class_out(self.class_tower(level)).flatten(2))  # (B, K, H'W')
            far.append(self.box_out(self.box_tower(level)).flatten(2).float() * scale)
        far = torch.cat(far, 2).transpose(1, 2).clamp(max=FURTHEST).exp() * self.strides[:, None]  # (B, N, 4)
        boxes = torch.cat([self.points - far[..., :2], self.points + far[..., 2:]], -1)
        return torch.cat([boxes, torch.cat(logits, 2).transpose(1, 2).float()], -1)

    def loss(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Quality focal loss and 1 - GIoU of each image, a true box's over so many positions as may learn it -> (sum (B,), weight (B,))."""
        truth = Truth(x, mask)
        which, quality = aligned(o, self.points, self.strides, truth, self.positives)
        rows = torch.arange(len(x), device=x.device)[:, None]
        kind = truth.classes[rows, which]  # (B, N)
        counts = ~(truth.crowded(self.points) & (quality == 0))
        wanted = quality[..., None] * (kind[..., None] == torch.arange(self.classes, device=x.device))
        logits = o[..., 4:]
        by_class = (wanted - logits.sigmoid()).square() * F.binary_cross_entropy_with_logits(
            logits, wanted, reduction="none"
        )
        by_box = (1 - giou(o[..., :4], truth.boxes[rows, which])) * quality
        each = ((by_class.sum(2) * counts).sum(1) + BOX * by_box.sum(1)) / self.positives
        return each * truth.known * self.weight, truth.weight()


def _tower(width: int, layers: int) -> nn.Sequential:
    found: list[nn.Module] = []
    for _ in range(layers):
        found += [nn.Conv2d(width, width, 3, padding=1, bias=False), normalised(width), nn.ReLU()]
    for layer in found[::3]:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(*found)
