"""A decoder that learns which of two answers is better: direct preference optimisation (Rafailov et al. 2023, "DPO").

    loss of a pair = -log sigmoid(beta ((log p(chosen) - log p(rejected)) - (log r(chosen) - log r(rejected))))

p is the network, r the reference: what the network was when its training began, frozen. Each pair stands for itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luban.columns.preference import BETWEEN
from luban.nn.networks.generative import Generative
from luban.nn.tokens import Batch

CHOSEN, REJECTED, BEFORE_CHOSEN, BEFORE_REJECTED = range(4)


class Preferring(Generative):
    """As `Generative`; targets are pairs, see `luban.columns.preference`. The reference is no part of what is saved: it is
    what training starts from, so that a resumed run has the same one.
    """

    reference: tuple[Any, ...] = ()

    def refer(self) -> None:
        """What it is now becomes the reference."""
        self.reference = (copy.deepcopy(self.writer).eval().requires_grad_(False),)

    def forget(self) -> None:
        self.reference = ()

    def forward(self, batch: Batch, embedded: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Log-probabilities (B, 4) of the chosen and the rejected answer, and to the reference (0 where there is none);
        of targets that are no pairs as `Generative`.
        """
        if not self._paired(batch):
            return super().forward(batch, embedded)
        x, mask = batch.targets[self.written]
        chosen, rejected = answers(x, mask)
        mine = both(self.writer, chosen, rejected)
        before = torch.zeros_like(mine)
        if self.reference:
            with torch.no_grad():
                before = both(self.reference[0].to(x.device), chosen, rejected)
        return {self.written: torch.cat([mine, before], 1)}

    def loss(self, o: Mapping[str, Tensor], batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        if not self._paired(batch):
            return super().loss(o, batch)
        known = self.weights(batch)[self.written]
        return {self.written: (-F.logsigmoid(self.margin(o)) * known, known)}

    def margin(self, o: Mapping[str, Tensor]) -> Tensor:
        """beta x how much further than to the reference the chosen answer is before the rejected one, (B,)."""
        z = o[self.written]
        moved = (z[:, CHOSEN] - z[:, REJECTED]) - (z[:, BEFORE_CHOSEN] - z[:, BEFORE_REJECTED])
        return self.outputs[self.written].beta * moved

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        if not self._paired(batch):
            return super().weights(batch)
        return {self.written: (batch.targets[self.written][0] == BETWEEN).any(1).float()}

    def glance(self, o: Mapping[str, Tensor], batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Share of pairs whose chosen answer gained on the other."""
        if not self._paired(batch):
            return super().glance(o, batch)
        known = self.weights(batch)[self.written]
        return {"preferred": ((self.margin(o) > 0) * known, known)}

    def _paired(self, batch: Batch) -> bool:
        return self.written in batch.targets and bool((batch.targets[self.written][0] == BETWEEN).any())


def answers(x: Tensor, mask: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Pairs (B, T) as two batches of sequences, each (ids (B, n), mask (B, n))."""
    places = torch.arange(x.shape[1], device=x.device)
    found = (x == BETWEEN).any(1)
    at = torch.where(found, (x == BETWEEN).long().argmax(1), 0)[:, None]  # (B, 1)
    end = torch.where(found, mask.sum(1), 0)[:, None]
    most = int(torch.maximum(at, end - at - 1).max().clamp(min=1))
    places = places[:most]
    first, second = places < at, at + 1 + places < end
    after = x.gather(1, (at + 1 + places).clamp(max=x.shape[1] - 1))
    return (torch.where(first, x[:, :most], 0), first), (torch.where(second, after, 0), second)


def both(writer: Any, chosen: tuple[Tensor, Tensor], rejected: tuple[Tensor, Tensor]) -> Tensor:
    """Log-probabilities (B, 2) of what is to be learned of two batches of sequences."""
    x, mask = (torch.cat(pair) for pair in zip(chosen, rejected))
    o = writer(None, x, mask).float()
    truth = torch.where(mask & (x >= 0), x, -1)
    each = F.cross_entropy(o.flatten(0, 1), truth.flatten(), reduction="none", ignore_index=-1)
    return -each.view_as(truth).sum(1).view(2, -1).T
