"""Tables taken block by block, so that memory does not grow with their rows.

A large table lies in a file of its own (`Spill`) and is mapped, not read: its pages come when they are looked at and are
given back after each block (`rest`).
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

BLOCK = 1 << 16  # rows worked on at once, fewer where they are wide
BLOCK_BYTES = 8 << 20
LARGE = 1_000_000  # rows, or bytes of cells, from which on a table is worked on block by block
LARGE_BYTES = 64 << 20
MANY_BYTES = 256 << 20  # or LARGE rows: from here on a row's part follows from what it holds
SOME_BYTES = 32 << 20  # bytes of cells that are looked at where some rows stand for all
_mapped: weakref.WeakSet[Any] = weakref.WeakSet()


def large(table: pa.Table) -> bool:
    """Whether a table is worked on block by block: by what it holds, not by where it lies."""
    return table.num_rows > LARGE or table.nbytes > LARGE_BYTES


def many(table: pa.Table) -> bool:
    """Whether a table is split without comparing its rows."""
    return table.num_rows > LARGE or table.nbytes > MANY_BYTES


def some(table: pa.Table, most: int) -> int:
    """How many rows, evenly spaced, stand for all of a table: `most`, fewer where their cells are wide.

    Pictures of one size do not count: they are looked at block by block.
    """
    wide = sum(c.nbytes for c in table.columns if not isinstance(c.type, pa.FixedShapeTensorType))
    return min(most, table.num_rows, max(1000, SOME_BYTES * table.num_rows // max(1, wide)))


def home() -> Path:
    """Where Luban keeps what it can make again: `LUBAN_CACHE`, else `XDG_CACHE_HOME/luban`, else `~/.cache/luban`."""
    named = os.environ.get("LUBAN_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luban"


def taken(table: pa.Table, index: np.ndarray) -> pa.Table:
    """Rows of a table; a run of neighbours is a view, not a copy."""
    index = np.asarray(index)
    if _is_run(index):
        return table.slice(int(index[0]), len(index))
    if table.num_columns and table.column(0).num_chunks > 1 and (np.diff(index) > 0).all():
        return pa.Table.from_batches(list(_of_batches(table, index, table.num_rows)), table.schema)
    return table.take(pa.array(index))


def rows_in_block(table: pa.Table) -> int:
    return max(256, min(BLOCK, BLOCK_BYTES * table.num_rows // max(1, table.nbytes)))


def pieces(table: pa.Table, index: np.ndarray | None = None, size: int | None = None) -> Iterator[pa.Table]:
    """The rows `index` of a table (None: all) in order, as tables of at most `size` rows."""
    size = size or rows_in_block(table)
    if index is not None and len(index) and not _is_run(index) and not (np.diff(index) > 0).all():
        for start in range(0, len(index), size):
            yield table.take(pa.array(index[start : start + size]))
        return
    if index is not None and len(index) and _is_run(index):
        table, index = table.slice(int(index[0]), len(index)), None
    batches = table.to_batches(max_chunksize=size) if index is None else _of_batches(table, index, size)
    held: list[pa.RecordBatch] = []
    for batch in batches:
        if held and sum(map(len, held)) + len(batch) > size:
            yield pa.Table.from_batches(held, table.schema)
            held = []
            rest()
        held += [batch] if len(batch) else []
    if held:
        yield pa.Table.from_batches(held, table.schema)
        rest()


def _is_run(index: np.ndarray) -> bool:
    return bool(len(index)) and index[-1] - index[0] == len(index) - 1 and bool((np.diff(index) == 1).all())


def _of_batches(table: pa.Table, index: np.ndarray, size: int) -> Iterator[pa.RecordBatch]:
    """Ascending rows of a table, taken from each of its batches."""
    start = 0
    for batch in table.to_batches(max_chunksize=size):
        low, high = np.searchsorted(index, (start, start + len(batch)))
        if high > low:
            yield batch if high - low == len(batch) else batch.take(pa.array(index[low:high] - start))
        start += len(batch)
        rest()


def rest() -> None:
    """Give back the memory of the mapped pages that were looked at; they come again when they are asked for."""
    for mapped in list(_mapped):
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)


def mapped(path: Path) -> mmap.mmap:
    """A file's bytes, read only, whose pages `rest` gives back."""
    with open(path, "rb") as file:
        found = _Mapped(file.fileno(), 0, access=mmap.ACCESS_READ)
    _mapped.add(found)
    return found


class _Mapped(mmap.mmap):
    """An mmap that can be referred to weakly."""


class Spill:
    """A table that is written batch by batch and then mapped. Its file has no name, so that no crash leaves it behind."""

    def __init__(self, schema: pa.Schema):
        folder = home() / "spill"
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(suffix=".arrow", dir=folder)
        self.path, self.schema = Path(name), schema
        self.file = os.fdopen(descriptor, "wb")
        self.writer = pa.ipc.new_file(self.file, schema)

    def add(self, table: pa.Table) -> None:
        self.writer.write_table(table.combine_chunks(), max_chunksize=BLOCK)

    def table(self) -> pa.Table:
        """All that was added; its memory is the file's."""
        self.writer.close()
        self.file.close()
        try:
            return pa.ipc.open_file(pa.py_buffer(mapped(self.path))).read_all()
        finally:
            self.drop()

    def drop(self) -> None:
        """The name goes at once; where a system does not allow that (Windows), when the table goes."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError:
            weakref.finalize(self, self.path.unlink, missing_ok=True)

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self.file.close()
            self.drop()
