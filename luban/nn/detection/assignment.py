"""Which prediction learns which true box.

Letters: B images, M true boxes of one, N predictions, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from luban.nn.detection.boxes import TINY, Truth, centred, iou

ALPHA, BETA = 1.0, 6.0  # of class and overlap in what a prediction is worth, as in the paper


class Assigned(NamedTuple):
    which: Tensor  # (B, N): the number of the true box that a prediction learns
    quality: Tensor  # (B, N): how good an answer it is to be, 0 to 1; 0 for those that learn none


@torch.no_grad()
def aligned(o: Tensor, points: Tensor, strides: Tensor, truth: Truth, most: int) -> Assigned:
    """Task-aligned assignment (Feng et al. 2021, "TOOD"): a box is learned by the `most` predictions that, of those whose point
    lies in it, are the best answers to it already, by class and by overlap together; so both agree on which one that is.

    o (B, N, 4 + K): boxes and logits; points (N, 2) and strides (N,) in pixels. A prediction that several boxes want learns the one
    that it overlaps most. A box without a point in it is learned by the nearest of the finest level.
    """
    chance = o[..., 4:].sigmoid().transpose(1, 2)  # (B, K, N)
    chance = chance.gather(1, truth.classes[..., None].expand(-1, -1, o.shape[1]))  # (B, M, N)
    shared = iou(truth.boxes[:, :, None], o[:, None, :, :4])
    inside = within(points, strides, truth.boxes) & truth.real[..., None]
    worth = (chance**ALPHA * shared**BETA + TINY) * inside
    best = worth.topk(min(most, worth.shape[2]), 2).indices
    wanted = torch.zeros_like(inside).scatter(2, best, True) & inside
    which = torch.where(wanted, shared, -1.0).argmax(1)  # (B, N)
    mine = wanted & (which[:, None] == torch.arange(worth.shape[1], device=o.device)[:, None])
    worth, shared = worth * mine, shared * mine
    scale = shared.amax(2) / worth.amax(2).clamp(
        min=TINY
    )  # the best answer to a box is to be as good as it overlaps it
    return Assigned(which, (worth * scale[..., None]).amax(1))


def within(points: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
    """Whether points (N, 2) lie in boxes (B, M, 4), those of the finest level in boxes at least a stride wide: (B, M, N)."""
    centre, size = centred(boxes)
    finest = strides.amin()
    least = torch.where(strides == finest, finest, 0.0)[:, None]  # (N, 1)
    far = (points - centre[:, :, None]).abs()  # (B, M, N, 2)
    return (far <= torch.maximum(size[:, :, None], least) / 2).all(-1)
