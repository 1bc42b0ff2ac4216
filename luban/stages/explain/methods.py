"""The methods, each applied to the rows of one task: from examples and a network to a weight for every segment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luban.errors import RequestError, Unsupported, problem, shortened
from luban.evaluation.integrated_gradients import integrated_gradients
from luban.nn.tokens import Batch
from luban.stages.explain.game import CELLS, Example, Masked, Scorer
from luban.stages.explain.grad_cam import grad_cam
from luban.stages.explain.lime import lime
from luban.stages.explain.shapley import kernel_shap

CHANNELS = {
    "grid": 0,
    "frames": 1,
}  # the axis of one example that segments do not tell apart; of others all behind theirs
TOGETHER = 64  # rows embedded at once


@dataclass(frozen=True)
class Task:
    scorer: Scorer
    examples: Sequence[Example]
    masked: Masked
    samples: int | None  # None: as many as the number of segments asks for
    steps: int
    seed: int

    def samples_for(self, players: int) -> int:
        return self.samples or max(512, 8 * players)


@dataclass
class Found:
    """`weights`: per row (S,), NaN where the method says nothing. `baseline`: (R,) where it is not the fully masked row's.

    `own`: what the method itself knows about its error, name -> (R,). `error`: per row the standard error of each weight.
    """

    weights: list[np.ndarray]
    own: dict[str, np.ndarray] = field(default_factory=dict)
    baseline: np.ndarray | None = None
    error: list[np.ndarray] | None = None


def by_shapley(task: Task) -> Found:
    count = len(task.examples)
    weights, error, exact = [np.zeros(0)] * count, [np.zeros(0)] * count, np.zeros(count)
    for rows, game, players in _games(task):
        samples = task.samples_for(players)
        if samples < min(2 * players, 2**players):
            raise RequestError(problem("explain.few_samples", samples=samples, segments=players, least=2 * players))
        result = kernel_shap(game, players, samples=samples, seed=task.seed)
        for i, r in enumerate(rows):
            weights[r], error[r], exact[r] = result.weights[i], result.error[i], result.exact
    own = {"standard_error": np.array([e.max(initial=0.0) for e in error]), "exact": exact.astype(bool)}
    return Found(weights, own, error=error)


def by_lime(task: Task) -> Found:
    count = len(task.examples)
    weights, fit, error = [np.zeros(0)] * count, np.zeros(count), np.zeros(count)
    for rows, game, players in _games(task):
        result = lime(game, players, samples=task.samples_for(players), seed=task.seed)
        fit[rows], error[rows] = result.fit, result.error
        for i, r in enumerate(rows):
            weights[r] = result.weights[i]
    return Found(weights, {"fit": fit, "surrogate_error": error})


def _games(task: Task) -> Iterator[tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], int]]:
    for rows in task.masked.groups():
        yield rows, lambda keep, rows=rows: task.masked(rows, keep), task.examples[rows[0]].players


def by_gradients(task: Task) -> Found:
    count = len(task.examples)
    weights, baseline, steps = [np.zeros(0)] * count, np.zeros(count), np.zeros(count, int)
    order = np.argsort([e.players for e in task.examples], kind="stable")
    for start in range(0, count, TOGETHER):
        rows = order[start : start + TOGETHER]
        found, baseline[rows], steps[rows] = _integrated(task, rows)
        for r, w in zip(rows, found):
            weights[r] = w
    return Found(weights, {"steps": steps}, baseline)


def _integrated(task: Task, rows: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    scorer, examples = task.scorer, [task.examples[r] for r in rows]
    batch, blank = (
        scorer.batch({n: [getattr(e, side)[n] for e in examples] for n in examples[0].x}, len(rows))
        for side in ("x", "blank")
    )
    with torch.no_grad():
        x, baseline = scorer.network.embed(batch), scorer.network.embed(blank)
    whole = [n for n, e in x.items() if not e.is_floating_point()]
    if whole:
        raise Unsupported("explain.no_gradient", inputs=whole, methods=["lime", "kernel-shap"])

    def score(embedded: Mapping[str, Tensor], index: Tensor) -> Tensor:
        return scorer.score(_taken(batch, index), rows[index.cpu().numpy()], embedded)

    largest = max(e[0].numel() for e in x.values())
    path = integrated_gradients(score, x, baseline, steps=task.steps, batch=min(2048, max(16, CELLS // largest)))
    shares = {n: w.cpu().numpy() for n, w in path.weights.items()}
    found = [_joined(task, e, {n: w[i] for n, w in shares.items()}) for i, e in enumerate(examples)]
    return found, path.baseline, path.steps


def _taken(batch: Batch, index: Tensor) -> Batch:
    return Batch({n: (x[index], mask[index]) for n, (x, mask) in batch.inputs.items()}, {}, len(index))


def _joined(task: Task, e: Example, shares: Mapping[str, np.ndarray]) -> np.ndarray:
    """(S,): shares over embedded values, added up by segment."""
    parts = []
    for n, (names, index) in e.segments.items():
        channels = CHANNELS.get(task.scorer.columns[n].form, tuple(range(index.ndim, shares[n].ndim)))
        parts.append(by_segment(shares[n].sum(axis=channels), index, len(names)))
    return np.concatenate(parts)


def by_segment(values: np.ndarray, index: np.ndarray, count: int, mean: bool = False) -> np.ndarray:
    """Values at positions (padding at their ends) added up, or averaged, by segment: (S,)."""
    values = values[tuple(slice(0, n) for n in index.shape)]
    inside = index >= 0
    total = np.bincount(index[inside], values[inside], minlength=count)
    return total / np.maximum(np.bincount(index[inside], minlength=count), 1) if mean else total


def by_maps(task: Task) -> Found:
    layers = feature_layers(task.scorer.network, list(task.examples[0].x), task.scorer.output)
    if not any(layers.values()):
        raise Unsupported(
            "explain.no_feature_layer",
            inputs=shortened(layers, 6),
            methods=["integrated-gradients", "lime", "kernel-shap"],
        )
    return Found([_mapped(task, r, layers) for r in range(len(task.examples))])


def feature_layers(network: Any, inputs: Sequence[str], output: str) -> dict[str, Any]:
    """Per input the layer that Grad-CAM reads for an output, None where its encoder has none."""
    layer_of = getattr(network, "feature_layer", lambda name, output: None)
    return {n: layer_of(n, output) for n in inputs}


def _mapped(task: Task, row: int, layers: Mapping[str, Any]) -> np.ndarray:
    e, parts = task.examples[row], []
    batch = task.scorer.batch({n: [x] for n, x in e.x.items()}, 1)  # alone, so that no padding takes part
    for n, (names, index) in e.segments.items():
        if layers[n] is None:
            parts.append(np.full(len(names), np.nan))
            continue
        try:
            found = grad_cam(lambda: task.scorer.score(batch, np.array([row])), layers[n], index.shape)
        except ValueError as e_shape:
            raise Unsupported("explain.feature_shape", input=n, found=str(e_shape), want=len(index.shape) + 2) from None
        parts.append(by_segment(found[0].double().cpu().numpy(), index, len(names), mean=True))
    return np.concatenate(parts)


METHODS: dict[str, Callable[[Task], Found]] = {
    "integrated-gradients": by_gradients,
    "grad-cam": by_maps,
    "lime": by_lime,
    "kernel-shap": by_shapley,
}
