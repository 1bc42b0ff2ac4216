"""What the table of predictions says, by the kind of answer: numbers, plots, worst rows, slices, baselines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from luban import plots
from luban.columns.base import to_list
from luban.columns.examples import cells
from luban.data.spans import text_of
from luban.errors import Unsupported
from luban.evaluation import calibration, metrics, paired
from luban.evaluation.baselines import Baseline, baselines
from luban.evaluation.slices import slices as sliced
from luban.evaluation.span_baselines import span_baselines
from luban.evaluation.table import Predictions, Table
from luban.evaluation.tag_baselines import tag_baselines
from luban.messages import say

MAIN = {
    "category": ("accuracy", True),
    "number": ("r2", True),
    "labels": ("f1_micro", True),
    "tags": ("f1", True),
    "span": ("f1", True),
    "boxes": ("map", True),
}  # the metric that baselines are compared by; higher is better

LOOKED = 1000  # training rows whose masks are looked at
CURVES = 10  # classes that one plot can still tell apart


class Shown(str):
    """Finished HTML, where a value would be escaped."""


@dataclass
class View:
    """What every kind of answer has in common."""

    name: str
    predictions: Predictions
    resamples: int
    seed: int
    judged: Any = None  # the table of rows that it is a view of

    kind = ""

    @property
    def known(self) -> np.ndarray:
        """Rows whose truth is there, bool (N,)."""
        return self.predictions.known

    @cached_property
    def metrics(self) -> dict[str, Any]:
        raise NotImplementedError

    def measure(self, baseline: Baseline) -> dict[str, Any]:
        """Every metric of a baseline on the same rows; measured once."""
        kept = self.__dict__.setdefault("_measured", {})
        if baseline.name not in kept:
            kept[baseline.name] = self._measure(baseline)
        return kept[baseline.name]

    def _measure(self, baseline: Baseline) -> dict[str, Any]:
        raise NotImplementedError

    def difference(self, other: Any) -> dict[str, Any]:
        """Of another model's view of the same rows: by how much its metrics are larger, paired. Raises Unsupported where nothing says it."""
        raise Unsupported("compare.not_paired", output=self.name)

    @property
    def draws(self) -> dict[str, int]:
        return {"seed": self.seed, "resamples": self.resamples}

    def numbers(self, rivals: list[Baseline]) -> dict[str, Any]:
        """What `evaluate --json` holds for this output."""
        main, higher = self.main
        found = {
            "kind": self.kind,
            "headline": {"metric": main, "higher": higher},
            "metrics": {k: m.to_json() for k, m in self.metrics.items()},
        }
        found["baselines"] = {b.name: {k: m.to_json() for k, m in self.measure(b).items()} for b in rivals}
        return found

    def write(self, report: Any, rivals: list[Baseline]) -> None:
        report.heading(say("evaluate.output", name=self.name), 2)
        self._against(report, rivals)
        measured = {b.name: self.measure(b) for b in rivals}
        rows = [
            [k, f"{m.value:.4f}", interval(m), *(_beside(found.get(k)) for found in measured.values())]
            for k, m in self.metrics.items()
            if m.value == m.value
        ]
        head = [say("evaluate.metric"), say("evaluate.model"), say("card.interval"), *(b.title for b in rivals)]
        title = say("evaluate.metrics" if measured else "evaluate.metrics_alone")
        report.table(title, head, rows, "lrl" + "r" * len(measured))
        self.pictures(report, rivals)

    @property
    def main(self) -> tuple[str, bool]:
        """The metric that baselines are compared by; whether higher is better."""
        return MAIN[self.kind]

    def _against(self, report: Any, rivals: list[Baseline]) -> None:
        main, higher = self.main
        if not rivals:
            return
        mine = self.metrics[main]
        rows = [[say("evaluate.model"), f"{mine.value:.4f}", interval(mine), ""]]
        beaten = []
        for b in rivals:
            theirs = self.measure(b)[main]
            wins = theirs.value > mine.value if higher else theirs.value < mine.value
            beaten += [b.name] if wins else []
            rows.append([b.title, f"{theirs.value:.4f}", interval(theirs), say("evaluate.lost") if wins else ""])
        report.table(say("evaluate.against", metric=main), ["", main, say("card.interval"), ""], rows)
        for b in rivals:
            if b.note:
                report.note("info", say("evaluate.of_baseline", name=b.name, said=b.said()))
        if beaten:
            report.note("warn", say("evaluate.beaten", baselines=beaten, metric=main))
        else:
            report.note("good", say("evaluate.beats_all", metric=main))

    def pictures(self, report: Any, rivals: list[Baseline]) -> None:
        raise NotImplementedError

    def samples(self, report: Any, bundle: Any) -> None:
        """What the model makes by itself, where it makes something."""

    def per_row(self) -> np.ndarray:
        """A score per row, higher is better: for slices."""
        raise NotImplementedError

    def mistaken(self, count: int) -> list[tuple[str, str, np.ndarray]]:
        """(what is true, what was answered, positions of these rows, the surest first) of the commonest mistakes."""
        return []

    def write_slices(self, report: Any, judged: Table, columns: list[str]) -> None:
        rows = sliced({c: judged.cells[c].to_pylist() for c in columns}, self.per_row())
        report.heading(say("evaluate.slices"), 3)
        report.table("", [say("evaluate.slice"), say("evaluate.rows"), say("evaluate.score"), say("card.interval"), ""], [
            [f"{r.column} = {r.value}", r.count, f"{r.score:.4f}", interval(r.metric), say("evaluate.cannot_tell") if r.cannot_tell else ""] for r in rows
        ])  # fmt: skip


class CategoryView(View):
    kind = "category"

    @cached_property
    def truth(self) -> np.ndarray:
        return self.predictions.truth[self.known] - 1  # -1: a label that training never saw

    @cached_property
    def probabilities(self) -> np.ndarray:
        return self.predictions.column.probabilities(self.predictions.raw)[self.known]

    @property
    def labels(self) -> list[str]:
        return self.predictions.column.labels

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return metrics.classification(
            self.truth, self.probabilities, self.labels, seed=self.seed, resamples=self.resamples
        )

    def _measure(self, baseline: Baseline) -> dict[str, Any]:
        return metrics.classification(
            self.truth,
            baseline.probabilities[self.known],
            self.labels,
            seed=self.seed,
            resamples=max(100, self.resamples // 5),
        )

    def difference(self, other: CategoryView) -> dict[str, Any]:
        return paired.of_classes(self.truth, self.probabilities, other.probabilities, **self.draws)

    def pictures(self, report: Any, rivals: list[Baseline]) -> None:
        answers = self.probabilities.argmax(1)
        unseen = int((self.truth < 0).sum())
        if unseen:
            report.note("warn", say("evaluate.unseen", count=unseen))
        rows = [
            [label, f"{p:.3f}", f"{r:.3f}", f"{f:.3f}", n]
            for label, p, r, f, n in metrics.per_class(self.truth, answers, self.labels)
        ]
        if len(rows) <= 100:
            report.table(
                say("evaluate.per_class"),
                [say("evaluate.class"), "precision", "recall", "f1", say("evaluate.rows")],
                rows,
                "lrrrr",
            )
        if len(self.labels) <= 30:
            counts = metrics.confusion(self.truth, answers, len(self.labels))
            report.plot(
                say("evaluate.confusion"),
                plots.heatmap(
                    counts, self.labels, self.labels, x_label=say("evaluate.answer"), y_label=say("evaluate.truth")
                ),
                say("evaluate.confusion_caption"),
            )
        self._curves(report, rivals)
        self._reliability(report, answers)

    def _curves(self, report: Any, rivals: list[Baseline]) -> None:
        """ROC: of two classes the model beside the baselines that rank rows; of some more, each class against the rest."""
        there = [k for k in range(len(self.labels)) if 0 < (self.truth == k).sum() < len(self.truth)]
        if len(self.labels) == 2 and len(there) == 2:
            ranked = {say("evaluate.model"): self.probabilities}
            ranked |= {b.title: b.probabilities[self.known] for b in rivals if np.ptp(b.probabilities[:, 1]) > 0}
            curves, caption = {n: (self.truth == 1, p[:, 1]) for n, p in ranked.items()}, "evaluate.roc_two"
        else:
            curves = {self.labels[k]: (self.truth == k, self.probabilities[:, k]) for k in there[:CURVES]}
            caption = "evaluate.roc_rest"
        if curves and len(there) <= CURVES:
            drawn = {n: metrics.roc_curve(*c)[:2] for n, c in curves.items()}
            axes = {"x_label": say("evaluate.roc_false"), "y_label": say("evaluate.roc_true")}
            label = self.labels[1] if len(self.labels) == 2 else ""
            report.plot(say("evaluate.roc"), plots.roc(drawn, **axes), say(caption, label=label))

    def _reliability(self, report: Any, answers: np.ndarray) -> None:
        confidence, correct = self.probabilities.max(1), answers == self.truth
        bins = calibration.reliability(confidence, correct)
        floor = calibration.ece_floor(confidence)
        caption = say(
            "evaluate.reliability_caption", ece=f"{calibration.ece(confidence, correct):.4f}", floor=f"{floor:.4f}"
        )
        axes = {"x_label": say("evaluate.confidence"), "y_label": say("evaluate.share_right"), "count_label": say("evaluate.rows")}  # fmt: skip
        drawn = plots.reliability(bins.confidence, bins.accuracy, bins.counts, **axes)
        report.plot(say("evaluate.reliability"), drawn, caption)

    def per_row(self) -> np.ndarray:
        correct = np.full(len(self.known), np.nan)
        correct[self.known] = self.probabilities.argmax(1) == self.truth
        return correct

    def worst(self, count: int) -> np.ndarray:
        """Positions of wrong answers, the surest first."""
        where = np.flatnonzero(self.known)
        wrong = np.flatnonzero(self.probabilities.argmax(1) != self.truth)
        return where[wrong[np.argsort(-self.probabilities[wrong].max(1), kind="stable")][:count]]

    def mistaken(self, count: int) -> list[tuple[str, str, np.ndarray]]:
        answers, where = self.probabilities.argmax(1), np.flatnonzero(self.known)
        wrong = np.flatnonzero((answers != self.truth) & (self.truth >= 0))
        wrong = wrong[np.argsort(-self.probabilities[wrong].max(1), kind="stable")]
        pairs, place, times = np.unique(
            np.stack([self.truth[wrong], answers[wrong]], 1), axis=0, return_inverse=True, return_counts=True
        )
        order = [k for k in np.argsort(-times, kind="stable")[:count] if len(self.labels) > 2]
        return [
            (self.labels[pairs[k, 0]], self.labels[pairs[k, 1]], where[wrong[place.reshape(-1) == k]]) for k in order
        ]

    def row_names(self) -> list[str]:
        return [say("evaluate.truth"), say("evaluate.answer"), say("evaluate.probability")]

    def row(self, i: int) -> list[Any]:
        answer, truth = self.predictions.answers[i], int(self.predictions.truth[i]) - 1
        return [self.labels[truth] if truth >= 0 else "?", answer.value, f"{answer.probability:.3f}"]


class NumberView(View):
    kind = "number"

    @cached_property
    def truth(self) -> np.ndarray:
        state = self.predictions.column.state
        return self.predictions.truth[self.known].astype(np.float64) * state["deviation"] + state["mean"]

    @cached_property
    def answers(self) -> np.ndarray:
        return np.array([a.value for a, k in zip(self.predictions.answers, self.known) if k])

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return metrics.regression(self.truth, self.answers, seed=self.seed, resamples=self.resamples)

    def _measure(self, baseline: Baseline) -> dict[str, Any]:
        return metrics.regression(
            self.truth, baseline.answers[self.known], seed=self.seed, resamples=max(100, self.resamples // 5)
        )

    def difference(self, other: NumberView) -> dict[str, Any]:
        return paired.of_numbers(self.truth, self.answers, other.answers, **self.draws)

    def pictures(self, report: Any, rivals: list[Baseline]) -> None:
        labels = {"x_label": say("evaluate.truth"), "y_label": say("evaluate.answer")}
        report.plot(say("evaluate.scatter"), plots.scatter(self.truth, self.answers, diagonal=True, **labels))
        report.plot(say("evaluate.residuals"), plots.histogram(self.answers - self.truth, x_label=say("evaluate.residual"), y_label=say("evaluate.rows")))  # fmt: skip

    def per_row(self) -> np.ndarray:
        score = np.full(len(self.known), np.nan)
        score[self.known] = -np.abs(self.answers - self.truth)
        return score

    def worst(self, count: int) -> np.ndarray:
        return np.flatnonzero(self.known)[np.argsort(-np.abs(self.answers - self.truth), kind="stable")[:count]]

    def row_names(self) -> list[str]:
        return [say("evaluate.truth"), say("evaluate.answer")]

    def row(self, i: int) -> list[Any]:
        truth = float(self.predictions.column.decode(self.predictions.truth[i]).value)
        return [f"{truth:.5g}", f"{self.predictions.answers[i].value:.5g}"]


VIEWS = {"category": CategoryView, "number": NumberView}


def view(name: str, predictions: Predictions, judged: Table, *, resamples: int, seed: int) -> View:
    if predictions.losses is not None:
        from luban.evaluation.text_view import HiddenView, NearView, TextView, text_of

        kind = {2: TextView, 3: HiddenView, 4: NearView}[predictions.losses.shape[1]]
        found = kind(name, predictions, resamples, seed)
        found.texts = text_of(judged.cells[name], predictions.column)
        return found
    from luban.evaluation.detection_view import DetectionView
    from luban.evaluation.label_view import LabelsView
    from luban.evaluation.mask_view import MaskView
    from luban.evaluation.span_view import SpanView
    from luban.evaluation.tag_view import TagsView

    if predictions.column.form == "grid":
        from luban.evaluation.made_view import MadeView

        return MadeView(name, predictions, resamples, seed, judged)
    kind = {
        **VIEWS,
        "labels": LabelsView,
        "tags": TagsView,
        "span": SpanView,
        "boxes": DetectionView,
        "mask": MaskView,
    }[predictions.column.type]
    return kind(name, predictions, resamples, seed, judged)


def _beside(metric: Any) -> str:
    return "" if metric is None or metric.value != metric.value else f"{metric.value:.4f}"


def interval(metric: Any) -> str:
    return "" if metric is None or metric.low is None else f"{metric.low:.4f} – {metric.high:.4f}"


def rivals(bundle: Any, data: Any, judged: Table) -> dict[str, list[Baseline]]:
    """Baselines of every output, fitted on the same training rows and asked about the same held-out ones."""
    frame = bundle.recipe.frame
    if judged.witness is not None:
        from luban.evaluation.made_view import gaussian

        return {n: [gaussian(judged.witness, len(judged), bundle.recipe.seed)] for n in judged.outputs}
    if any(p.losses is not None for p in judged.outputs.values()):
        from luban.evaluation.text_view import rivals_of, unigram

        tables = {p: data.framed(p, frame).table for p in ("train", "validation")} | {"test": judged.cells}
        written = [n for n, p in judged.outputs.items() if p.losses is not None]
        if not bundle.outputs:
            return {n: unigram(bundle.columns[n], tables["train"][n]) for n in written}
        features = lambda: _features(bundle, tables["train"], tables["validation"], tables["test"])  # noqa: E731
        return {n: rivals_of(n, bundle, tables, features) for n in written}
    train, valid = (data.framed(p, frame).table for p in ("train", "validation"))
    alongs = {n: p.column for n, p in judged.outputs.items() if p.column.of_form}
    result = {n: _along(bundle, c, train, judged.cells) for n, c in alongs.items()}
    from luban.evaluation.label_view import label_baselines

    others = [n for n in judged.outputs if n not in alongs]
    if not others:
        return result
    joined = _features(bundle, train, valid, judged.cells)
    tabular = all(bundle.columns[n].form in ("scalar", "index") for n in bundle.inputs)
    for name in others:
        column = bundle.columns[name]
        (y_train, keep), (y_valid, keep_valid) = (_truths(column, t[name]) for t in (train, valid))
        x_valid = joined[1][keep_valid] if joined[1] is not None else None
        if column.type == "labels":
            asked = (joined[0][keep], y_train[keep], x_valid, y_valid[keep_valid], joined[2])
            result[name] = label_baselines(*asked, seed=bundle.recipe.seed)
            continue
        classes = len(column.labels) if column.type == "category" else None
        result[name] = baselines(
            column.type, joined[0][keep], y_train[keep], x_valid, y_valid[keep_valid], joined[2],
            tabular=tabular, classes=classes, seed=bundle.recipe.seed,
        )  # fmt: skip
    return result


def _features(bundle: Any, *tables: Any) -> list[Any]:
    """The features of all inputs side by side, (N, F) of each table, as they are learned from the first; None of an empty one."""
    from scipy.sparse import hstack

    made = {n: bundle.columns[n].featurizer(cells(tables[0][n])) for n in bundle.inputs}
    return [hstack([made[n](cells(t[n])) for n in bundle.inputs]).tocsr() if t.num_rows else None for t in tables]


def _positions(column: Any, train: Any) -> Baseline:
    """Of a class for every pixel: what stands there most often in some of the training rows."""
    from luban.evaluation.mask_view import per_position

    few = train.take(np.unique(np.linspace(0, train.num_rows - 1, LOOKED).astype(int)))
    return per_position(column.encode_all(cells(few[column.name]), of=cells(few[column.of])), column.size)


def _along(bundle: Any, column: Any, train: Any, test: Any) -> list[Baseline]:
    """Of an output that is `of:` an input: boxes or a mask of an image, an answer for each position of a text, or a stretch of it."""
    if column.type == "mask":
        return [_positions(column, train)]
    if column.type == "boxes":
        from luban.evaluation.detection_view import detection_baselines

        one = lambda table, name: list(found) if isinstance(found := cells(table[name]), np.ndarray) else to_list(found)  # noqa: E731
        return detection_baselines(
            column, to_list(cells(train[column.name])), one(train, column.of), one(test, column.of)
        )
    if column.type == "tags":
        return tag_baselines(column, (cells(train[column.name]), cells(train[column.of])), cells(test[column.of]))
    texts = lambda table, name: [text_of(v) for v in to_list(cells(table[name]))]  # noqa: E731
    others = [n for n in bundle.inputs if n != column.of and bundle.columns[n].form == "ids"]
    questions = [" ".join(q) for q in zip(*(texts(test, n) for n in others))] or [""] * len(test)
    truths = [column.truth(v) for v in to_list(cells(train[column.name]))]
    return span_baselines((texts(train, column.of), truths), (questions, texts(test, column.of)))


def _truths(column: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Truths as class numbers from 0, or numbers in raw units; and which rows have one."""
    x, mask = column.collate(column.encode_all(values))
    if column.type in ("category", "labels"):
        return (x - 1 if column.type == "category" else x), mask
    return x.astype(np.float64) * column.state["deviation"] + column.state["mean"], mask
