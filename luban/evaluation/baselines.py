"""What a simple model reaches on the same rows, so that a deep one has something to beat.

`majority` or `mean` answers the same always. `linear` is logistic or ridge regression over the columns' features (scaled numbers,
one-hot, TF-IDF, pixels), its strength chosen on validation rows. `gradient_boosting` (histogram-based, as LightGBM; Ke et al.
2017) is for tables. Each fits in seconds: where rows had to be left out for that, the Baseline says so.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from luban.messages import say, spoken

STRENGTHS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # C of logistic regression, 1 / alpha of ridge regression
WORK = 100_000_000  # numbers read in one pass over the training rows, times the number of classes
TREE_ROWS = 50_000
TREE_CELLS = 10_000_000
BLOCK = 20_000  # rows made dense at once


@dataclass(frozen=True)
class Baseline:
    """Answers of one simple model to the test rows.

    category: `probabilities` (N, K) and `answers` (N,) class numbers; number: `answers` (N,) in raw units. `settings` are what was
    chosen; `note` is the id of a sentence about what was left out, `""` for none.
    """

    name: str
    answers: np.ndarray
    probabilities: np.ndarray | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    note: str = ""
    losses: np.ndarray | None = None  # (N,) nats of each true text, where likelihood is all that it has to say

    @property
    def title(self) -> str:
        """Its name as a person reads it; reports' numbers keep `name`."""
        return spoken("baseline.name.", self.name)

    def said(self) -> str:
        """The sentence of `note`."""
        return say(self.note, **self.settings) if self.note else ""


@dataclass(frozen=True)
class _Task:
    """One set of rows to fit, choose and answer; features are NumPy arrays or SciPy sparse matrices."""

    kind: str
    x: Any
    y: np.ndarray
    x_valid: Any
    y_valid: np.ndarray
    x_test: Any
    classes: int
    seed: int

    def answer(self, name: str, raw: np.ndarray, settings: dict[str, Any], started: float, of: int) -> Baseline:
        note = "baseline.rows_capped" if settings["rows"] < of else ""
        seconds = time.perf_counter() - started
        if self.kind == "number":
            return Baseline(name, raw, None, settings | {"all": of}, seconds, note)
        return Baseline(name, raw.argmax(axis=1), raw, settings | {"all": of}, seconds, note)


def baselines(
    kind: str,
    features_train: Any,
    y_train: Any,
    features_valid: Any,
    y_valid: Any,
    features_test: Any,
    *,
    tabular: bool = False,
    dense_train: Any = None,
    dense_valid: Any = None,
    dense_test: Any = None,
    classes: int | None = None,
    seed: int = 0,
    threads: int = 1,
) -> list[Baseline]:
    """All baselines that suit, fitted on the training rows; validation rows choose settings, test rows nothing.

    kind is "category" (y are class numbers below `classes`; -1 is left out) or "number" (NaN is left out). Features (N, D) are dense
    or sparse; without validation rows (None) a seventh of the training rows serves. `tabular` adds gradient boosting, on the
    `dense_*` features where given. `threads` bounds BLAS and OpenMP: more only helps with many rows.
    """
    y_train = np.asarray(y_train, float if kind == "number" else np.int64).ravel()
    y_valid = np.asarray([] if features_valid is None else y_valid, y_train.dtype).ravel()
    kept, kept_valid = _known(kind, y_train), _known(kind, y_valid)
    if kind == "category":
        classes = classes or int(y_train.max(initial=0)) + 1
        kept_valid &= np.isin(y_valid, y_train)
    if not kept.any():
        return []
    found = [_constant(kind, y_train[kept], features_test.shape[0], classes or 0)]
    if len(np.unique(y_train[kept])) < 2 or not features_train.shape[1]:
        return found

    def task(train: Any, valid: Any, test: Any) -> _Task:
        rows = (train[kept], y_train[kept], None if valid is None else valid[kept_valid], y_valid[kept_valid])
        return _with_validation(_Task(kind, *rows, test, classes or 0, seed))

    with _limited(threads):
        found.append(_linear(task(features_train, features_valid, features_test)))
        if tabular:
            dense = dense_train is not None and dense_test is not None
            chosen = (
                (dense_train, dense_valid, dense_test) if dense else (features_train, features_valid, features_test)
            )
            found.append(_boosting(task(*chosen)))
    return found


def _known(kind: str, y: np.ndarray) -> np.ndarray:
    return np.isfinite(y) if kind == "number" else y >= 0


@contextmanager
def _limited(threads: int) -> Iterator[None]:
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _constant(kind: str, y: np.ndarray, n: int, classes: int) -> Baseline:
    if kind == "number":
        return Baseline("mean", np.full(n, y.mean()), settings={"value": float(y.mean())})
    shares = np.bincount(y, minlength=classes) / len(y)
    return Baseline("majority", np.full(n, shares.argmax()), np.tile(shares, (n, 1)), {"share": float(shares.max())})


def _with_validation(task: _Task) -> _Task:
    """The task with a seventh of its training rows set aside where it has no validation rows."""
    n = len(task.y)
    if task.x_valid is not None and len(task.y_valid) >= 10:
        return task
    order = np.random.default_rng([task.seed, n]).permutation(n)
    held = max(n // 7, 1)
    rest = order[held:]
    if task.kind == "category" and len(np.unique(task.y[rest])) < len(np.unique(task.y)):
        rest = order  # a class with one row must stay in training; choosing on seen rows is the smaller evil
    aside = order[:held]
    return _Task(
        task.kind, task.x[rest], task.y[rest], task.x[aside], task.y[aside], task.x_test, task.classes, task.seed
    )


def _linear(task: _Task) -> Baseline:
    """Logistic or ridge regression; strength by log loss or squared error on the validation rows."""
    from sklearn.linear_model import LogisticRegression, Ridge

    started, of = time.perf_counter(), len(task.y)
    x, y = _capped(task.x, task.y, WORK, task)
    shape = _Scale(x)
    x, x_valid = shape(x), shape(task.x_valid)
    best = None
    # TF-IDF rows are so thin that lbfgs thinks itself done long before it is; Newton steps are not misled
    kind = {"solver": "newton-cg", "tol": 1e-4} if shape.keep else {"tol": 1e-3}
    model = LogisticRegression(max_iter=100, warm_start=True, random_state=task.seed, **kind)
    for strength in STRENGTHS:
        model = Ridge(alpha=1 / strength) if task.kind == "number" else model.set_params(C=strength)
        model.fit(x, y)
        loss = _loss(task, model, x_valid)
        if best is None or loss < best[0]:
            best = (loss, strength, _raw(task, model, task.x_test, shape))
        elif task.kind == "category":
            break  # past its best; the weaker penalties cost the most
    chosen = {"alpha": 1 / best[1]} if task.kind == "number" else {"C": best[1]}
    return task.answer("linear", best[2], chosen | {"rows": len(y)}, started, of)


def _boosting(task: _Task) -> Baseline:
    """Histogram gradient boosting, stopped early on the validation rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    started, of = time.perf_counter(), len(task.y)
    x, y = _capped(task.x, task.y, TREE_CELLS, task, TREE_ROWS)
    small = len(y) < 2000
    rounds = 60 if small else 200
    if task.classes > 2:  # a round grows a tree a class
        rounds = max(10, min(rounds, 400 // task.classes))
    kind = HistGradientBoostingRegressor if task.kind == "number" else HistGradientBoostingClassifier
    model = kind(
        max_iter=rounds,
        learning_rate=0.15 if small else 0.1,
        max_leaf_nodes=15 if small else 31,
        early_stopping=True,
        n_iter_no_change=10,
        random_state=task.seed,
    )
    fits = np.isin(task.y_valid, y) if task.kind == "category" else np.ones(len(task.y_valid), bool)
    x = _gaps(x)
    x = np.where(np.isnan(x).all(axis=0), 0.0, x)  # the binning cannot take a column without any number
    model.fit(x, y, X_val=_gaps(task.x_valid[fits]), y_val=task.y_valid[fits])
    raw = _raw(task, model, task.x_test, _gaps)
    return task.answer("gradient_boosting", raw, {"rounds": int(model.n_iter_), "rows": len(y)}, started, of)


def _capped(x: Any, y: np.ndarray, work: int, task: _Task, rows: int = 10**9) -> tuple[Any, np.ndarray]:
    """As many rows as the work allows, drawn evenly; each class keeps at least one."""
    size = x.nnz if _sparse(x) and work == WORK else x.shape[0] * x.shape[1]
    each = max(size / max(len(y), 1), 1) * (task.classes if task.classes > 2 else 1)
    most = int(min(rows, max(work // each, 500)))
    if len(y) <= most:
        return x, y
    order = np.random.default_rng([task.seed, len(y)]).permutation(len(y))
    if task.kind == "category":
        _, first = np.unique(y[order], return_index=True)
        order = np.r_[order[first], np.delete(order, first)]
    chosen = np.sort(order[:most])
    return x[chosen], y[chosen]


class _Scale:
    """Mean 0 and deviation 1 by the training rows, missing numbers to the mean; thinly filled sparse features stay as they are."""

    def __init__(self, x: Any):
        self.keep = _sparse(x) and x.nnz < 0.25 * x.shape[0] * x.shape[1]
        if not self.keep:
            x = _gaps(x)
            empty = np.isnan(x).all(axis=0)
            x = np.where(empty, 0.0, x)
            self.mean, deviation = np.nanmean(x, axis=0), np.nanstd(x, axis=0)
            self.deviation = np.where(deviation > 1e-12 * np.maximum(np.abs(self.mean), 1), deviation, 1.0)

    def __call__(self, x: Any) -> Any:
        if self.keep:
            x = x.copy()
            x.data = np.nan_to_num(x.data, posinf=0.0, neginf=0.0)
            return x
        return np.nan_to_num((_dense(x) - self.mean) / self.deviation, posinf=0.0, neginf=0.0)


def _raw(task: _Task, model: Any, x: Any, prepare: Any) -> np.ndarray:
    """Probabilities of all classes, or numbers; blockwise, so that sparse rows are never all dense at once."""
    blocks = [_raw_block(task, model, prepare(x[i : i + BLOCK])) for i in range(0, x.shape[0], BLOCK)]
    return np.concatenate(blocks) if blocks else np.zeros((0, task.classes) if task.kind == "category" else 0)


def _raw_block(task: _Task, model: Any, x: Any) -> np.ndarray:
    if task.kind == "number":
        return model.predict(x)
    whole = np.zeros((x.shape[0], task.classes))
    whole[:, model.classes_] = model.predict_proba(x)
    return whole


def _loss(task: _Task, model: Any, x: Any) -> float:
    raw = _raw_block(task, model, x)
    if task.kind == "number":
        return float(((raw - task.y_valid) ** 2).mean())
    own = raw[np.arange(len(raw)), task.y_valid]
    return float(-np.log(np.clip(own, 1e-15, 1)).mean()) if len(own) else math.inf


def _sparse(x: Any) -> bool:
    return hasattr(x, "nnz")


def _dense(x: Any) -> np.ndarray:
    return np.asarray(x.toarray() if _sparse(x) else x, float)


def _gaps(x: Any) -> np.ndarray:
    """Dense, with NaN for whatever is not a finite number."""
    x = _dense(x)
    return np.where(np.isfinite(x), x, np.nan)
