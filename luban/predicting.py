"""Blocks of rows answered by several processes, in the order of the rows.

Each process loads the saved model once. A block goes to it as Arrow bytes and comes back as JSON; no more blocks are on
the way than keep every process busy, so that memory does not grow with the file.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa

from luban import files, machine
from luban.columns.answering import Row
from luban.columns.base import Answer
from luban.errors import RequestError, WorkError

AHEAD = 2  # blocks that wait for each process
_engine: Any = None  # of a process that answers


def answers_of(model: Any, tables: Iterator[pa.Table], processes: int) -> Iterator[list[Row]]:
    """The rows of each table answered, table by table. Raises RequestError for a model that is not saved, WorkError where
    a process died.
    """
    path = _place(model)
    waiting: deque[Future[str]] = deque()
    threads = max(1, machine.threads() // processes)
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (str(path), threads)) as pool:
        try:
            for table in tables:
                waiting.append(pool.submit(_answer, _bytes(table)))
                if len(waiting) > processes * AHEAD:
                    yield _rows(waiting.popleft().result())
            while waiting:
                yield _rows(waiting.popleft().result())
        except BrokenProcessPool as e:
            raise WorkError("predict.process_lost", processes=processes) from e
        finally:
            pool.shutdown(cancel_futures=True)


def _place(model: Any) -> Path:
    """Where another process finds the model."""
    path = getattr(model, "path", None)
    if path is None:
        raise RequestError("predict.not_saved")
    path = Path(path).absolute()
    if hasattr(model, "fingerprint"):  # a Bundle that was changed since is not what lies there
        saved = files.open_sealed(path, "bundle", whole=False)["files"].get("model.safetensors")
        if saved != model.fingerprint():
            raise RequestError("predict.not_saved")
    return path


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _begin(path: str, threads: int) -> None:
    """What each process does first."""
    global _engine
    machine.set_threads(threads)
    if not Path(path).is_dir():
        from luban.engines import engine_of

        _engine = engine_of(path)
        return
    from luban.bundle import Bundle

    _engine = Bundle.load(path).engine


def _answer(data: bytes) -> str:
    from luban.predictions import answers

    return json.dumps([_plain(row) for row in answers(_engine, pa.ipc.open_stream(data).read_all())])


def _plain(row: Row) -> Any:
    if row.answers is None:
        return row.error
    return {n: [a.value, a.probability, a.candidates, a.details] for n, a in row.answers.items()}


def _rows(text: str) -> list[Row]:
    return [
        Row({n: Answer(v, p, tuple((label, q) for label, q in c), more) for n, (v, p, c, more) in found.items()})
        if isinstance(found, dict)
        else Row(None, found)
        for found in json.loads(text)
    ]
