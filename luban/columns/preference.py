"""A column of answers of which one is preferred: {prompt, chosen, rejected}."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal  # noqa: F401, as below

import numpy as np

from luban.columns.base import Segments
from luban.columns.chat import Chat, sequence, told_of
from luban.data.talks import SIDES, Said, preferred
from luban.settings import (  # noqa: F401, inherited settings are looked up here
    Beams,
    Count,
    Dial,
    File,
    Fraction,
    Model,
    Positive,
)

BETWEEN = -(1 << 30)  # stands between the two sequences: no id, and no ~id


@dataclass(frozen=True)
class Preference(Chat):
    """Two answers to the same, the better one `chosen`: a network learns to prefer it (Rafailov et al. 2023, "DPO").

    Raw: {prompt, chosen, rejected}, texts or conversations, from three columns of those names. x: the ids of the chosen
    conversation, a mark, those of the rejected one; ~id for all but the last answer. `beta`: how far it may move away from the model that it began
    as: smaller is further.
    """

    beta: Positive = field(default=0.1, kw_only=True)

    type: ClassVar[str] = "preference"
    fields: ClassVar[tuple[str, ...]] = ("prompt", *SIDES)  # columns that one cell of this one is made of

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        """Raises DataError where a side lacks, is no conversation or ends with somebody else."""
        if value is None or value == "":
            return np.array([self.pad], np.int32)
        talks = self._talks(value)
        both = [self._side(talks[side]) for side in SIDES]
        return np.concatenate([both[0], [BETWEEN], both[1]]).astype(np.int32)

    def _side(self, talk: list[Said]) -> np.ndarray:
        places = sequence(self, talk)[1 : self.most + 1]
        return np.array([p.id if p.learned and p.message == len(talk) - 1 else ~p.id for p in places], np.int64)

    def _talks(self, value: Any) -> dict[str, list[Said]]:
        with told_of(self.name):
            return preferred(value)

    def _clean(self, value: Any) -> str:
        if value is None or value == "":
            return ""
        talks = self._talks(value)
        return super(Chat, self)._clean("\n".join(s.content for side in SIDES for s in talks[side]))

    def asked(self, value: Any) -> list[Said]:
        """What both answers answer."""
        return self._talks(value)["chosen"][:-1] if value else []

    def said(self, value: Any) -> str:
        """The answer that is preferred."""
        return self._talks(value)["chosen"][-1].content if value else ""

    def check(self) -> None:
        self.encode(EXAMPLE)

    def whole(self) -> Chat:
        """What its likelihood is judged by: the conversations that end with the chosen answer, of which nothing is cut off."""
        return Chosen(**{f: getattr(self, f) for f in ("name", "state")}, **self.settings()).lengthened()

    def segments(self, value: Any) -> Segments:
        if value is None or value == "":
            return Segments([], np.array([-1]))
        talks = self._talks(value)
        both = [len(self._side(talks[side])) for side in SIDES]
        return Segments(list(SIDES), np.repeat([0, -1, 1], [both[0], 1, both[1]]))

    def schema(self) -> dict[str, Any]:
        return {"type": ["object", "null"], "required": list(SIDES), "examples": [EXAMPLE]}

    def render(self, value: Any, weights: Sequence[float] | None = None) -> str:
        talk = json.dumps([s._asdict() for s in self._talks(value)["chosen"]]) if value else None
        return super().render(talk)


EXAMPLE = {"prompt": "…", "chosen": "…", "rejected": "… …"}


@dataclass(frozen=True)
class Chosen(Preference):
    """The preferred side alone."""

    def lengthened(self) -> Chosen:
        from luban.columns.text import WHOLE

        return replace(self, length=WHOLE)

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        return (
            np.array([self.pad], np.int32) if not value else self._side(self._talks(value)["chosen"]).astype(np.int32)
        )

    def whole(self) -> Chosen:
        return self.lengthened()


def split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One encoded value -> the two sequences."""
    at = int(np.flatnonzero(x == BETWEEN)[0])
    return x[:at], x[at + 1 :]
