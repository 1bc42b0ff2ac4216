"""What a network that writes, or one that says hidden words, is asked, as columns of their own: explanations weigh their words.

Their values are made of rows by `luban.stages.explain`; none of them stands in a recipe.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from luban.columns.base import Segments, coloured
from luban.columns.chat import Chat, opened, sequence
from luban.columns.text import LONG, Text, worded
from luban.data.talks import Said
from luban.settings import Beams, Count, Dial, File, Fraction, Model  # noqa: F401, inherited settings are looked up here

HIDDEN = -1  # the id of a word that is gone: below every id, as a language model may have learned all of them
MASK = "[MASK]"  # stands in a text for the word that is asked about


class Weighed(NamedTuple):
    """Positions of an encoded value and the words that they stand in: `words` are (which text, from, to)."""

    ids: list[int]
    index: np.ndarray  # (T,): the number of each position's word, -1 for none
    words: list[tuple[int, int, int]]

    def cut(self, start: int, stop: int) -> Weighed:
        """Some of the positions, and the words that still have one."""
        kept, index = np.unique(np.append(self.index[start:stop], -1), return_inverse=True)
        words = [self.words[k] for k in kept[1:]]
        return Weighed(self.ids[start:stop], index.reshape(-1)[:-1].astype(np.int64) - 1, words)


@dataclass(frozen=True)
class Talk(Chat):
    """A conversation up to what the assistant answers, [Said, ...]: its words can be gone, the marks of its template stay.

    x is ids (T,), without the one that begins all. Of a conversation that is too long the beginning is left out.
    """

    @classmethod
    def of(cls, column: Chat, name: str, most: int) -> Talk:
        """For the conversations of a column, at most so many positions each."""
        own = {f.name for f in fields(cls)}
        kept = {k: v for k, v in column.settings().items() if k in own}
        made = cls(**{**kept, "name": name, "length": most, "state": {**column.state, "hide": HIDDEN}})
        return column.keeping(made)

    def near(self, value: Sequence[Said]) -> list[Said]:
        """What of each message may be weighed at all: of one that is far too long its end."""
        return [s._replace(content=s.content[-self.length * LONG :]) for s in value]

    def weighed(self, value: Sequence[Said]) -> Weighed:
        """All positions, however many."""
        places = sequence(self, value)[1:]
        index, words = np.full(len(places), -1, np.int64), []
        for number, said in enumerate(value):
            at = [i for i, p in enumerate(places) if p.message == number and p.end]
            if at:
                spans, mine = worded(self._plain(said), [places[i].end for i in at])
                index[at] = np.where(mine < 0, -1, mine + len(words))
                words += [(number, *s) for s in spans]
        answer = opened(self)
        ids = [*(p.id for p in places), *answer]
        return Weighed(ids, np.append(index, np.full(len(answer), -1)), words)

    def _plain(self, said: Said) -> str:
        return Text._clean(self.whole(), said.content)

    def overlong(self, values: Any) -> int:
        return sum(len(self.weighed(v).ids) > self.length for v in values)

    def _kept(self, value: Sequence[Said]) -> Weighed:
        found = self.weighed(value)
        return found.cut(max(0, len(found.ids) - self.length), len(found.ids))

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        return np.array(self._kept(value).ids, np.int32)

    def segments(self, value: Any) -> Segments:
        """Words of what is said."""
        found = self._kept(value)
        return Segments([self._plain(value[n])[s:e] for n, s, e in found.words], found.index)

    def render(self, value: Any, weights: Sequence[float] | None = None) -> str:
        words, lines = self._kept(value).words, []
        for number, said in enumerate(value):
            text, mine = self._plain(said), [(w, s, e) for w, (n, s, e) in zip(weights or (), words) if n == number]
            lines.append(f"<b>{html.escape(said.role)}</b>: {_coloured(text, mine)}")
        return "<br>".join(lines)


@dataclass(frozen=True)
class Blank(Text):
    """A text in which MASK stands for what is asked about; the words around it can be gone. x is ids (T,), ~id where one is asked about.

    state["asked"]: positions that are. A text that is too long is cut on both sides of it.
    """

    @classmethod
    def of(cls, column: Text, count: int) -> Blank:
        """For the texts of a column; `count`: tokens that are asked about."""
        made = cls(**{**column.settings(), "name": column.name, "state": {**column.state, "asked": count}})
        return column.keeping(made)

    def asking(self, value: Any) -> str:
        """The text with its middle word in the place of what is asked about; as it is where something is asked about already."""
        text = self._clean(value)
        if MASK in text:
            return text
        spans = worded(text, [e for _, e in self.tokenizer.encode(text, add_special_tokens=False).offsets] or [0])[0]
        letters = [s for s in spans if any(c.isalnum() for c in text[slice(*s)])]
        if len(letters) < 2:
            return ""
        start, end = letters[len(letters) // 2]
        return text[:start] + MASK + text[end:]

    def weighed(self, value: str) -> Weighed:
        """All positions but the control tokens around the text, however many."""
        before, after = value.split(MASK, 1)
        ids, index, words = [], [], []
        for part, text in enumerate((before.rstrip(), after)):
            found = self.tokenizer.encode(text, add_special_tokens=False)
            if found.ids:
                spans, mine = worded(text, [e for _, e in found.offsets])
                ids += found.ids
                index += np.where(mine < 0, -1, mine + len(words)).tolist()
                words += [(part, *s) for s in spans]
            if not part:
                ids += [~int(self.nothing(np.zeros(1, np.int64)))] * self.state["asked"]
                index += [-1] * self.state["asked"]
        return Weighed(ids, np.array(index, np.int64), words)

    def overlong(self, values: Any) -> int:
        return sum(len(self.weighed(v).ids) > self.room for v in values)

    def _kept(self, value: str) -> Weighed:
        found = self.weighed(value)
        first = next(i for i, t in enumerate(found.ids) if t < 0)
        start = max(0, min(first - self.room // 2, len(found.ids) - self.room))
        return found.cut(start, start + self.room)

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        return np.array([*self.state.get("before", ()), *self._kept(value).ids, *self.state.get("after", ())], np.int32)

    def segments(self, value: Any) -> Segments:
        found, parts = self._kept(value), self._parts(value)
        before, after = (np.full(len(self.state.get(k, ())), -1, np.int64) for k in ("before", "after"))
        return Segments([parts[n][s:e] for n, s, e in found.words], np.concatenate([before, found.index, after]))

    @staticmethod
    def _parts(value: str) -> tuple[str, str]:
        before, after = value.split(MASK, 1)
        return before.rstrip(), after

    def render(self, value: Any, weights: Sequence[float] | None = None) -> str:
        words, parts = self._kept(value).words, self._parts(value)
        mine = [[(w, s, e) for w, (n, s, e) in zip(weights or (), words) if n == part] for part in (0, 1)]
        return f"{_coloured(parts[0], mine[0])} <b>{MASK}</b>{_coloured(parts[1], mine[1])}"


@dataclass(frozen=True)
class Word(Text):
    """What stands in the place: a word by itself, nothing around it."""

    @classmethod
    def of(cls, column: Text, name: str) -> Word:
        state = {**column.state, "before": [], "after": [], "silent": [], "stops": [], "begin": -1, "end": -1}
        return column.keeping(cls(**{**column.settings(), "name": name, "state": state}))

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        """A word behind a blank, as most are."""
        text = self._clean(value).strip()
        spaced = text if not text or self.state.get("tokens") == "characters" else f" {text}"
        return np.array(self.tokenizer.encode(spaced, add_special_tokens=False).ids, np.int32)


def _coloured(text: str, words: Sequence[tuple[float, int, int]]) -> str:
    parts, at = [], 0
    for weight, start, end in words:
        parts += [html.escape(text[at:start]), coloured(html.escape(text[start:end]), weight)]
        at = end
    return "".join([*parts, html.escape(text[at:])])
