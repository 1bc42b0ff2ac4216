"""What heads that find boxes share: how their answers are weighed, compared, scored and watched."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import RecipeError, problem
from luban.nn.detection.boxes import Truth, iou
from luban.nn.vision.fpn import FPN


class Found(nn.Module):
    """A head over feature maps whose answer is (B, N, 4 + K): x0, y0, x1, y1 in pixels of the network's image, and K logits."""

    fpn: FPN
    accepts = ("fcos",)  # what the column calls its head: all of this kind
    reads = "maps"

    def __init__(self, column: Any, weight: float):
        super().__init__()
        if not column.labels:
            raise RecipeError(problem("detection.no_labels", place=column.name))
        self.classes, self.weight = len(column.labels), weight

    @property
    def feature_layer(self) -> nn.Module:
        return self.fpn.features

    def weigh(self, x: Tensor, mask: Tensor) -> Tensor:
        return Truth(x, mask).weight()

    def divergence(self, o: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(teacher || student) of every class at every place, and 1 - IoU of the boxes as far as the teacher sees something there, by
        how much it sees in all: (B,), 0 where both answer alike.
        """
        mine, theirs = (z[..., 4:] / temperature for z in (o, teacher))
        sure = theirs.sigmoid()
        kl = sure * (F.logsigmoid(theirs) - F.logsigmoid(mine))
        kl = kl + (1 - sure) * (F.logsigmoid(-theirs) - F.logsigmoid(-mine))
        there = teacher[..., 4:].sigmoid().amax(2)
        apart = (1 - iou(o[..., :4], teacher[..., :4])) * there
        return (kl.sum((1, 2)) * temperature**2 + apart.sum(1)) / there.sum(1).clamp(min=1)

    def score(self, o: Tensor, answers: Tensor) -> Tensor:
        """The logit of a fixed class of a fixed prediction, (B,). answers (B,): number of the prediction times K, plus the class."""
        rows = torch.arange(len(o), device=o.device)
        return o[rows, answers // self.classes, 4 + answers % self.classes]

    def glance(self, o: Tensor, x: Tensor, mask: Tensor) -> tuple[str, Tensor, Tensor]:
        """The overlap of each true box with the prediction that is the likeliest answer to it, by its class and by its place."""
        truth = Truth(x, mask)
        shared = iou(truth.boxes[:, :, None], o[:, None, :, :4])  # (B, M, N)
        logits = o[..., 4:].transpose(1, 2)
        chance = logits.gather(1, truth.classes[..., None].expand(-1, -1, o.shape[1])).sigmoid()
        best = (chance * (shared > 0)).argmax(2, keepdim=True)
        each = shared.gather(2, best)[..., 0] * truth.real
        return "iou", each.sum(1) * truth.known, truth.real.sum(1).float() * truth.known
