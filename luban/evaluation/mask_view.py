"""What the table says of masks: how much of each class was found, at the size of the images themselves.

`iou` of a class: pixels that are it and were said to be it, of those that are or were said (Jaccard). `mean_iou`: over the classes that the
truth has. `accuracy`: pixels of the right class. Pixels that count for nothing are left out. Intervals by the bootstrap over images.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from luban import plots
from luban.columns.base import to_list
from luban.columns.examples import cells
from luban.columns.mask import NOTHING, coloured, restored
from luban.evaluation.baselines import Baseline
from luban.evaluation.intervals import Metric, bootstrap, percentile
from luban.evaluation.views import Shown, View
from luban.markup import tag
from luban.messages import say

GALLERY, WIDTH = 6, 160


class MaskView(View):
    kind = "mask"
    main = ("mean_iou", True)

    @property
    def labels(self) -> list[str]:
        return self.predictions.column.classes

    @cached_property
    def rows(self) -> np.ndarray:
        return np.flatnonzero(self.known)

    @cached_property
    def _counts(self) -> np.ndarray:
        return self._of([self.predictions.answers[i].classes for i in self.rows])

    def _of(self, answers: list[np.ndarray]) -> np.ndarray:
        """(N, K, K): of each image how many pixels of class i were said to be j."""
        return np.stack([confusion(self.predictions.truth[i], a, len(self.labels)) for i, a in zip(self.rows, answers)])

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        return measured(self._counts, self.labels, self.seed, self.resamples)

    def _measure(self, baseline: Baseline) -> dict[str, Metric]:
        column, images = self.predictions.column, to_list(cells(self.judged.cells[self.predictions.column.of]))
        said = [restored(baseline.answers, column.placement(images[i])) for i in self.rows]
        return measured(self._of(said), self.labels, self.seed, max(100, self.resamples // 5))

    def difference(self, other: MaskView) -> dict[str, Metric]:
        both = np.stack([self._counts, other._counts], 1)  # (N, 2, K, K)
        k = len(self.labels)
        names = list(self.metrics)

        def apart(sums: np.ndarray) -> np.ndarray:
            mine, theirs = (shares(sums.reshape(len(sums), 2, k, k)[:, i]) for i in (0, 1))
            return theirs - mine

        return _metrics(names, apart, both.reshape(len(both), -1), self.seed, self.resamples)

    def per_row(self) -> np.ndarray:
        """The mean IoU of each image by itself."""
        score = np.full(len(self.known), np.nan)
        score[self.rows] = shares(self._counts)[:, 0]
        return score

    def worst(self, count: int) -> np.ndarray:
        return self.rows[np.argsort(self.per_row()[self.rows], kind="stable")[:count]]

    def row_names(self) -> list[str]:
        return [say("evaluate.truth"), say("evaluate.answer"), "mean_iou"]

    def row(self, i: int) -> list[Any]:
        truth, said = self.predictions.truth[i], self.predictions.answers[i].classes
        pictures = [Shown(plots.image(coloured(c), width=WIDTH)) for c in (truth, said)]
        return [*pictures, f"{self.per_row()[i]:.3f}"]

    def pictures(self, report: Any, rivals: list[Baseline]) -> None:
        """Some images with what is there and what was said laid over them; pixels by class."""
        column = self.predictions.column
        some = self.rows[np.unique(np.linspace(0, len(self.rows) - 1, min(GALLERY, len(self.rows))).astype(int))]
        images = to_list(cells(self.judged.cells[column.of]))
        body = [tag("tr", *(tag("td", c) for c in self._three(i, images[i]))) for i in some]
        head = tag("tr", *(tag("th", say(k)) for k in ("evaluate.image", "evaluate.truth", "evaluate.answer")))
        report.html(say("evaluate.gallery"), tag("div", tag("table", head, *body), class_="wide"), self._legend())
        if len(self.labels) <= 30:
            counts = self._counts.sum(0)
            axes = {"x_label": say("evaluate.answer"), "y_label": say("evaluate.truth")}
            report.plot(say("evaluate.pixels"), plots.heatmap(counts, self.labels, self.labels, **axes))

    def _three(self, i: int, value: Any) -> list[str]:
        from luban.columns import picture

        over = picture.pixels(picture.open_image(value), 3) if not isinstance(value, np.ndarray) else _colour(value)
        truth, said = self.predictions.truth[i], self.predictions.answers[i].classes
        return [plots.image(p, width=WIDTH) for p in (over, coloured(truth, over), coloured(said, over))]

    def _legend(self) -> str:
        return say("evaluate.legend", classes=self.labels[1:] or self.labels)


def _colour(array: np.ndarray) -> np.ndarray:
    array = array if array.ndim == 3 else array[..., None]
    return array[..., :1].repeat(3, 2).astype(np.uint8) if array.shape[2] < 3 else array[..., :3].astype(np.uint8)


def confusion(truth: np.ndarray, said: np.ndarray, k: int) -> np.ndarray:
    """(K, K) pixels of class i said to be j; what counts for nothing, or training never saw, is left out."""
    known = (truth != NOTHING) & (truth < k)
    return np.bincount(truth[known].astype(np.int64) * k + said[known], minlength=k * k).reshape(k, k)


def shares(counts: np.ndarray) -> np.ndarray:
    """(R, K, K) -> (R, 2 + K): mean IoU, accuracy, IoU of each class (NaN where it is neither there nor said)."""
    hit = np.diagonal(counts, axis1=1, axis2=2).astype(float)
    true, said = counts.sum(2), counts.sum(1)
    whole = true + said - hit
    iou = np.where(whole > 0, hit / np.maximum(whole, 1), np.nan)
    there = true > 0
    mean = np.where(there, np.nan_to_num(iou), 0).sum(1) / np.maximum(there.sum(1), 1)
    accuracy = hit.sum(1) / np.maximum(true.sum(1), 1)
    return np.column_stack([mean, accuracy, iou])


def measured(counts: np.ndarray, labels: list[str], seed: int, resamples: int) -> dict[str, Metric]:
    """Of confusions (N, K, K), one an image."""
    k = len(labels)
    names = ["mean_iou", "accuracy", *(f"iou {label}" for label in labels)]
    return _metrics(
        names, lambda sums: shares(sums.reshape(-1, k, k)), counts.reshape(len(counts), -1), seed, resamples
    )


def _metrics(names: list[str], of: Any, rows: np.ndarray, seed: int, resamples: int) -> dict[str, Metric]:
    """Metrics of sums over rows (N, F), each with its interval over rows."""
    if not len(rows):
        return {n: Metric(float("nan"), note="metric.no_rows") for n in names}
    value = of(rows.sum(0, keepdims=True).astype(float))[0]
    drawn = bootstrap(lambda weights: of(weights @ rows), len(rows), resamples=resamples, seed=seed)
    return {n: Metric(float(v), *percentile(drawn[:, i])) for i, (n, v) in enumerate(zip(names, value))}


def per_position(training: np.ndarray, size: int) -> Baseline:
    """At each position of the network's picture the class that stands there most often. training: uint8 (N, H, W)."""
    counts = np.stack([(training == k).sum(0) for k in range(size)])
    return Baseline("per_position", counts.argmax(0).astype(np.uint8))
