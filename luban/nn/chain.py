"""A chain of tags in torch: the sum over all paths, the worth of one, the log-odds of some fixed tags.

Linear-chain conditional random field (Lafferty et al. 2001), everything in log space. Letters: B examples, L units, K tags.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NEVER = -1e4  # what an illegal order of tags is worth: exp of it is zero, and no sum of some overflows


class Chain(NamedTuple):
    """`units` (B, L, K); `mask` (B, L), real ones first; `after` (B, K, K): to tag j from tag i at [i, j]; ends (B, K)."""

    units: Tensor
    mask: Tensor
    after: Tensor
    first: Tensor
    last: Tensor

    def total(self) -> Tensor:
        """(B,): the logarithm of the sum over all paths; 0 for a row without units."""
        if not self.mask.shape[1]:
            return self.units.sum((1, 2))
        sums = self.first + self.units[:, 0]
        for t in range(1, self.mask.shape[1]):
            onward = torch.logsumexp(sums[:, :, None] + self.after, 1) + self.units[:, t]
            sums = torch.where(self.mask[:, t, None], onward, sums)
        return torch.logsumexp(sums + self.last, 1) * self.mask[:, 0]

    def path(self, tags: Tensor) -> Tensor:
        """(B,): the sum along one path. tags: (B, L) numbers from 0, anything where the mask is False."""
        tags = tags * self.mask
        each = self.units.gather(2, tags[..., None])[..., 0]  # (B, L)
        rows = torch.arange(len(tags), device=tags.device)
        end = (self.mask.sum(1) - 1).clamp(min=0)
        steps = self.after[rows[:, None], tags[:, :-1], tags[:, 1:]] * self.mask[:, 1:]
        ends = self.first[rows, tags[:, 0]] + self.last[rows, tags[rows, end]]
        return (each * self.mask).sum(1) + steps.sum(1) + ends * self.mask[:, 0]

    def best(self) -> Tensor:
        """(B, L): the tags of the largest sum, anything where the mask is False (Viterbi 1967)."""
        worth, before = self.first + self.units[:, 0], []
        for t in range(1, self.mask.shape[1]):
            most, came = (worth[:, :, None] + self.after).max(1)
            there = self.mask[:, t, None]
            worth = torch.where(there, most + self.units[:, t], worth)
            before.append(torch.where(there, came, torch.arange(came.shape[1], device=came.device)))
        tags = [(worth + self.last).argmax(1)]
        for came in reversed(before):
            tags.append(came.gather(1, tags[-1][:, None])[:, 0])
        return torch.stack(tags[::-1], 1)

    def log_odds(self, fixed: Tensor) -> Tensor:
        """(B,): log p / (1 - p) of the paths that go through the fixed tags. fixed: (B, L) numbers from 0, -1 for any.

        Two sums run side by side, over paths that have kept to the fixed tags so far and over those that have left
        them, so that nothing cancels where p is nearly one. At least one tag of a row must be fixed.
        """
        count = self.units.shape[2]
        kept = (fixed[..., None] == torch.arange(count, device=fixed.device)) | (fixed[..., None] < 0)  # (B, L, K)
        start = self.first + self.units[:, 0]
        same = start.masked_fill(~kept[:, 0], 2 * NEVER)
        other = start.masked_fill(kept[:, 0], 2 * NEVER)
        for t in range(1, self.mask.shape[1]):
            from_same = torch.logsumexp(same[:, :, None] + self.after, 1) + self.units[:, t]
            from_other = torch.logsumexp(other[:, :, None] + self.after, 1) + self.units[:, t]
            left = torch.logaddexp(from_other, from_same.masked_fill(kept[:, t], 2 * NEVER))
            there = self.mask[:, t, None]
            same = torch.where(there, from_same.masked_fill(~kept[:, t], 2 * NEVER), same)
            other = torch.where(there, left, other)
        return torch.logsumexp(same + self.last, 1) - torch.logsumexp(other + self.last, 1)

    def expectations(self) -> Chain:
        """How probable each tag of each unit is, how often each follows which, begins, ends: the gradient of `total`."""
        parts = [p.detach().requires_grad_(True) for p in (self.units, self.after, self.first, self.last)]
        with torch.enable_grad():
            total = Chain(parts[0], self.mask, *parts[1:]).total()
            units, *order = torch.autograd.grad(total.sum(), parts)
        return Chain(units, self.mask, *order)

    def divergence(self, other: Chain) -> Tensor:
        """KL(self || other) of the paths, (B,); only `other` gets a gradient. Both have the same mask."""
        expected = self.expectations()
        difference = torch.zeros_like(self.units[:, 0, 0])
        for share, mine, theirs in zip(expected, self, other):
            if share is not self.mask:
                difference = difference + (share * (mine - theirs)).flatten(1).sum(1)
        return difference - self.total() + other.total()


def packed(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions that bear a unit, moved to the front: (B, L) where each comes from, and which of them are real."""
    longest = max(1, int(mask.sum(1).max())) if len(mask) else 1
    order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)[:, :longest]
    return order, mask.gather(1, order)
