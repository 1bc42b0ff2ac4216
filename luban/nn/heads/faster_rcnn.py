"""Boxes in two stages: regions where something is, then what it is."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.detection.answers import Found
from luban.nn.detection.boxes import Truth, centred, iou
from luban.nn.detection.regions import anchors, level_of, proposed, roi_align, shifted, shifts
from luban.nn.detection.sampling import sampled
from luban.nn.tokens import Dense, Pyramid
from luban.nn.vision.fpn import FPN
from luban.settings import Count, Dial, Fraction, Natural, Positive

RATIOS = (0.5, 1.0, 2.0)
SIZE = 4.0  # strides that an anchor is wide
NEAR, FAR = 0.6, 0.3  # overlap of an anchor that is to say "something", and below which it is to say "nothing"
SURE = 0.5  # overlap of a region that has the class of its box
AT_ONCE = 128  # anchors of an image that learn
BEND = 1 / 9  # of the loss of shifts: below this it is square


class Proposed(NamedTuple):
    """All that is learned from, of a batch whose truth is known. A anchors, R regions, the first of K + 1 classes being nothing."""

    objectness: Tensor  # (B, A)
    moves: Tensor  # (B, A, 4)
    regions: Tensor  # (B, R, 4)
    logits: Tensor  # (B, R, K + 1)
    shifts: Tensor  # (B, R, 4)


class FasterRCNN(Found):
    """Use where few images a second will do, and boxes must be told apart by looking at each again. Instead: `fcos`.

    A network over the feature pyramid says for three anchors of every position whether something is there and where (Ren et al. 2015,
    Lin et al. 2017); of the best `candidates` those that do not repeat each other become `proposals`, and of each a grid of `cells` x
    `cells` is cut out of the maps and classified by dense layers of `hidden`. maps -> (B, proposals, 4 + K), log-odds of the softmax.
    While training, `learned` regions of an image take part, a half of them on true boxes if there are so many. `nms`: overlap from which one
    proposal repeats another. `width`, `finest`, `extra`: of the pyramid, see `luban.nn.vision.fpn`.
    """

    def __init__(
        self,
        column: Any,
        pyramid: Pyramid,
        *,
        width: Annotated[Count, Dial(nano=32, small=64, base=128)] = 64,
        finest: Count | Literal["auto"] = "auto",
        extra: Natural | Literal["auto"] = "auto",
        candidates: Count = 256,
        proposals: Count = 64,
        learned: Count = 48,
        cells: Count = 7,
        hidden: list[Count] = (256, 256),
        nms: Fraction = 0.7,
        weight: Positive = 1.0,
    ):
        super().__init__(column, weight)
        self.fpn = FPN(pyramid, column.name, width=width, finest=finest, extra=extra)
        self.candidates, self.proposals, self.learned, self.nms = candidates, proposals, learned, nms
        self.cells, self.side = cells, pyramid.side
        self.look = nn.Conv2d(width, width, 3, padding=1)
        self.there, self.move = (nn.Conv2d(width, n * len(RATIOS), 1) for n in (1, 4))
        self.hidden = Dense(width * cells * cells, list(hidden))
        self.kind, self.shift = nn.Linear(self.hidden.out, 1 + self.classes), nn.Linear(self.hidden.out, 4)
        for layer, deviation in (
            (self.look, 0.01),
            (self.there, 0.01),
            (self.move, 0.001),
            (self.kind, 0.01),
            (self.shift, 0.001),
        ):
            nn.init.normal_(layer.weight, 0, deviation)
            nn.init.zeros_(layer.bias)
        self.register_buffer("anchors", anchors(*self.fpn.points(), SIZE, RATIOS), persistent=False)
        self.held: Tensor | None = (
            None  # regions (B, R, 4) that are looked at whatever is proposed, see `Mapped.holding`
        )

    def choose(self, maps: list[Tensor]) -> Tensor:
        """The regions (B, R, 4) that are looked at again, the likeliest first."""
        return self._proposed(self.fpn(maps))[2]

    def forward(self, maps: list[Tensor], truth: tuple[Tensor, Tensor] | None = None) -> Any:
        """The answer (B, N, 4 + K); with the truth of the batch `Proposed`."""
        levels = self.fpn(maps)
        if truth is None and self.held is not None:
            return self.answer(self.held, *self._told(levels, self.held))
        objectness, moves, regions = self._proposed(levels)
        if truth is not None and self.training:
            regions = self._chosen(regions, Truth(*truth))
        logits, said = self._told(levels, regions)
        if truth is None:
            return self.answer(regions, logits, said)
        return Proposed(objectness, moves, regions, logits, said)

    def _proposed(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The first stage: objectness (B, A), moves (B, A, 4), regions (B, R, 4)."""
        looked = [F.relu(self.look(level)) for level in levels]
        # (B, n A, H, W) -> (B, H W A, n): the anchors of a position side by side
        flat = lambda layer, n: torch.cat(  # noqa: E731
            [layer(h).unflatten(1, (len(RATIOS), n)).permute(0, 3, 4, 1, 2).flatten(1, 3) for h in looked], 1
        ).float()
        objectness, moves = flat(self.there, 1)[..., 0], flat(self.move, 4)
        regions = proposed(
            objectness.detach(), self.anchors, moves.detach(), self.side,
            candidates=self.candidates, count=self.proposals, threshold=self.nms,
        )  # fmt: skip
        return objectness, moves, regions

    def _told(self, levels: list[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """The second stage: logits (B, R, K + 1), shifts (B, R, 4)."""
        cut = roi_align(levels, self.side, regions, level_of(regions, self.fpn.strides), self.cells)
        h = self.hidden(cut.flatten(2))
        return self.kind(h).float(), self.shift(h).float()

    def answer(self, regions: Tensor, logits: Tensor, said: Tensor) -> Tensor:
        own = torch.eye(1 + self.classes, dtype=torch.bool, device=logits.device)[1:]  # (K, K + 1)
        others = logits[..., None, :].masked_fill(own, -math.inf).logsumexp(-1)
        return torch.cat([shifted(regions, said, self.side), logits[..., 1:] - others], -1)

    @torch.no_grad()
    def _chosen(self, regions: Tensor, truth: Truth) -> Tensor:
        """The regions that a step learns from: of those proposed and the true boxes themselves."""
        every = torch.cat([regions, truth.boxes], 1)
        usable = torch.cat([torch.ones_like(regions[..., 0], dtype=torch.bool), truth.real], 1)
        good = _best(every, truth)[0] >= SURE
        chosen = sampled(good & usable, ~good & usable, self.learned, self.training).indices
        return every.gather(1, chosen[..., None].expand(-1, -1, 4))

    def loss(self, o: Proposed, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Of both stages: cross-entropy and the smooth distance of the shifts, each a mean over what takes part, times the weight of an
        image -> (sum (B,), weight (B,)).
        """
        truth = Truth(x, mask)
        each = self._first(o, truth) + self._second(o, truth)
        return each * truth.weight() * self.weight, truth.weight()

    def _first(self, o: Proposed, truth: Truth) -> Tensor:
        """Anchors: is something there, and where."""
        found, which, all_pairs = _best(self.anchors.expand(len(o.objectness), -1, -1), truth)
        nearest = (all_pairs >= all_pairs.amax(2, keepdim=True).clamp(min=FAR)) & truth.real[..., None]
        good = (found >= NEAR) | nearest.any(1)  # the best anchor of a box is good enough
        which = torch.where(nearest.any(1), torch.where(nearest, all_pairs, -1.0).argmax(1), which)
        crowded = truth.crowded(centred(self.anchors)[0])
        chosen = sampled(good, ~good & (found < FAR) & ~crowded, min(AT_ONCE, good.shape[1]), self.training)
        there = F.binary_cross_entropy_with_logits(
            o.objectness.gather(1, chosen.indices), chosen.good.float(), reduction="none"
        )
        boxes = truth.boxes.gather(1, which[..., None].expand(-1, -1, 4))
        apart = F.smooth_l1_loss(o.moves, shifts(self.anchors, boxes), reduction="none", beta=BEND).sum(2)
        apart = apart.gather(1, chosen.indices) * chosen.good
        return _mean(there, chosen.counts) + _mean(apart, chosen.counts)

    def _second(self, o: Proposed, truth: Truth) -> Tensor:
        """Regions: what it is, and where exactly."""
        found, which, _ = _best(o.regions, truth)
        good = found >= SURE
        kind = torch.where(good, 1 + truth.classes.gather(1, which), 0)
        counts = good | ~truth.crowded(centred(o.regions)[0])
        by_class = F.cross_entropy(o.logits.transpose(1, 2), kind, reduction="none")
        boxes = truth.boxes.gather(1, which[..., None].expand(-1, -1, 4))
        apart = F.smooth_l1_loss(o.shifts, shifts(o.regions, boxes), reduction="none", beta=BEND).sum(2) * good
        return _mean(by_class, counts) + _mean(apart, counts)

    def divergence(self, o: Any, teacher: Any, temperature: float = 1.0) -> Tensor:
        """As of one stage, each of the teacher's boxes beside the one of the student that overlaps it most."""
        o, teacher = (z if isinstance(z, Tensor) else self.answer(*z[2:]) for z in (o, teacher))
        nearest = iou(teacher[:, :, None, :4], o[:, None, :, :4]).argmax(2)
        return super().divergence(o.gather(1, nearest[..., None].expand(-1, -1, o.shape[2])), teacher, temperature)

    def glance(self, o: Any, x: Tensor, mask: Tensor) -> tuple[str, Tensor, Tensor]:
        return super().glance(o if isinstance(o, Tensor) else self.answer(*o[2:]), x, mask)


def _best(boxes: Tensor, truth: Truth) -> tuple[Tensor, Tensor, Tensor]:
    """Of each box the largest overlap with a true one, and that one's number, (B, R) both; the overlaps of all pairs (B, M, R)."""
    pairs = iou(truth.boxes[:, :, None], boxes[:, None]) * truth.real[..., None]
    found, which = pairs.max(1)
    return found, which, pairs


def _mean(each: Tensor, counts: Tensor) -> Tensor:
    return (each * counts).sum(1) / counts.sum(1).clamp(min=1)
