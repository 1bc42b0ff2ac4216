"""Which of many good and bad examples of an image take part in a step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

A, M = 48_271, 65_537  # of a sequence that looks drawn and never changes


class Sampled(NamedTuple):
    indices: Tensor  # (B, count)
    good: Tensor  # (B, count): whether it is a good one
    counts: Tensor  # (B, count): False where there were not enough


def sampled(good: Tensor, bad: Tensor, count: int, drawn: bool, share: float = 0.5) -> Sampled:
    """`count` examples of each image, at most `share` of them good ones and bad ones for the rest. good, bad: bool (B, R).

    `drawn`: by torch's generator, which a step has set; else always the same ones, so that a validation loss is one number.
    """
    noise = torch.rand(good.shape, device=good.device) if drawn else _fixed(good)
    order = torch.where(good, noise, -1.0).argsort(1, descending=True)
    first = torch.zeros_like(good).scatter(1, order[:, : max(1, int(count * share))], True) & good
    rank = noise + 2.0 * first + torch.where(bad, 1.0, 0.0) - 2.0 * (~good & ~bad)
    indices = rank.topk(min(count, good.shape[1]), 1).indices
    taken_good, taken_bad = first.gather(1, indices), bad.gather(1, indices)
    return Sampled(indices, taken_good, taken_good | taken_bad)


def _fixed(like: Tensor) -> Tensor:
    place = torch.arange(1, like.shape[1] + 1, device=like.device)
    return (place * A % M / M).expand(like.shape)
