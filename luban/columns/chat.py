"""A column of conversations: what the assistant says is learned, all else is given.

How a conversation becomes one sequence of ids is said by a template, see `luban.columns.templates`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self  # noqa: F401, as below

import numpy as np

from luban.columns.base import Segments, coloured, to_list
from luban.columns.templates import Template, template_of
from luban.columns.text import Text
from luban.data import talks
from luban.data.rows import BadRow
from luban.data.talks import ROLES, Said, missing
from luban.errors import DataError, problem
from luban.settings import Beams, Count, Dial, File, Fraction, Model  # noqa: F401, inherited settings are looked up here

EXAMPLE = [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]


class Place(NamedTuple):
    """One position: its id, whether it is to be learned, the number of its message (-1: of none), the character of what is said
    in it that it ends before (0: a mark of the template).
    """

    id: int
    learned: bool
    message: int
    end: int = 0


@dataclass(frozen=True)
class Chat(Text):
    """Conversations [{role, content}, ...], roles system, user, assistant; also ShareGPT's [{from, value}], and either as JSON.

    x is ids (T,), ~id where one is given and not to be learned: all but what the assistant says, and its end. Settings are
    those of `text`. A checkpoint that knows how conversations look (ChatML, Llama 3) keeps its way; else a message begins
    with its role's name and ends with the end token. A conversation that is too long loses its end.
    """

    tokens: Literal["auto", "characters", "words", "bpe"] = field(default="bpe", kw_only=True)
    lower: bool = field(default=False, kw_only=True)
    normalise: bool = field(default=False, kw_only=True)
    drop: float = field(default=0.0, kw_only=True)
    ends: bool = field(default=True, kw_only=True)

    type: ClassVar[str] = "chat"
    alone: ClassVar[bool] = True  # a recipe with nothing else has no inputs

    def fit(self, values: Iterable[Any]) -> Self:
        """Learns to cut what is said. Raises DataError for a cell that is no conversation."""
        values = to_list(values)
        learned = super().fit(values)
        whole = learned.whole()
        lengths = np.array([len(whole.encode(v)) for v in values])
        seen = {"longest": int(lengths.max()), "cut": float((lengths > learned.most).mean())}
        found = learned.learned(chat=template_of(learned.state), **seen)
        object.__setattr__(found, "_source", learned.source)
        return found

    # -- raw value <-> array -----------------------------------------------------------------------------------------
    def check(self) -> None:
        self.encode(EXAMPLE)

    @property
    def begin(self) -> int:
        return template_of(self.state)["begin"]

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        """A missing conversation is one position of padding. Raises DataError where it is none, or nothing in it is learned."""
        if missing(value):
            return np.array([self.pad], np.int32)
        talk = messages(value, self.name)
        if not any(s.role == "assistant" for s in talk):
            raise DataError("chat.no_answer", name=self.name)
        places = sequence(self, talk)[1 : self.most + 1]  # the network reads `begin` before all else
        return np.array([p.id if p.learned else ~p.id for p in places], np.int32)

    def _encoded(self, values: Sequence[Any]) -> list[np.ndarray]:
        return [self.encode(v) for v in values]

    def _clean(self, value: Any) -> str:
        """All that is said."""
        said = [] if missing(value) else messages(value, self.name)
        return super()._clean("\n".join(s.content for s in said))

    def asked(self, value: Any) -> list[Said]:
        """The conversation up to the last answer of the assistant, which is left out; [] where nothing stands before it."""
        said = [] if missing(value) else messages(value, self.name)
        answers = [i for i, s in enumerate(said) if s.role == "assistant"]
        return said[: answers[-1]] if answers and said[-1].role == "assistant" else said

    def said(self, value: Any) -> str:
        """What is learned of a value: all that the assistant says."""
        said = [] if missing(value) else messages(value, self.name)
        return "\n".join(s.content for s in said if s.role == "assistant")

    # -- what others see of it ---------------------------------------------------------------------------------------
    def segments(self, value: Any) -> Segments:
        """Messages."""
        if missing(value):
            return Segments([], np.array([-1]))
        talk = messages(value, self.name)
        index = np.array([p.message for p in sequence(self, talk)[1 : self.most + 1]], np.int64)
        return Segments([s.role for s in talk][: int(index.max()) + 1], index)

    def schema(self) -> dict[str, Any]:
        shape = {"role": {"enum": list(ROLES)}, "content": {"type": "string"}}
        item = {"type": "object", "properties": shape, "required": ["role", "content"]}
        return {"type": ["array", "null"], "items": item, "minItems": 1, "examples": [EXAMPLE]}

    def render(self, value: Any, weights: Sequence[float] | None = None) -> str:
        said = [] if missing(value) else messages(value, self.name)
        lines = [html.escape(f"{s.role}: {s.content}") for s in said]
        shown = list(weights or ()) if weights is None or isinstance(weights, list) else weights.tolist()
        return "<br>".join(coloured(t, w) for t, w in zip(lines, shown)) if shown else "<br>".join(lines)


# -- raw values --------------------------------------------------------------------------------------------------------


def messages(value: Any, name: str) -> list[Said]:
    """What is said, in order. Raises DataError with what is wrong and in which message."""
    with told_of(name):
        return talks.messages(value)


@contextmanager
def told_of(name: str) -> Iterator[None]:
    """What is wrong with a cell, said of its column."""
    try:
        yield
    except BadRow as e:
        place = name if "name" in e.values else ""  # of what else than the column
        raise DataError(problem(e.id, place=place, **{"name": name, **e.values})) from e


# -- the sequence of a conversation ------------------------------------------------------------------------------------


def prompt(column: Text, value: Any) -> np.ndarray:
    """The ids (T,) that the assistant's answer to a conversation is written on from. Raises DataError."""
    places = sequence(column, messages(value, column.name))
    return np.array([*(p.id for p in places), *opened(column)], np.int32)


def opened(column: Text) -> list[int]:
    """The ids that open an answer of the assistant."""
    return _cut(column, template_of(column.state)["roles"]["assistant"][0])


def sequence(column: Text, talk: Sequence[Said]) -> list[Place]:
    """Every position of a conversation, `begin` first."""
    template, first = template_of(column.state), 0
    if template["system"] and talk[0].role != "system":
        talk, first = [Said("system", template["system"]), *talk], -1
    found = [] if _starts(template) else [Place(template["begin"], False, -1)]
    for number, (role, content) in enumerate(talk, first):
        if role not in template["roles"]:
            raise DataError("chat.unknown_role", name=column.name, role=role)
        opens, closes = template["roles"][role]
        head = opens[-1] if opens and isinstance(opens[-1], str) else ""  # cut together with the message
        before, behind = _cut(column, opens[:-1] if head else opens), _cut(column, closes)
        mine = role == "assistant"
        stop = next((k for k, i in enumerate(behind) if i in column.stops), -1)
        found += [Place(i, False, number) for i in before]
        found += [Place(i, mine and end > 0, number, end) for i, end in _together(column, head, content)]
        found += [Place(i, mine and k <= stop, number) for k, i in enumerate(behind)]
    return found


def _starts(template: Template) -> bool:
    """Whether every message opens with the id that stands first anyway."""
    return all(opens and opens[0] == template["begin"] for opens, _ in template["roles"].values())


def _cut(column: Text, pieces: Sequence[int | str]) -> list[int]:
    ids = [[p] if isinstance(p, int) else [i for i, _ in _together(column, p, "")] for p in pieces]
    return [i for part in ids for i in part]


def _together(column: Text, head: str, content: str) -> list[tuple[int, int]]:
    """The ids of a mark and a message, cut together, and the character of the message that each ends before, 0 where it belongs to
    the mark. Control tokens stay text.
    """
    text = head + Text._clean(column.whole(), content)
    found = column.tokenizer.encode(text, add_special_tokens=False)
    return [(i, max(end - len(head), 0)) for i, (_, end) in zip(found.ids, found.offsets)]
