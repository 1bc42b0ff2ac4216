"""Files that are too large to be read whole: read block by block into a file of Arrow batches, which is then mapped.

Each block goes through the same parsers as a small file, with the header put before it, so that a row means the same
whatever the size of its file. Only a quoted cell that runs over the end of a block of a file with unbalanced quotes can
be cut; it is then in the quarantine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from luban.console import Progress
from luban.data import csv_file, json_lines, text_file
from luban.data.blocks import Spill, large, pieces, rest
from luban.data.rows import Quarantined, Rows
from luban.errors import DataError, Problem, problem
from luban.messages import say

LONG = 64 << 20  # bytes of a file; reading it whole takes several times as much
TEXT_BLOCK = 16 << 20  # bytes parsed at once
LONGEST_CARRY = 64 << 20  # bytes of one record after which its quote counts as never closed


def is_long(path: Path) -> bool:
    """Whether a file is read block by block."""
    return path.stat().st_size > LONG


# ---- CSV


def csv(path: Path, source: str, *, missing: Sequence[str], delimiter: str | None) -> Rows | None:
    """Rows of a long CSV file; None for what has to be read whole (UTF-16, lines ended by CR)."""
    with open(path, "rb") as file:
        first = file.read(TEXT_BLOCK)
        if first.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\n" not in first or b"\0" in first[:2000]:
            return None
        first, notes = text_file.as_utf8(first, source)
        found, told = csv_file.sniff(first, source, delimiter)
        header = first[: csv_file.end_of_first_record(first)]
        total = path.stat().st_size
        blocks = _watched(_text_blocks(file, first), lambda part: len(part), total)
        parsed = _csv_blocks(blocks, header, source, found, missing)
        return csv_file.usable(collected(parsed, source, (*notes, *told)), source)


def _text_blocks(file: Any, first: bytes) -> Iterator[bytes]:
    """The bytes of a file cut after whole records."""
    carry = first
    while True:
        more = file.read(TEXT_BLOCK)
        text = carry + more
        cut = _cut(text) if more else len(text)
        if cut == 0 and len(text) > LONGEST_CARRY:
            cut = text.rfind(b"\n") + 1
        if cut:
            yield text[:cut]
        carry = text[cut:]
        if not more:
            return


def _cut(text: bytes) -> int:
    """The end of the last record that ends within `text`: a line end outside quotes."""
    at = text.rfind(b"\n")
    odd = text.count(b'"', 0, max(at, 0)) % 2
    while at >= 0 and odd:
        before = text.rfind(b"\n", 0, at)
        odd ^= text.count(b'"', max(before, 0), at) % 2
        at = before
    return at + 1


def _csv_blocks(
    blocks: Iterator[bytes], header: bytes, source: str, delimiter: str, missing: Sequence[str]
) -> Iterator[Rows]:
    before, height = 0, header.count(b"\n")
    for number, part in enumerate(blocks):
        data = part if number == 0 else header + part
        if not text_file.is_utf8(part):
            text_file.refuse_other_encoding(part, source)
        rows = csv_file.fast(data, source, delimiter, missing)
        if rows is None:
            rows = csv_file.careful(data, source, delimiter, missing)
        shift = before - (height if number else 0)
        before += part.count(b"\n")
        rows = _shifted(rows, shift, first=number == 0)
        open_end = not part.endswith(b"\n")
        yield rows.noted(problem("data.no_line_end", place=f"{source}:{before + 1}")) if open_end else rows


def _shifted(rows: Rows, by: int, first: bool) -> Rows:
    """Rows of a later block, their lines counted from the beginning of the file; what is said of the header is said once."""
    quarantine = [replace(q, line=q.line + by) for q in rows.quarantine]
    notes = tuple(_moved(n, by) for n in rows.notes if first or not n.place.endswith(":1"))
    return replace(rows, lines=rows.lines + by, quarantine=quarantine, notes=notes)


def _moved(note: Problem, by: int) -> Problem:
    source, _, line = note.place.rpartition(":")
    return note.at(f"{source}:{int(line) + by}") if line.isdigit() else note


# ---- JSON lines


def json(path: Path, source: str, each: Callable[[Rows], Rows]) -> Rows | None:
    """Rows of a long file of JSON lines, each block changed by `each`; None for what has to be read whole (one array).

    Read twice: what a key holds is known when all of them have been seen. Raises DataError where no line is usable.
    """
    with open(path, "rb") as file:
        first = file.read(TEXT_BLOCK)
        if first.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\n" not in first or first.lstrip()[:1] == b"[":
            return None
        first, notes = text_file.as_utf8(first, source)
        begun, kinds, quarantine = file.tell(), json_lines.Kinds(), []
        blocks = _watched(_line_blocks(file, first), lambda part: len(part[0]), path.stat().st_size)
        for text, line, last in blocks:
            found = json_lines.objects(text, source, line, last)
            kinds.see(found.rows)
            quarantine += found.quarantine if not kinds.count else []
        if not kinds.count:
            raise json_lines.unusable(quarantine, source)
        if not kinds.there:
            return None
        file.seek(begun)
        blocks = _watched(_line_blocks(file, first), lambda part: len(part[0]), path.stat().st_size)
        rows = collected(_json_blocks(blocks, kinds, source, each), source, (*notes, *kinds.notes(source)))
    return rows


def _line_blocks(file: Any, first: bytes) -> Iterator[tuple[bytes, int, bool]]:
    """The bytes of a file cut after whole lines, the number of the first line, and whether the file ends with them."""
    carry, line = first, 1
    while True:
        more = file.read(TEXT_BLOCK)
        text = carry + more
        cut = text.rfind(b"\n") + 1 if more else len(text)
        if cut:
            yield text[:cut], line, not more
            line += text.count(b"\n", 0, cut)
        carry = text[cut:]
        if not more:
            return


def _json_blocks(
    blocks: Iterator[tuple[bytes, int, bool]], kinds: json_lines.Kinds, source: str, each: Callable[[Rows], Rows]
) -> Iterator[Rows]:
    for text, line, last in blocks:
        found = json_lines.objects(text, source, line, last)
        if found.rows or found.quarantine:
            yield each(found.of(kinds.table(found.rows), source))


# ---- Parquet and Arrow


def batches(found: Iterator[pa.RecordBatch], schema: pa.Schema, count: int, source: str) -> Rows:
    """Rows of a file of typed cells, batch by batch."""
    spill = Spill(schema)
    with spill:
        for batch in _watched(found, len, count):
            spill.add(pa.Table.from_batches([batch], schema))
    table = spill.table()
    return Rows(table, np.arange(1, len(table) + 1, dtype=np.int32), source, rows_in=len(table))


# ---- what all have in common


def collected(blocks: Iterator[Rows], source: str, notes: Sequence[Problem] = ()) -> Rows:
    """The rows of all blocks as one mapped table. Raises DataError where there is no block."""
    spill: Spill | None = None
    lines: list[np.ndarray] = []
    quarantine: list[Quarantined] = []
    said = list(notes)
    root = None
    for rows in blocks:
        if spill is None:
            spill = Spill(rows.table.schema)
        with spill:
            spill.add(rows.table.cast(spill.schema))
        lines.append(rows.lines.astype(np.int32 if not len(rows) or rows.lines[-1] < 2**31 else np.int64))
        quarantine += rows.quarantine
        said += rows.notes
        root = rows.root
        rest()
    if spill is None:
        raise DataError(problem("data.no_rows", place=source))
    table = spill.table()
    return Rows(
        table, np.concatenate(lines), source, root, sorted(quarantine, key=lambda q: q.line),
        len(table) + len(quarantine), merged(said),
    )  # fmt: skip


def merged(notes: Sequence[Problem]) -> tuple[Problem, ...]:
    """What was noticed in several blocks, said once, with the counts added."""
    found: dict[Any, Problem] = {}
    for note in notes:
        kind = (note.id, *(str(v) for k, v in note.values.items() if k not in ("count", "value")))
        before = found.get(kind)
        if before is None:
            found[kind] = note
        elif "count" in note.values:
            total = before.values["count"] + note.values["count"]
            found[kind] = Problem(
                before.id, before.place, {**before.values, "count": total}, before.allowed, before.nearest
            )
    return tuple(found.values())


def by_blocks(rows: Rows, change: Callable[[Rows], Rows]) -> Rows:
    """`change(rows)` for what works on each row by itself: at once where rows are few, else block by block."""
    if not large(rows.table):
        return change(rows)
    start = 0

    def parts() -> Iterator[Rows]:
        nonlocal start
        for piece in pieces(rows.table):
            lines = rows.lines[start : start + len(piece)]
            start += len(piece)
            yield change(Rows(piece, lines, rows.source, rows.root, [], len(piece)))

    done = collected(_watched(parts(), lambda part: part.rows_in, len(rows)), rows.source, rows.notes)
    ledger = sorted([*rows.quarantine, *done.quarantine], key=lambda q: q.line)
    return replace(done, root=rows.root, quarantine=ledger, rows_in=rows.rows_in)


def _watched(blocks: Iterator[Any], size: Callable[[Any], int], total: int) -> Iterator[Any]:
    """The same blocks beside a progress line."""
    progress, done = Progress(say("data.reading"), total), 0
    try:
        for block in blocks:
            yield block
            done += size(block)
            if progress.due():
                progress.update(done)
    finally:
        progress.close()
