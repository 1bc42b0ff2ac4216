"""Cleaning that a recipe may ask for. What it needs to know is learned from the training rows only.

Rows that are dropped go to the ledger with the reason. Cells that are changed are changed by a `Cleaning`,
plain data that a saved model keeps, so that a served row is cleaned like a trained one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from luban.data.rows import Rows
from luban.data.same import groups, missing
from luban.errors import DataError, Problem, problem, raise_all

FAR = 3.0  # quartile distances beyond the quartiles: Tukey's "far out" (1977)
WAYS = {
    "number": ("keep", "drop", "median", "mean", "zero"),
    "category": ("keep", "drop", "most_frequent"),
    "text": ("keep", "drop"),
    "image": ("keep", "drop"),
}
NORMAL = ("unicode", "lower", "whitespace")
Way = Literal["keep", "drop", "median", "mean", "zero", "most_frequent"]


@dataclass(frozen=True)
class Cleaning:
    """What cleaning learned: `fill` {column: value}, `clip` {column: (low, high)}, `normal` {column: steps}."""

    fill: dict[str, Any] = field(default_factory=dict)
    clip: dict[str, tuple[float, float]] = field(default_factory=dict)
    normal: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def apply(self, rows: Rows) -> Rows:
        """The same rows, with cells changed as on the training rows; columns that are not there are passed over."""
        for name, steps in self.normal.items():
            if name in rows.columns:
                cells = [normalised(v, steps) for v in rows.table[name].to_pylist()]
                rows = rows.having(name, pa.array(cells, pa.string()))
        for name, (low, high) in self.clip.items():
            if name in rows.columns:
                column = rows.table[name]
                bounded = pc.min_element_wise(
                    pc.max_element_wise(column, low, skip_nulls=False), high, skip_nulls=False
                )
                rows = rows.having(name, bounded)
        for name, value in self.fill.items():
            if name in rows.columns:
                rows = rows.having(name, rows.table[name].fill_null(value))
        return rows

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Cleaning:
        pairs = {k: tuple(v) for k, v in plain["clip"].items()}
        return cls(dict(plain["fill"]), pairs, {k: tuple(v) for k, v in plain["normal"].items()})


def clean(
    rows: Rows,
    types: Mapping[str, str],
    targets: Sequence[str] = (),
    fit_on: np.ndarray | None = None,
    *,
    missing: dict[str, Way] | None = None,
    outliers: Literal["keep", "clip", "drop"] = "keep",
    duplicates: Literal["keep", "drop"] = "keep",
    conflicting: Literal["keep", "drop"] = "keep",
    normalise: dict[str, bool] | None = None,
) -> Rows:
    """Rows cleaned as asked for; number columns must already be numbers (`typed`).

    `missing`: by type, `{number: median, category: drop}`. `outliers`: numbers beyond Tukey's far fences of
    the training rows; "drop" takes training rows only. `conflicting`: rows with equal inputs and different
    targets. `normalise`: of text, `{unicode: true, lower: true, whitespace: true}`. Targets are never filled
    or clipped; a row that misses every target is dropped. Raises DataError for what is not possible.
    """
    missing = missing or {}
    raise_all(DataError, _mistakes(missing, normalise or {}))
    cleaning = learn(rows, types, targets, fit_on, missing=missing, outliers=outliers, normalise=normalise)
    gone: dict[int, tuple[str, dict[str, Any]]] = {}
    _drop_missing(rows, types, targets, missing, gone)
    if outliers == "drop":
        _drop_outliers(rows, types, targets, fit_on, gone)
    changed = cleaning.apply(rows)
    if conflicting == "drop" and targets:
        _drop_conflicting(changed, types, targets, gone)
    if duplicates == "drop":
        _drop_duplicates(changed, types, targets, gone)
    if len(gone) == len(rows) > 0:
        id, values = gone[min(gone)]
        raise DataError(problem(id, place=rows.place(min(gone)), **values))
    return cleaning.apply(rows.drop_each(gone))


def learn(
    rows: Rows,
    types: Mapping[str, str],
    targets: Sequence[str] = (),
    fit_on: np.ndarray | None = None,
    *,
    missing: Mapping[str, str] | None = None,
    outliers: str = "keep",
    normalise: Mapping[str, bool] | None = None,
) -> Cleaning:
    """What `clean` changes in cells, learned from the rows `fit_on` (all by default)."""
    seen = rows if fit_on is None else rows.take(fit_on)
    inputs = {n: t for n, t in types.items() if n in rows.columns and n not in targets}
    steps = tuple(s for s in NORMAL if (normalise or {}).get(s))
    normal = {n: steps for n, t in inputs.items() if steps and t == "text" and pa.types.is_string(rows.table[n].type)}
    clip = {}
    if outliers == "clip":
        fences = {n: _fences(seen.table[n]) for n, t in inputs.items() if t == "number"}
        clip = {n: f for n, f in fences.items() if f is not None}
    fill = {n: _filling(seen.table[n], (missing or {}).get(t, "keep")) for n, t in inputs.items()}
    return Cleaning({n: v for n, v in fill.items() if v is not None}, clip, normal)


def normalised(text: str | None, steps: Sequence[str] = NORMAL) -> str | None:
    """Unicode NFKC, lower case, runs of white space as one space: as many of these as `steps` names."""
    if text is None:
        return None
    if "unicode" in steps:
        text = unicodedata.normalize("NFKC", text)
    if "lower" in steps:
        text = text.lower()
    return " ".join(text.split()) if "whitespace" in steps else text


def _mistakes(missing: Mapping[str, str], normalise: Mapping[str, bool]) -> list[Problem]:
    found = [problem("data.clean_type", name=kind, allowed=WAYS) for kind in missing if kind not in WAYS]
    for kind, way in missing.items():
        if kind in WAYS and way not in WAYS[kind]:
            found.append(problem("data.clean_way", name=way, kind=kind, allowed=WAYS[kind]))
    return found + [problem("data.clean_step", name=s, allowed=NORMAL) for s in normalise if s not in NORMAL]


def _filling(column: pa.ChunkedArray, way: str) -> Any:
    """What a missing cell becomes; None where nothing is filled."""
    cells = column.drop_null()
    if way == "zero":
        return 0.0
    if way in ("keep", "drop") or not len(cells):
        return None
    if way == "mean":
        return float(np.mean(cells.to_numpy()))
    if way == "median":
        return float(np.median(cells.to_numpy()))
    counts = pc.value_counts(cells).to_pylist()
    return min(counts, key=lambda c: (-c["counts"], str(c["values"])))["values"]


def _fences(column: pa.ChunkedArray) -> tuple[float, float] | None:
    """Tukey's far fences; None where half of the cells are alike, so that nothing is far."""
    cells = column.drop_null().to_numpy()
    if not len(cells):
        return None
    low, high = np.quantile(cells, (0.25, 0.75))
    return (float(low - FAR * (high - low)), float(high + FAR * (high - low))) if high > low else None


Gone = dict[int, tuple[str, dict[str, Any]]]


def _drop_missing(
    rows: Rows, types: Mapping[str, str], targets: Sequence[str], ways: Mapping[str, str], gone: Gone
) -> None:
    """Rows that miss an input whose way is "drop", and rows that miss every target."""
    truths = [missing(rows.table[n]) for n in targets if n in rows.columns]
    if truths:
        for row in np.flatnonzero(np.all(truths, axis=0)).tolist():
            gone.setdefault(row, ("data.gone_target", {"column": list(targets)}))
    for name, kind in types.items():
        if name in rows.columns and name not in targets and ways.get(kind) == "drop":
            for row in np.flatnonzero(missing(rows.table[name])).tolist():
                gone.setdefault(row, ("data.gone_missing", {"column": name}))


def _drop_outliers(
    rows: Rows, types: Mapping[str, str], targets: Sequence[str], fit_on: np.ndarray | None, gone: Gone
) -> None:
    """Training rows only: a model is tested on the world as it is."""
    among = np.ones(len(rows), bool) if fit_on is None else np.isin(np.arange(len(rows)), fit_on)
    for name, kind in types.items():
        if kind != "number" or name in targets or name not in rows.columns:
            continue
        fences = _fences(rows.table[name] if fit_on is None else rows.take(fit_on).table[name])
        if fences is None:
            continue
        cells = rows.table[name].to_numpy()
        for row in np.flatnonzero(among & ((cells < fences[0]) | (cells > fences[1]))).tolist():
            values = {"column": name, "value": float(cells[row]), "low": fences[0], "high": fences[1]}
            gone.setdefault(row, ("data.gone_outlier", values))


def _drop_duplicates(rows: Rows, types: Mapping[str, str], targets: Sequence[str], gone: Gone) -> None:
    """The first of equal rows stays."""
    names = [n for n in rows.columns if n in types or n in targets]
    kept = np.array([i for i in range(len(rows)) if i not in gone], np.int64)
    if not len(kept):
        return
    alike = groups(rows.take(kept).table, names)
    _, first = np.unique(alike, return_index=True)
    original = kept[first][alike]
    for row, one in zip(kept.tolist(), original.tolist()):
        if row != one:
            gone[row] = ("data.gone_duplicate", {"line": int(rows.lines[one])})


def _drop_conflicting(rows: Rows, types: Mapping[str, str], targets: Sequence[str], gone: Gone) -> None:
    """All rows whose inputs are equal while their targets are not."""
    inputs = [n for n in rows.columns if n in types and n not in targets]
    kept = np.array([i for i in range(len(rows)) if i not in gone], np.int64)
    table = rows.take(kept).table
    alike, answers = groups(table, inputs), groups(table, list(targets))
    pairs = np.unique(np.stack([alike, answers]), axis=1)
    several = np.flatnonzero(np.bincount(pairs[0], minlength=1) > 1)
    for row in kept[np.isin(alike, several)].tolist():
        gone[row] = ("data.gone_conflicting", {"targets": list(targets)})
