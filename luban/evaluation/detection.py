"""How good boxes are: COCO's average precision and recall (Lin et al. 2014), equal to `pycocotools` on the same boxes, with intervals.

A box is right where its class is, and where it overlaps a true one by the threshold; each true box is found once, the surest first. Precision is
averaged over 101 recalls, over thresholds 0.50, 0.55 ... 0.95 and over classes that have a true box. Matches are made once for each
image; a bootstrap draw of images then only weighs them.
Letters: I images, A areas (all, small, medium, large), T thresholds, D boxes found, G true ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from luban.columns.drawn import LIKELY
from luban.evaluation.intervals import Metric, bootstrap, percentile

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # boxes of an image and class that count
SIDES = {"all": (0, 1e5**2), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}  # pixels
NAMES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")
TINY = np.spacing(1)


class Boxes(NamedTuple):
    """Of one image: x, y, width, height (n, 4), class numbers (n,) from 0, and scores (n,) or, of true ones, whether it is a crowd.

    `areas`: pixels of the objects (n,), None: those of the boxes.
    """

    boxes: np.ndarray
    kinds: np.ndarray
    marks: np.ndarray
    areas: np.ndarray | None = None

    def of(self, kind: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        mine = self.kinds == kind
        areas = self.boxes[:, 2:].prod(1) if self.areas is None else self.areas
        return self.boxes[mine], self.marks[mine], areas[mine]


class Matches(NamedTuple):
    """Of one class, the boxes of all images, the surest first: of each its image (D,), score (D,), and for each area and threshold
    whether it is right, and whether it counts (A, T, D); `truths` (A, I): true boxes of each image that are to be found.
    """

    images: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    counts: np.ndarray
    truths: np.ndarray


def overlaps(found: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(D, G) intersection over union; over the found box alone where the true one is a crowd."""
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum((found[:, :2] + found[:, 2:])[:, None], (true[:, :2] + true[:, 2:])[None])
    shared = np.clip(high - low, 0, None).prod(2)
    area = found[:, 2:].prod(1)[:, None]
    whole = np.where(crowd, area, area + true[:, 2:].prod(1) - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def _matched(
    found: np.ndarray, true: np.ndarray, crowd: np.ndarray, area: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes of one image and class, the surest first -> right and counts (A, T, D), which true ones are to be found (A, G).

    area: of the true ones (G,); a box found has that of its sides.
    """
    low, high = np.array(list(SIDES.values())).T
    passed = crowd | (area < low[:, None]) | (area > high[:, None])  # (A, G)
    shape = (len(SIDES), len(THRESHOLDS))
    right, counts = np.zeros((*shape, len(found)), bool), np.ones((*shape, len(found)), bool)
    taken = np.zeros((*shape, len(true)), bool)
    least = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    shared = overlaps(found, true, crowd)
    for d in range(len(found) if len(true) else 0):
        free = (shared[d] >= least) & (~taken | crowd)  # (A, T, G)
        for some in (free & ~passed[:, None], free & passed[:, None]):  # one that is to be found comes first
            worth = np.where(some, shared[d], -1.0)[..., ::-1]
            best = len(true) - 1 - worth.argmax(2)  # of equal ones the last
            new = (worth.max(2) >= 0) & counts[..., d] & ~right[..., d]
            a, t = np.nonzero(new)
            taken[a, t, best[new]] = True
            passes = passed[a, best[new]]
            right[a, t, d] = ~passes
            counts[a, t, d] = ~passes
    own = found[:, 2:].prod(1)
    outside = (own < low[:, None]) | (own > high[:, None])  # (A, D)
    counts &= right | ~outside[:, None]
    return right, counts, ~passed


def matches(truth: Sequence[Boxes], found: Sequence[Boxes], classes: int) -> list[Matches]:
    """The matches of every class, over the same images."""
    return [_of_class(truth, found, k) for k in range(classes)]


def _of_class(truth: Sequence[Boxes], found: Sequence[Boxes], kind: int) -> Matches:
    images, scores, rights, counts = [], [], [], []
    truths = np.zeros((len(SIDES), len(truth)))
    for i, (true, mine) in enumerate(zip(truth, found)):
        boxes, crowd, areas = true.of(kind)
        answers, sure, _ = mine.of(kind)
        if not len(boxes) and not len(answers):
            continue
        order = np.argsort(-sure, kind="stable")[:MOST]
        right, count, wanted = _matched(answers[order], boxes, crowd.astype(bool), areas)
        truths[:, i] = wanted.sum(1)
        images.append(np.full(len(order), i))
        scores.append(sure[order])
        rights.append(right)
        counts.append(count)
    if not images:
        shape = (len(SIDES), len(THRESHOLDS), 0)
        return Matches(np.zeros(0, int), np.zeros(0), np.zeros(shape, bool), np.zeros(shape, bool), truths)
    score = np.concatenate(scores)
    order = np.argsort(-score, kind="stable")
    right, count = (np.concatenate(part, axis=2)[..., order] for part in (rights, counts))
    return Matches(np.concatenate(images)[order], score[order], right, count, truths)


def curve(found: Matches, area: int, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision at each of the 101 recalls (T, 101), and the recall reached (T,); NaN where there is no true box. weight: (I,)."""
    positives = found.truths[area] @ weight
    if not positives:
        return np.full((len(THRESHOLDS), len(RECALLS)), np.nan), np.full(len(THRESHOLDS), np.nan)
    own = weight[found.images]
    right, counts = found.right[area], found.counts[area]
    hits = np.cumsum(right * own, axis=1)
    misses = np.cumsum((counts & ~right) * own, axis=1)
    recall = hits / positives
    precision = hits / (hits + misses + TINY)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([precision, np.zeros((len(THRESHOLDS), 1))], 1)
    at = np.stack([np.searchsorted(r, RECALLS, side="left") for r in recall])
    reached = recall[:, -1] if recall.shape[1] else np.zeros(len(THRESHOLDS))
    return np.take_along_axis(padded, at, 1), reached


class Judged:
    """Boxes found held against the true ones, of many images."""

    def __init__(self, truth: Sequence[Boxes], found: Sequence[Boxes], classes: int):
        self.count, self.classes = len(truth), classes
        self.truth, self.found = truth, found
        self.matches = matches(truth, found, classes)

    names = NAMES

    def __len__(self) -> int:
        return self.count

    @cached_property
    def whole(self) -> np.ndarray:
        return np.ones(self.count)

    def statistic(self, block: np.ndarray) -> np.ndarray:
        """Weights of images (R, I) -> the metrics `NAMES` (R, 7), NaN where nothing is to be found."""
        return np.array([self._of(weight) for weight in block]).reshape(len(block), len(NAMES))

    def _of(self, weight: np.ndarray) -> list[float]:
        every = [curve(m, 0, weight) for m in self.matches]
        precision = np.stack([p.mean(1) for p, _ in every])  # (K, T)
        sides = [
            np.stack([curve(m, a, weight)[0].mean(1) for m in self.matches])
            if self._any(a)
            else np.full((1, 1), np.nan)
            for a in (1, 2, 3)
        ]
        recall = np.stack([r for _, r in every])
        return [_mean(v) for v in (precision, precision[:, 0], precision[:, 5], *sides, recall)]

    def _any(self, area: int) -> bool:
        return any(m.truths[area].any() for m in self.matches)

    def metrics(self, *, seed: int = 0, resamples: int = 500) -> dict[str, Metric]:
        """By name; intervals over images."""
        values = self.statistic(self.whole[None])[0]
        draws = bootstrap(self.statistic, self.count, resamples=resamples, seed=seed) if self.count > 1 else None
        return {
            n: Metric(float(v), *(percentile(draws[:, i]) if draws is not None and np.isfinite(v) else ()))
            for i, (n, v) in enumerate(zip(NAMES, values))
        }

    def by_class(self) -> list[tuple[float, float, int, int]]:
        """Of each class: average precision, that at an overlap of 0.5, true boxes, boxes found. NaN where it has no true box."""
        rows = []
        for m in self.matches:
            precision = curve(m, 0, self.whole)[0].mean(1)
            rows.append((float(precision.mean()), float(precision[0]), int(m.truths[0].sum()), len(m.images)))
        return rows

    def by_image(self) -> np.ndarray:
        """(I,): F1 of the boxes that would be drawn, those of probability 0.3 or more, at an overlap of 0.5; 1 where rightly nothing was found, NaN where only crowds are."""
        hits, wrong, truths = np.zeros(self.count), np.zeros(self.count), np.zeros(self.count)
        for m in self.matches:
            sure = m.scores >= LIKELY
            hits += np.bincount(m.images, m.right[0, 0] & sure, self.count)
            wrong += np.bincount(m.images, m.counts[0, 0] & ~m.right[0, 0] & sure, self.count)
            truths += m.truths[0]
        total = truths + hits + wrong
        return np.where(total > 0, 2 * hits / np.maximum(total, 1), 1.0)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
