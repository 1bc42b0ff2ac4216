"""What the table of predictions says where an answer is a stretch of a text."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from luban import plots
from luban.evaluation import answers as squad
from luban.evaluation import calibration
from luban.evaluation.baselines import Baseline
from luban.evaluation.intervals import Metric, mean, paired_difference
from luban.evaluation.views import View
from luban.messages import say

LENGTHS = ((1, 2), (3, 5), (6, 10), (11, 10**6))  # tokens of the right answer, of the table by length


class SpanView(View):
    kind = "span"

    @cached_property
    def truth(self) -> list[list[str]]:
        return [t for t, k in zip(self.predictions.truth, self.known) if k]

    @cached_property
    def answers(self) -> list[str]:
        return [a.value for a, k in zip(self.predictions.answers, self.known) if k]

    @cached_property
    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Exact match and F1 of each row whose truth is known."""
        return squad.by_row(self.truth, self.answers)

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        return self._metrics(*self.scores, self.resamples)

    def _metrics(self, exact: np.ndarray, f1: np.ndarray, resamples: int) -> dict[str, Metric]:
        """Where some rows have no answer, those with one and those without apart, too (SQuAD 2.0)."""
        draws = {"seed": self.seed, "resamples": resamples}
        found = {"exact_match": mean(exact, **draws), "f1": mean(f1, **draws)}
        there = np.array([bool(t) for t in self.truth], bool)
        if there.all():
            return found
        apart = {
            "has_answer_exact_match": exact[there],
            "has_answer_f1": f1[there],
            "no_answer_accuracy": exact[~there],
        }
        return found | {n: mean(v, **draws) for n, v in apart.items()}

    def _measure(self, baseline: Baseline) -> dict[str, Metric]:
        answers = [a for a, k in zip(baseline.answers, self.known) if k]
        return self._metrics(*squad.by_row(self.truth, answers), max(100, self.resamples // 5))

    def difference(self, other: SpanView) -> dict[str, Metric]:
        names = ("exact_match", "f1")
        return {n: paired_difference(b, a, **self.draws) for n, a, b in zip(names, self.scores, other.scores)}

    def pictures(self, report: Any, rivals: list[Baseline]) -> None:
        sizes = np.array([len(squad.tokens(t[0])) if t else 0 for t in self.truth])
        exact, f1 = self.scores
        rows = []
        for low, high in ((0, 0), *LENGTHS):
            some = (sizes >= low) & (sizes <= high)
            if some.any():
                name = say("span.none") if not high else f"{low} – {high}" if high < 10**6 else f"{low} …"
                rows.append([name, int(some.sum()), f"{exact[some].mean():.3f}", f"{f1[some].mean():.3f}"])
        report.table(
            say("evaluate.by_length"), [say("evaluate.answer_tokens"), say("evaluate.rows"), "exact_match", "f1"], rows
        )
        self._reliability(report, exact)

    def _reliability(self, report: Any, exact: np.ndarray) -> None:
        """Whether an answer of probability 0.8 is right eight times of ten."""
        chances = np.array([a.probability for a, k in zip(self.predictions.answers, self.known) if k])
        if not len(chances):
            return
        right = exact > 0
        bins = calibration.reliability(chances, right)
        values = {"ece": f"{calibration.ece(chances, right):.4f}", "floor": f"{calibration.ece_floor(chances):.4f}"}
        axes = {"x_label": say("evaluate.confidence"), "y_label": say("evaluate.share_right"), "count_label": say("evaluate.rows")}  # fmt: skip
        drawn = plots.reliability(bins.confidence, bins.accuracy, bins.counts, **axes)
        report.plot(say("evaluate.reliability"), drawn, say("evaluate.reliability_caption", **values))

    def per_row(self) -> np.ndarray:
        score = np.full(len(self.known), np.nan)
        score[self.known] = self.scores[1]
        return score

    def worst(self, count: int) -> np.ndarray:
        """Rows whose answer has nothing right, the surest first, then those that are partly right."""
        where, f1 = np.flatnonzero(self.known), self.scores[1]
        sure = np.array([self.predictions.answers[i].probability for i in where])
        order = np.lexsort([-sure, f1])
        return where[order[f1[order] < 1]][:count]

    def row_names(self) -> list[str]:
        return [say("evaluate.truth"), say("evaluate.answer"), say("evaluate.probability")]

    def row(self, i: int) -> list[Any]:
        answer, none = self.predictions.answers[i], say("span.none")
        return [" | ".join(self.predictions.truth[i]) or none, answer.value or none, f"{answer.probability:.3f}"]
