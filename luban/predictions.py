"""Predictions for a whole file: one line per input row, in order; a bad row has its error, never a gap."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import numpy as np

from luban import console, files
from luban.columns.answering import Engine, Row, answer, decoded, finite, outputs_of
from luban.columns.examples import Examples, cells, encode, records
from luban.columns.lone import lone
from luban.columns.windows import opened
from luban.data.frames import Framed
from luban.data.prepare import raw
from luban.data.rows import Rows
from luban.data.sources import read
from luban.errors import DataError, RequestError, problem
from luban.messages import say
from luban.settings import Count
from luban.yaml_file import parse

CHUNK = 1024  # rows encoded, computed and written at once
LABELS = 100  # labels that get a column of their own
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run, at the start of a cell


def predict_file(
    model: Any,
    source: Any,
    out: str | Path = "-",
    *,
    chunk: Count = CHUNK,
    processes: Count = 1,
    draw: str | Path | None = None,
) -> tuple[int, int]:
    """Answer every row of `source` and write them; how many rows there were, and how many of them have an error.

    model: a Bundle or an Engine. source: what `luban.data.sources.read` takes, `-` is standard input, or one picture or video (`luban.columns.lone`). out: a .csv,
    .parquet or .jsonl file, written whole or not at all, or `-` for JSON lines on standard output. In tables a label
    that is not among an answer's candidates has an empty probability. `processes` > 1: so many answer blocks of `chunk` rows,
    each with the saved model; the lines stand in the order of the rows all the same. `draw`: a folder for each row's image
    with its boxes drawn in. Where `source` is a folder, each line begins with the file that it answers, as it is called there.
    Raises DataError where the data lack an input column, RequestError for another kind of file.
    """
    engine: Engine = getattr(model, "engine", model)
    writer = writer_for(str(out))
    reading = _reading(getattr(model, "recipe", None))
    given = source if isinstance(source, Rows) else lone(engine.columns, engine.inputs, source)
    if given is None:
        given = read(source, missing=("", *(reading.get("missing") or ())))
    asked = _files_of(given, engine, source)
    rows = _typed(engine, given, reading)
    for note in rows.notes:
        console.block(str(note))
    for name in (n for n in engine.inputs if engine.columns[n].form == "ids"):
        column = engine.columns[name]
        if column.long != "refuse" and (
            long := sum(column.overlong(rows.table[name].slice(a, chunk)) for a in range(0, len(rows), chunk))
        ):
            console.tell(f"predict.{column.long}", name=name, count=long, rows=len(rows), most=column.room)
    count = bad = 0
    seen = None
    if draw is not None:
        from luban.showing import Pictures

        seen = Pictures(engine, draw)
    with writer(str(out), engine, tuple(asked)) as sink:
        for found in lines(engine, rows, chunk, _spread(model, rows, chunk, processes), seen, asked):
            sink.write(found)
            count += len(found)
            bad += sum(r.answers is None for r in found)
    return count, bad


def _files_of(rows: Rows, engine: Engine, source: Any) -> dict[str, dict[int, str]]:
    """Of a folder the input that its files are: line -> file, those that could not be read among them; {} of any other source."""
    if not isinstance(source, (str, os.PathLike)) or not Path(source).expanduser().is_dir():
        return {}
    files = [n for n in engine.inputs if n in rows.columns and engine.columns[n].type in ("image", "video")]
    return {n: _by_line(rows, n) for n in files if rows.table[n].type == "string"}


def _by_line(rows: Rows, name: str) -> dict[int, str]:
    unread = {q.line: next(csv.reader([q.raw]))[0] for q in rows.quarantine}  # of a folder the file comes first
    return dict(zip(rows.lines.tolist(), rows.table[name].to_pylist())) | unread


def _typed(engine: Engine, rows: Rows, reading: Mapping[str, Any]) -> Rows:
    """The rows with their inputs typed as in training; missing words and the decimal sign are the recipe's."""
    absent = [n for n in engine.inputs if n not in rows.columns]
    for name in (n for n in absent if engine.columns[n].drawn):
        rows = rows.having(name, [np.arange(len(rows))])
    absent = [n for n in absent if not engine.columns[n].drawn]
    if absent:
        raise DataError("data.columns_absent", columns=absent, found=rows.columns)
    rows = rows.select(list(engine.inputs))
    try:
        return raw(rows, {n: engine.columns[n] for n in engine.inputs}, reading.get("decimal") or ".")
    except DataError:  # not one row is right: each is still answered, with its own error
        return rows


def _reading(recipe: Any) -> Mapping[str, Any]:
    """The `data` of a recipe, which an exported file has as text."""
    if isinstance(recipe, str):
        return (parse(recipe)[0] or {}).get("data") or {}
    return recipe.data if recipe is not None else {}


def _spread(model: Any, rows: Rows, chunk: int, processes: int) -> Iterator[list[Row]] | None:
    """The answers of several processes; None where one is as many as there are blocks for."""
    processes = min(processes, -(-len(rows) // chunk))
    if processes <= 1:
        return None
    from luban.predicting import answers_of

    return answers_of(model, (rows.table.slice(start, chunk) for start in range(0, len(rows), chunk)), processes)


def lines(
    engine: Engine,
    rows: Rows,
    chunk: int = CHUNK,
    ready: Iterator[list[Row]] | None = None,
    seen: Callable[[Any, Any, list[Row]], None] | None = None,
    asked: Mapping[str, Mapping[int, str]] = MappingProxyType({}),
) -> Iterator[list[Row]]:
    """Per input row its answers or its error, in the order of the file; quarantined rows stand where they stood.

    `ready`: the answers of each block, where others compute them. `seen` gets each block: table, lines, answers. `asked`: by input and
    line what a row is told with.
    """

    def told(row: Row, line: int) -> Row:
        return replace(row, asked={n: of[line] for n, of in asked.items()}) if asked else row

    waiting = deque(sorted(rows.quarantine, key=lambda q: q.line))
    for start in range(0, len(rows), chunk):
        found: list[Row] = []
        block = next(ready) if ready is not None else answers(engine, rows.table.slice(start, chunk))
        if seen is not None:
            seen(rows.table.slice(start, chunk), rows.lines[start : start + chunk], block)
        for line, row in zip(rows.lines[start : start + chunk], block, strict=True):
            while waiting and waiting[0].line < line:
                bad = waiting.popleft()
                found.append(told(Row(None, bad.reason), bad.line))
            found.append(told(row, int(line)))
        yield found
    yield [told(Row(None, q.reason), q.line) for q in waiting]


def answers(engine: Engine, table: Any) -> list[Row]:
    with np.errstate(all="ignore"):
        try:
            examples = encode(opened(engine.columns), engine.inputs, (), Framed(table, np.arange(len(table))))
        except DataError:  # some value cannot be read: row by row, to know which
            found = answer(engine, records(table))
        else:
            found = _decoded(engine, examples, table)
    return [_sound(r) for r in found]


def _decoded(engine: Engine, examples: Examples, table: Any) -> list[Row]:
    outputs = outputs_of(engine, examples)
    answers = {n: decoded(examples.columns[n], o, lambda of: cells(table[of])) for n, o in outputs.items()}
    return [Row(dict(zip(answers, found))) for found in zip(*answers.values())]


def _sound(row: Row) -> Row:
    wrong = [n for n, a in (row.answers or {}).items() if not finite(a)]
    return Row(None, say("predict.not_finite", columns=wrong)) if wrong else row


# -- where it goes -----------------------------------------------------------------------------------------------------


class _File:
    """A file that is there when all of it is written, else what was there before; `-` is standard output."""

    def __init__(self, path: str, engine: Engine, asked: tuple[str, ...] = ()):
        self.asked = asked
        self.final = None if path == "-" else Path(path)
        if self.final is not None:
            self.final.parent.mkdir(parents=True, exist_ok=True)
            self.temporary = self.final.with_name(f".{self.final.name}.{os.getpid()}.tmp")
        self.begin(engine)

    def begin(self, engine: Engine) -> None:
        self.file: TextIO = (
            sys.stdout if self.final is None else open(self.temporary, "w", encoding="utf-8", newline="")  # noqa: SIM115
        )

    def end(self) -> None:
        self.file.flush()
        if self.final is not None:
            self.file.close()

    def __enter__(self) -> _File:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        try:
            self.end()
            if kind is None and self.final is not None:
                files.sync(self.temporary)
                os.replace(self.temporary, self.final)
        finally:
            if self.final is not None:
                self.temporary.unlink(missing_ok=True)

    def write(self, rows: Sequence[Row]) -> None:
        raise NotImplementedError


class JsonLines(_File):
    """The dicts that `Bundle.predict` gives, one a line."""

    def write(self, rows: Sequence[Row]) -> None:
        self.file.writelines(json.dumps(r.plain(), ensure_ascii=False, default=str) + "\n" for r in rows)


class Csv(_File):
    """What was asked about, one column an output, its probability, one a label, and `error`."""

    def begin(self, engine: Engine) -> None:
        super().begin(engine)
        self.names = [*self.asked, *columns_of(engine)]
        self.csv = csv.writer(self.file, lineterminator="\n")
        self.csv.writerow([harmless(n) for n in self.names])

    def write(self, rows: Sequence[Row]) -> None:
        for plain in (r.plain() for r in rows):
            self.csv.writerow([harmless(flat(plain.get(n))) for n in self.names])


class Parquet(_File):
    """The columns of the CSV, typed."""

    def begin(self, engine: Engine) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {"number": pa.float64(), "text": pa.string()}
        self.schema = pa.schema(
            [(n, pa.string()) for n in self.asked] + [(n, types[kind]) for n, kind in columns_of(engine).items()]
        )
        self.parquet = pq.ParquetWriter(str(self.temporary), self.schema)

    def write(self, rows: Sequence[Row]) -> None:
        import pyarrow as pa

        plain = [r.plain() for r in rows]
        if plain:
            values = [pa.array([flat(p.get(f.name)) for p in plain], f.type) for f in self.schema]
            self.parquet.write_table(pa.Table.from_arrays(values, schema=self.schema))

    def end(self) -> None:
        self.parquet.close()


WRITERS = {".csv": Csv, ".parquet": Parquet, ".jsonl": JsonLines, ".ndjson": JsonLines}


def writer_for(out: str) -> type[_File]:
    """What writes a file of that name. Raises RequestError for a kind that is not known."""
    if out == "-":
        return JsonLines
    suffix = Path(out).suffix.lower()
    if suffix not in WRITERS:
        raise RequestError(problem("predict.no_format", place=out, name=suffix, allowed=(*WRITERS, "-")))
    return WRITERS[suffix]


def columns_of(engine: Engine) -> dict[str, str]:
    """The columns of a table of answers, and whether each holds numbers or text."""
    found: dict[str, str] = {}
    for name in engine.outputs:
        column = engine.columns[name]
        found[name] = "number" if column.form == "scalar" else "text"
        if column.form == "index":
            found[f"{name}.probability"] = "number"
            labels = column.labels if len(column.labels) <= LABELS else ()
            found |= {f"{name}.probability.{label}": "number" for label in labels}
        if column.of_form:
            found |= {f"{name}.probability": "number"} | {f"{name}.{k}": kind for k, kind in column.details.items()}
    return found | {"error": "text"}


def flat(value: Any) -> Any:
    """A value as one cell of a table: tags with blanks between, all else that is nested as JSON."""
    if not isinstance(value, (list, dict)):
        return value
    words = isinstance(value, list) and all(isinstance(v, str) for v in value)
    return " ".join(value) if words and value else json.dumps(value, ensure_ascii=False)


def harmless(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula; text that is a number stays as it is."""
    if not isinstance(cell, str) or not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return "'" + cell
    return cell
