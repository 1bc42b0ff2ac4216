"""What the table of predictions says where objects are found in images."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from luban import plots
from luban.columns.drawn import draw, likely
from luban.columns.examples import cells
from luban.evaluation import paired
from luban.evaluation.baselines import Baseline
from luban.evaluation.detection import RECALLS, Boxes, Judged, curve
from luban.evaluation.intervals import Metric
from luban.evaluation.views import CURVES, Shown, View
from luban.markup import tag
from luban.messages import say

WIDE = 280  # pixels of a picture in the table of the worst ones


class DetectionView(View):
    kind = "boxes"

    @cached_property
    def labels(self) -> list[str]:
        """The classes of the model, then those that only the truth has: they can never be found."""
        known = self.predictions.column.labels
        return [*known, *sorted({r.label for t in self.truth for r in t} - {*known})]

    @cached_property
    def truth(self) -> list[Any]:
        return [t for t, k in zip(self.predictions.truth, self.known) if k]

    @cached_property
    def judged_boxes(self) -> Judged:
        return self._judge([a.value for a, k in zip(self.predictions.answers, self.known) if k])

    def _judge(self, answers: Sequence[Sequence[dict[str, Any]]]) -> Judged:
        number = {k: i for i, k in enumerate(self.labels)}
        truth = [
            _boxes([(r.box, number[r.label], r.crowd) for r in t])._replace(areas=np.array([r.pixels for r in t]))
            for t in self.truth
        ]
        found = [_boxes([(v["box"], number[v["label"]], v["score"]) for v in a]) for a in answers]
        return Judged(truth, found, len(number))

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        return self.judged_boxes.metrics(**self.draws)

    def numbers(self, rivals: list[Baseline]) -> dict[str, Any]:
        names = ("map", "map_50", "boxes", "found")
        by_class = {k: dict(zip(names, row)) for k, row in zip(self.labels, self.judged_boxes.by_class()) if row[2]}
        return super().numbers(rivals) | {"classes": by_class}

    def _measure(self, baseline: Baseline) -> dict[str, Metric]:
        answers = [a for a, k in zip(baseline.answers, self.known) if k]
        return self._judge(answers).metrics(seed=self.seed, resamples=max(100, self.resamples // 5))

    def difference(self, other: DetectionView) -> dict[str, Metric]:
        return paired.of_counts(self.judged_boxes, other.judged_boxes, **self.draws)

    def pictures(self, report: Any, rivals: list[Baseline]) -> None:
        rows = [
            [label, *("" if np.isnan(v) else f"{v:.3f}" for v in row[:2]), *row[2:]]
            for label, row in zip(self.labels, self.judged_boxes.by_class())
        ]
        head = [say("evaluate.class"), "map", "map_50", say("evaluate.boxes_true"), say("evaluate.boxes_found")]
        report.table(say("evaluate.per_class"), head, rows, "lrrrr")
        if unseen := len(self.labels) - len(self.predictions.column.labels):
            report.note("warn", say("evaluate.unseen_classes", classes=self.labels[-unseen:]))
        axes = {"x_label": "recall", "y_label": "precision"}
        curves = [
            (k, curve(m, 0, self.judged_boxes.whole)[0][0]) for k, m in zip(self.labels, self.judged_boxes.matches)
        ]
        drawn = {k: (RECALLS, precision) for k, precision in curves if not np.isnan(precision).any()}
        if 0 < len(drawn) <= CURVES:
            report.plot(
                say("evaluate.precision_recall"),
                plots.lines(drawn, zero=True, **axes),
                say("evaluate.precision_recall_caption"),
            )

    def per_row(self) -> np.ndarray:
        score = np.full(len(self.known), np.nan)
        score[self.known] = self.judged_boxes.by_image()
        return score

    def worst(self, count: int) -> np.ndarray:
        """Images with the most boxes missed and wrongly found, where the model is sure of what it says."""
        score = self.per_row()
        order = np.argsort(score, kind="stable")
        return order[score[order] < 1][:count]

    def row_names(self) -> list[str]:
        return ["f1", say("evaluate.truth"), say("evaluate.answer")]

    def row(self, i: int) -> list[Any]:
        column, answer = self.predictions.column, self.predictions.answers[i].value
        value = cells(self.judged.cells[column.of].slice(i, 1))
        picture = column.image_column.whole(value[0] if isinstance(value, np.ndarray) else value[0].as_py())
        truth = [r.plain() for r in self.predictions.truth[i]]
        shown = (draw(picture, v, self.labels, least=WIDE) for v in (truth, likely(answer)))
        return [
            f"{self.per_row()[i]:.2f}",
            *(Shown(tag("div", plots.image(v, width=WIDE), class_="large")) for v in shown),
        ]


def _boxes(rows: list[tuple[Any, int, Any]]) -> Boxes:
    boxes = np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4)
    return Boxes(boxes, np.array([k for _, k, _ in rows], np.int64), np.array([m for _, _, m in rows], np.float64))


def detection_baselines(column: Any, truths: Any, train: Any, test: Any) -> list[Baseline]:
    """`usual_boxes`: on every image the same boxes, of each class the mean one of the training images (as shares of a side), with the share
    of images that have the class as its score. `truths`: cells of the training rows; `train`, `test`: their images.
    """
    began = time.perf_counter()
    shares, has = defaultdict(list), defaultdict(int)
    known = [(column.truth(v), picture) for v, picture in zip(truths, train)]
    known = [(t, picture) for t, picture in known if t is not None]
    for regions, picture in known:
        height, width = column.placement(picture).source if regions else (1, 1)
        for r in regions:
            shares[r.label].append(np.array(r.box) / [width, height, width, height])
        for label in {r.label for r in regions}:
            has[label] += 1
    usual = {k: (np.mean(v, 0), has[k] / len(known)) for k, v in shares.items() if k in column.labels}
    answers = []
    for picture in test:
        height, width = column.placement(picture).source
        sides = np.array([width, height, width, height])
        answers.append(
            [{"label": k, "box": (box * sides).tolist(), "score": share} for k, (box, share) in usual.items()]
        )
    return [Baseline("usual_boxes", answers, seconds=time.perf_counter() - began)]
