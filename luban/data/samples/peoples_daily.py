"""The People's Daily of January 1998, segmented and tagged by Peking University, as sentences with the names in them.

How names are told from the corpus's own tags, and days from its text:

- `ns` (place) and `nt` (organisation): every word with the tag is a name of its own; this edition brackets no compounds.
- `nr` (person): family and given name are words of their own, and names may follow each other without a mark between
  them. In a run of such words a family name (one character, or one of `TWO`) takes the word after it along; three
  words of one, one and several characters are a single name (a married woman's in Hong Kong); any other word is a name.
- Sentences end with one of `ENDS` and the closing marks after it; the corpus's lines are paragraphs.
- The file has no dates, but its paragraphs stand in order: the day of a sentence is the latest date of a dateline
  ("新华社北京１月６日电") so far, 1 before the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

KINDS = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
TWO = {"欧阳", "诸葛", "司马", "南宫", "令狐", "司徒", "上官", "夏侯", "皇甫", "东方", "公孙", "慕容", "尉迟"}
ENDS, CLOSING = "。！？；", "”’》）」』"
DIGITS = str.maketrans("０１２３４５６７８９", "0123456789")
DATELINE = re.compile(r"(\d+)月(\d+)日[电讯]")
HEAD = 40  # characters of a paragraph that may hold its dateline


def sentences(text: str) -> Iterator[tuple[int, str, str]]:
    """(day, sentence, one BIO tag a character with blanks between) of the corpus, in its order."""
    day = 1
    for line in text.split("\n"):
        words = [(word, tag) for word, slash, tag in (w.rpartition("/") for w in line.split()) if slash and word]
        characters = "".join(word for word, _ in words)
        if not characters:
            continue
        month, found = _date(characters)
        day = max(day, found) if month == 1 else day
        tags = list(_tags(words))
        for start, stop in _stretches(characters):
            yield day, characters[start:stop], " ".join(tags[start:stop])


def _date(characters: str) -> tuple[int, int]:
    found = DATELINE.search(characters[:HEAD].translate(DIGITS))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _tags(words: Iterable[tuple[str, str]]) -> Iterator[str]:
    """One tag a character."""
    run: list[str] = []
    for word, tag in [*words, ("", "")]:
        if tag == "nr":
            run.append(word)
            continue
        for name in names(run):
            yield from _name(name, "PER")
        run = []
        yield from _name(word, KINDS[tag]) if tag in KINDS else ["O"] * len(word)


def _name(characters: str, kind: str) -> list[str]:
    return [f"B-{kind}", *[f"I-{kind}"] * (len(characters) - 1)] if characters else []


def names(run: list[str]) -> list[str]:
    """A run of words tagged as persons' names, as whole names."""
    if len(run) == 3 and len(run[0]) == len(run[1]) == 1 < len(run[2]):
        return ["".join(run)]
    found, at = [], 0
    while at < len(run):
        family = len(run[at]) == 1 or run[at] in TWO
        size = 2 if family and at + 1 < len(run) else 1
        found.append("".join(run[at : at + size]))
        at += size
    return found


def _stretches(characters: str) -> Iterator[tuple[int, int]]:
    start = 0
    for at, mark in enumerate(characters):
        if mark not in ENDS:
            continue
        stop = at + 1
        while stop < len(characters) and characters[stop] in CLOSING + ENDS:
            stop += 1
        if at + 1 > start:
            yield start, stop
            start = stop
    if start < len(characters):
        yield start, len(characters)
