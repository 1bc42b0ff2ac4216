"""What the table says of an output that is written: how likely the truth was, and how near the answers come to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from luban.columns.examples import cells
from luban.errors import MissingExtra
from luban.evaluation import text_metrics
from luban.evaluation.baselines import Baseline
from luban.evaluation.intervals import Metric, bootstrap, mean, percentile
from luban.evaluation.ngram import byte_model, xz_sizes
from luban.evaluation.text_baselines import nearest_row, text_baselines
from luban.evaluation.views import View
from luban.messages import listed, say

BEGUN, GOES_ON = 8, 80  # words of a text that a language model is given, tokens that it writes
SHOWN = 400  # characters of a text that a table shows
LATELY = 8 << 20  # bytes of training text that a baseline of a language model reads, the last ones
SHOWN_WORDS, NEAREST = 20, 8
NAMES = ("chrf", "bleu", "rouge_l", "exact_match", "word_error_rate")


class TextView(View):
    """`texts`: the true text of each row. Without inputs (a language model) only its likelihood can be judged."""

    kind = "text"
    texts: list[str]

    @cached_property
    def truth(self) -> list[str]:
        return [t for t, k in zip(self.texts, self.known) if k]

    @cached_property
    def size(self) -> np.ndarray:
        return np.array([len(t.encode("utf-8", "replace")) for t in self.truth])

    @property
    def main(self) -> tuple[str, bool]:
        """The metric that baselines are compared by; whether higher is better."""
        return ("chrf", True) if self.predictions.answers else ("bits_per_byte", False)

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        nats, tokens = self.predictions.losses[self.known].T
        draws = {"seed": self.seed, "resamples": self.resamples}
        found = {
            "bits_per_byte": text_metrics.bits_per_byte(nats, self.size, **draws),
            "perplexity": text_metrics.perplexity(nats, tokens, **draws),
        }
        return self._of([a.value for a in self.predictions.answers], self.resamples) | found

    def _of(self, answers: Sequence[str], resamples: int) -> dict[str, Metric]:
        """Metrics of some answers, one for each row."""
        if not len(answers):
            return {}
        answers = [a for a, k in zip(answers, self.known) if k]
        found = {}
        for name in NAMES:
            draws = {} if name == "exact_match" else {"seed": self.seed, "resamples": resamples}
            try:
                found[name] = getattr(text_metrics, name)(self.truth, answers, **draws)
            except MissingExtra:  # how BLEU cuts words is not for us to say
                continue
        return found

    def _measure(self, baseline: Baseline) -> dict[str, Metric]:
        resamples = max(100, self.resamples // 5)
        if baseline.losses is None:
            return self._of(list(baseline.answers), resamples)
        nats = baseline.losses[self.known] if len(baseline.losses) == len(self.known) else baseline.losses
        size = self.size if len(nats) == len(self.size) else [self.size.sum()]
        return {"bits_per_byte": text_metrics.bits_per_byte(nats, size, seed=self.seed, resamples=resamples)}

    def difference(self, other: TextView) -> dict[str, Metric]:
        """What another model's answers to the same rows are better by: means over rows."""
        found = {"bits_per_byte": mean(other._bits() - self._bits(), **self.draws)}
        if self.predictions.answers:
            mine, theirs = (v._scores[v.known] for v in (self, other))
            found["chrf"] = mean(theirs - mine, **self.draws)
        return found

    def pictures(self, report: Any, rivals: list[Baseline]) -> None:
        pass

    def samples(self, report: Any, bundle: Any) -> None:
        """How a language model goes on from the beginnings of held-out texts, and from nothing."""
        if self.predictions.answers:
            return
        begun = [" ".join(t.split(" ")[:BEGUN]) for t in self.truth[:: max(1, len(self.truth) // 3)][:3]]
        texts = [
            bundle.generate(b, tokens=GOES_ON, temperature=0.8, seed=self.seed + i) for i, b in enumerate([*begun, ""])
        ]
        report.heading(say("evaluate.samples"), 3)
        head = [say("evaluate.begun"), say("evaluate.goes_on")]
        report.table("", head, [[b or "–", t] for b, t in zip([*begun, ""], texts)])

    def per_row(self) -> np.ndarray:
        return self._scores

    @cached_property
    def _scores(self) -> np.ndarray:
        """chrF of each answer; of a language model minus the bits of each byte."""
        found = np.full(len(self.known), np.nan)
        if self.predictions.answers:
            answers = [a.value for a, k in zip(self.predictions.answers, self.known) if k]
            found[self.known] = text_metrics.chrf_by_row(self.truth, answers)
        else:
            found[self.known] = -self._bits()
        return found

    def _bits(self) -> np.ndarray:
        return self.predictions.losses[self.known, 0] / np.log(2) / self.size.clip(1)

    def worst(self, count: int) -> np.ndarray:
        order = np.argsort(np.where(self.known, self.per_row(), np.inf), kind="stable")
        return order[: min(count, int(self.known.sum()))]

    def row_names(self) -> list[str]:
        names = [say("evaluate.truth"), say("evaluate.answer"), "chrf"]
        return names if self.predictions.answers else [names[0], say("evaluate.bits")]

    def row(self, i: int) -> list[Any]:
        truth, score = _short(self.texts[i]), float(self._scores[i])
        if self.predictions.answers:
            return [truth, _short(self.predictions.answers[i].value), f"{score:.1f}"]
        return [truth, f"{-score:.3f}"]


class HiddenView(View):
    """Tokens that were hidden, and said from those around them (`fusion: masked`)."""

    kind = "hidden"
    texts: list[str]
    main = ("accuracy", True)

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        nats, count, right = self.predictions.losses.T
        draws = {"seed": self.seed, "resamples": self.resamples}
        return {
            "accuracy": text_metrics.ratio(right, count, **draws),
            "perplexity": text_metrics.perplexity(nats, count, **draws),
        }

    def _measure(self, baseline: Baseline) -> dict[str, Metric]:
        tokens, draws = self.predictions.truth, {"seed": self.seed, "resamples": max(100, self.resamples // 5)}
        each = np.log(baseline.probabilities)[tokens.flat]
        right = tokens.flat == baseline.probabilities.argmax()
        sums = [np.add.reduceat(a, tokens.offsets[:-1]) for a in (-each, right.astype(float))]
        return {
            "accuracy": text_metrics.ratio(sums[1], tokens.lengths, **draws),
            "perplexity": text_metrics.perplexity(sums[0], tokens.lengths, **draws),
        }

    def difference(self, other: HiddenView) -> dict[str, Metric]:
        return {"accuracy": _apart(self.predictions.losses, other.predictions.losses, **self.draws)}

    def pictures(self, report: Any, rivals: list[Baseline]) -> None:
        pass

    def per_row(self) -> np.ndarray:
        nats, count, _ = self.predictions.losses.T
        return np.where(self.known, -nats / count.clip(1), np.nan)

    def worst(self, count: int) -> np.ndarray:
        order = np.argsort(np.where(self.known, self.per_row(), np.inf), kind="stable")
        return order[: min(count, int(self.known.sum()))]

    def row_names(self) -> list[str]:
        return [say("evaluate.input"), say("evaluate.nats")]

    def row(self, i: int) -> list[Any]:
        return [_short(self.texts[i]), f"{-self.per_row()[i]:.3f}"]


class NearView(View):
    """Neighbours told from words that were drawn at random (`fusion: skip_gram`)."""

    kind = "near"
    texts: list[str]
    main = ("accuracy", True)

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        nats, count, right, _ = self.predictions.losses.T
        draws = {"seed": self.seed, "resamples": self.resamples}
        return {"accuracy": text_metrics.ratio(right, count, **draws), "loss": text_metrics.ratio(nats, count, **draws)}

    def _measure(self, baseline: Baseline) -> dict[str, Metric]:
        """The commoner word is taken for the neighbour."""
        _, count, _, commoner = self.predictions.losses.T
        return {
            "accuracy": text_metrics.ratio(commoner, count, seed=self.seed, resamples=max(100, self.resamples // 5))
        }

    def difference(self, other: NearView) -> dict[str, Metric]:
        return {"accuracy": _apart(self.predictions.losses, other.predictions.losses, **self.draws)}

    def pictures(self, report: Any, rivals: list[Baseline]) -> None:
        pass

    def samples(self, report: Any, bundle: Any) -> None:
        """Words of every frequency and those nearest to them."""
        from luban.columns import tokenizer
        from luban.nn.skip_gram import nearest

        words = tokenizer.words(self.predictions.column.state["tokenizer"])
        table = bundle.network.fusion[list(bundle.inputs).index(self.name)].table[0].weight.detach().cpu()
        plain = [i for i, w in enumerate(words) if i > 1 and w.strip("Ġ▁").isalpha() and len(w) > 3]
        ids = torch.tensor(plain[: SHOWN_WORDS * 40 : 40] or plain[:SHOWN_WORDS], dtype=torch.long)
        if not len(ids):
            return
        near, cosines = nearest(table, ids, NEAREST)
        told = [
            [words[i], listed(f"{words[j]} {c:.2f}" for j, c in zip(row, cs))]
            for i, row, cs in zip(ids.tolist(), near.tolist(), cosines.tolist())
        ]
        report.heading(say("evaluate.nearest"), 3)
        report.table("", [say("evaluate.word"), say("evaluate.nearest_to")], told)

    def per_row(self) -> np.ndarray:
        _, count, right, _ = self.predictions.losses.T
        return np.where(self.known, right / count.clip(1), np.nan)

    def worst(self, count: int) -> np.ndarray:
        return np.zeros(0, np.int64)


def _apart(before: np.ndarray, after: np.ndarray, **draws: int) -> Metric:
    """By how much the second model is right more often, of all that was asked; losses (N, 3 or more) of both on the same rows."""
    share = lambda w, losses: (w @ losses[:, 2]) / (w @ losses[:, 1]).clip(1)  # noqa: E731
    both = lambda w: (share(w, after) - share(w, before))[:, None]  # noqa: E731
    drawn = bootstrap(both, len(before), **draws)[:, 0]
    return Metric(float(both(np.ones((1, len(before))))[0, 0]), *percentile(drawn))


def unigram(column: Any, train: Any) -> list[Baseline]:
    """How often each token stands in the training texts, one added: what is said without looking around."""
    counts = 1.0 + np.bincount(column.whole().encode_all(cells(train)).flat, minlength=column.size)
    return [Baseline("unigram", np.zeros(0), counts / counts.sum())]


def text_of(column: Any, learned: Any = None) -> list[str]:
    """The texts of cells; of a column of which only a part is `learned` (its `said`) that part."""
    said = getattr(learned, "said", str)
    return [said(v) if v is not None else "" for v in cells(column).to_pylist()]


def rivals_of(
    name: str, bundle: Any, tables: Mapping[str, Any], features: Callable[[], Sequence[Any]]
) -> list[Baseline]:
    """What is simple, for an output that is written. `tables`: the rows of each part.

    Without inputs models of bytes; over one text what copies, shortens or remembers; over other inputs the answer to the nearest
    row by the `features` of the three parts.
    """
    inputs, column, seed = bundle.inputs, bundle.columns[name], bundle.recipe.seed
    answers = {p: text_of(t[name], column) for p, t in tables.items() if name in t.column_names}
    if not inputs:
        return _of_bytes(answers["train"], answers["validation"], answers["test"])
    if len(inputs) > 1 or bundle.columns[inputs[0]].form != "ids":
        return [nearest_row(features(), answers["train"], answers["validation"])]
    pairs = {p: (text_of(tables[p][inputs[0]]), found) for p, found in answers.items()}
    return text_baselines(pairs["train"], pairs["validation"], text_of(tables["test"][inputs[0]]), seed=seed)


def _of_bytes(train: list[str], validation: list[str], test: list[str]) -> list[Baseline]:
    """Of each text by itself, what a Kneser-Ney model of bytes and `xz -9` make of it."""
    empty, read = np.zeros(len(test)), _last(train)
    model = byte_model(read, validation)
    settings = {"bytes": sum(map(len, read)), "whole": sum(map(len, train))}
    note = "baseline.lately" if len(read) < len(train) else ""
    counted = xz_sizes(read, test) * (8 * np.log(2))
    return [
        Baseline("kneser_ney", empty, settings={"order": model.order, **settings}, losses=model.nats(test), note=note),
        Baseline("xz", empty, settings=settings, losses=counted, note=note),
    ]


def _last(texts: list[str]) -> list[str]:
    """The last texts, `LATELY` bytes of them at most."""
    kept, room = [], LATELY
    for text in reversed(texts):
        room -= len(text)
        if room < 0 and kept:
            break
        kept.append(text)
    return kept[::-1]


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + " …"
