"""What the table of predictions says where answers are tags."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from luban import plots
from luban.evaluation import calibration, entities, paired
from luban.evaluation.baselines import Baseline
from luban.evaluation.views import Shown, View
from luban.messages import say

MOST = 30  # types that one picture can hold


class TagsView(View):
    kind = "tags"

    @cached_property
    def truth(self) -> list[list[str]]:
        return [t for t in self.predictions.truth if t is not None]

    @cached_property
    def answers(self) -> list[list[str]]:
        return [a.value for a, k in zip(self.predictions.answers, self.known) if k]

    @property
    def scheme(self) -> Any:
        return self.predictions.column.kind

    @cached_property
    def counts(self) -> entities.Counts:
        return entities.Counts(self.truth, self.answers, self.scheme)

    def counts_over(self, types: list[str]) -> entities.Counts:
        """The counts in the order of another's types, then its own."""
        every = [*types, *(k for k in self.counts.types if k not in types)]
        return entities.Counts(self.truth, self.answers, self.scheme, every)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return self.counts.metrics(seed=self.seed, resamples=self.resamples)

    def _measure(self, baseline: Baseline) -> dict[str, Any]:
        answers = [a for a, k in zip(baseline.answers, self.known) if k]
        counts = entities.Counts(self.truth, answers, self.scheme)
        return counts.metrics(seed=self.seed, resamples=max(100, self.resamples // 5))

    def difference(self, other: TagsView) -> dict[str, Any]:
        return paired.of_counts(self.counts, other.counts_over(self.counts.types), **self.draws)

    def numbers(self, rivals: list[Baseline]) -> dict[str, Any]:
        found = super().numbers(rivals)
        lines = {s.label: {"precision": s.precision, "recall": s.recall, "f1": s.f1, "support": s.support} for s in self.counts.by_type()}  # fmt: skip
        return found | {"types": lines}

    def pictures(self, report: Any, rivals: list[Baseline]) -> None:
        lines = self.counts.by_type()
        name = "evaluate.type" if self.counts.by_entity else "evaluate.tag"
        head = [say(name), "precision", "recall", "f1", say("evaluate.occurs")]
        body = [[s.label, f"{s.precision:.3f}", f"{s.recall:.3f}", f"{s.f1:.3f}", s.support] for s in lines]
        report.table(say("evaluate.per_type"), head, body, "lrrrr")
        if not self.counts.by_entity or not lines:
            return
        if len(lines) <= MOST:
            labels = [*self.counts.types, say("evaluate.no_entity")]
            found = entities.confusion(self.truth, self.answers, self.scheme, self.counts.types)
            axes = {"x_label": say("evaluate.answer"), "y_label": say("evaluate.truth")}
            report.plot(say("evaluate.entities"), plots.heatmap(found, labels, labels, **axes), say("evaluate.entities_caption"))  # fmt: skip
        self._reliability(report)

    def _reliability(self, report: Any) -> None:
        """Whether an entity that is answered with 0.8 is right eight times of ten."""
        confidence, right = self._entities()
        if not len(confidence):
            return
        bins = calibration.reliability(confidence, right)
        values = {
            "ece": f"{calibration.ece(confidence, right):.4f}",
            "floor": f"{calibration.ece_floor(confidence):.4f}",
        }
        axes = {"x_label": say("evaluate.confidence"), "y_label": say("evaluate.share_right"), "count_label": say("evaluate.entity_count")}  # fmt: skip
        drawn = plots.reliability(bins.confidence, bins.accuracy, bins.counts, **axes)
        report.plot(say("evaluate.reliability"), drawn, say("evaluate.reliability_caption", **values))

    def _entities(self) -> tuple[np.ndarray, np.ndarray]:
        """The probability of each entity that was answered, and whether it is right."""
        confidence, right = [], []
        for i in np.flatnonzero(self.known):
            answer = self.predictions.answers[i]
            true = set(self.scheme.entities(self.predictions.truth[i]))
            for entity, told in zip(self.scheme.entities(answer.value), answer.details["entities"]):
                if told["probability"] is not None:
                    confidence.append(told["probability"])
                    right.append(entity in true)
        return np.array(confidence), np.array(right, bool)

    def per_row(self) -> np.ndarray:
        """The share of a row's tags that are right."""
        score = np.full(len(self.known), np.nan)
        pairs = zip(self.truth, self.answers)
        score[self.known] = [np.mean([x == y for x, y in zip(t, a)]) if t else 1.0 for t, a in pairs]
        return score

    def worst(self, count: int) -> np.ndarray:
        """Rows with a wrong answer, those first whose wrong entity (or tags) it was surest of."""
        sure = {}
        for i in np.flatnonzero(self.known):
            truth, answer = self.predictions.truth[i], self.predictions.answers[i]
            if truth != answer.value:
                true = set(self.scheme.entities(truth))
                told = zip(self.scheme.entities(answer.value), answer.details.get("entities", ()))
                wrong = [t["probability"] or 0.0 for e, t in told if e not in true]
                sure[int(i)] = max(wrong, default=answer.probability)
        return np.array(sorted(sure, key=lambda i: -sure[i])[:count], np.int64)

    def row_names(self) -> list[str]:
        return [say("evaluate.truth"), say("evaluate.answer"), say("evaluate.probability")]

    def row(self, i: int) -> list[Any]:
        column, answer, text = self.predictions.column, self.predictions.answers[i], self.text(i)
        drawn = (Shown(column.drawn(tags, text)) for tags in (self.predictions.truth[i], answer.value))
        return [*drawn, f"{answer.probability:.3f}"]

    def text(self, i: int) -> Any:
        """The raw text of a row."""
        return self.judged.cells[self.predictions.column.of][i].as_py()
