"""Answers that are a stretch of a text (extractive question answering): every way of writing them brought into one.

A cell is the words of the answer; `{"text": ..., "start": 12}` with the character where they begin, from 0 (SQuAD's `answer_start` is read, too); a
list of such, all of which count as right; or, as Hugging Face's `datasets` have SQuAD, `{"text": [...], "answer_start": [...]}`. An
empty list says that the text has no answer (SQuAD 2.0). Words without a place stand where the text has them first. A column
`NAME_start` beside plain words gives their place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from luban.data.rows import BadRow, Rows
from luban.data.tagged import joined
from luban.errors import DataError, problem

STARTS = ("start", "answer_start")


class Stretch(NamedTuple):
    """Characters `start` to `stop` (not included) of a text."""

    start: int
    stop: int


def text_of(value: Any) -> str:
    """The text that answers stand in; a list of words as the text that they make."""
    return joined(value)[0] if isinstance(value, (list, tuple)) else "" if value is None else str(value)


def plain(value: Any) -> list[tuple[str, int | None]] | None:
    """A cell as its answers, each with its place where one is given; [] = there is no answer; None = empty. Raises BadRow."""
    if value is None or value == "" or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, str):
        found = _json(value) if value[:1] in ("[", "{") else None
        return [(value, None)] if found is None else found
    if isinstance(value, np.ndarray):
        value = value.tolist()
    found = _structured(value)
    if found is None:
        raise BadRow("span.not_an_answer", value=str(value)[:60])
    return found


def _json(text: str) -> list[tuple[str, int | None]] | None:
    """What a cell of JSON says; None for words that only look like it."""
    try:
        return _structured(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _structured(value: Any) -> list[tuple[str, int | None]] | None:
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), next((value[k] for k in STARTS if k in value), None)
        if isinstance(texts, (list, tuple)):
            starts = starts if isinstance(starts, (list, tuple)) else [None] * len(texts)
            return _checked(list(zip(texts, starts))) if len(starts) == len(texts) else None
        return _checked([(texts, starts)])
    if isinstance(value, (list, tuple)):
        parts = [_structured(v) if isinstance(v, Mapping) else [(v, None)] for v in value]
        return None if any(p is None for p in parts) else _checked([a for p in parts for a in p])
    return None


def _checked(answers: list[tuple[Any, Any]]) -> list[tuple[str, int | None]] | None:
    whole = lambda n: n is None or (isinstance(n, int) and not isinstance(n, bool))  # noqa: E731
    return answers if all(isinstance(t, str) and t and whole(n) for t, n in answers) else None


def placed(answers: list[tuple[str, int | None]], text: str) -> list[Stretch]:
    """Where answers stand; one that is not at the place given stands where it is next to that. Raises BadRow for one that is not there."""
    found = []
    for words, start in answers:
        if start is not None and text[start : start + len(words)] == words and start >= 0:
            found.append(Stretch(start, start + len(words)))
            continue
        before = text.rfind(words, 0, max(0, start or 0) + len(words))
        after = text.find(words, max(0, start or 0))
        at = [i for i in (before, after) if i >= 0]
        if not at:
            raise BadRow("span.not_there", value=words[:60])
        best = min(at, key=lambda i: abs(i - (start or 0)))
        found.append(Stretch(best, best + len(words)))
    return found


def spanned(rows: Rows, name: str, of: str, empty: str = "missing") -> Rows:
    """The column `name` as JSON: the answers of each row with their places in the column `of`; rows whose answer is not there go aside.

    `empty`: what an empty cell is: `missing`, or `none`, that there is no answer. Raises DataError where no row is right.
    """
    cells, texts = rows.column(name).to_pylist(), rows.column(of).to_pylist()
    beside = f"{name}_start"
    starts = rows.column(beside).to_pylist() if beside in rows.columns else [None] * len(cells)
    reasons: dict[int, tuple[str, dict[str, Any]]] = {}
    values: list[str | None] = []
    moved = 0
    for i, (cell, text, start) in enumerate(zip(cells, texts, starts)):
        try:
            found = plain(cell)
            if found and len(found) == 1 and found[0][1] is None:
                found = [(found[0][0], _place(start))]
            stretches = placed(found, text_of(text)) if found else []
        except BadRow as e:
            reasons[i] = (e.id, {"column": name, "of": of, **e.values})
            continue
        moved += sum(n is not None and n != s.start for (_, n), s in zip(found or (), stretches))
        values.append(_written(found, stretches, empty))
    if reasons and len(reasons) == len(rows):
        id, more = reasons[min(reasons)]
        raise DataError(problem(id, place=rows.place(min(reasons)), **more))
    result = rows.drop_each(reasons).having(name, pa.array(values, pa.string()))
    return result.noted(problem("span.moved", place=rows.source, column=name, of=of, count=moved)) if moved else result


def _place(value: Any) -> int | None:
    """A cell of a column of places."""
    try:
        return None if value is None or value == "" else int(float(value))
    except (TypeError, ValueError, OverflowError):
        raise BadRow("span.not_a_place", value=str(value)[:60]) from None


def _written(found: list[tuple[str, int | None]] | None, stretches: list[Stretch], empty: str) -> str | None:
    if found is None:
        return "[]" if empty == "none" else None
    told = [{"text": t, "start": s.start} for (t, _), s in zip(found, stretches)]
    return json.dumps(told, ensure_ascii=False)


# -- files of SQuAD ------------------------------------------------------------------------------------------------------


def is_squad(value: Any) -> bool:
    """A file of SQuAD 1 or 2: {"data": [{"paragraphs": [{"context", "qas": [{"question", "answers"}]}]}]}."""
    data = value.get("data") if isinstance(value, Mapping) else None
    return isinstance(data, list) and bool(data) and isinstance(data[0], Mapping) and "paragraphs" in data[0]


def squad_rows(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a question: id, title, question, context, answers. Raises KeyError, TypeError for another shape."""
    rows = []
    for article in value["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = [{"text": a["text"], "start": a.get("answer_start")} for a in asked.get("answers") or ()]
                row = {"id": str(asked.get("id", "")), "title": article.get("title"), "question": asked["question"]}
                told = json.dumps([] if asked.get("is_impossible") else answers, ensure_ascii=False)
                rows.append({**row, "context": paragraph["context"], "answers": told})
    return rows
