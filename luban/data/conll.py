"""CoNLL files: a word and its tags a line, an empty line after each sentence.

Columns are parted by tabs, or by blanks where the file has no tab. The first one holds the words and the last one the tags; where
there are more, those between are `column_2`, `column_3` and so on. A CoNLL-U file (ten columns, numbered words) gives its forms, and
universal parts of speech as tags. Lines of comments and `-DOCSTART-` are passed over.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from luban.data.rows import LONGEST_RAW, Quarantined, Rows
from luban.data.tagged import joined
from luban.errors import DataError, problem

ENDINGS = (".conll", ".conllu", ".bio", ".iob", ".iob2", ".bmes", ".bioes")
UNIVERSAL = 10  # columns of CoNLL-U
_NUMBERED = re.compile(r"\d+([-.]\d+)?")
_START = "-DOCSTART-"
_SINGLE = 0.995  # share of words of one character from which on a file is one of characters


def parse(data: bytes, source: str) -> Rows:
    """One row a sentence: `words`, `tags` and what stands between, each as text. Raises DataError where none is usable.

    A sentence with a line of fewer or more columns than the first sentence's goes to the quarantine.
    """
    text = data.decode("utf-8", "replace")
    tabs = "\t" in text[: 1 << 20]
    sentences = [s for s in _sentences(text, tabs) if s[1]]
    if not sentences:
        raise DataError(problem("data.no_rows", place=source))
    width = len(sentences[0][1][0])
    if width < 2:
        raise DataError(problem("data.conll.no_tags", place=f"{source}:{sentences[0][0]}"))
    numbered = width == UNIVERSAL and all(_NUMBERED.fullmatch(w[0]) for w in sentences[0][1])
    rows, lines, quarantine = [], [], []
    for line, words in sentences:
        wrong = next((w for w in words if len(w) != width or "" in w), None)
        if wrong is not None:
            raw = "\n".join(" ".join(w) for w in words)[:LONGEST_RAW]
            quarantine.append(Quarantined(line, "data.conll.columns", {"found": len(wrong), "want": width}, raw))
            continue
        words = [w for w in words if w[0].isdecimal()] if numbered else words  # 3-4 and 3.1 are no words of their own
        rows.append([(w[1], w[3]) for w in words] if numbered else words)
        lines.append(line)
    if not rows:
        q = quarantine[0]
        raise DataError(problem(q.reason_id, place=f"{source}:{q.line}", **q.values))
    table = pa.table(_columns(rows))
    return Rows(table, np.array(lines, np.int64), source, None, quarantine, len(rows) + len(quarantine))


def _sentences(text: str, tabs: bool) -> list[tuple[int, list[list[str]]]]:
    """Each with its first line."""
    found: list[tuple[int, list[list[str]]]] = [(1, [])]
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if not line.strip():
            found.append((number + 1, []))
            continue
        cells = [c.strip() for c in line.split("\t")] if tabs else line.split()
        if cells[0] == _START or (line.startswith("#") and (len(cells) == 1 or not tabs) and not found[-1][1]):
            continue
        if not found[-1][1]:
            found[-1] = (number, [])
        found[-1][1].append(cells)
    return found


def _columns(rows: list[list[list[str]]]) -> dict[str, pa.Array]:
    width = len(rows[0][0])
    names = ["words", *(f"column_{i + 1}" for i in range(1, width - 1)), "tags"]
    words = [[w[0] for w in row] for row in rows]
    single = sum(len(w) == 1 for row in words for w in row) >= _SINGLE * sum(map(len, words))
    texts = [joined(row)[0] if single else " ".join(row) for row in words]
    rest = {n: pa.array([" ".join(w[i] for w in row) for row in rows]) for i, n in enumerate(names) if i}
    return {"words": pa.array(texts), **rest}
