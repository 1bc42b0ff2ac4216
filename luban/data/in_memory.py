"""Rows from Python objects: pandas, polars, Arrow, NumPy, `datasets`, a dict of columns, a list of dicts.

Which library an object comes from is read off its class, so that none of them is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from luban.data.halves import apart
from luban.data.json_lines import from_objects, to_arrow, unusable
from luban.data.rows import Quarantined, Rows
from luban.errors import DataError, Problem, problem

KINDS = ("path", "pandas", "polars", "pyarrow", "numpy", "datasets.Dataset", "dict", "[dict, ...]")


def rows(source: Any) -> Rows:
    """Rows of a Python object, in its order; those with half of a Unicode surrogate pair are quarantined.

    Raises DataError for an object of another kind.
    """
    if isinstance(source, Rows):
        return source
    name = type(source).__name__
    library = type(source).__module__.partition(".")[0]
    try:
        table, notes = _table(source, library, name)
        good, bad = range(len(table)), []
    except UnicodeEncodeError as e:
        source, good, bad = apart(source)
        if not bad:  # in the name of a column
            raise DataError(problem("data.lone_surrogate", place=name)) from e
        if not good:
            raise unusable([Quarantined(i + 1, "data.lone_surrogate") for i in bad], name) from e
        table, notes = _table(source, library, name)
    notes = [p if p.place else Problem(p.id, name, p.values, p.allowed, p.nearest) for p in notes]
    gone = [Quarantined(i + 1, "data.lone_surrogate") for i in bad]
    lines = np.asarray(good, np.int64) + 1
    return Rows(table, lines, name, None, gone, len(good) + len(bad), tuple(notes))


def _table(source: Any, library: str, name: str) -> tuple[pa.Table, list[Problem]]:
    if isinstance(source, pa.Table):
        return source, []
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source]), []
    if isinstance(source, np.ndarray):
        return _numpy(source)
    if library == "polars" and hasattr(source, "to_arrow"):
        table = source.to_arrow()
        return (table if isinstance(table, pa.Table) else pa.table({source.name: table})), []
    if library == "pandas" and hasattr(source, "columns"):
        return _pandas(source)
    if library == "datasets" and hasattr(source, "with_format"):
        return _dataset(source)
    if isinstance(source, Mapping):
        return columns({str(k): v for k, v in source.items()}, name)
    if isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        return _objects(list(source), name)
    raise DataError(problem("data.unknown_source", found=f"{type(source).__module__}.{name}", allowed=KINDS))


def _objects(source: list[Any], name: str) -> tuple[pa.Table, list[Problem]]:
    wrong = next((i for i, row in enumerate(source) if not isinstance(row, Mapping)), None)
    if wrong is not None:
        raise DataError(problem("data.not_a_dict", place=f"{name}:{wrong + 1}", found=type(source[wrong]).__name__))
    if not source:
        raise DataError(problem("data.no_rows", place=name))
    names = dict.fromkeys(str(key) for row in source for key in row)
    arrays = {n: [row.get(n) for row in source] for n in names}
    if any(isinstance(v, np.ndarray) for values in arrays.values() for v in values[:1]):
        return columns(arrays, name)
    return from_objects(source, list(range(1, len(source) + 1)), name)


def columns(source: dict[str, Any], name: str) -> tuple[pa.Table, list[Problem]]:
    """A table from a dict of equally long columns. Raises DataError where the lengths differ."""
    lengths = {k: len(v) for k, v in source.items()}
    if len(set(lengths.values())) > 1:
        shown = [f"{k}: {n}" for k, n in lengths.items()]
        raise DataError(problem("data.unequal_lengths", place=name, lengths=shown))
    arrays, notes = {}, []
    for column, values in source.items():
        arrays[column], mixed = _column(values)
        if mixed:
            notes.append(problem("data.mixed_kinds", place=name, column=column, kinds=mixed))
    return pa.table(arrays), notes


def _column(values: Any) -> tuple[pa.Array | pa.ChunkedArray, list[str]]:
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values, []
    if hasattr(values, "to_numpy") and not isinstance(values, np.ndarray):
        values = values.to_numpy()
    if _are_images(values):
        values = np.stack(values)
    if isinstance(values, np.ndarray):
        if values.ndim > 1:
            return tensors(values), []
        if values.dtype.kind in "biuf":
            return pa.array(values, from_pandas=True), []
        values = values.tolist()
    return to_arrow(values)


def _are_images(values: Any) -> bool:
    if not isinstance(values, (list, tuple)) or not values or not all(isinstance(v, np.ndarray) for v in values):
        return False
    return values[0].ndim in (2, 3) and len({v.shape for v in values}) == 1


def tensors(values: np.ndarray) -> pa.Array:
    """(N, ...) as a column of tensors that share the array's memory."""
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))


def _numpy(source: np.ndarray) -> tuple[pa.Table, list[Problem]]:
    if source.dtype.names:
        return columns({n: source[n] for n in source.dtype.names}, "ndarray")
    if source.ndim in (3, 4):
        return pa.table({"image": tensors(source)}), []
    if source.ndim not in (1, 2):
        raise DataError(problem("data.array_shape", place="ndarray", shape=str(source.shape)))
    wide = source.reshape(len(source), -1)
    return columns({f"c{i}": wide[:, i] for i in range(wide.shape[1])}, "ndarray")


def _pandas(source: Any) -> tuple[pa.Table, list[Problem]]:
    notes = []
    if type(source.index).__name__ != "RangeIndex":
        notes.append(problem("data.index_dropped", place=type(source).__name__))
    arrays, names = [], []
    for i, name in enumerate(source.columns):
        series = source.iloc[:, i]
        try:
            values, mixed = pa.Array.from_pandas(series), []
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            values, mixed = to_arrow(series.tolist())
        if mixed:
            notes.append(problem("data.mixed_kinds", place=type(source).__name__, column=str(name), kinds=mixed))
        arrays.append(values)
        names.append(str(name))
    return pa.table(arrays, names=names), notes


def _dataset(source: Any) -> tuple[pa.Table, list[Problem]]:
    if isinstance(source, Mapping):
        raise DataError(problem("data.dataset_dict", allowed=tuple(map(str, source))))
    table = source.with_format("arrow")[:]
    names = getattr(source, "features", None) or {}
    for name, feature in names.items():  # class numbers get their names back
        if type(feature).__name__ == "ClassLabel" and name in table.column_names:
            words = pa.array([None if n is None or n < 0 else feature.int2str(n) for n in table[name].to_pylist()])
            table = table.set_column(table.column_names.index(name), name, words)
    return table, []
