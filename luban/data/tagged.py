"""Tags of the words of a text: every way of writing them brought into one, held against the text, BIO mended.

A text is a string, or a list of its words. Its units are its words (what blanks part), or its characters without the blanks. A
cell of tags is a list with one tag a unit, the same as a string with blanks between, or names by their place:
`[{"start": 0, "end": 2, "label": "PER"}]`, characters of the text, the end not included.

Schemes: `bio` (B-X I-X O, CoNLL 2003), `bioes` (with an end and a single tag, whichever letters: BIOES, BMES, BILOU), `none`
(parts of speech: any tag may follow any). What a sequence of tags says is read as conlleval reads it, and written down again in
its scheme, so that "I-PER" after "O" becomes "B-PER".
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from luban.data.rows import BadRow, Rows
from luban.errors import DataError, problem
from luban.messages import listed

OUTSIDE = "O"
ROLES = {"B": "begin", "I": "inside", "M": "inside", "E": "end", "L": "end", "S": "single", "U": "single"}
UNITS = ("words", "characters")
LOOKED = 2000  # rows by which unit and scheme are told
MOST = 0.9  # share of the tags other than O that must have a prefix
_PREFIXED = re.compile(r"([BIMELSU])-(.+)")


class Entity(NamedTuple):
    """Units `start` to `stop` (not included) of one type."""

    start: int
    stop: int
    label: str


@dataclass(frozen=True)
class Scheme:
    """How tags are written. `letters`: of each role, as the data have them."""

    name: str = "bio"
    letters: Mapping[str, str] = field(default_factory=lambda: {"begin": "B", "inside": "I"})

    def entities(self, tags: Sequence[str]) -> list[Entity]:
        """The entities that a sequence means, legal or not (conlleval's reading). Scheme `none` has none."""
        found: list[Entity] = []
        if self.name == "none":
            return found
        start, label, open_ = 0, "", False
        for i, tag in enumerate([*tags, OUTSIDE]):
            role, kind = parted(tag)
            goes_on = open_ and role in ("inside", "end") and kind == label
            if open_ and not goes_on:
                found.append(Entity(start, i, label))
                open_ = False
            if role != "outside" and not goes_on:
                start, label, open_ = i, kind, True
            if open_ and role in ("end", "single"):
                found.append(Entity(start, i + 1, label))
                open_ = False
        return found

    def written(self, entities: Iterable[Entity], count: int) -> list[str]:
        """The legal sequence of `count` tags that says exactly these entities."""
        tags = [OUTSIDE] * count
        for start, stop, label in entities:
            roles = ["begin", *["inside"] * (stop - start - 1)]
            if self.name == "bioes":
                roles = ["single"] if stop - start == 1 else [*roles[:-1], "end"]
            tags[start:stop] = [f"{self.letters[r]}-{label}" for r in roles]
        return tags

    def mended(self, tags: Sequence[str]) -> list[str]:
        """The same entities, legally written."""
        return list(tags) if self.name == "none" else self.written(self.entities(tags), len(tags))

    def legal(self, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """bool (K, K): may the second follow the first; (K,): may it be the first tag; (K,): may it be the last."""
        count = len(labels)
        if self.name == "none":
            return np.ones((count, count), bool), np.ones(count, bool), np.ones(count, bool)
        parts = [parted(t) for t in labels]
        closed = [r in ("outside", "end", "single") or (self.name == "bio") for r, _ in parts]
        opens = [r in ("outside", "begin", "single") for r, _ in parts]
        goes_on = [[b in ("inside", "end") and a in ("begin", "inside") and x == y for b, y in parts] for a, x in parts]
        after = np.array(goes_on, bool).reshape(count, count) | (np.array(closed)[:, None] & np.array(opens)[None])
        return after, np.array(opens, bool), np.array(closed, bool)


def parted(tag: str) -> tuple[str, str]:
    """Role and type of a tag of a scheme; what has no known prefix is outside."""
    found = _PREFIXED.fullmatch(tag)
    return (ROLES[found[1]], found[2]) if found else ("outside", "")


def scheme_of(tags: Iterable[str], name: str = "auto") -> Scheme:
    """The scheme that most of the tags are written in."""
    counts = Counter(tags)
    counts.pop(OUTSIDE, None)
    letters = Counter()
    for tag, n in counts.items():
        if found := _PREFIXED.fullmatch(tag):
            letters[found[1]] += n
    if name == "none" or (name == "auto" and letters.total() < MOST * max(counts.total(), 1)):
        return Scheme("none", {})
    if name == "auto":
        name = "bioes" if any(ROLES[c] in ("end", "single") for c in letters) else "bio"
    used = {role: max((c for c in letters if ROLES[c] == role), key=letters.get, default="") for role in ROLES.values()}
    usual = {"begin": "B", "inside": "I", "end": "E", "single": "S"}
    roles = ("begin", "inside") if name == "bio" else ("begin", "inside", "end", "single")
    return Scheme(name, {role: used.get(role) or usual[role] for role in roles})


# -- a text and its units ----------------------------------------------------------------------------------------------


def joined(words: Sequence[Any]) -> tuple[str, list[tuple[int, int]]]:
    """A list of words as text, and where each stands in it. Lists of single characters are joined without blanks.

    Blanks within a word become underscores, so that the text has as many words as the list.
    """
    plain = [re.sub(r"\s+", "_", str(w).strip()) or "_" for w in words]
    between = "" if all(len(w) == 1 for w in plain) else " "
    ends = np.cumsum([len(w) + len(between) for w in plain]).tolist()
    return between.join(plain), [(e - len(w) - len(between), e - len(between)) for w, e in zip(plain, ends)]


def placed(text: Any, unit: str) -> tuple[str, list[tuple[int, int]]]:
    """The text, and where each of its units stands."""
    if isinstance(text, (list, tuple)):
        return joined(text)
    text = "" if text is None else str(text)
    if unit == "words":
        return text, [m.span() for m in re.finditer(r"\S+", text)]
    return text, [(i, i + 1) for i, c in enumerate(text) if not c.isspace()]


def unit_of(texts: Iterable[Any], tags: Iterable[Any]) -> str:
    """The unit that most cells have one tag for; words where neither has more."""
    votes = Counter()
    for text, cell in zip(texts, tags):
        value = plain(cell)
        if text is None or value is None:
            continue
        if isinstance(text, (list, tuple)):
            votes["characters" if text and all(len(str(w)) == 1 for w in text) else "words"] += 1
        elif not _is_spans(value):
            votes.update(u for u in UNITS if len(placed(text, u)[1]) == len(value))
        else:  # names that begin or end within a word
            edges = [e for u in UNITS for e in placed(text, u)[1]]
            inside = {e for s, t in placed(text, "words")[1] for e in (s, t)}
            ends = {int(s[k]) for s in value for k in ("start", "end") if isinstance(s.get(k), int)}
            votes["words" if ends <= inside and edges else "characters"] += 1
    return "characters" if votes["characters"] > votes["words"] else "words"


# -- a cell of tags ----------------------------------------------------------------------------------------------------


def plain(value: Any) -> list[Any] | None:
    """A cell as a list of tags or of names by their place; None where it is empty. Raises BadRow."""
    if value is None or value == "" or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, str):
        if value.lstrip()[:1] != "[":
            return value.split()
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise BadRow("tags.not_tags", value=str(value)[:60]) from e
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise BadRow("tags.not_tags", value=str(value)[:60])
    spans = [isinstance(v, Mapping) for v in value]
    if any(spans):
        if not all(spans):
            raise BadRow("tags.not_tags", value=str(value)[:60])
        return list(value)
    tags = [v if isinstance(v, str) else str(v) if isinstance(v, (int, np.integer)) else None for v in value]
    if any(t is None or not t or any(c.isspace() for c in t) for t in tags):
        raise BadRow("tags.not_tags", value=str(value)[:60])
    return tags


def _is_spans(value: Sequence[Any]) -> bool:
    return bool(value) and isinstance(value[0], Mapping)


def aligned(value: Any, text: Any, unit: str, scheme: Scheme) -> list[str] | None:
    """One tag a unit of the text, BIO mended; None where the cell is empty. Raises BadRow."""
    found = plain(value)
    if found is None:
        return None
    _, places = placed(text, unit)
    if _is_spans(found) or (not found and places and scheme.name != "none"):
        return scheme.written(_entities(found, places, scheme), len(places))
    if len(found) != len(places):
        raise BadRow(
            f"tags.count.{'words' if isinstance(text, (list, tuple)) else unit}", tags=len(found), units=len(places)
        )
    if scheme.name != "none":
        wrong = next((t for t in found if t != OUTSIDE and not _PREFIXED.fullmatch(t)), None)
        if wrong is not None:
            raise BadRow("tags.prefix", value=wrong[:40], letters=listed(f"{c}-" for c in scheme.letters.values()))
    return scheme.mended(found)


def _entities(spans: Sequence[Mapping[str, Any]], places: Sequence[tuple[int, int]], scheme: Scheme) -> list[Entity]:
    if scheme.name == "none" and spans:
        raise BadRow("tags.spans_unprefixed")
    starts, ends = {s: i for i, (s, _) in enumerate(places)}, {e: i + 1 for i, (_, e) in enumerate(places)}
    found = []
    for span in sorted(spans, key=lambda s: (str(type(s.get("start"))), s.get("start") or 0)):
        start, end, label = (span.get(k) for k in ("start", "end", "label"))
        if start not in starts or end not in ends or starts[start] >= ends[end] or not _word(label):
            raise BadRow("tags.span", value=json.dumps(dict(span), ensure_ascii=False, default=str)[:80])
        if found and starts[start] < found[-1].stop:
            raise BadRow("tags.overlap", value=json.dumps(dict(span), ensure_ascii=False, default=str)[:80])
        found.append(Entity(starts[start], ends[end], label))
    return found


def _word(label: Any) -> bool:
    return isinstance(label, str) and bool(label) and not any(c.isspace() for c in label)


# -- rows ----------------------------------------------------------------------------------------------------------------


def flat(rows: Rows, names: Iterable[str]) -> Rows:
    """Cells that are lists of words, in the named columns, as text."""
    for name in names:
        column = rows.table[name]
        if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
            continue
        rows = rows.having(
            name, pa.array([None if v is None else joined(v)[0] for v in column.to_pylist()], pa.string())
        )
    return rows


def tagged(rows: Rows, name: str, of: str, unit: str = "auto", scheme: str = "auto") -> Rows:
    """The column `name` as strings with one legal tag a unit of the column `of`; rows where that cannot be go aside.

    Raises DataError where no row is right.
    """
    cells, texts = rows.column(name).to_pylist(), rows.column(of).to_pylist()
    reasons: dict[int, tuple[str, dict[str, Any]]] = {}
    found = []
    for i, cell in enumerate(cells):
        try:
            found.append(plain(cell))
        except BadRow as e:
            found.append(None)
            reasons[i] = (e.id, {"column": name, "of": of, **e.values})
    every = max(1, len(cells) // LOOKED)
    unit = unit_of(texts[::every], found[::every]) if unit == "auto" else unit
    kind = scheme_of(_written(found), scheme)
    values: list[str | None] = []
    mended = 0
    for i, (value, text) in enumerate(zip(found, texts)):
        try:
            tags = aligned(value, text, unit, kind) if i not in reasons else None
        except BadRow as e:
            tags, reasons[i] = None, (e.id, {"column": name, "of": of, **e.values})
        if tags is not None and not _is_spans(value):
            mended += sum(a != b for a, b in zip(tags, value))
        values.append(None if tags is None else " ".join(tags))
    if reasons and len(reasons) == len(rows):
        id, more = reasons[min(reasons)]
        raise DataError(problem(id, place=rows.place(min(reasons)), **more))
    result = rows.drop_each(reasons)
    kept = [v for i, v in enumerate(values) if i not in reasons]
    result = result.having(name, pa.array(kept, pa.string()))
    return result.noted(problem("tags.mended", place=rows.source, column=name, count=mended)) if mended else result


def _written(cells: Iterable[list[Any] | None]) -> Iterable[str]:
    """All tags of some cells; a name by its place counts as its first tag."""
    for cell in cells:
        for tag in cell or ():
            yield f"B-{tag.get('label')}" if isinstance(tag, Mapping) else tag
