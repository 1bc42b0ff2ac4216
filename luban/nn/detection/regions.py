"""Regions of an image: anchors, how a box differs from one, which proposals stay, and what a feature map says about them.

Nothing here has a shape that depends on what is in an image, so that all of it can be written down as a graph.
Letters: B images, R regions of one, L levels, C channels, P x P cells of a region.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from luban.nn.detection.boxes import centred, iou

SPREAD = (10.0, 10.0, 5.0, 5.0)  # by which differences are multiplied, so that they are about 1 (Ren et al. 2015)
LARGEST = math.log(1000 / 16)  # the log of how much larger than its region a box may be
ROUNDS = 12  # of non-maximum suppression: chains of boxes that suppress each other are rarely half as long
STEP = 2e-5  # between equal scores, so that a tie has an order that no rounding decides
LEVEL = 8  # pixels of its level that a region is wide, up to twice of which it stays there
SAMPLES = 2  # points along a side of a cell


def anchors(points: Tensor, strides: Tensor, size: float, ratios: Sequence[float]) -> Tensor:
    """(N, 2), (N,) -> (N * ratios, 4): boxes of `size` strides, as high as wide times each ratio."""
    root = torch.tensor(ratios).sqrt()
    wide, high = (size * strides[:, None] * r / 2 for r in (1 / root, root))  # (N, ratios)
    half = torch.stack([wide, high], -1)
    return torch.cat([points[:, None] - half, points[:, None] + half], -1).flatten(0, 1)


def shifts(regions: Tensor, boxes: Tensor) -> Tensor:
    """What must be said of a region to turn it into a box, (..., 4): Ren et al. 2015."""
    (at, size), (centre, wanted) = centred(regions), centred(boxes)
    size, wanted = size.clamp(min=1e-3), wanted.clamp(min=1e-3)
    return torch.cat([(centre - at) / size, (wanted / size).log()], -1) * regions.new_tensor(SPREAD)


def shifted(regions: Tensor, said: Tensor, side: tuple[int, int]) -> Tensor:
    """The boxes that shifts of regions mean, cut at the image's edges: the inverse of `shifts`."""
    at, size = centred(regions)
    said = said / regions.new_tensor(SPREAD)
    half = size * said[..., 2:].clamp(max=LARGEST).exp() / 2
    centre = at + said[..., :2] * size
    most = regions.new_tensor([side[1], side[0]])
    return torch.cat([torch.minimum((centre + s * half).clamp(min=0), most) for s in (-1, 1)], -1)


def kept(boxes: Tensor, threshold: float, rounds: int = ROUNDS) -> Tensor:
    """Non-maximum suppression of boxes (B, R, 4), the best first -> bool (B, R).

    A box stays unless one before it that stays overlaps it by more than `threshold`. All are judged at once, again and again: after
    n rounds everything is right that hangs on fewer than n boxes.
    """
    over = iou(boxes[:, :, None], boxes[:, None]) > threshold
    before = torch.arange(boxes.shape[1], device=boxes.device)
    over = (over & (before[:, None] < before)).to(boxes.dtype)  # (B, R before, R)
    stays = torch.ones_like(over[:, :1])  # (B, 1, R)
    for _ in range(rounds):
        stays = (stays @ over == 0).to(boxes.dtype)
    return stays[:, 0] > 0


def proposed(
    scores: Tensor,
    boxes_of: Tensor,
    said: Tensor,
    side: tuple[int, int],
    *,
    candidates: int,
    count: int,
    threshold: float,
) -> Tensor:
    """The `count` best boxes of an image that do not repeat each other: scores (B, A), anchors (A, 4), shifts (B, A, 4) -> (B, count, 4).

    In the order of the anchors, so that equal scores never swap two of them. Where fewer are left, ones that repeat others follow.
    """
    scores = scores - STEP * torch.arange(scores.shape[1], device=scores.device)
    best, at = scores.topk(min(candidates, scores.shape[1]), 1)
    boxes = shifted(boxes_of[at], said.gather(1, at[..., None].expand(-1, -1, 4)), side)
    stays = kept(boxes, threshold)
    chosen = torch.where(stays, best, best - 1e4).topk(min(count, best.shape[1]), 1).indices
    order = at.gather(1, chosen).sort(1).indices
    chosen = chosen.gather(1, order)
    return boxes.gather(1, chosen[..., None].expand(-1, -1, 4))


def level_of(boxes: Tensor, strides: Sequence[float]) -> Tensor:
    """The number of the level that a region is read from, by its size (Lin et al. 2017): (B, R, 4) -> (B, R)."""
    size = centred(boxes)[1].clamp(min=1e-3).prod(-1).sqrt()
    levels = torch.zeros_like(size)
    for stride in strides[1:]:
        levels = levels + (size >= LEVEL * stride / 2).to(size.dtype)
    return levels


def roi_align(
    levels: Sequence[Tensor], side: tuple[int, int], boxes: Tensor, which: Tensor, cells: int, samples: int = SAMPLES
) -> Tensor:
    """What maps (B, C, H, W) say in cells of regions (He et al. 2017, "Mask R-CNN"): boxes (B, R, 4), their levels (B, R) -> (B, R, C, P, P).

    Each cell is the mean of `samples` x `samples` points, each interpolated between four positions; points beyond the outermost
    positions read those. Interpolating is linear in each direction for itself, so it is a product with a matrix for rows and one
    for columns, on every level, zero where a region belongs to another one: no index depends on the boxes.
    """
    total: Tensor | None = None
    for i, level in enumerate(levels):
        high, wide = level.shape[2:]
        down, across = (
            _hats(boxes[..., a] * n / s - 0.5, boxes[..., a + 2] * n / s - 0.5, cells, n, samples).to(level.dtype)
            for a, n, s in ((1, high, side[0]), (0, wide, side[1]))
        )
        down = down * (which == i)[..., None, None].to(level.dtype)  # (B, R, P, H)
        flat = level.permute(0, 2, 1, 3).flatten(2)  # (B, H, C W)
        rows = down.flatten(1, 2) @ flat  # (B, R P, C W)
        rows = rows.unflatten(2, (level.shape[1], wide)).unflatten(1, (-1, cells))  # (B, R, P, C, W)
        found = (rows.flatten(2, 3) @ across.transpose(2, 3)).unflatten(2, (cells, -1)).transpose(2, 3)
        total = found if total is None else total + found
    assert total is not None
    return total


def _hats(low: Tensor, high: Tensor, cells: int, size: int, samples: int) -> Tensor:
    """How much each of `size` positions counts in each cell from `low` to `high` (B, R), in positions: (B, R, cells, size)."""
    inside = (torch.arange(cells * samples, device=low.device) + 0.5) / (cells * samples)
    at = (low[..., None] + (high - low)[..., None] * inside).clamp(0, size - 1)  # (B, R, cells * samples)
    near = (1 - (at[..., None] - torch.arange(size, device=low.device)).abs()).clamp(min=0)
    return near.unflatten(2, (cells, samples)).mean(3)
