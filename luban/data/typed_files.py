"""Files whose cells have types: Parquet, Arrow and Feather."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from luban.data import streams
from luban.data.blocks import BLOCK, LARGE
from luban.data.rows import Rows
from luban.errors import DataError, problem


def parquet(path: Path, source: str, columns: Sequence[str] | None = None) -> Rows:
    """Rows of one Parquet file. Raises DataError where it is damaged."""
    from pyarrow import parquet as pq

    data = _ends(path, source)
    if data[0] != b"PAR1":
        raise DataError(problem("data.wrong_magic", place=source, wanted="Parquet", found=data[0].hex()))
    if data[1] != b"PAR1":
        raise DataError(problem("data.truncated", place=source, wanted="Parquet"))
    try:
        file = pq.ParquetFile(path)
        known = file.schema_arrow.names
        wanted = None if columns is None else [c for c in columns if c in known]
        if streams.is_long(path) or file.metadata.num_rows > LARGE:
            schema = file.schema_arrow if wanted is None else pa.schema([file.schema_arrow.field(c) for c in wanted])
            return streams.batches(file.iter_batches(BLOCK, columns=wanted), schema, file.metadata.num_rows, source)
        return _rows(file.read(columns=wanted), source)
    except (pa.ArrowException, OSError) as e:
        raise DataError(problem("data.damaged", place=source, wanted="Parquet", reason=_first_line(e))) from e


def arrow(path: Path, source: str) -> Rows:
    """Rows of an Arrow IPC file (Feather version 2 is one) or stream."""
    from pyarrow import ipc

    try:
        with pa.memory_map(str(path)) as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            table = (ipc.open_file(file) if is_file else ipc.open_stream(file)).read_all()
            table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise DataError(problem("data.damaged", place=source, wanted="Arrow", reason=_first_line(e))) from e
    return _rows(table, source)


def _rows(table: pa.Table, source: str) -> Rows:
    return Rows(table, np.arange(1, len(table) + 1, dtype=np.int64), source, rows_in=len(table))


def _ends(path: Path, source: str) -> tuple[bytes, bytes]:
    try:
        with open(path, "rb") as file:
            head = file.read(4)
            file.seek(-min(4, file.seek(0, 2)), 2)
            return head, file.read(4)
    except OSError as e:
        raise DataError(problem("data.unreadable", place=source, reason=e.strerror or type(e).__name__)) from e


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
