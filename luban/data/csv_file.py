"""CSV and TSV, read strictly: RFC 4180, every cell a string, every odd row accounted for.

A clean file goes through Arrow's parser. As soon as anything is off, the careful reader below takes over;
on clean files both give the same (a test proves it).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv

from luban.data.rows import LONGEST_RAW, Quarantined, Rows, csv_line
from luban.errors import DataError, Problem, problem
from luban.messages import say

DELIMITERS = (",", "\t", ";", "|")
LONGEST_RECORD = 10_000  # lines that one quoted cell may fill before its quote counts as never closed
BLOCK = 50_000  # rows held as Python strings at once
_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"\s*[+-]?\d+([.,]\d+)?\s*")


def parse(data: bytes, source: str, *, missing: Sequence[str] = ("",), delimiter: str | None = None) -> Rows:
    """Rows of UTF-8 text without a byte order mark. `delimiter` None: the likeliest, told when it is not a comma.

    Raises DataError where there is no header, no row, or no usable row.
    """
    found, notes = sniff(data, source, delimiter)
    if not data.endswith(b"\n"):
        last = data.count(b"\n") + 1
        notes.append(problem("data.no_line_end", place=f"{source}:{last}"))
    rows = fast(data, source, found, missing)
    if rows is None:
        rows = careful(data, source, found, missing)
    return usable(rows.noted(*notes), source)


def sniff(data: bytes, source: str, delimiter: str | None) -> tuple[str, list[Problem]]:
    """The delimiter by the beginning of a text, and a note where it is not the expected one."""
    expected = delimiter or ","
    found = _delimiter(data[: 1 << 20].decode("utf-8", "replace"), expected)
    return found, [] if found == expected else [problem("data.delimiter", place=f"{source}:1", found=repr(found))]


def usable(rows: Rows, source: str) -> Rows:
    """The same rows. Raises DataError where there is none, or none that can be used."""
    if rows.rows_in == 0:
        raise DataError(problem("data.header_only", place=f"{source}:1"))
    if not len(rows):
        q = rows.quarantine[0]
        raise DataError(problem("data.no_usable_row", place=f"{source}:{q.line}", count=rows.rows_in, reason=q.reason))
    return rows


def _delimiter(text: str, expected: str) -> str:
    """The delimiter of the header, where the expected one does not occur in it."""
    lines = [re.sub(r'"[^"]*"', "", line) for line in text.split("\n", 11)[:10] if line.strip()]
    if not lines or expected in lines[0]:
        return expected
    for other in DELIMITERS:
        wanted = lines[0].count(other)
        alike = sum(line.count(other) == wanted for line in lines[:-1] or lines)
        if wanted and alike * 2 > len(lines[:-1] or lines):
            return other
    return expected


# ---- the fast path: clean files only


def fast(data: bytes, source: str, delimiter: str, missing: Sequence[str]) -> Rows | None:
    """The rows by Arrow's parser, or None when the file is not perfectly clean."""
    if b"\0" in data or (b"\r" in data and data.count(b"\r") != data.count(b"\r\n")):
        return None
    if data.startswith((b"\n", b"\r")) or b"\n\n" in data or b"\n\r\n" in data:
        return None
    quotes = np.flatnonzero(np.frombuffer(data, np.uint8) == ord('"')) if b'"' in data else np.zeros(0, np.int64)
    if len(quotes) and not _quotes_are_clean(data, quotes, delimiter):
        return None
    start = end_of_first_record(data, quotes)
    header = Records(data[:start].decode("utf-8", "surrogateescape"), delimiter).header(source)
    if start >= len(data):
        return None
    table = _arrow(_copied(data, start), header, delimiter, missing, bool(len(quotes)))
    if table is None:
        return None
    lines = _lines(data, start, quotes, len(table))
    names, notes = clean_names(header, f"{source}:1")
    rows = Rows(table.rename_columns(names), lines, source, rows_in=len(table), notes=tuple(notes))
    return _without_repeated_header(rows, header)


def _quotes_are_clean(data: bytes, quotes: np.ndarray, delimiter: str) -> bool:
    """Every odd quote opens a cell or follows a quote, every even one closes a cell or precedes a quote."""
    if len(quotes) % 2:
        return False
    array = np.frombuffer(data, np.uint8)
    opening, closing = quotes[::2], quotes[1::2]
    before = array[np.maximum(opening - 1, 0)]
    after = array[np.minimum(closing + 1, len(array) - 1)]
    edge = np.array([ord(delimiter), ord("\n"), ord('"')], np.uint8)
    opens = np.isin(before, edge) | (opening == 0)
    closes = np.isin(after, edge) | (after == ord("\r")) | (closing == len(array) - 1)
    return bool(opens.all() and closes.all())


def end_of_first_record(data: bytes, quotes: np.ndarray | None = None) -> int:
    """Where the header ends. `quotes`: the places of all quotes, where they are known."""
    if quotes is None:
        quotes = np.flatnonzero(np.frombuffer(data, np.uint8) == ord('"'))
    end = data.find(b"\n")
    while end >= 0 and np.searchsorted(quotes, end) % 2:
        end = data.find(b"\n", end + 1)
    return end + 1 if end >= 0 else len(data)


def _copied(data: bytes, start: int) -> pa.Buffer:
    """The bytes from `start`, in memory of Arrow's own.

    A thread of Arrow may let go of its input after `read_csv` has returned. Were that a Python object, a process that
    ends just then would be aborted: the thread waits for a lock that an ending interpreter never gives.
    """
    body = pa.allocate_buffer(len(data) - start)
    np.frombuffer(body, np.uint8)[:] = np.frombuffer(data, np.uint8, offset=start)
    return body


def _arrow(body: pa.Buffer, header: list[str], delimiter: str, missing: Sequence[str], quoted: bool) -> pa.Table | None:
    from pyarrow import csv

    names = [str(i) for i in range(len(header))]
    try:
        return csv.read_csv(
            pa.BufferReader(body),
            csv.ReadOptions(column_names=names, block_size=8 << 20),
            csv.ParseOptions(delimiter=delimiter, newlines_in_values=quoted),
            csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), null_values=list(missing), strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid:  # ragged rows, broken UTF-8, a row longer than a block: the careful reader says which
        return None


def _lines(data: bytes, start: int, quotes: np.ndarray, count: int) -> np.ndarray:
    first = data.count(b"\n", 0, start) + 1
    if not len(quotes) or data.count(b"\n", start) + (not data.endswith(b"\n")) == count:
        return np.arange(first, first + count, dtype=np.int64)
    newlines = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    outside = np.searchsorted(quotes, newlines) % 2 == 0
    starts = np.concatenate([[0], np.flatnonzero(outside) + 1]) + 1  # line on which each record begins
    return starts[1 : count + 1].astype(np.int64)


# ---- the careful path: everything else


class Records:
    """The records of a CSV text, one after another, with their faults."""

    def __init__(self, text: str, delimiter: str):
        self.lines = text.split("\n")
        if self.lines[-1] == "":
            self.lines.pop()
        self.delimiter = delimiter
        self.at = 0  # next line, from 0
        self.stray: list[int] = []  # lines with a quote inside an unquoted cell
        self.blank: list[int] = []

    def header(self, source: str) -> list[str]:
        """The first record. Raises DataError where even that cannot be read."""
        self.skip_blank()
        line = self.at + 1
        cells, fault = self.next()
        if fault or "\0" in "".join(cells or []):
            raise DataError(problem("data.bad_header", place=f"{source}:{line}", reason=say(fault or "data.nul")))
        return cells or []

    def skip_blank(self) -> None:
        while self.at < len(self.lines) and is_blank(self.lines[self.at]):
            self.blank.append(self.at + 1)
            self.at += 1

    def next(self) -> tuple[list[str] | None, str | None]:
        """(cells, None), or (None, sentence id of the fault). After a fault, reading goes on at the next line."""
        line = self.lines[self.at]
        if '"' not in line:
            self.at += 1
            return line.removesuffix("\r").split(self.delimiter), None
        first = self.at
        cells, fault = self._quoted()
        if fault:
            self.at = first + 1
        return cells, fault

    def _quoted(self) -> tuple[list[str] | None, str | None]:
        cells: list[str] = []
        first, position = self.at, 0
        while True:
            line = self.lines[self.at]
            if line.startswith('"', position):
                cell, position = self._cell(position + 1)
                if cell is None:
                    return None, "data.unclosed_quote"
                line = self.lines[self.at]
                if line[position:] not in ("", "\r") and not line.startswith(self.delimiter, position):
                    return None, "data.text_after_quote"
                end = position if line.startswith(self.delimiter, position) else -1
            else:
                end = line.find(self.delimiter, position)
                cell = line[position:].removesuffix("\r") if end < 0 else line[position:end]
                if '"' in cell:
                    self.stray.append(first + 1)
            cells.append(cell)
            if end < 0:
                self.at += 1
                return cells, None
            position = end + 1

    def _cell(self, position: int) -> tuple[str | None, int]:
        """A quoted cell from after its opening quote; it may run over several lines."""
        parts, first = [], self.at
        while True:
            line = self.lines[self.at]
            end = line.find('"', position)
            if end < 0:
                parts.append(line[position:] + "\n")
                self.at, position = self.at + 1, 0
                if self.at >= len(self.lines) or self.at - first > LONGEST_RECORD:
                    return None, 0
            elif line.startswith('"', end + 1):
                parts.append(line[position : end + 1])
                position = end + 2
            else:
                parts.append(line[position:end])
                return "".join(parts), end + 1


def careful(data: bytes, source: str, delimiter: str, missing: Sequence[str]) -> Rows:
    """The rows of any file, however bad: what cannot be used is in the quarantine."""
    text = data.decode("utf-8", "surrogateescape")
    records = Records(text, delimiter)
    header = records.header(source)
    names, notes = clean_names(header, f"{source}:1")
    builder = Builder(len(header), set(missing))
    broken_text = not data.isascii() and _SURROGATE.search(text) is not None
    one_column = len(header) == 1
    while records.at < len(records.lines):
        if is_blank(records.lines[records.at]) and not one_column:
            records.skip_blank()
            continue
        first = records.at
        cells, fault = records.next()
        raw = "\n".join(records.lines[first : records.at])
        fault = fault or _fault(raw, broken_text, one_column)
        if fault or cells is None:
            builder.refuse(first + 1, fault or "", {}, raw)
        else:
            builder.add(first + 1, cells, raw)
    notes += _remarks(records, source)
    table, lines, quarantine, more = builder.done(names, source)
    rows = Rows(table, lines, source, None, quarantine, len(table) + len(quarantine), tuple(notes + more))
    return _without_repeated_header(rows, header)


def _fault(raw: str, broken_text: bool, one_column: bool) -> str | None:
    if "\0" in raw:
        return "data.nul"
    if broken_text and _SURROGATE.search(raw):
        return "data.bad_bytes"
    return "data.blank_line" if one_column and not raw.strip("\r") else None


def is_blank(line: str) -> bool:
    """Nothing but spaces; tabs may be delimiters."""
    return not line.strip(" \r")


def _remarks(records: Records, source: str) -> list[Problem]:
    found = (("data.blank_lines", records.blank), ("data.stray_quotes", records.stray))
    return [problem(id, place=f"{source}:{lines[0]}", count=len(lines)) for id, lines in found if lines]


class Builder:
    """Cells into Arrow, block by block; rows of another length into the ledger."""

    def __init__(self, width: int, missing: set[str]):
        self.width, self.missing = width, missing
        self.block: list[list[str]] = []
        self.blocks: list[list[pa.Array]] = []
        self.lines: list[int] = []
        self.ragged: list[tuple[int, list[str], str]] = []
        self.quarantine: list[Quarantined] = []

    def add(self, line: int, cells: list[str], raw: str) -> None:
        if len(cells) != self.width:
            self.ragged.append((line, cells, raw))
            return
        self.lines.append(line)
        self.block.append(cells)
        if len(self.block) == BLOCK:
            self.flush()

    def refuse(self, line: int, id: str, values: dict, raw: str) -> None:
        shown = raw[:LONGEST_RAW].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        self.quarantine.append(Quarantined(line, id, values, shown))

    def flush(self) -> None:
        columns = zip(*self.block) if self.block else [()] * self.width
        gone = self.missing
        self.blocks.append([pa.array([None if c in gone else c for c in column], pa.string()) for column in columns])
        self.block = []

    def done(self, names: list[str], source: str) -> tuple[pa.Table, np.ndarray, list[Quarantined], list[Problem]]:
        notes = []
        if self.ragged and not self.lines and all(len(c) == self.width + 1 and c[-1] == "" for _, c, _ in self.ragged):
            notes.append(problem("data.trailing_delimiter", place=f"{source}:{self.ragged[0][0]}"))
            ragged, self.ragged = self.ragged, []
            for line, cells, raw in ragged:
                self.add(line, cells[:-1], raw)
        for line, cells, raw in self.ragged:
            id = "data.too_few_cells" if len(cells) < self.width else "data.too_many_cells"
            self.refuse(line, id, {"found": len(cells), "wanted": self.width}, raw)
        self.flush()
        columns = [pa.chunked_array([b[i] for b in self.blocks], pa.string()) for i in range(self.width)]
        table = pa.table(columns, names=names)
        return table, np.array(self.lines, np.int64), sorted(self.quarantine, key=lambda q: q.line), notes


# ---- both paths


def clean_names(header: Sequence[str], place: str) -> tuple[list[str], list[Problem]]:
    """Column names that are distinct and not empty, and a note for each change."""
    notes, names = [], []
    for i, raw in enumerate(header):
        name = raw.strip() or f"column_{i + 1}"
        if name in names:
            copies = 2
            while f"{name}_{copies}" in [*names, *header]:
                copies += 1
            notes.append(problem("data.duplicate_name", place=place, column=name, new=f"{name}_{copies}"))
            name = f"{name}_{copies}"
        elif not raw.strip():
            notes.append(problem("data.empty_name", place=place, number=i + 1, new=name))
        elif name != raw:
            notes.append(problem("data.trimmed_name", place=place, column=raw, new=name))
        names.append(name)
    if header and all(_NUMBER.fullmatch(h) for h in header):
        notes.append(problem("data.header_is_numbers", place=place, header=csv_line(header)))
    return names, notes


def _without_repeated_header(rows: Rows, header: Sequence[str]) -> Rows:
    again = np.ones(len(rows), bool)
    for name, raw in zip(rows.columns, header):
        if not again.any():
            return rows
        cells = pa.compute.equal(rows.table[name], raw).fill_null(raw == "")
        again &= cells.to_numpy().astype(bool)
    return rows.drop(again, "data.repeated_header") if again.any() else rows
