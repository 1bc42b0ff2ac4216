"""How well sequences of tags are answered: by entity where tags have prefixes, by tag where they have none.

An entity is right where its first unit, its last and its type are (CoNLL 2003; Tjong Kim Sang and De Meulder), as `seqeval` counts
it. precision, recall and f1 are of all entities together; `f1_macro` is the mean over types; `accuracy` is the share of units
with the right tag. Tags without prefixes: f1 of all tags together, which is the accuracy. Intervals: bootstrap over rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from luban.evaluation.intervals import Metric, bootstrap, percentile, wilson
from luban.evaluation.metrics import ClassScore

Tags = Sequence[str]
NONE = ""  # the place of an entity that was missed, or made up, in `confusion`


class Counts:
    """Per row what is right, answered and true of each type; `statistic` turns weights of rows into the metrics.

    truth, answers: N sequences, as long as each other; scheme: `luban.data.tagged.Scheme`. `types`: their order, the most frequent first
    unless given. Raises ValueError where lengths differ.
    """

    def __init__(self, truth: Sequence[Tags], answers: Sequence[Tags], scheme: Any, types: Sequence[str] | None = None):
        if len(truth) != len(answers) or any(len(t) != len(a) for t, a in zip(truth, answers)):
            raise ValueError((len(truth), len(answers)))
        self.by_entity = scheme.name != "none"
        found = [(_items(t, scheme), _items(a, scheme)) for t, a in zip(truth, answers)]
        support = Counter(kind for mine, _ in found for *_, kind in mine)
        answered = Counter(kind for _, theirs in found for *_, kind in theirs)
        self.types = list(types) if types is not None else sorted({*support, *answered}, key=lambda k: (-support[k], k))
        place = {kind: i for i, kind in enumerate(self.types)}
        self.rows = np.zeros((len(found), 3 * len(self.types) + 2))
        for row, (mine, theirs) in zip(self.rows, found):
            for offset, items in enumerate((mine & theirs, theirs, mine)):
                for *_, kind in items:
                    row[3 * place[kind] + offset] += 1
        for row, t, a in zip(self.rows, truth, answers):
            row[-2:] = sum(map(str.__eq__, t, a)), len(t)
        self.names = ("f1", *(("precision", "recall") if self.by_entity else ()), "f1_macro", "accuracy")

    def __len__(self) -> int:
        return len(self.rows)

    def statistic(self, block: np.ndarray) -> np.ndarray:
        """Weights (R, N) -> (R, metrics), in the order of `names`."""
        sums = block @ self.rows
        hit, answered, true = sums[:, :-2].reshape(len(block), -1, 3).transpose(2, 0, 1)
        occurs = (answered > 0) | (true > 0)
        each = _share(2 * hit, answered + true, 0.0)
        found = {
            "f1": _share(2 * hit.sum(1), answered.sum(1) + true.sum(1)),
            "precision": _share(hit.sum(1), answered.sum(1), 0.0),
            "recall": _share(hit.sum(1), true.sum(1), 0.0),
            "f1_macro": _share((each * occurs).sum(1), occurs.sum(1)),
            "accuracy": _share(sums[:, -2], sums[:, -1]),
        }
        return np.stack([found[n] for n in self.names], axis=1)

    def metrics(self, *, seed: int = 0, resamples: int = 500) -> dict[str, Metric]:
        if not len(self.rows):
            return {name: Metric(math.nan, note="metric.no_rows") for name in self.names}
        samples = bootstrap(self.statistic, len(self.rows), resamples=resamples, seed=seed)
        values = self.statistic(np.ones((1, len(self.rows))))[0]
        return {n: self._metric(float(values[i]), samples[:, i]) for i, n in enumerate(self.names)}

    def _metric(self, value: float, samples: np.ndarray) -> Metric:
        if math.isnan(value):
            return Metric(math.nan, note="metric.no_entities")
        low, high = percentile(samples)
        if low is not None and low == high and value in (0.0, 1.0):
            low, high = wilson(value * len(self.rows), len(self.rows))
        return Metric(value, low, high)

    def by_type(self) -> list[ClassScore]:
        """One line a type."""
        hit, answered, true = self.rows[:, :-2].sum(0).reshape(-1, 3).T
        columns = (_share(hit, answered, 0.0), _share(hit, true, 0.0), _share(2 * hit, answered + true, 0.0))
        return [
            ClassScore(*line) for line in zip(self.types, *(c.tolist() for c in columns), true.astype(int).tolist())
        ]


def confusion(truth: Iterable[Tags], answers: Iterable[Tags], scheme: Any, types: Sequence[str]) -> np.ndarray:
    """(T + 1, T + 1): how often a stretch of units is an entity of one type and answered as one of another; last: none."""
    place = {kind: i for i, kind in enumerate(types)}
    found = np.zeros((len(types) + 1, len(types) + 1), np.int64)
    for t, a in zip(truth, answers):
        mine, theirs = ({(s, e): k for s, e, k in _items(x, scheme)} for x in (t, a))
        for where in {*mine, *theirs}:
            found[place.get(mine.get(where, NONE), -1), place.get(theirs.get(where, NONE), -1)] += 1
    return found


def _items(tags: Tags, scheme: Any) -> set[tuple[int, int, str]]:
    """Entities; without prefixes every unit with its tag."""
    if scheme.name == "none":
        return {(i, i + 1, tag) for i, tag in enumerate(tags)}
    return {(*e,) for e in scheme.entities(tags)}


def _share(part: Any, whole: Any, otherwise: float = math.nan) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), otherwise), where=whole > 0)
