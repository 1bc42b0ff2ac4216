"""How well a model finds: of all partners in the data, at which place does the own one come?

Beside it two searches without a network, on the same rows: cosine of TF-IDF, and BM25 (Robertson & Zaragoza 2009), its k1 and b chosen on
validation rows.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from luban.columns import searching
from luban.columns.base import to_list
from luban.columns.examples import cells
from luban.evaluation import intervals
from luban.evaluation.intervals import Metric
from luban.evaluation.views import interval
from luban.messages import say, spoken
from luban.report import Report

KIND, MAIN = "match", "mrr"
DEPTHS = (1, 5, 10)
BLOCK = 512  # queries scored at once
CHOSEN = 1000  # validation rows that settings are chosen on, at most
K1, B = (0.9, 1.2, 1.6), (0.4, 0.75, 1.0)


def judged(
    bundle: Any, data: Any, part: str, rows: np.ndarray, *, baselines: bool, resamples: int, seed: int
) -> Report:
    """A Report of kind "evaluate": recall@k and the mean reciprocal rank of each row's own partner.

    Queries are the values of the first input in `rows`, candidates the distinct values of the second in all rows of the data.
    """
    partner = bundle.inputs[1]
    values, candidates, ask = _asked(bundle, data)
    asked, own = ask(rows)
    said = {"": own_places(bundle, data, rows)}
    if baselines and data.splits is not None:
        validation = ask(data.part("validation")[:CHOSEN])
        training = [values[partner][i] for i in data.part("train")]
        said |= _without_network(bundle.columns[partner], training, candidates, (asked, own), validation)
    measured = {n: metrics(r, resamples, seed) for n, r in said.items()}
    report = Report("evaluate", say("evaluate.title", task=bundle.recipe.task()))
    plain = {n: {k: m.to_json() for k, m in found.items()} for n, found in measured.items()}
    output = {"kind": KIND, "candidates": len(candidates), "metrics": plain.pop(""), "baselines": plain}
    report.numbers = {"rows": len(rows), "part": part, "outputs": {KIND: output}}
    _write(report, measured, len(candidates))
    return report


def own_places(bundle: Any, data: Any, rows: np.ndarray) -> np.ndarray:
    """At which place the own partner of each row comes, (N,) from 1."""
    _, candidates, ask = _asked(bundle, data)
    asked, own = ask(rows)
    queries, partners = (searching.vectors(bundle.engine, *a) for a in zip(bundle.inputs, (asked, candidates)))
    return ranks(queries, partners, own)


def _asked(bundle: Any, data: Any) -> tuple[dict[str, list[Any]], list[Any], Any]:
    """The values of both inputs, the distinct ones of the second, and some rows -> queries and their partners' numbers."""
    query, partner = bundle.inputs
    values = {n: to_list(cells(data.table[n])) for n in (query, partner)}
    candidates = list(dict.fromkeys(values[partner]))
    place = {v: i for i, v in enumerate(candidates)}

    def ask(some: np.ndarray) -> tuple[list[Any], np.ndarray]:
        return [values[query][i] for i in some], np.array([place[values[partner][i]] for i in some], np.int64)

    return values, candidates, ask


def by_row(found: np.ndarray) -> dict[str, np.ndarray]:
    """What each row adds to every metric, of places (N,) from 1."""
    return {f"recall_{k}": (found <= k).astype(float) for k in DEPTHS} | {MAIN: 1 / found}


def metrics(found: np.ndarray, resamples: int = 500, seed: int = 0) -> dict[str, Metric]:
    """From ranks (N,), 1 for the first place, each with its interval."""
    return {n: intervals.mean(v, resamples=resamples, seed=seed) for n, v in by_row(found).items()}


def ranks(queries: Any, candidates: Any, own: np.ndarray) -> np.ndarray:
    """The place (from 1) of candidate own[i] for query i by the product of their vectors, dense or sparse (N, D), (M, D).

    Candidates that score the same share their places: half of them come before.
    """
    result = np.empty(len(own))
    for start in range(0, len(own), BLOCK):
        scores = queries[start : start + BLOCK] @ candidates.T
        scores = np.asarray(scores.todense() if hasattr(scores, "todense") else scores)
        mine = scores[np.arange(len(scores)), own[start : start + BLOCK]][:, None]
        result[start : start + BLOCK] = 1 + (scores > mine).sum(1) + ((scores == mine).sum(1) - 1) / 2
    return result


# -- without a network ---------------------------------------------------------------------------------------------------


def _without_network(column: Any, training: Any, candidates: Any, test: Any, validation: Any) -> dict[str, np.ndarray]:
    """Ranks by TF-IDF, and of texts by BM25."""
    make = column.featurizer(training)
    found = {"tfidf": ranks(make(test[0]), make(candidates), test[1])}
    if column.form == "ids":
        texts = lambda values: [column._clean(v) for v in values]  # noqa: E731
        count = _counter(texts(training), column.lower)
        documents = count.transform(texts(candidates))
        best, chosen = (K1[1], B[1]), 0.0
        for k1, b in product(K1, B) if len(validation[1]) else ():
            score = float(
                (1 / ranks(_present(count, texts(validation[0])), bm25(documents, k1, b), validation[1])).mean()
            )
            if score > chosen:
                best, chosen = (k1, b), score
        found["bm25"] = ranks(_present(count, texts(test[0])), bm25(documents, *best), test[1])
    return found


def _counter(texts: Any, lower: bool) -> Any:
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(token_pattern=r"(?u)\w+(?:['’]\w+)*", lowercase=lower).fit(texts)


def _present(count: Any, texts: Any) -> Any:
    return (count.transform(texts) > 0).astype(np.float64)


def bm25(documents: Any, k1: float = 1.2, b: float = 0.75) -> Any:
    """Counts (M, V) -> weights (M, V), whose sum over a query's words is BM25's score."""
    from scipy.sparse import csr_matrix

    counts = csr_matrix(documents, dtype=np.float64)
    lengths = np.asarray(counts.sum(1)).ravel()
    holding = np.bincount(counts.indices, minlength=counts.shape[1])
    inverse = np.log1p((counts.shape[0] - holding + 0.5) / (holding + 0.5))
    room = k1 * (1 - b + b * lengths / max(lengths.mean(), 1e-9))
    tf = counts.data / (counts.data + np.repeat(room, np.diff(counts.indptr))) * (k1 + 1)
    return csr_matrix((tf * inverse[counts.indices], counts.indices, counts.indptr), counts.shape)


# -- the page --------------------------------------------------------------------------------------------------------------


def _write(report: Report, measured: dict[str, dict[str, Metric]], candidates: int) -> None:
    mine, rivals = measured[""], {n: m for n, m in measured.items() if n}
    report.heading(say("evaluate.output", name=KIND), 2)
    report.text(say("evaluate.candidates", count=f"{candidates:,}"))
    titles = [spoken("baseline.name.", n) for n in rivals]
    head = [say("evaluate.metric"), say("evaluate.model"), say("card.interval"), *titles]
    rows = [
        [k, f"{m.value:.4f}", interval(m), *(f"{r[k].value:.4f}" for r in rivals.values())] for k, m in mine.items()
    ]
    title = say("evaluate.metrics" if rivals else "evaluate.metrics_alone")
    report.table(title, head, rows, "lrl" + "r" * len(rivals))
    if not rivals:
        return
    beaten = [n for n, r in rivals.items() if r[MAIN].value > mine[MAIN].value]
    if beaten:
        report.note("warn", say("evaluate.beaten", baselines=beaten, metric=MAIN))
    else:
        report.note("good", say("evaluate.beats_all", metric=MAIN))
