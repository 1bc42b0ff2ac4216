"""JSON lines, and JSON files that hold one array of objects: RFC 8259, nothing beyond it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from luban.data.rows import LONGEST_RAW, BadRow, Quarantined, Rows
from luban.data.spans import is_squad, squad_rows
from luban.errors import DataError, Problem, problem

DEEPEST = 64  # levels of nesting that a row may have


_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)', re.DOTALL)  # an open one runs to the end: linear time
_PARAGRAPHS = re.compile(rb'"paragraphs"\s*:')
LOOKED = 100_000  # bytes in which a file of SQuAD says that it is one
_MARKS = re.compile(rb"[\[\]{}]")


def parse(data: bytes, source: str) -> Rows:
    """Rows of UTF-8 text. Raises DataError where no line is a usable object."""
    if data.lstrip()[:1] == b"[":
        return _array(data, source)
    if _PARAGRAPHS.search(data, 0, LOOKED) and (found := _squad(data)):
        return _array(json.dumps(found).encode(), source)
    found = objects(data, source)
    if not found.rows:
        raise unusable(found.quarantine, source)
    table, more = from_objects(found.rows, found.lines, source)
    return found.of(table, source, more)


@dataclass(frozen=True)
class Objects:
    """What the lines of a text hold: objects with their lines, lines that are none, and what was noticed."""

    rows: list[dict[str, Any]]
    lines: list[int]
    quarantine: list[Quarantined]
    notes: tuple[Problem, ...]

    def of(self, table: pa.Table, source: str, notes: Iterable[Problem] = ()) -> Rows:
        """The objects as a table that was made of them."""
        count = len(self.rows) + len(self.quarantine)
        lines = np.array(self.lines, np.int64)
        return Rows(table, lines, source, None, self.quarantine, count, (*self.notes, *notes))


def objects(data: bytes, source: str, first: int = 1, last: bool = True) -> Objects:
    """The objects of whole lines. `first`: the number of the first of them; `last`: the file ends with them."""
    rows, lines, quarantine, blank = [], [], [], []
    texts = data.removesuffix(b"\n").split(b"\n")
    ended = len(texts) if last and not data.endswith(b"\n") else 0  # of the line that may be cut off
    for number, line in enumerate(texts, 1):
        if not line.strip():
            blank.append(first + number - 1)
            continue
        try:
            rows.append(_object(line, last=number == ended))
            lines.append(first + number - 1)
        except BadRow as e:
            raw = line[:LONGEST_RAW].decode("utf-8", "replace")
            quarantine.append(Quarantined(first + number - 1, e.id, e.values, raw))
    notes = (problem("data.blank_lines", place=f"{source}:{blank[0]}", count=len(blank)),) if blank else ()
    return Objects(rows, lines, quarantine, notes)


def unusable(quarantine: list[Quarantined], source: str) -> DataError:
    """The mistake of a text in which no line is a usable object."""
    if not quarantine:
        return DataError(problem("data.no_rows", place=source))
    q = quarantine[0]
    return DataError(problem("data.no_usable_row", place=f"{source}:{q.line}", count=len(quarantine), reason=q.reason))


def _squad(data: bytes) -> list[dict[str, Any]] | None:
    """The rows of a file of SQuAD; None for anything else."""
    try:
        value = strict(data)
        return squad_rows(value) if is_squad(value) else None
    except (BadRow, AttributeError, KeyError, TypeError):
        return None


def _array(data: bytes, source: str) -> Rows:
    try:
        rows = strict(data)
    except BadRow as e:
        raise DataError(problem(e.id, place=source, **e.values)) from e
    if not rows or not all(isinstance(r, dict) for r in rows):
        raise DataError(problem("data.not_objects", place=source))
    numbers = list(range(1, len(rows) + 1))
    table, notes = from_objects(rows, numbers, source)
    return Rows(table, np.array(numbers, np.int64), source, rows_in=len(rows), notes=tuple(notes))


def _object(line: bytes, last: bool) -> dict[str, Any]:
    try:
        row = strict(line)
    except BadRow as e:
        raise BadRow("data.half_line", reason=e.values["reason"]) if last and e.id == "data.bad_json" else e from e
    if not isinstance(row, dict):
        raise BadRow("data.not_an_object", found=type(row).__name__)
    return row


def strict(text: bytes) -> Any:
    """One JSON value as RFC 8259 has it: no NaN, no key twice, no NUL, at most `DEEPEST` levels. Raises BadRow."""
    if text.count(b"[") + text.count(b"{") > DEEPEST and _depth(text) > DEEPEST:
        raise BadRow("data.too_deep", limit=DEEPEST)
    try:
        value = json.loads(text.decode(), object_pairs_hook=_pairs, parse_constant=_constant)
    except UnicodeDecodeError as e:
        raise BadRow("data.bad_bytes") from e
    except json.JSONDecodeError as e:
        raise BadRow("data.bad_json", reason=f"{e.msg} ({e.colno})") from e
    except RecursionError as e:
        raise BadRow("data.too_deep", limit=DEEPEST) from e
    except BadRow:
        raise
    except ValueError as e:  # an integer of more digits than Python converts
        raise BadRow("data.bad_json", reason=str(e)) from e
    if b"\\u" in text:
        _refuse_lone_surrogates(value)
    return value


def _depth(text: bytes) -> int:
    depth = deepest = 0
    for mark in _MARKS.findall(_STRINGS.sub(b"", text)):
        depth += 1 if mark in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _refuse_lone_surrogates(value: Any) -> None:
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError as e:
        raise BadRow("data.lone_surrogate") from e
    except RecursionError as e:
        raise BadRow("data.too_deep", limit=DEEPEST) from e
    if "\\u0000" in text:
        raise BadRow("data.nul")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [k for k, _ in pairs]
        raise BadRow("data.duplicate_key", key=next(n for n in names if names.count(n) > 1))
    return result


def _constant(word: str) -> Any:
    raise BadRow("data.json_constant", word=word)


# ---- objects into columns (also for a list of dicts)


def from_objects(rows: list[dict[str, Any]], lines: list[int], source: str) -> tuple[pa.Table, list[Problem]]:
    """A table with every key that occurs; a key that a row lacks is a missing cell, and is told."""
    names: dict[str, int] = {}
    for row in rows:
        for key in row:
            names[str(key)] = names.get(str(key), 0) + 1
    notes = [
        problem("data.key_lacks", place=source, key=name, count=len(rows) - count)
        for name, count in names.items()
        if count < len(rows)
    ]
    columns = {}
    for name in names:
        columns[name], mixed = to_arrow(row.get(name) for row in rows)
        if mixed:
            notes.append(problem("data.mixed_kinds", place=source, column=name, kinds=mixed))
    table = pa.table(columns) if columns else pa.table({"": pa.nulls(len(rows))}).select([])
    return table, notes


class Kinds:
    """What every key of many objects holds, seen block by block: the columns that `from_objects` makes of all of them."""

    def __init__(self) -> None:
        self.count = 0
        self.there: dict[str, int] = {}  # objects that have a key
        self.kinds: dict[str, set[str]] = {}
        self.types: dict[str, pa.DataType | None] = {}  # None: of no single type

    def see(self, rows: list[dict[str, Any]]) -> None:
        self.count += len(rows)
        names = list(dict.fromkeys(key for row in rows for key in row))
        for name in names:
            self.there[name] = self.there.get(name, 0) + sum(name in row for row in rows)
            values = [None if _is_missing(v) else v for v in (row.get(name) for row in rows)]
            found = {_kind(v) for v in values if v is not None}
            self.kinds.setdefault(name, set()).update(found)
            if found:
                self.types[name] = self._joined(name, _type(values)) if name in self.types else _type(values)

    def _joined(self, name: str, new: pa.DataType | None) -> pa.DataType | None:
        old = self.types[name]
        if old is None or new is None or old == new:
            return old if old == new else None
        try:
            pair = [pa.schema([(name, kind)]) for kind in (old, new)]
            return pa.unify_schemas(pair, promote_options="permissive").field(name).type
        except pa.ArrowException:
            return None

    def _column(self, name: str, rows: list[dict[str, Any]]) -> pa.Array:
        values = [None if _is_missing(v) else v for v in (row.get(name) for row in rows)]
        kinds, kind = self.kinds[name], self.types.get(name)
        if kinds == {"float", "int"}:
            return pa.array([None if v is None else float(v) for v in values], pa.float64())
        if len(kinds) > 1 or kinds == {"other"} or (kind is None and kinds):
            return pa.array(_texts(values), pa.string())
        return pa.array(values, kind) if kinds else pa.nulls(len(values), pa.string())

    def table(self, rows: list[dict[str, Any]]) -> pa.Table:
        """Some of the objects that were seen, with all columns."""
        return pa.table({name: self._column(name, rows) for name in self.there})

    def notes(self, source: str) -> Iterator[Problem]:
        """What is to be told of all objects."""
        for name, count in self.there.items():
            if count < self.count:
                yield problem("data.key_lacks", place=source, key=name, count=self.count - count)
        for name, kinds in self.kinds.items():
            if len(kinds) > 1 and kinds != {"float", "int"}:
                yield problem("data.mixed_kinds", place=source, column=name, kinds=sorted(kinds))


def _type(values: list[Any]) -> pa.DataType | None:
    try:
        return pa.array(values).type
    except (OverflowError, pa.ArrowInvalid, pa.ArrowTypeError):
        return None


def to_arrow(values: Iterable[Any]) -> tuple[pa.Array, list[str]]:
    """Python values as one Arrow column; kinds that do not go together become text, and are named."""
    values = [None if _is_missing(v) else v for v in values]
    kinds = sorted({_kind(v) for v in values if v is not None})
    if kinds == ["float", "int"]:
        return pa.array([None if v is None else float(v) for v in values], pa.float64()), []
    if len(kinds) > 1 or kinds == ["other"]:
        return pa.array(_texts(values), pa.string()), kinds if len(kinds) > 1 else []
    if not kinds:
        return pa.nulls(len(values), pa.string()), []
    try:
        return pa.array(values), []
    except (OverflowError, pa.ArrowInvalid, pa.ArrowTypeError):  # integers beyond 64 bits, lists of mixed things
        return pa.array(_texts(values), pa.string()), []


def _texts(values: list[Any]) -> Iterator[str | None]:
    return (v if v is None or isinstance(v, str) else _json(v) for v in values)


def _json(value: Any) -> str:
    if isinstance(value, (bool, int, float, list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _kind(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if isinstance(value, (int, np.integer)):
        return "int"
    if isinstance(value, (float, np.floating)):
        return "float"
    for name, kind in (("str", str), ("bytes", bytes), ("list", (list, tuple)), ("dict", dict)):
        if isinstance(value, kind):
            return name
    return type(value).__module__ if type(value).__module__ == "datetime" else "other"
