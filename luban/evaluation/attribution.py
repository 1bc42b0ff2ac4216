"""How far an explanation moves when a network is changed: integrated gradients of both, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luban.columns.base import Column
from luban.columns.examples import Arrays
from luban.evaluation.integrated_gradients import integrated_gradients
from luban.nn.tokens import Batch

STEPS = 32


def attributions(
    network: Any, columns: Mapping[str, Column], arrays: Arrays, output: str, answers: np.ndarray, steps: int = STEPS
) -> np.ndarray:
    """Each input position's share of the score of fixed answers (B,), against "nothing there": (B, P), P over all inputs.

    answers: class numbers from 0, zeros where the output has no classes; ids (B, T) of a text. Features of one position are added up, so that
    networks with other embedding sizes can be compared. The network must be in eval mode; its gradients stay untouched.
    """
    batch, blank = Batch.of(arrays), Batch.of(_blank(columns, arrays))
    fixed = torch.as_tensor(answers)
    with torch.no_grad():
        start, stop = network.embed(blank), network.embed(batch)

    def score(embedded: Mapping[str, Tensor], row: Tensor) -> Tensor:
        o = network(batch.take(row).answered(output, fixed[row]), embedded)
        return network.score(o, {output: fixed[row]})[output]

    weights = integrated_gradients(score, stop, start, steps=steps).weights
    parts = [_by_position(weights[n], arrays.inputs[n]) for n in stop]
    return torch.cat(parts, dim=1).float().numpy()


def _blank(columns: Mapping[str, Column], arrays: Arrays) -> Arrays:
    nothing = {
        n: np.broadcast_to(columns[n].nothing(x), x.shape).astype(x.dtype) for n, (x, _) in arrays.inputs.items()
    }
    return Arrays({n: (x, arrays.inputs[n][1]) for n, x in nothing.items()}, {}, arrays.size)


def _by_position(weights: Tensor, pair: tuple[np.ndarray, np.ndarray]) -> Tensor:
    x, mask = pair
    if weights.ndim > x.ndim:  # an embedding: features of one position belong together
        weights = weights.sum(-1)
    if mask.ndim > 1:
        weights = weights * torch.as_tensor(mask).view(*mask.shape, *[1] * (weights.ndim - mask.ndim))
    return weights.reshape(len(x), -1)


def likeness(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per row of (B, P) twice: the cosine, and Spearman's rank correlation. NaN where a row is constant or all zero."""
    from scipy.stats import rankdata

    return _cosine(a, b), _cosine(_centred(rankdata(a, axis=1)), _centred(rankdata(b, axis=1)))


def _centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=1, keepdims=True)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), size, out=np.full(len(a), np.nan), where=size > 0)
