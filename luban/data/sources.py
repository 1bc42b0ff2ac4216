"""One door for all data: `read(source)` gives Rows from files, folders, stdin, Python objects or a sample set.

Nothing is guessed about cells: text files give strings, typed formats keep their types. What does not fit
goes to the quarantine or is told in a note; what cannot be data at all is refused in one sentence.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from luban.data import (
    annotated,
    boxes,
    conll,
    csv_file,
    images,
    in_memory,
    json_lines,
    samples,
    streams,
    text_file,
    typed_files,
)
from luban.data.rows import Rows
from luban.data.spans import STARTS
from luban.data.typed import typed
from luban.errors import DataError, problem

__all__ = ["FORMATS", "read", "typed"]

FORMATS = ("auto", "csv", "tsv", "jsonl", "conll", "parquet", "arrow", "images", "idx", "cifar", "coco", "voc", "yolo")
ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    **dict.fromkeys(conll.ENDINGS, "conll"),
}


def read(
    source: Any, *, format: str = "auto", missing: Sequence[str] = ("",), columns: Sequence[str] | None = None
) -> Rows:
    """Rows of a file, a folder, `-` (stdin), a Python object, or a sample set by its name.

    `missing`: the words that mean "no value here"; by default only the empty cell does. `columns`: only
    these. Raises DataError with place, value and what is allowed.
    """
    if format not in FORMATS:
        raise DataError(problem("data.unknown_format", name=format, allowed=FORMATS))
    if isinstance(source, (str, os.PathLike)):
        rows = _named(os.fspath(source), format, missing, columns)
    else:
        rows = in_memory.rows(source)
    return finish(rows, missing, columns)


def _named(name: str, format: str, missing: Sequence[str], columns: Sequence[str] | None) -> Rows | _Parsed:
    if name == "-":
        return _text(sys.stdin.buffer.read(), "-", format, missing, None)
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path, name, format)
    if path.exists():
        return _file(path, name, format, missing, columns)
    if name in samples.SAMPLES:
        return samples.load(name)
    near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise DataError(problem("data.no_such_file", name=path.name, path=name, allowed=[*near, *samples.SAMPLES]))


@dataclass(frozen=True)
class _Parsed:
    """Rows of a CSV text: its parser has already looked for missing words and NUL."""

    rows: Rows


def _folder(path: Path, name: str, format: str) -> Rows:
    if format in ("auto", "idx") and (rows := images.idx_folder(path, name)) is not None:
        return rows
    if format in ("auto", "cifar") and (rows := images.cifar_folder(path, name)) is not None:
        return rows
    if format in ("auto", "coco", "voc", "yolo") and (rows := annotated.folder(path, name, format)) is not None:
        return rows
    if format in ("auto", "images"):
        return images.folder(path, name)
    raise DataError(problem("data.is_a_folder", place=name, format=format))


def _file(path: Path, name: str, format: str, missing: Sequence[str], columns: Sequence[str] | None) -> Rows | _Parsed:
    with _opened(path, name) as file:
        head = file.read(512)
    if not head:
        raise DataError(problem("data.empty_file", place=name))
    kind = format if format != "auto" else _kind(path, head)
    if kind == "idx":
        return images.idx_file(path, name)
    if kind == "cifar":
        return images.cifar_file(path, name)
    if kind not in ("parquet", "arrow") or head.lstrip()[:1] == b"<":
        text_file.refuse_foreign(head, name)
    if kind == "parquet":
        return typed_files.parquet(path, name, columns)
    if kind == "arrow":
        return typed_files.arrow(path, name)
    if kind in ("jsonl", "coco") and annotated.is_coco(head) and (found := annotated.coco_file(path, name)) is not None:
        return found
    if kind in ("csv", "tsv") and streams.is_long(path):
        rows = streams.csv(path, name, missing=missing, delimiter="\t" if kind == "tsv" else None)
        if rows is not None:
            return _Parsed(replace(rows, root=path.parent))
    untold = kind == "auto" and path.suffix.lower() not in ENDINGS and head.lstrip()[:1] == b"{"
    if (kind == "jsonl" or untold) and streams.is_long(path):
        rows = streams.json(path, name, lambda rows: finish(rows, missing, columns))
        if rows is not None:
            return _Parsed(replace(rows, root=path.parent))
    data = text_file.read_bytes(path, name)
    return _text(data, name, kind, missing, path)


def _opened(path: Path, name: str) -> Any:
    try:
        return open(path, "rb")
    except OSError as e:
        raise DataError(problem("data.unreadable", place=name, reason=e.strerror or type(e).__name__)) from e


def _kind(path: Path, head: bytes) -> str:
    """The format by what the file holds, else by its name."""
    if images.is_idx(path):
        return "idx"
    if images.is_cifar(path):
        return "cifar"
    inside = text_file.magic(head)
    return inside if inside in ("parquet", "arrow") else ENDINGS.get(path.suffix.lower(), "auto")


def _text(data: bytes, source: str, kind: str, missing: Sequence[str], path: Path | None) -> Rows | _Parsed:
    text_file.refuse_foreign(data[:512], source)
    data, notes = text_file.as_utf8(data, source)
    root = path.parent if path else None
    if kind == "conll":
        return replace(conll.parse(data, source).noted(*notes), root=root)
    untold = kind == "auto" and (path is None or path.suffix.lower() not in ENDINGS)
    if kind == "jsonl" or (untold and data.lstrip()[:1] in (b"{", b"[")):
        return replace(json_lines.parse(data, source).noted(*notes), root=root)
    delimiter = "\t" if kind == "tsv" else None
    return _Parsed(replace(csv_file.parse(data, source, missing=missing, delimiter=delimiter).noted(*notes), root=root))


# ---- what all sources have in common


def finish(found: Rows | _Parsed, missing: Sequence[str], columns: Sequence[str] | None) -> Rows:
    """The same rules for every source: distinct names, plain types, declared missing words, no NUL in text."""
    if isinstance(found, _Parsed):
        return found.rows if columns is None else found.rows.select(columns)
    rows = found
    names, notes = csv_file.clean_names([str(n) for n in rows.columns], rows.source)
    notes = [n for n in notes if n.id != "data.header_is_numbers"]
    rows = replace(rows, table=rows.table.rename_columns(names)).noted(*notes)
    if columns is not None:
        rows = rows.select(columns)
    rows = _plain(rows, wanted=columns or ())
    rows = _missing_words(rows, missing)
    rows = _without_nul(rows)
    if not rows.columns or not rows.rows_in:
        raise DataError(problem("data.no_rows", place=rows.source))
    return rows


def _plain(rows: Rows, wanted: Sequence[str]) -> Rows:
    """Dictionaries, large and view strings, decimals and half floats as the few types that columns know."""
    table, left_out = rows.table, []
    for i, name in enumerate(rows.columns):
        column = table[name]
        plain = _plain_column(column)
        if plain is None:
            left_out.append(problem("data.nested", place=rows.source, column=name, type=str(column.type)))
        elif plain is not column:
            table = table.set_column(i, name, plain)
    refused = [p for p in left_out if p.values["column"] in wanted]
    if refused:
        raise DataError(*refused)
    table = table.drop_columns([p.values["column"] for p in left_out])
    return replace(rows, table=table).noted(*left_out)


def _plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The column in a plain type; None where its cells are lists or records."""
    kind = column.type
    if isinstance(kind, pa.FixedShapeTensorType):
        return column
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_column(column.cast(kind.storage_type))
    if pa.types.is_dictionary(kind):
        return _plain_column(column.cast(kind.value_type))
    if pa.types.is_struct(kind) and {f.name for f in kind} == {"bytes", "path"}:  # an image of `datasets`
        files = pc.struct_field(column, "bytes")
        return files if files.null_count < len(files) else pc.struct_field(column, "path")
    if _is_words(kind):
        return column
    if pa.types.is_nested(kind):
        return _talks(column) or _answers(column) or boxes.as_text(column)
    if pa.types.is_null(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return column.cast(pa.float64())
    return column


def _is_words(kind: pa.DataType) -> bool:
    """Lists of words, tags or class numbers, and names by their place in a text."""
    if not pa.types.is_list(kind) and not pa.types.is_large_list(kind):
        return False
    inside = kind.value_type
    named = pa.types.is_struct(inside) and {"start", "end", "label"} <= {f.name for f in inside}
    return named or pa.types.is_string(inside) or pa.types.is_large_string(inside) or pa.types.is_integer(inside)


def _talks(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Lists of messages as JSON, one text for each conversation; None for anything else."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or not pa.types.is_struct(kind.value_type):
        return None
    fields = {f.name for f in kind.value_type}
    keys = next((k for k in (("role", "content"), ("from", "value")) if fields >= set(k)), None)
    if keys is None:
        return None
    cells = ([{k: m[k] for k in keys} for m in v] if v is not None else None for v in column.to_pylist())
    texts = [v if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in cells]
    return pa.chunked_array([pa.array(texts, pa.string())])


def _answers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Answers that stand in a text (`luban.data.spans`) as JSON, one text for each row; None for anything else."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    inside = kind.value_type if lists else kind
    fields = {f.name for f in inside} if pa.types.is_struct(inside) else set()
    if "text" not in fields or not fields <= {"text", "end", *STARTS}:
        return None
    texts = [v if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])


def _missing_words(rows: Rows, missing: Sequence[str]) -> Rows:
    table, words = rows.table, pa.array(list(missing), pa.string())
    for i, name in enumerate(rows.columns):
        if pa.types.is_string(table[name].type) and len(words):
            hit = pc.is_in(table[name], words)
            if pc.any(hit).as_py():
                table = table.set_column(i, name, pc.if_else(hit, pa.scalar(None, pa.string()), table[name]))
    return replace(rows, table=table)


def _without_nul(rows: Rows) -> Rows:
    bad = np.zeros(len(rows), bool)
    for name in rows.columns:
        if pa.types.is_string(rows.table[name].type):
            bad |= pc.match_substring(rows.table[name], "\0").fill_null(False).to_numpy().astype(bool)
    return rows.drop(bad, "data.nul") if bad.any() else rows
