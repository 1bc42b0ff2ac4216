"""From a detector's candidates to boxes: the likely ones, and of those that lie on one another the likeliest. numpy only.

Letters: N candidates of an image, K classes, C pairs of candidate and class that are likely enough.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from luban.columns.geometry import areas

FIRST = 1000  # of each class that are looked at


class Pairs(NamedTuple):
    """C pairs, the surest first: candidate, class (from 0), probability, and x0, y0, x1, y1 once they are known."""

    rows: np.ndarray
    kinds: np.ndarray
    scores: np.ndarray
    corners: np.ndarray = np.zeros((0, 4))


def candidates(logits: np.ndarray, score: float) -> Pairs:
    """The pairs of probability `score` at least, of each class the surest thousand. logits: (N, K)."""
    with np.errstate(over="ignore", divide="ignore"):
        floor = np.log(score) - np.log1p(-score)  # of the logit: only likely pairs are taken through the sigmoid
    chosen = []
    for k in range(logits.shape[1]):
        rows = np.flatnonzero(logits[:, k] >= floor)
        order = np.argsort(-logits[rows, k], kind="stable")[:FIRST]
        chosen.append((rows[order], np.full(len(order), k)))
    rows, kinds = (np.concatenate(part).astype(np.int64) if chosen else np.zeros(0, np.int64) for part in zip(*chosen))
    found = logits[rows, kinds].astype(np.float64)
    order = np.argsort(-found, kind="stable")
    return Pairs(rows[order], kinds[order], 1 / (1 + np.exp(-np.clip(found[order], -500, 500))))


def suppressed(pairs: Pairs, corners: np.ndarray, most_shared: float, most: int) -> Pairs:
    """Non-maximum suppression within each class, greedy from the surest on, until `most` boxes are kept. corners: (C, 4).

    One without inside goes. One loop over what is kept, not over what is there; boxes of different classes never meet.
    """
    left = np.flatnonzero(areas(corners) > 0)
    apart = pairs.kinds[left] * (
        corners.max(initial=0) - min(corners.min(initial=0), 0) + 1
    )  # each class in a place of its own
    x0, y0, x1, y1 = (corners[left] + apart[:, None]).T.copy()
    area = (x1 - x0) * (y1 - y0)
    kept: list[int] = []
    while len(left) and len(kept) < most:
        kept.append(int(left[0]))
        wide = np.minimum(x1[0], x1) - np.maximum(x0[0], x0)
        high = np.minimum(y1[0], y1) - np.maximum(y0[0], y0)
        shared = np.where((wide > 0) & (high > 0), wide * high, 0)
        free = shared <= most_shared * (area[0] + area - shared)
        free[0] = False
        left, area, x0, y0, x1, y1 = (v[free] for v in (left, area, x0, y0, x1, y1))
    return Pairs(pairs.rows[kept], pairs.kinds[kept], pairs.scores[kept], corners[kept])
