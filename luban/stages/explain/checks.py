"""How far an explanation can be believed, measured on the network itself.

Letters: R rows, S segments, n masks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from luban.stages.explain.game import Masked

ORDERS = 20  # random orders that the method's own is held against
CUTS = 12  # points of a deletion curve


class Completeness(NamedTuple):
    gap: np.ndarray  # (R,) |sum of weights - (score - baseline)|
    relative: np.ndarray  # (R,) the gap over |score - baseline score|, NaN where that is zero
    share: np.ndarray  # (R,) the gap over the sum of absolute weights: what counts where the two scores hardly differ


def completeness(weights: list[np.ndarray], score: np.ndarray, baseline: np.ndarray) -> Completeness:
    """Do the weights, per row (S,), add up to the difference that they share out? score, baseline: (R,)."""
    difference, size = np.abs(score - baseline), np.array([np.abs(w).sum() for w in weights])
    gap = np.abs(np.array([w.sum() for w in weights]) - (score - baseline))
    over = lambda whole: np.divide(gap, whole, out=np.full(len(gap), np.nan), where=whole > 1e-9)  # noqa: E731
    return Completeness(gap, over(difference), over(size))


class Deletion(NamedTuple):
    """Mean score while segments are taken away, the most speaking for the answer first: low is good."""

    own: np.ndarray  # (R,)
    chance: np.ndarray  # (R,) mean of random orders
    z: (
        np.ndarray
    )  # (R,) standard deviations of random orders by which the own curve lies lower; NaN where there are none


def deletion(masked: Masked, weights: list[np.ndarray], seed: int = 0) -> Deletion:
    """The deletion curve (Petsiuk et al. 2018) of each row against 20 random orders of the same segments.

    weights: per row (S,); segments with NaN have no weight and stay.
    """
    own, chance, z = (np.full(len(weights), np.nan) for _ in range(3))
    for rows in masked.groups():
        players = masked.examples[rows[0]].players
        if players < 2:
            continue
        rng = np.random.default_rng([seed, players])
        lots = rng.random((ORDERS, players))
        keep = np.stack([_curves(weights[r], lots) for r in rows])  # (R, orders * cuts, S)
        means = masked(rows, keep).reshape(len(rows), ORDERS + 1, -1).mean(axis=2)  # (R, 1 + orders)
        own[rows], chance[rows] = means[:, 0], means[:, 1:].mean(axis=1)
        spread = means[:, 1:].std(axis=1, ddof=1)
        np.divide(chance[rows] - own[rows], spread, out=(found := np.full(len(rows), np.nan)), where=spread > 1e-12)
        z[rows] = found
    return Deletion(own, chance, z)


def _curves(weights: np.ndarray, lots: np.ndarray) -> np.ndarray:
    """Masks of the method's own order, then of random ones: ((1 + orders) * cuts, S)."""
    known = ~np.isnan(weights)
    worth = np.concatenate([np.where(known, weights, 0.0)[None], lots])
    rank = np.where(known, -worth, np.inf).argsort(axis=1, kind="stable").argsort(axis=1)  # 0 is taken away first
    count = int(known.sum())
    cuts = np.linspace(min(1, count), count, min(CUTS, len(weights))).round().astype(int)
    keep = (rank[:, None, :] >= cuts[:, None]) | ~known
    return keep.reshape(-1, len(weights))
