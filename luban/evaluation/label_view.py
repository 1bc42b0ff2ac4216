"""What the table of predictions says where an answer is any number of labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from luban.evaluation.baselines import Baseline
from luban.evaluation.intervals import Metric, bootstrap, mean, percentile
from luban.evaluation.views import View
from luban.messages import listed, say

NAMES = ("f1_micro", "f1_macro", "precision_micro", "recall_micro")
STRENGTHS = (0.1, 1.0, 10.0)


class LabelsView(View):
    kind = "labels"

    @cached_property
    def truth(self) -> np.ndarray:
        return self.predictions.truth[self.known] > 0

    @cached_property
    def chances(self) -> np.ndarray:
        return self.predictions.column.chances(self.predictions.raw)[self.known]

    @property
    def answers(self) -> np.ndarray:
        return self.chances >= self.predictions.column.threshold

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        found = metrics(self.truth, self.answers, self.seed, self.resamples)
        return found | {"map_macro": average_precision(self.truth, self.chances)}

    def _measure(self, baseline: Baseline) -> dict[str, Metric]:
        p = baseline.probabilities[self.known]
        found = metrics(self.truth, p >= 0.5, self.seed, max(100, self.resamples // 5))
        return found | {"map_macro": average_precision(self.truth, p)}

    def difference(self, other: LabelsView) -> dict[str, Metric]:
        """What another model's answers to the same rows are better by, of draws that both share."""
        n = len(self.truth)
        first, second = (shares(v.truth, v.answers) for v in (self, other))
        both = lambda block: second(block) - first(block)  # noqa: E731
        drawn, values = bootstrap(both, n, **self.draws), both(np.ones((1, n)))[0]
        found = {k: Metric(float(v), *percentile(d)) for k, v, d in zip(NAMES, values, drawn.T)}
        mine, theirs = ((v.answers == v.truth).all(1).astype(float) for v in (self, other))
        return found | {"exact_match": mean(theirs - mine, **self.draws)}

    def pictures(self, report: Any, rivals: list[Baseline]) -> None:
        labels, rows = self.predictions.column.labels, []
        for k, (hits, said, true) in enumerate(zip(*counts(self.truth, self.answers))):
            f1 = 2 * hits / max(said + true, 1)
            rows.append([labels[k], f"{hits / max(said, 1):.3f}", f"{hits / max(true, 1):.3f}", f"{f1:.3f}", int(true)])
        if len(rows) <= 200:
            head = [say("evaluate.class"), "precision", "recall", "f1", say("evaluate.rows")]
            report.table(say("evaluate.per_class"), head, rows, "lrrrr")

    def per_row(self) -> np.ndarray:
        score = np.full(len(self.known), np.nan)
        score[self.known] = (self.answers == self.truth).mean(1)
        return score

    def worst(self, count: int) -> np.ndarray:
        where = np.flatnonzero(self.known)
        far = np.abs(self.chances - self.truth).max(1)
        wrong = np.flatnonzero((self.answers != self.truth).any(1))
        return where[wrong[np.argsort(-far[wrong], kind="stable")][:count]]

    def row_names(self) -> list[str]:
        return [say("evaluate.truth"), say("evaluate.answer")]

    def row(self, i: int) -> list[Any]:
        labels = self.predictions.column.labels
        true = [label for label, x in zip(labels, self.predictions.truth[i]) if x > 0]
        return [listed(true) or "–", listed(self.predictions.answers[i].value) or "–"]


def counts(truth: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per label: rightly answered, answered, true."""
    return (truth & answers).sum(0), answers.sum(0), truth.sum(0)


def shares(truth: np.ndarray, answers: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Weights of rows (R, N) -> (R, 4), as `NAMES` says."""
    columns = np.concatenate([truth & answers, answers, truth], axis=1).astype(float)

    def statistic(block: np.ndarray) -> np.ndarray:
        hits, said, true = np.split(block @ columns, 3, axis=1)
        over = lambda a, b: np.divide(a, b, out=np.zeros_like(a), where=b > 0)  # noqa: E731
        sums = [t.sum(1) for t in (hits, said, true)]
        macro = over(2 * hits, said + true).mean(1)
        micro = over(2 * sums[0], sums[1] + sums[2])
        return np.stack([micro, macro, over(sums[0], sums[1]), over(sums[0], sums[2])], 1)

    return statistic


def metrics(truth: np.ndarray, answers: np.ndarray, seed: int = 0, resamples: int = 500) -> dict[str, Metric]:
    """truth, answers bool (N, K). Micro over all labels of all rows, macro over the labels; a share of nothing is 0.

    `exact_match`: rows with just the right labels; `hamming_loss`: share of labels that are wrong. Equal to scikit-learn's.
    """
    if not len(truth):
        return {n: Metric(float("nan"), note="metric.no_rows") for n in (*NAMES, "exact_match", "hamming_loss")}
    statistic = shares(truth, answers)
    values = statistic(np.ones((1, len(truth))))[0]
    drawn = bootstrap(statistic, len(truth), resamples=resamples, seed=seed)
    found = {n: Metric(float(v), *percentile(d)) for n, v, d in zip(NAMES, values, drawn.T)}
    wrong = truth != answers
    draws = {"seed": seed, "resamples": resamples}
    return found | {"exact_match": mean(~wrong.any(1), **draws), "hamming_loss": mean(wrong.mean(1), **draws)}


def average_precision(truth: np.ndarray, probabilities: np.ndarray) -> Metric:
    """The mean over labels (those that are true of some row) of the area under precision against recall."""
    from sklearn.metrics import average_precision_score

    there = truth.any(0)
    if not there.any():
        return Metric(float("nan"), note="metric.no_rows")
    return Metric(
        float(np.mean([average_precision_score(truth[:, k], probabilities[:, k]) for k in np.flatnonzero(there)]))
    )


def label_baselines(
    x: Any, y: np.ndarray, x_valid: Any, y_valid: np.ndarray, x_test: Any, seed: int = 0
) -> list[Baseline]:
    """`majority`: each label as often as in training; `linear`: a logistic regression for each label, strength by validation.

    Features (N, D), y (N, K) of 0 and 1.
    """
    from sklearn.linear_model import LogisticRegression

    share = y.mean(0)
    count = x_test.shape[0]
    majority = np.tile(share, (count, 1))
    both = [k for k in range(y.shape[1]) if 0 < share[k] < 1]
    best: tuple[float, float, Any] | None = None
    judged = (x_valid, y_valid) if x_valid is not None and len(y_valid) else (x, y)
    for strength in STRENGTHS:
        models = {k: LogisticRegression(C=strength, max_iter=200, random_state=seed).fit(x, y[:, k]) for k in both}
        p = _answers(models, judged[0], share)
        loss = -float(np.mean(np.where(judged[1] > 0, np.log(p.clip(1e-9)), np.log((1 - p).clip(1e-9)))))
        if best is None or loss < best[0]:
            best = (loss, strength, models)
    linear = _answers(best[2], x_test, share)
    return [
        Baseline("majority", majority >= 0.5, majority),
        Baseline("linear", linear >= 0.5, linear, {"C": best[1]}),
    ]


def _answers(models: dict[int, Any], x: Any, share: np.ndarray) -> np.ndarray:
    p = np.tile(share, (x.shape[0], 1)).astype(float)
    for k, model in models.items():
        p[:, k] = model.predict_proba(x)[:, 1]
    return p
