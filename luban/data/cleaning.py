"""Cleaning that drops rows. Every dropped row goes to the ledger with the reason.

Cells are changed nowhere here: `data.clean` hands that to the columns as their settings (`Recipe.resolved`), so that a
served cell goes the same road as a trained one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from luban.data.fences import fences
from luban.data.rows import Rows
from luban.data.same import groups, missing
from luban.errors import DataError, Problem, problem, raise_all

WAYS = {
    "number": ("keep", "drop", "median", "mean", "zero"),
    "category": ("keep", "drop", "most_frequent"),
    "text": ("keep", "drop"),
    "image": ("keep", "drop"),
    "video": ("keep", "drop"),
}
NORMAL = ("unicode", "lower", "whitespace")
Way = Literal["keep", "drop", "median", "mean", "zero", "most_frequent"]
Gone = dict[int, tuple[str, dict[str, Any]]]


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
    """The rows that stay; number columns must already be numbers (`typed`).

    `missing`: by type, `{number: median, category: drop}`; only "drop" is done here. `outliers`: "drop" takes training rows
    with a number beyond Tukey's far fences of the rows `fit_on`; a model is tested on the world as it is. `conflicting`:
    rows with equal inputs and different targets; texts are equal that `normalise` makes equal. A row that misses every
    target is dropped. Raises DataError for what is not possible, and where no row stays.
    """
    missing, normalise = missing or {}, normalise or {}
    raise_all(DataError, _mistakes(missing, normalise))
    gone: Gone = {}
    _drop_missing(rows, types, targets, missing, gone)
    if outliers == "drop":
        _drop_outliers(rows, types, targets, fit_on, gone)
    alike = _folded(rows, types, targets, tuple(s for s in NORMAL if normalise.get(s)))
    if conflicting == "drop" and targets:
        _drop_conflicting(alike, types, targets, gone)
    if duplicates == "drop":
        _drop_duplicates(alike, types, targets, gone)
    if len(gone) == len(rows) > 0:
        id, values = gone[min(gone)]
        raise DataError(problem(id, place=rows.place(min(gone)), **values))
    return rows.drop_each(gone)


def normalised(text: str | None, steps: Sequence[str] = NORMAL) -> str | None:
    """Unicode NFKC, lower case, runs of white space as one space: as many of these as `steps` names."""
    if text is None:
        return None
    if "unicode" in steps:
        text = unicodedata.normalize("NFKC", text)
    if "lower" in steps:
        text = text.lower()
    return " ".join(text.split()) if "whitespace" in steps else text


def _folded(rows: Rows, types: Mapping[str, str], targets: Sequence[str], steps: Sequence[str]) -> Rows:
    """Rows to compare with each other: texts as their column will read them."""
    for name, kind in types.items():
        if steps and kind == "text" and name not in targets and name in rows.columns:
            cells = rows.table[name]
            if pa.types.is_string(cells.type):
                rows = rows.having(name, pa.array([normalised(v, steps) for v in cells.to_pylist()], pa.string()))
    return rows


def _mistakes(missing: Mapping[str, str], normalise: Mapping[str, bool]) -> list[Problem]:
    found = [problem("data.clean_type", name=kind, allowed=WAYS) for kind in missing if kind not in WAYS]
    for kind, way in missing.items():
        if kind in WAYS and way not in WAYS[kind]:
            found.append(problem("data.clean_way", name=way, kind=kind, allowed=WAYS[kind]))
    return found + [problem("data.clean_step", name=s, allowed=NORMAL) for s in normalise if s not in NORMAL]


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
    among = np.ones(len(rows), bool) if fit_on is None else np.isin(np.arange(len(rows)), fit_on)
    for name, kind in types.items():
        if kind != "number" or name in targets or name not in rows.columns:
            continue
        cells = rows.table[name].to_numpy()
        found = fences(cells[among & ~np.isnan(cells)])
        if found is None:
            continue
        for row in np.flatnonzero(among & ((cells < found[0]) | (cells > found[1]))).tolist():
            values = {"column": name, "value": float(cells[row]), "low": found[0], "high": found[1]}
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
