"""What the table says of an output that is written: how likely the truth was, and how near the answers come to it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from luban.evaluation.baselines import Baseline
from luban.evaluation.intervals import Metric, bootstrap, mean, percentile
from luban.evaluation.views import View
from luban.messages import say

SHOWN = 400  # characters of a text that a table shows


class TextView(View):
    """`texts`: the true text of each row. Without inputs (a language model) only its likelihood can be judged."""

    kind = "text"
    texts: list[str]

    @cached_property
    def known(self) -> np.ndarray:
        return self.predictions.known

    @property
    def main(self) -> tuple[str, bool]:
        """The metric that baselines are compared by; whether higher is better."""
        return ("exact_match", True) if self.predictions.answers else ("bits_per_byte", False)

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        bytes_ = np.array([len(t.encode("utf-8", "replace")) for t, k in zip(self.texts, self.known) if k])
        found = likelihoods(self.predictions.losses[self.known], bytes_, self.resamples, self.seed)
        return self._of([a.value for a in self.predictions.answers]) | found

    def _of(self, answers: list[str]) -> dict[str, Metric]:
        """Metrics of some answers, one for each row."""
        if not answers:
            return {}
        pairs = [(a, t) for a, t, k in zip(answers, self.texts, self.known) if k]
        return {"exact_match": mean([a.strip() == t.strip() for a, t in pairs])}

    def _measure(self, baseline: Baseline) -> dict[str, Metric]:
        if baseline.losses is not None:
            return {"bits_per_byte": Metric(float(baseline.losses))}
        return self._of(list(baseline.answers))

    def pictures(self, report: Any, rivals: list[Baseline]) -> None:
        pass

    def per_row(self) -> np.ndarray:
        """Minus the bits of each byte."""
        nats, _ = self.predictions.losses.T
        size = np.array([max(1, len(t.encode("utf-8", "replace"))) for t in self.texts])
        return np.where(self.known, -nats / np.log(2) / size, np.nan)

    def worst(self, count: int) -> np.ndarray:
        order = np.argsort(np.where(self.known, self.per_row(), np.inf), kind="stable")
        return order[: min(count, int(self.known.sum()))]

    def row_names(self) -> list[str]:
        names = [say("evaluate.truth"), say("evaluate.answer"), say("evaluate.bits")]
        return names if self.predictions.answers else [names[0], names[2]]

    def row(self, i: int) -> list[Any]:
        bits = f"{-self.per_row()[i]:.3f}"
        truth = _short(self.texts[i])
        return [truth, _short(self.predictions.answers[i].value), bits] if self.predictions.answers else [truth, bits]


def likelihoods(losses: np.ndarray, size: np.ndarray, resamples: int = 500, seed: int = 0) -> dict[str, Metric]:
    """losses (N, 2): nats and tokens of each text; size (N,): its UTF-8 bytes.

    `bits_per_byte` = sum of bits / sum of bytes, which does not depend on how text is cut into tokens; `perplexity` =
    exp(nats a token), which does. Intervals: rows drawn with replacement.
    """
    if not len(losses):
        return {n: Metric(float("nan"), note="metric.no_rows") for n in ("bits_per_byte", "perplexity")}
    columns = np.column_stack([losses, size]).astype(float)

    def statistic(block: np.ndarray) -> np.ndarray:
        nats, tokens, size = (block @ columns).T
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.stack([nats / np.log(2) / size, np.exp(nats / tokens)], 1)

    values = statistic(np.ones((1, len(columns))))[0]
    drawn = bootstrap(statistic, len(columns), resamples=resamples, seed=seed)
    return {n: Metric(float(v), *percentile(d)) for n, v, d in zip(("bits_per_byte", "perplexity"), values, drawn.T)}


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + " …"
