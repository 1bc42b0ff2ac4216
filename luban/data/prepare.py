"""From what the user named to rows that stages work on: read, typed, cleaned, split, each row accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luban import registry
from luban.data.boxes import boxed
from luban.data.frames import Framed
from luban.data.masks import CLASSES, masked
from luban.data.rows import Rows
from luban.data.sources import read, typed
from luban.data.spans import spanned
from luban.data.streams import by_blocks
from luban.data.tagged import flat, tagged
from luban.data.talks import READ, talked
from luban.errors import DataError
from luban.messages import listed
from luban.part import Part
from luban.recipe import Recipe

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Data:
    """Rows and which of them are for what. Without splits (a file to evaluate on) every row is a test row."""

    rows: Rows
    splits: Any = None
    recipe: Recipe | None = None

    @property
    def table(self) -> Any:
        return self.rows.table

    def part(self, name: str) -> np.ndarray:
        """Row indices of `train`, `validation` or `test`."""
        if self.splits is None:
            return np.arange(self.table.num_rows) if name == "test" else np.zeros(0, np.int64)
        return getattr(self.splits, name)

    def held_out(self) -> tuple[str, np.ndarray]:
        """The rows to judge a model by: test, else validation, else all there are; and which it was."""
        for name in ("test", "validation"):
            if len(self.part(name)):
                return name, self.part(name)
        return "train", np.arange(self.table.num_rows)

    def framed(self, part: str | np.ndarray, frame: Part) -> Framed:
        """The examples of a part, or of given rows, before encoding."""
        rows = self.part(part) if isinstance(part, str) else part
        settings = {k: v for k, v in frame.settings.items() if v is not None}
        return registry.find("frames", frame.type)(self.table, rows, **settings)


def prepare(recipe: Recipe, rows: Rows | None = None) -> Data:
    """The data of a recipe whose inputs and outputs are named. Raises DataError."""
    rows = rows if rows is not None else read_for(recipe)
    parts = recipe.read
    rows = gathered(rows, {n: p.type for n, p in parts.items()})
    absent = [n for n in (*parts, *_named(recipe)) if n not in rows.table.column_names]
    if absent:
        from luban.errors import problem, raise_all

        raise_all(
            DataError,
            [problem("data.no_column", place=rows.source, name=n, allowed=rows.table.column_names) for n in absent],
        )
    types = {n: p.type for n, p in parts.items()}
    decimal = recipe.data.get("decimal") or "."
    alongs = {n: p.settings for n, p in recipe.along().items() if p.settings.get("of")}
    rows = by_blocks(
        rows, lambda r: _with_truth(_read(typed(r, types, decimal=decimal), types, alongs, True), tuple(recipe.outputs))
    )
    cleaning = {k: v for k, v in (recipe.data.get("clean") or {}).items() if v is not None}
    settings = {k: v for k, v in (recipe.data.get("split") or {}).items() if v is not None}
    if settings.pop("stratify", None) in (None, True) and "stratify" not in (recipe.data.get("split") or {}):
        first = next(iter(recipe.outputs.items()), None)
        settings["stratify"] = first[0] if first and first[1].type == "category" else None
    elif (recipe.data.get("split") or {}).get("stratify"):
        settings["stratify"] = recipe.data["split"]["stratify"]
    settings.setdefault("seed", recipe.seed)
    split = registry.find("data", "split")
    splits = split(rows, tuple(parts), **settings)
    if cleaning:
        before = rows
        rows = registry.find("data", "clean")(
            rows, types, fit_on=splits.train, targets=tuple(recipe.outputs), **cleaning
        )
        splits = splits.moved(before, rows)  # a new split would test on rows that cleaning has learned from
    return Data(rows, splits, recipe)


def read_for(recipe: Recipe) -> Rows:
    """The raw rows that a recipe names."""
    if not recipe.data.get("rows"):
        raise DataError("data.none_named")
    return read(recipe.data["rows"], format=recipe.data.get("format") or "auto", missing=missing_words(recipe))


def missing_words(recipe: Recipe | None) -> tuple[str, ...]:
    """The words that mean "no value here"."""
    return ("", *((recipe.data.get("missing") if recipe else None) or ()))


def raw(source: Any, columns: Mapping[str, Any], decimal: str = ".", missing: Sequence[str] = ("",)) -> Rows:
    """Any source as typed rows, for a model that is already there: columns absent from it are left to the caller."""
    rows = source if isinstance(source, Rows) else read(source, missing=missing)
    rows = gathered(rows, {n: c.type for n, c in columns.items()})
    types = {n: c.type for n, c in columns.items() if n in rows.table.column_names}
    alongs = {n: _as_fitted(columns[n]) for n in types if columns[n].of_form and columns[n].of in types}
    there = {n: columns[n] for n in types}
    return by_blocks(rows, lambda r: _taken(_read(typed(r, types, decimal=decimal), types, alongs), there))


def taken(data: Data, columns: Mapping[str, Any]) -> Data:
    """Data without the rows that a fitted column refuses (`Column.refused`): they are in the quarantine."""
    rows = _taken(data.rows, {n: c for n, c in columns.items() if n in data.table.column_names})
    if rows is data.rows:
        return data
    return Data(rows, data.splits.moved(data.rows, rows) if data.splits is not None else None, data.recipe)


def _taken(rows: Rows, columns: Mapping[str, Any]) -> Rows:
    for name, column in columns.items():
        rows = rows.drop_each(column.refused(rows.table[name]))
    return rows


def _read(rows: Rows, types: Mapping[str, str], alongs: Mapping[str, Mapping[str, Any]], learned: bool = False) -> Rows:
    """Typed rows with files located, lists of words as text, tags, boxes and masks held against their text or image. `alongs`: settings by column.

    `learned`: these rows are to be learned from, so that a conversation must have something to learn.
    """
    rows = flat(located(rows, types), [n for n, kind in types.items() if kind == "text"])
    for name in (n for n, kind in types.items() if kind in READ):
        rows = talked(rows, name, types[name], learned)
    for name, settings in alongs.items():
        if types[name] == "boxes":
            rows = boxed(rows, name, settings["of"])
        elif types[name] == "mask":
            rows = masked(rows, name, settings["of"], settings.get("labels") or (), settings.get("ignore", CLASSES))
        elif types[name] == "span":
            rows = spanned(rows, name, settings["of"], settings.get("empty") or "missing")
        else:
            rows = tagged(rows, name, settings["of"], settings.get("unit") or "auto", settings.get("scheme") or "auto")
    return rows


def _as_fitted(column: Any) -> dict[str, Any]:
    """How a fitted column of tags, of answers or of masks reads them, whatever these rows look like."""
    kept = {k: column.state.get(k) for k in ("unit", "scheme")}
    own = {k: getattr(column, k) for k in ("empty", "labels", "ignore") if hasattr(column, k)}
    return {"of": column.of, **own, **kept}


def gathered(rows: Rows, types: Mapping[str, str]) -> Rows:
    """Rows with every column that is made of several: each of its cells holds theirs, as JSON."""
    import json

    import pyarrow as pa

    found = rows.table.column_names
    for name, kind in types.items():
        fields = registry.schema("columns", kind).get("x-fields", ()) if kind in registry.names("columns") else ()
        there = [f for f in fields if f in found]
        if name in found or len(there) < 2:
            continue
        cells = zip(*(rows.table[f].to_pylist() for f in there))
        texts = [json.dumps(dict(zip(there, c)), ensure_ascii=False, default=str) for c in cells]
        rows = rows.having(name, pa.array(texts, pa.string()))
    return rows


def located(rows: Rows, types: Mapping[str, str]) -> Rows:
    """Rows whose image and video files are named from the root of the file system, so that a cell means the same everywhere."""
    import os

    import pyarrow as pa

    for name in (n for n, kind in types.items() if kind in ("image", "mask", "video")):
        column = rows.table[name]
        if rows.root is None or str(column.type) not in ("string", "large_string"):
            continue
        root = str(rows.root.absolute())
        cells = [
            v and (v if v.startswith("data:") or len(v) > 4096 else os.path.join(root, v)) for v in column.to_pylist()
        ]
        rows = rows.having(name, pa.array(cells, pa.string()))
    return rows


def data_of(source: Any, columns: Mapping[str, Any], recipe: Recipe | None = None) -> Data:
    """Rows to work on with a model that is there, read as its recipe says (decimal sign, missing words)."""
    if isinstance(source, Data):
        return source
    decimal = (recipe.data.get("decimal") if recipe else None) or "."
    return Data(raw(source, columns, decimal, missing_words(recipe)))


def _with_truth(rows: Rows, outputs: Sequence[str]) -> Rows:
    """Rows in which every output is missing teach nothing: they go to the quarantine, said."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not outputs:
        return rows
    empty = np.ones(rows.table.num_rows, bool)
    for name in outputs:
        column = rows.table[name]
        null = (
            pc.is_null(column, nan_is_null=True)
            if "double" in str(column.type) or "float" in str(column.type)
            else pc.is_null(column)
        )
        if pa.types.is_string(column.type):
            null = pc.or_(null, pc.equal(pc.fill_null(column, ""), ""))
        empty &= null.to_numpy()
    return rows.drop(empty, "data.no_truth", columns=listed(outputs)) if empty.any() else rows


def _named(recipe: Recipe) -> list[str]:
    split = recipe.data.get("split") or {}
    return [split[k] for k in ("by", "time", "column") if split.get(k)]
