"""Boxes as tensors (..., 4) of x0, y0, x1, y1 in pixels. All in fp32: areas of boxes overflow or vanish in less."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-7


def area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...); of a box that is inside out 0."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the area of the union, of boxes that broadcast against each other."""
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = area(a) + area(b) - inner
    return inner / union.clamp(min=TINY), union


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes that broadcast against each other: `iou(a[:, None], b)` is every pair's."""
    return overlap(a, b)[0]


def giou(a: Tensor, b: Tensor) -> Tensor:
    """IoU less the share of the common hull that neither fills, -1 to 1 (Rezatofighi et al. 2019): it has a slope where boxes do
    not touch.
    """
    found, union = overlap(a, b)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return found - (hull - union) / hull.clamp(min=TINY)


def centred(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and sizes, (..., 2) each."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


class Truth:
    """The targets of a batch taken apart. x (B, M, 5) = [class, x0, y0, x1, y1], mask (B, M).

    `boxes` (B, M, 4), `classes` (B, M) from 0, `real` (B, M): what is to be found; `crowd` (B, M): regions that are no example of
    anything (class below 0); `known` (B,): False where the truth is missing (class 0). M is at least 1.
    """

    def __init__(self, x: Tensor, mask: Tensor):
        if not x.shape[1]:
            x, mask = x.new_zeros(x.shape[0], 1, 5), mask.new_zeros(x.shape[0], 1)
        kind = x[..., 0]
        self.boxes, self.classes = x[..., 1:].float(), (kind.long() - 1).clamp(min=0)
        self.real, self.crowd = mask & (kind > 0), mask & (kind < 0)
        self.known = ~(mask & (kind == 0)).any(1)

    def weight(self) -> Tensor:
        """What an image counts for, (B,): its boxes, 1 where it has none, 0 where nobody knows."""
        return self.real.sum(1).clamp(min=1).float() * self.known

    def crowded(self, points: Tensor) -> Tensor:
        """Whether points (N, 2) or (B, N, 2) lie in a region that is no example of anything, (B, N)."""
        points = points.unsqueeze(-3)
        inside = (points >= self.boxes[:, :, None, :2]) & (points <= self.boxes[:, :, None, 2:])  # (B, M, N, 2)
        return (inside.all(-1) & self.crowd[..., None]).any(1)
