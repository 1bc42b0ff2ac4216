"""LIME (Ribeiro et al. 2016): a weighted linear surrogate of the score around one row, for many rows at once.

Letters: R rows explained, S segments, n masks. Masks and the matrix that solves the ridge regression are shared by all rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from luban.stages.explain.shapley import Game

RIDGE = 1e-3  # keeps the solution unique; far below what would shrink a weight visibly


class Surrogate(NamedTuple):
    """`fit`: weighted R2 of the surrogate; `error`: its weighted root mean square error on masks left out of the fit."""

    weights: np.ndarray  # (R, S) change of score when the segment is there
    intercept: np.ndarray  # (R,)
    fit: np.ndarray  # (R,)
    error: np.ndarray  # (R,) in units of the score


class Design(NamedTuple):
    keep: np.ndarray  # (n, S) bool, the first one keeps all
    near: np.ndarray  # (n,) weights, adding up to 1
    solve: np.ndarray  # (1 + S, n)
    leverage: np.ndarray  # (n,)


def lime(game: Game, players: int, *, samples: int = 512, width: float = 0.5, seed: int = 0) -> Surrogate:
    """A ridge regression of the scores of masked rows on which segments they keep, nearer masks counting more.

    Masks: a number of segments, uniform from 1 to S, is removed at random. Weight of a mask that removes the fraction f:
    exp(-f^2 / width^2). Raises ValueError for fewer than two samples.
    """
    plan = design(players, samples, width, seed)
    scores = game(plan.keep)  # (R, n)
    found = scores @ plan.solve.T  # (R, 1 + S)
    rest = scores - found[:, :1] - found[:, 1:] @ plan.keep.T
    spread = ((scores - (scores @ plan.near)[:, None]) ** 2) @ plan.near
    missed = rest**2 @ plan.near
    fit = np.where(spread > 1e-24, 1 - missed / np.maximum(spread, 1e-24), 1.0)
    error = np.sqrt((rest / np.clip(1 - plan.leverage, 0.05, 1)) ** 2 @ plan.near)  # leave one out, in closed form
    return Surrogate(found[:, 1:], found[:, 0], fit, error)


@lru_cache(maxsize=64)
def design(players: int, samples: int, width: float, seed: int) -> Design:
    """The masks, their weights and the matrix that turns scores into intercept and weights."""
    if samples < 2:
        raise ValueError(samples)
    rng = np.random.default_rng([seed, players, samples])
    removed = rng.integers(1, players + 1, samples) if players else np.zeros(samples, int)
    removed[0] = 0
    keep = rng.random((samples, players)).argsort(axis=1).argsort(axis=1) >= removed[:, None]
    near = np.exp(-((removed / max(players, 1)) ** 2) / width**2)
    near /= near.sum()
    rows = np.concatenate([np.ones((samples, 1)), keep], axis=1)
    penalty = np.diag([0.0] + [RIDGE / samples] * players)
    solve = np.linalg.solve(rows.T @ (rows * near[:, None]) + penalty, rows.T * near)
    return Design(keep, near, solve, (rows * solve.T).sum(1))
