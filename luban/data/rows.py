"""Rows: a table on its way into the model, and the ledger of the rows that could not go with it.

`rows_in == len(table) + len(quarantine)` always holds: a row is used or it is quarantined with its line
and a reason, never lost.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from luban.data.blocks import BLOCK, rest, taken
from luban.data.same import tensor
from luban.errors import DataError, Problem, problem
from luban.messages import say

LONGEST_RAW = 10_000  # characters of a bad row that the ledger keeps
_MISSING = b"\xff"


class BadRow(ValueError):
    """Why a line is not a row, or a cell not what its column holds: sentence id and values."""

    def __init__(self, id: str, **values: Any):
        super().__init__(id)
        self.id, self.values = id, values


@dataclass(frozen=True)
class Quarantined:
    """A row that is not used: where it stood, which sentence says why, and what it held."""

    line: int
    reason_id: str
    values: dict[str, Any] = field(default_factory=dict)
    raw: str = ""

    @property
    def reason(self) -> str:
        return say(self.reason_id, **self.values)


@dataclass(frozen=True)
class Rows:
    """Cells as they were read, each with its line. Frozen: `take`, `drop`, `select`, `having` make new ones.

    `table`: N rows. `lines`: int64 (N,), the 1-based line in a text file, else the 1-based row number.
    `root`: relative image paths are relative to this folder. `notes`: what the user should know.
    """

    table: pa.Table
    lines: np.ndarray
    source: str
    root: Path | None = None
    quarantine: list[Quarantined] = field(default_factory=list)
    rows_in: int = 0
    notes: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.lines) == len(self.table), (len(self.lines), len(self.table))
        assert self.rows_in == len(self.table) + len(self.quarantine), (
            self.rows_in,
            len(self.table),
            len(self.quarantine),
        )

    def __len__(self) -> int:
        return len(self.table)

    @property
    def columns(self) -> list[str]:
        return self.table.column_names

    def place(self, row: int) -> str:
        """`file:line` of row number `row` (from 0)."""
        return f"{self.source}:{self.lines[row]}"

    def column(self, name: str) -> pa.ChunkedArray:
        """One column. Raises DataError with the nearest name."""
        if name not in self.table.column_names:
            raise DataError(problem("data.no_such_column", place=self.source, name=name, allowed=self.columns))
        return self.table[name]

    def take(self, indices: Sequence[int] | np.ndarray) -> Rows:
        """The rows with these numbers (from 0), in this order; a ledger of its own, still empty."""
        indices = np.asarray(indices, np.int64)
        return replace(
            self, table=taken(self.table, indices), lines=self.lines[indices], quarantine=[], rows_in=len(indices)
        )

    def select(self, columns: Sequence[str]) -> Rows:
        """The same rows with these columns only. Raises DataError for an unknown one."""
        for name in columns:
            self.column(name)
        return replace(self, table=self.table.select(list(columns)))

    def having(self, name: str, values: pa.Array | pa.ChunkedArray) -> Rows:
        """The same rows with one column replaced or added at the end."""
        if name in self.table.column_names:
            return replace(self, table=self.table.set_column(self.table.column_names.index(name), name, values))
        return replace(self, table=self.table.append_column(name, values))

    def noted(self, *notes: Problem) -> Rows:
        return replace(self, notes=self.notes + notes)

    def drop(self, which: Sequence[int] | np.ndarray, reason_id: str, **values: Any) -> Rows:
        """Move rows to the quarantine. `which`: bool (N,) or row numbers."""
        which = np.asarray(which)
        which = np.flatnonzero(which) if which.dtype == bool else which.astype(np.int64)
        return self.drop_each({int(i): (reason_id, values) for i in which})

    def drop_each(self, reasons: dict[int, tuple[str, dict[str, Any]]]) -> Rows:
        """Move rows to the quarantine, each for its own reason: {row number: (sentence id, values)}."""
        if not reasons:
            return self
        bad = np.array(sorted(reasons), np.int64)
        raws = raw_rows(taken(self.table, bad))
        gone = [Quarantined(int(self.lines[i]), *reasons[int(i)], raw) for i, raw in zip(bad, raws)]
        kept = np.setdiff1d(np.arange(len(self)), bad)
        ledger = sorted([*self.quarantine, *gone], key=lambda q: q.line)
        return replace(self, table=taken(self.table, kept), lines=self.lines[kept], quarantine=ledger)

    def save_quarantine(self, path: str | Path) -> None:
        """Write the ledger as CSV: line, reason, raw."""
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("line", "reason", "raw"))
            writer.writerows((q.line, q.reason, q.raw) for q in self.quarantine)

    def fingerprint(self) -> str:
        """SHA-256 of names, types and cells; the same however the table is cut into chunks."""
        digest = hashlib.sha256()
        for name in self.columns:
            digest.update(f"{name}\0{self.table[name].type}\0{len(self)}\0".encode())
            for part in content(self.table[name]):
                digest.update(part)
        return digest.hexdigest()

    def row_hashes(self, key: bytes) -> list[str]:
        """See `row_hashes`."""
        return row_hashes(self.table, key)


def row_hashes(table: pa.Table, key: bytes) -> list[str]:
    """A keyed BLAKE2b per row (32 hex digits): cells by column name, so that column order does not matter.

    A number read as text and the same number read as a float agree.
    """
    names = sorted(table.column_names)
    head = json.dumps(names, ensure_ascii=False).encode()
    cells = zip(*(_cell_bytes(table[n]) for n in names)) if names else iter(() for _ in range(len(table)))
    start = hashlib.blake2b(head, key=key[:64], digest_size=16)
    return [_finish(start.copy(), row) for row in cells]


def _finish(digest: Any, cells: tuple[bytes, ...]) -> str:
    digest.update(b"".join(len(c).to_bytes(8, "little") + c for c in cells))
    return digest.hexdigest()


def raw_rows(table: pa.Table) -> list[str]:
    """Each row as one CSV line, for the ledger."""
    columns = [_shown(table[n]) for n in table.column_names]
    return [csv_line(cells) for cells in zip(*columns)] if columns else [""] * len(table)


def csv_line(cells: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(["" if c is None else c for c in cells])
    return out.getvalue()[:LONGEST_RAW]


def _shown(column: pa.ChunkedArray) -> list[Any]:
    if isinstance(column.type, pa.FixedShapeTensorType) or pa.types.is_binary(column.type):
        return [f"<{column.type}>"] * len(column)
    return column.to_pylist()


def content(column: pa.ChunkedArray) -> Iterator[bytes | memoryview]:
    """The bytes that make a column what it is: which cells are there, and what they hold. Block by block."""
    yield np.packbits(pc.is_valid(column).to_numpy().astype(bool)).tobytes()
    kind = column.type
    pixels = tensor(column)
    if pixels is not None:
        yield np.ascontiguousarray(pixels).data.cast("B") if pixels.size else b""
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        for part in _parts(column):
            yield np.ascontiguousarray(part.fill_null(pa.scalar(0, kind)).to_numpy(zero_copy_only=False)).tobytes()
    elif pa.types.is_string(kind):
        for part in _parts(column):
            yield (
                pc.fill_null(pc.binary_length(part), len(_MISSING))
                .to_numpy(zero_copy_only=False)
                .astype(np.int64)
                .tobytes()
            )
        for part in _parts(column):
            yield _joined(part)
    else:
        cells = _cell_bytes(column)
        yield np.fromiter(map(len, cells), np.int64, len(cells)).tobytes()
        yield b"".join(cells)


def _parts(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    """A column in pieces that fit into memory."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), BLOCK):
            yield chunk.slice(start, BLOCK)
        rest()


def _joined(texts: pa.Array) -> bytes | memoryview:
    """All bytes of a string array, one after another; a missing cell is the byte that no text begins with."""
    if texts.null_count:
        texts = texts.cast(pa.binary()).fill_null(_MISSING)
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[[texts.offset, texts.offset + len(texts)]]
    return memoryview(data)[int(ends[0]) : int(ends[1])] if data is not None else b""


def _cell_bytes(column: pa.ChunkedArray) -> list[bytes]:
    """One bytes object a cell; missing is a byte that no text begins with."""
    pixels = tensor(column)
    if pixels is not None:
        return [np.ascontiguousarray(p).tobytes() for p in pixels]
    return [_bytes_of(v) for v in column.to_pylist()]


def _bytes_of(value: Any) -> bytes:
    if value is None or value != value:
        return _MISSING
    if isinstance(value, bytes):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return str(value).encode("utf-8", "surrogatepass")
