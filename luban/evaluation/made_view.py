"""What the table says of pictures that were made: how far they are as a set from real ones, in the eyes of a judge.

| metric | what it is |
|---|---|
| `frechet` | Frechet distance of the judge's features of made and held-out pictures (Heusel et al. 2017) |
| `frechet_real` | the same of two halves of the held-out pictures: what is left where nothing is wrong |
| `recognised` | share in which the judge sees the class that was asked for; `recognised_real`: of the held-out pictures |
| `precision`, `recall` | share of made pictures among real ones, of real among made (Kynkaanniemi et al. 2019) |
| `nearest` | grey levels (root mean square) to the nearest training picture; `nearest_real`: of the held-out pictures. Far less: copies |
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from luban import plots
from luban.columns.examples import cells
from luban.columns.image import shown
from luban.columns.kept import encode_kept
from luban.data.prepare import prepare
from luban.data.samples import SAMPLES
from luban.errors import DataError
from luban.evaluation.baselines import Baseline
from luban.evaluation.intervals import Metric, mean
from luban.evaluation.judging import Learned, Saved, frechet, grid, moments
from luban.evaluation.views import View
from luban.messages import say

VISITS = 150_000  # rows that a judge taught here sees
MOST, NEIGHBOURS = 2000, 3  # pictures of each side whose neighbours are looked at, and how many
COMPARED, BLOCK = 1000, 4096  # made pictures whose nearest training picture is sought; training pictures at once
DRAWS, SHOWN, ACROSS = 100, 50, 10
TURN = 1  # seeds apart: of a judge here from the one that watched the training


@dataclass
class Witness:
    """The judge, the training pictures uint8 (M, C, H, W), and the codes of the classes: of those, and of the rows judged."""

    judge: Any
    training: np.ndarray
    taught: np.ndarray | None  # (M,)
    asked: np.ndarray | None  # (N,)


def witness(bundle: Any, data: Any, judged: Any, judge: str | None = None) -> Witness:
    """`judge`: the folder of a saved model; without one a small CNN is taught here on the training rows.

    Raises DataError where these are not there, RequestError where the folder holds no judge.
    """
    network, columns = bundle.network, bundle.columns
    name = network.drawn
    labels = [n for names in network.groups for n in names if columns[n].form == "index"][:1]
    there = data if data.splits is not None else _own(bundle)
    if there is None:
        raise DataError("judge.no_rows", rows=str(bundle.recipe.data.get("rows")))
    training = encode_kept(columns, bundle.inputs, bundle.outputs, there.framed("train", bundle.recipe.frame))
    asked = columns[labels[0]].encode_all(cells(judged.cells[labels[0]])) if labels else None
    if judge:
        found: Any = Saved(judge, columns[name], columns[labels[0]].labels if labels else None)
    else:
        of = (labels[0], columns[labels[0]].size) if labels else (None, 0)
        found = Learned(columns[name], *of, seed=bundle.recipe.seed + TURN)
        found.learn(training, name, min(VISITS, 40 * len(training)))
    codes = np.asarray(training.inputs[labels[0]]) if labels else None
    return Witness(found, training.targets[name], codes, asked)


def _own(bundle: Any) -> Any:
    """The rows that the recipe names, where they are still there."""
    rows = bundle.recipe.data.get("rows")
    return prepare(bundle.recipe) if rows and (rows in SAMPLES or Path(rows).exists()) else None


class MadeView(View):
    kind = "image"
    main = ("frechet", False)

    @property
    def witness(self) -> Witness:
        return self.judged.witness

    @cached_property
    def truth(self) -> np.ndarray:
        return self.predictions.truth[self.known]

    @cached_property
    def made(self) -> np.ndarray:
        return shown(self.predictions.raw)[self.known]

    @cached_property
    def _real(self) -> np.ndarray:
        return self.witness.judge.features(self.truth)

    @cached_property
    def _asked(self) -> np.ndarray | None:
        return None if self.witness.asked is None else self.witness.asked[self.known]

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        found = self._of(self.made)
        order = np.random.default_rng(self.seed).permutation(len(self._real))
        halves = np.array_split(order, 2)
        found["frechet_real"] = Metric(frechet(*(moments(self._real[h]) for h in halves)))
        if self._asked is not None:
            found["recognised_real"] = self._recognised(self.truth)
        found["nearest"] = mean(self._nearest(self.made), seed=self.seed)
        found["nearest_real"] = mean(self._nearest(self.truth), seed=self.seed)
        return {n: found[n] for n in sorted(found, key=ORDER.index)}

    def _of(self, pictures: np.ndarray) -> dict[str, Metric]:
        features = self.witness.judge.features(pictures)
        found = {"frechet": distance(self._real, features, self.seed, min(DRAWS, self.resamples))}
        if self._asked is not None:
            found["recognised"] = self._recognised(pictures)
        some = [f[np.linspace(0, len(f) - 1, min(MOST, len(f))).astype(int)] for f in (self._real, features)]
        return found | {"precision": inside(*some), "recall": inside(*some[::-1])}

    def _recognised(self, pictures: np.ndarray) -> Metric:
        return mean(self.witness.judge.classes(pictures) == self._asked)

    def _nearest(self, pictures: np.ndarray) -> np.ndarray:
        some = np.linspace(0, len(pictures) - 1, min(COMPARED, len(pictures))).astype(int)
        return nearest(pictures[some], self.witness.training)

    def _measure(self, baseline: Baseline) -> dict[str, Metric]:
        return self._of(baseline.answers[self.known])

    def difference(self, other: MadeView) -> dict[str, Metric]:
        return {n: Metric(m.value - self.metrics[n].value) for n, m in other.metrics.items()}

    def numbers(self, rivals: list[Baseline]) -> dict[str, Any]:
        return super().numbers(rivals) | {"judge": self.witness.judge.name}

    def write(self, report: Any, rivals: list[Baseline]) -> None:
        super().write(report, rivals)
        report.text(say("judge.who", judge=self.witness.judge.name, rows=int(self.known.sum())))
        mine, real = (self.metrics[n].value for n in ("nearest", "nearest_real"))
        level = "warn" if mine < COPY * real else "info"
        report.note(level, say(f"judge.nearest_{level}", nearest=f"{mine:.1f}", real=f"{real:.1f}"))

    def pictures(self, report: Any, rivals: list[Baseline]) -> None:
        """The same rows made, real, and by the baselines; a column a class."""
        rows = classes_first(self._asked, len(self.made), SHOWN)
        sides = {say("judge.made"): self.made, say("judge.real"): self.truth}
        sides |= {b.title: b.answers[self.known] for b in rivals}
        for title, pictures in sides.items():
            png = base64.b64encode(grid(pictures[rows], ACROSS)).decode()
            report.html(title, plots.picture(png, title), "")

    def per_row(self) -> np.ndarray:
        """1 where the judge sees what was asked for; without classes minus the distance to the nearest held-out picture."""
        score = np.full(len(self.known), np.nan)
        if self._asked is not None:
            score[self.known] = self.witness.judge.classes(self.made) == self._asked
        else:
            score[self.known] = -nearest(self.made, self.truth)
        return score

    def worst(self, count: int) -> np.ndarray:
        return np.zeros(0, np.int64)  # no picture is wrong by itself


COPY = 0.5  # times the distance of real pictures: nearer to the training pictures than this looks copied
ORDER = ["frechet", "frechet_real", "recognised", "recognised_real", "precision", "recall", "nearest", "nearest_real"]


def distance(real: np.ndarray, made: np.ndarray, seed: int, draws: int) -> Metric:
    """The Frechet distance, and how far the bootstrap's spread about their own mean: draws of rows are farther apart than rows."""
    value, random = frechet(moments(real), moments(made)), np.random.default_rng(seed)
    drawn = lambda f: moments(f[random.integers(0, len(f), len(f))])  # noqa: E731
    found = [frechet(drawn(real), drawn(made)) for _ in range(draws)]
    low, high = value + np.quantile(found, [0.025, 0.975]) - np.mean(found)
    return Metric(value, max(0.0, float(low)), float(high))


def inside(real: np.ndarray, made: np.ndarray) -> Metric:
    """Share of `made` features that lie as near to some real one as its third neighbour among the real ones does."""
    if len(real) <= NEIGHBOURS:
        return Metric(float("nan"), note="metric.no_rows")
    among = np.sqrt(_squared(real, real))
    reach = np.partition(among, NEIGHBOURS, axis=1)[:, NEIGHBOURS]  # the nearest is itself
    return mean((np.sqrt(_squared(made, real)) <= reach).any(1))


def nearest(pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of each picture the root mean square difference to the nearest of the others, in grey levels (N,)."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float32)
    least = np.full(len(flat), np.inf, np.float32)
    for start in range(0, len(others), BLOCK):
        block = np.asarray(others[start : start + BLOCK]).reshape(-1, flat.shape[1]).astype(np.float32)
        least = np.minimum(least, _squared(flat, block).min(1))
    return np.sqrt(least / flat.shape[1])


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (A, B)."""
    return np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T), 0)


def classes_first(codes: np.ndarray | None, count: int, most: int) -> np.ndarray:
    """Rows of every class side by side: the first of each, the second of each, ...; any rows where there are no classes."""
    if codes is None:
        return np.arange(min(count, most))
    order = np.argsort(codes, kind="stable")
    place = np.arange(len(codes)) - np.searchsorted(codes[order], codes[order])  # how many of its class came before
    return order[np.lexsort((codes[order], place))][:most]


def gaussian(seen: Witness, count: int, seed: int) -> Baseline:
    """Pictures drawn from a normal distribution with the mean and the covariance of the training pictures of each class."""
    shape, random = seen.training.shape[1:], np.random.default_rng(seed)
    asked = np.zeros(count, np.int64) if seen.asked is None else seen.asked
    taught = np.zeros(len(seen.training), np.int64) if seen.taught is None else seen.taught
    found = np.zeros((count, int(np.prod(shape))), np.float32)
    for code in np.unique(asked):
        rows = np.flatnonzero(taught == code) if (taught == code).any() else np.arange(len(taught))
        rows = rows[np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(int)]
        x = np.asarray(seen.training[rows]).reshape(len(rows), -1).astype(np.float32)
        centre = x.mean(0)
        wanted = np.flatnonzero(asked == code)
        weights = random.standard_normal((len(wanted), len(rows)), np.float32) / max(1, len(rows) - 1) ** 0.5
        found[wanted] = centre + weights @ (x - centre)
    pictures = np.clip(np.round(found), 0, 255).astype(np.uint8).reshape(-1, *shape)
    return Baseline("gaussian", pictures)
