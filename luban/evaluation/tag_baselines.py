"""Simple taggers that need no training but counting: the most frequent tag of each word, and names known from the training rows."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from luban.columns.base import to_list
from luban.data.tagged import OUTSIDE, Entity, placed
from luban.evaluation.baselines import Baseline

LONGEST = 12  # units of a name that is looked for


def tag_baselines(column: Any, train: tuple[Any, Any], test: Any) -> list[Baseline]:
    """`train`: raw tags and texts; `test`: raw texts. Answers are lists of tags, one a unit.

    `most_frequent_tag`: each word's (or character's) commonest tag in the training rows, the commonest of all for a word
    never seen. `known_names`: from left to right the longest stretch that was a name more often than not, where tags have
    prefixes.
    """
    unit = column.state["unit"]
    rows = [(_units(t, unit), column.truth(v, t)) for v, t in zip(*map(to_list, train))]
    rows = [(units, tags) for units, tags in rows if tags]
    texts = [_units(t, unit) for t in to_list(test)]
    found = [_timed("most_frequent_tag", lambda: _most_frequent(rows, texts))]
    if column.kind.name != "none":
        found.append(_timed("known_names", lambda: _known_names(rows, texts, column.kind)))
    return found


def _timed(name: str, answers: Any) -> Baseline:
    began = time.perf_counter()
    return Baseline(name, answers(), seconds=time.perf_counter() - began)


def _units(text: Any, unit: str) -> tuple[str, ...]:
    whole, places = placed(text, unit)
    return tuple(whole[s:e] for s, e in places)


def _most_frequent(rows: Sequence[Any], texts: Sequence[tuple[str, ...]]) -> list[list[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for units, tags in rows:
        for word, tag in zip(units, tags):
            counts[word][tag] += 1
    total: Counter[str] = Counter()
    for each in counts.values():
        total.update(each)
    usual = total.most_common(1)[0][0] if total else OUTSIDE
    best = {word: each.most_common(1)[0][0] for word, each in counts.items()}
    return [[best.get(word, usual) for word in units] for units in texts]


def _known_names(rows: Sequence[Any], texts: Sequence[tuple[str, ...]], scheme: Any) -> list[list[str]]:
    named: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for units, tags in rows:
        for start, stop, label in scheme.entities(tags):
            named[units[start:stop]][label] += 1
    seen: Counter[tuple[str, ...]] = Counter()
    for units, _ in rows:
        for start in range(len(units)):
            for size in range(1, min(LONGEST, len(units) - start) + 1):
                if (stretch := units[start : start + size]) in named:
                    seen[stretch] += 1
    known = {name: kinds.most_common(1)[0][0] for name, kinds in named.items() if 2 * kinds.total() > seen[name]}
    answers = []
    for units in texts:
        found, at = [], 0
        while at < len(units):
            sizes = range(min(LONGEST, len(units) - at), 0, -1)
            size = next((n for n in sizes if units[at : at + n] in known), 0)
            if size:
                found.append(Entity(at, at + size, known[units[at : at + size]]))
            at += size or 1
        answers.append(scheme.written(found, len(units)))
    return answers
