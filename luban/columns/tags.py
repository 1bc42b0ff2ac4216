"""A column of tags: one for each word, or each character, of the text that it is `of:`. An output only.

What the network sees are positions of the text column's tokens: the first piece of a word bears its tag, all other positions none.
How tags are written, and what is done with bad ones: `luban.data.tagged`. How potentials become a legal sequence: `luban.columns.chain`.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np

from luban.columns import chain
from luban.columns.base import Answer, Column, Ragged, to_list
from luban.data import tagged
from luban.data.rows import BadRow
from luban.data.tagged import OUTSIDE, Entity, Scheme
from luban.errors import BundleError, DataError, RequestError, problem
from luban.messages import say

TOGETHER = 256  # rows decoded at once
SUPPOSED = ("O", "B-A", "I-A", "B-B", "I-B", "B-C", "I-C")


@dataclass(frozen=True)
class Tags(Column):
    """x is (T,) over the positions of the text: 1 + the tag's number where a unit begins, else 0.

    `of`: the text column; may be left out where there is one alone. `unit` auto: whichever of words and characters the
    training rows have one tag for. `scheme` auto: BIO or BIOES where the tags have such prefixes, none otherwise.
    """

    of: str | None = field(default=None, kw_only=True)
    unit: Literal["auto", "words", "characters"] = field(default="auto", kw_only=True)
    scheme: Literal["auto", "bio", "bioes", "none"] = field(default="auto", kw_only=True)
    text_column: Any = field(default=None, kw_only=True, compare=False, repr=False)  # the text column, see `beside`

    type: ClassVar[str] = "tags"
    form: ClassVar[str] = "tags"
    encoder: ClassVar[str] = ""
    head: ClassVar[str] = "tags"
    pools: ClassVar[bool] = True
    ragged: ClassVar[bool] = True
    of_form: ClassVar[str] = "ids"
    along: ClassVar[bool] = True
    details: ClassVar[dict[str, str]] = {"entities": "text"}

    def beside(self, others: Mapping[str, Column]) -> Self:
        return replace(self, text_column=others.get(self.of or ""))

    def fit(self, values: Iterable[Any], of: Any = None) -> Self:
        """Learns unit, scheme, tags and how often each occurs. Raises DataError where no row has a tag."""
        with self._refusals():
            cells = [tagged.plain(v) for v in to_list(values)]
        texts = to_list(of) if of is not None else [None] * len(cells)
        unit = tagged.unit_of(texts, cells) if self.unit == "auto" else self.unit
        scheme = tagged.scheme_of(tagged._written(cells), self.scheme)
        counts: Counter[str] = Counter()
        for cell, text in zip(cells, texts):
            with self._refusals():
                spans = bool(cell) and isinstance(cell[0], Mapping)
                known = tagged.aligned(cell, text, unit, scheme) if spans else scheme.mended(cell or ())
            counts.update(known or ())
        if not counts:
            raise DataError("column.all_missing", name=self.name)
        labels = sorted(counts, key=lambda t: (t != OUTSIDE, t))
        return self.learned(
            unit=unit,
            scheme=scheme.name,
            letters=dict(scheme.letters),
            labels=labels,
            counts=[counts[t] for t in labels],
        )

    def supposed(self) -> Self:
        """Three types of names."""
        scheme = tagged.scheme_of(SUPPOSED)
        return self.learned(
            unit="words", scheme="bio", letters=dict(scheme.letters), labels=list(SUPPOSED), counts=[1] * len(SUPPOSED)
        )

    def check(self) -> None:
        if (
            not self.labels
            or not all(isinstance(t, str) for t in self.labels)
            or self.state["unit"] not in tagged.UNITS
        ):
            raise BundleError("bundle.bad_column", reason=str(self.labels)[:80])
        _ = self.legal

    # -- what was learned ------------------------------------------------------------------------------------------------
    @property
    def labels(self) -> list[str]:
        return self.state["labels"]

    @property
    def size(self) -> int:
        return len(self.labels) + 1

    @cached_property
    def kind(self) -> Scheme:
        """How the tags are written."""
        return Scheme(self.state["scheme"], self.state["letters"])

    @cached_property
    def legal(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which tag may follow which (K, K), which may be first (K,), which last (K,)."""
        return self.kind.legal(self.labels)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {t: i for i, t in enumerate(self.labels)}

    # -- raw value <-> array -----------------------------------------------------------------------------------------------
    def _refusals(self) -> _Refusals:
        return _Refusals(self.name, self.of or "")

    def places(self, text: Any) -> np.ndarray:
        """(T,): the unit that begins at each position of the text, -1 where none does."""
        if self.text_column is None:
            raise DataError("tags.no_text", name=self.name, of=self.of or "")
        units = tagged.placed(text, self.state["unit"])[1]
        offsets = self.text_column.offsets(text)
        if not len(offsets):
            return np.array([-1], np.int64)
        starts, ends = np.array(units or [(0, 0)], np.int64).T
        last = np.maximum(
            offsets[:, 1] - 1, offsets[:, 0]
        )  # a byte-level token may begin with the blank before its word
        at = np.searchsorted(starts, last, side="right") - 1
        at = np.where((at >= 0) & (last < ends[at]), at, -1)
        _, first = np.unique(at, return_index=True)
        begins = np.zeros(len(at), bool)
        begins[first] = True
        return np.where(begins, at, -1)

    def truth(self, value: Any, of: Any = None) -> list[str] | None:
        """One tag a unit of the text, whether the network sees that far or not; None where it is missing."""
        with self._refusals():
            return tagged.aligned(value, of, self.state["unit"], self.kind)

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        places = self.places(of)
        tags = self.truth(value, of)
        if tags is None:
            return np.zeros(len(places), np.int32)
        numbers = np.array([self._numbers.get(t, -1) + 1 for t in tags] + [0], np.int32)  # the last: no unit begins
        return numbers[np.where(places < len(tags), places, -1)]

    def encode_all(self, values: Any, of: Any = None) -> Ragged:
        values = to_list(values)
        texts = to_list(of) if of is not None else [None] * len(values)
        return Ragged.of([self.encode(v, t) for v, t in zip(values, texts)])

    def collate(self, items: Any) -> tuple[np.ndarray, np.ndarray]:
        """(B, T) int64 padded with 0; mask: where there is a tag."""
        items = items if isinstance(items, Ragged) else Ragged.of(items)
        lengths = items.lengths
        x = np.zeros((len(items), int(lengths.max(initial=1))), np.int64)
        x[np.arange(x.shape[1]) < lengths[:, None]] = items.flat
        return x, x > 0

    def decode(self, array: np.ndarray, mask: np.ndarray | None = None, of: Any = None) -> Answer:
        return self.decode_all(Ragged.of([np.asarray(array)]), of=None if of is None else [of])[0]

    def decode_all(self, array: Any, mask: np.ndarray | None = None, of: Any = None) -> list[Answer]:
        """Rows of potentials (`chain.Potentials.of`) -> the most probable legal tags of each, its units beyond the text's
        end as `O` (the commonest tag where there is none), and its entities with text, characters and probability.

        Without `of`, every position counts as a unit.
        """
        texts = to_list(of) if of is not None else [None] * len(array)
        answers: list[Answer | None] = [None] * len(array)
        order = np.argsort([len(row) for row in array], kind="stable")
        for start in range(0, len(order), TOGETHER):
            rows = order[start : start + TOGETHER]
            self._decoded([array[int(i)] for i in rows], [texts[i] for i in rows], rows, answers, of is not None)
        return answers  # type: ignore[return-value]

    def _decoded(self, rows: list[Any], texts: list[Any], numbers: np.ndarray, answers: list[Any], known: bool) -> None:
        head = len(self.labels) + chain.EXTRA
        places = [self.places(t) if known else np.arange(len(r) - head) for r, t in zip(rows, texts)]
        chosen = [np.flatnonzero(p[: len(r) - head] >= 0) for r, p in zip(rows, places)]
        sums = chain.Potentials.of([np.asarray(r, np.float64)[: head] for r in rows], [np.asarray(r, np.float64)[head:][c] for r, c in zip(rows, chosen)], self.legal)  # fmt: skip
        paths, marginals = sums.best(), sums.beliefs()
        for k, i in enumerate(numbers):
            path, belief = paths[k], marginals.row(k)
            units = places[k][chosen[k]]
            answers[i] = self._answer(path, belief, units, texts[k] if known else None)

    def _answer(self, path: np.ndarray, belief: chain.Belief, units: np.ndarray, text: Any) -> Answer:
        whole, spans = (
            ("", [(u, u + 1) for u in range(len(units))]) if text is None else tagged.placed(text, self.state["unit"])
        )
        tags = [self._beyond] * len(spans)
        for u, t in zip(units.tolist(), path.tolist()):
            tags[u] = self.labels[t]
        at = {u: k for k, u in enumerate(units.tolist())}
        found = []
        for entity in self.kind.entities(tags):
            inside = [at[u] for u in range(entity.start, entity.stop) if u in at]
            start, end = spans[entity.start][0], spans[entity.stop - 1][1]
            chance = belief.of_stretch(inside[0], path[inside], self._going_on(entity)) if inside else None
            named = {"text": whole[start:end], "label": entity.label, "start": start, "end": end, "probability": chance}
            found.append(named)
        details = {"entities": found} if self.kind.name != "none" else {}
        return Answer(tags, belief.of_path(path), (), details)

    @cached_property
    def _beyond(self) -> str:
        """The tag of what the network does not see."""
        return OUTSIDE if OUTSIDE in self._numbers else self.labels[int(np.argmax(self.state["counts"]))]

    def _going_on(self, entity: Entity) -> np.ndarray:
        """bool (K,): tags that would make an entity of that type longer."""
        parts = [tagged.parted(t) for t in self.labels]
        return np.array([r in ("inside", "end") and k == entity.label for r, k in parts])

    def spread(self, shown: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.asarray(shown)[..., None]

    # -- what explains it ---------------------------------------------------------------------------------------------------
    def fixed(self, answer: Answer, target: Any = None, of: Any = None) -> tuple[np.ndarray, str]:
        """Which tags of an answer are explained: (T,) numbers as `luban.nn.chain.log_odds` takes them, and their name.

        `target`: None for the first entity (all tags where there is none), a type or a tag, the first with it, or
        `TYPE@12`, the entity that holds character 12; `TAG@12`: that tag there, answered or not. Where a row has nothing of the
        kind, all its tags. Raises RequestError for what is neither.
        """
        units = self.places(of)
        numbers = np.where(units >= 0, len(self.labels) + 1, 0)  # any tag
        start, tags, name = self._wanted(answer, target, *tagged.placed(of, self.state["unit"]))
        for t in np.flatnonzero((units >= start) & (units < start + len(tags))):
            numbers[t] = 1 + self._numbers[tags[units[t] - start]]
        if not (numbers % (len(self.labels) + 1)).any() and (units >= 0).any():  # beyond what the network sees
            numbers[units >= 0] = [1 + self._numbers[answer.value[u]] for u in units[units >= 0]]
        return numbers, name

    def _wanted(
        self, answer: Answer, target: Any, text: str, spans: list[tuple[int, int]]
    ) -> tuple[int, list[str], str]:
        """The first unit, the tags from there, and what a person calls it."""
        wanted, _, place = str(target or "").partition("@")
        kinds = {tagged.parted(t)[1] for t in self.labels} - {""}
        if (wanted and wanted not in kinds and wanted not in self._numbers) or (place and not place.isdecimal()):
            allowed = [*sorted(kinds), *self.labels]
            raise RequestError(problem("explain.no_such_class", name=str(target), output=self.name, allowed=allowed))
        by_tag = wanted in self._numbers or self.kind.name == "none"
        whole = [(e.start, e.stop, e.label) for e in self.kind.entities(answer.value)]
        each = [(i, i + 1, t) for i, t in enumerate(answer.value)]
        for start, stop, label in each if by_tag else whole:
            first, last = spans[start][0], spans[stop - 1][1]
            here = not place or first <= int(place) < last
            asked = [wanted] if by_tag and place else answer.value[start:stop]
            if here and (wanted in ("", label) or (by_tag and place)):
                return start, asked, f"{' '.join(asked) if by_tag else label}: {text[first:last]}"
        return 0, list(answer.value), say("tags.whole")

    # -- what others see of it ------------------------------------------------------------------------------------------------
    def features(self, values: Any) -> Any:
        """(N, K): how often each tag stands in a row."""
        from scipy.sparse import csr_matrix

        counts = np.zeros((len(rows := to_list(values)), len(self.labels)), np.float32)
        for i, value in enumerate(rows):
            for tag in tagged.plain(value) or ():
                if isinstance(tag, str) and tag in self._numbers:
                    counts[i, self._numbers[tag]] += 1
        return csr_matrix(counts)

    def drawn(self, tags: Sequence[str], text: Any) -> str:
        """HTML of the text with its entities marked; without prefixes, each unit with its tag below."""
        whole, spans = tagged.placed(text, self.state["unit"])
        if self.kind.name == "none":
            return " ".join(_marked(whole[s:e], t) for (s, e), t in zip(spans, tags))
        parts, at = [], 0
        for start, stop, label in self.kind.entities(tags):
            first, last = spans[start][0], spans[stop - 1][1]
            parts += [html.escape(whole[at:first]), _marked(whole[first:last], label)]
            at = last
        return "".join([*parts, html.escape(whole[at:])])

    def schema(self) -> dict[str, Any]:
        common = self.labels[int(np.argmax(self.state["counts"]))]
        return {"type": ["string", "array", "null"], "items": {"type": ["string", "object"]}, "examples": [common], "x-labels": self.labels}  # fmt: skip

    def render(self, value: Any, weights: Sequence[float] | None = None) -> str:
        return super().render(" ".join(value) if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value) else value, weights)  # fmt: skip


def _marked(text: str, label: str) -> str:
    """A stretch of text with its label; the same label has the same colour wherever it stands."""
    hue = sum(map(ord, label)) * 47 % 360
    style = f"background:hsla({hue},70%,55%,.28);border-radius:3px;padding:0 2px"
    return f'<span style="{style}">{html.escape(text)} <small>{html.escape(label)}</small></span>'


class _Refusals:
    """`BadRow` becomes a DataError that names the column."""

    def __init__(self, name: str, of: str):
        self.name, self.of = name, of

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, BadRow):
            raise DataError(error.id, column=self.name, of=self.of, **error.values) from error
