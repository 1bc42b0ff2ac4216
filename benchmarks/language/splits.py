"""The one split of each data set of language, for all sides.

It stands in the column `part` of the sample set (`luban datasets NAME`), drawn once by a hash of the group (`luban.data.samples.language.part_of`),
so that a side that is no part of Luban reads it from the same CSV file. Whole groups stay together, and no input occurs twice.

| data set | group | input -> answer |
|---|---|---|
| english-books | document | text |
| libreoffice-help-en-zh, libreoffice-help-en-de | page | source -> target |
| libreoffice-titles-zh | page | text -> title |
| debian-descriptions | source | long -> short |
| cmudict | word | word -> phonemes (`variants`: all that are right) |
"""

from __future__ import annotations

from typing import Any

from luban.data.samples import load

PARTS = ("train", "validation", "test")
COLUMNS = {
    "english-books": ("text", "text"),
    "libreoffice-help-en-zh": ("source", "target"),
    "libreoffice-help-en-de": ("source", "target"),
    "libreoffice-titles-zh": ("text", "title"),
    "debian-descriptions": ("long", "short"),
    "cmudict": ("word", "phonemes"),
}


def split(name: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of each part, in the order of the data set."""
    rows = load(name).table.to_pylist()
    return {part: [row for row in rows if row["part"] == part] for part in PARTS}


def pairs(name: str) -> dict[str, tuple[list[str], list[str]]]:
    """Inputs and answers of each part."""
    given, asked = COLUMNS[name]
    return {part: ([r[given] for r in rows], [r[asked] for r in rows]) for part, rows in split(name).items()}
