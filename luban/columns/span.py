"""A column of answers that are a stretch of the text that it is `of:` (extractive question answering). An output only.

What the network sees are two positions of that text's tokens, where the answer begins and where it ends. How answers are written in data:
`luban.data.spans`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np

from luban.columns.base import Answer, Column, to_list
from luban.console import tell
from luban.data import spans
from luban.data.rows import BadRow
from luban.data.spans import Stretch
from luban.errors import BundleError, DataError, RequestError, problem
from luban.messages import say
from luban.settings import Count

NONE, MISSING = -1, -2  # both positions of a row without an answer, and of one whose truth is missing
OTHERS = 3  # answers told beside the best
USUAL = 30  # tokens of an answer at most where nothing is known (SQuAD)


class Legal(NamedTuple):
    """Every stretch of positions that may be an answer, and its log-probability: `at` (N, 2) first and last, `log` (N,)."""

    at: np.ndarray
    log: np.ndarray


@dataclass(frozen=True)
class Span(Column):
    """x is (2,): the first and the last position of the answer among those of the text; -1 twice where the text has none.

    `of`: the text column. `longest`: tokens of an answer at most, auto: the longest of the training rows. `empty`: what an empty cell
    says: `missing`, or `none`, that the text has no answer (SQuAD 2.0); an empty list always says that. Where no training row is without
    an answer, there always is one. Several right answers count when the model is judged; the first is learned.
    """

    of: str | None = field(default=None, kw_only=True)
    longest: Count | Literal["auto"] = field(default="auto", kw_only=True)
    empty: Literal["missing", "none"] = field(default="missing", kw_only=True)
    text_column: Any = field(default=None, kw_only=True, compare=False, repr=False)  # the text column, see `beside`

    type: ClassVar[str] = "span"
    form: ClassVar[str] = "span"
    encoder: ClassVar[str] = ""
    head: ClassVar[str] = "span"
    of_form: ClassVar[str] = "ids"
    along: ClassVar[bool] = True
    joint: ClassVar[bool] = True  # its text is read in one sequence with the question
    details: ClassVar[dict[str, str]] = {"start": "number", "end": "number"}

    def beside(self, others: Mapping[str, Column]) -> Self:
        return replace(self, text_column=others.get(self.of or ""))

    def fit(self, values: Iterable[Any], of: Any = None) -> Self:
        """Learns how long answers are and whether there may be none. Raises DataError where no row has a truth."""
        cells = to_list(values)
        found = self._places(cells, to_list(of) if of is not None else [None] * len(cells))
        known = found[found[:, 0] != MISSING]
        if beyond := sum(bool(self.answers(v)) for v, x in zip(cells, found) if x[0] < 0):
            tell("span.beyond", name=self.name, of=self.of or "", count=beyond, rows=len(cells))
        none = sum(not a for v in cells if (a := self.answers(v)) is not None)
        if none >= len(known):
            raise DataError("column.all_missing", name=self.name)
        sizes = (known[:, 1] - known[:, 0] + 1)[known[:, 0] >= 0]
        most = int(sizes.max(initial=1)) if self.longest == "auto" else self.longest
        controls = [len(self.text_column.state.get(k, ())) for k in ("before", "after")] if self.text_column else [0, 0]
        return self.learned(most=most, none=none, rows=len(known), controls=controls)

    def supposed(self) -> Self:
        """Answers of up to 30 tokens, always one."""
        return self.learned(most=USUAL if self.longest == "auto" else self.longest, none=0, rows=1, controls=[1, 1])

    def check(self) -> None:
        if not all(isinstance(self.state[k], int) and self.state[k] >= 0 for k in ("most", "none")):
            raise BundleError("bundle.bad_column", reason=str(self.state)[:80])

    @property
    def optional(self) -> bool:
        """Whether there may be no answer."""
        return self.state["none"] > 0

    # -- raw value <-> array -----------------------------------------------------------------------------------------------
    def answers(self, value: Any) -> list[tuple[str, int | None]] | None:
        """The answers of a cell, each with its place where that is given; None where the truth is missing. Raises DataError."""
        try:
            found = spans.plain(value)
        except BadRow as e:
            raise DataError(e.id, column=self.name, of=self.of or "", **e.values) from e
        return [] if found is None and self.empty == "none" else found

    def truth(self, value: Any, of: Any = None) -> list[str] | None:
        """The words of every right answer; [] where there is none; None where the truth is missing."""
        found = self.answers(value)
        return None if found is None else [words for words, _ in found]

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        return self._places([value], [of])[0]

    def encode_all(self, values: Any, of: Any = None) -> np.ndarray:
        cells = to_list(values)
        return self._places(cells, to_list(of) if of is not None else [None] * len(cells))

    def _places(self, cells: Sequence[Any], texts: Sequence[Any]) -> np.ndarray:
        """(N, 2) int32. An answer that lies beyond what the network sees is none to it; missing where there always is one."""
        found = np.full((len(cells), 2), MISSING, np.int32)
        seen: tuple[Any, np.ndarray] | None = None
        for i, (cell, text) in enumerate(zip(cells, texts)):
            answers = self.answers(cell)
            if answers is None:
                continue
            if not answers:
                found[i] = NONE
                continue
            if seen is None or seen[0] != text:
                seen = (text, self._offsets(text))
            found[i] = self._positions(answers[0], text, seen[1])
        return found

    def _positions(self, answer: tuple[str, int | None], text: Any, offsets: np.ndarray) -> tuple[int, int]:
        try:
            (stretch,) = spans.placed([answer], spans.text_of(text))
        except BadRow as e:
            raise DataError(e.id, column=self.name, of=self.of or "", **e.values) from e
        inside = np.flatnonzero((offsets[:, 0] < stretch.stop) & (offsets[:, 1] > stretch.start) & (offsets[:, 0] >= 0))
        if not len(inside) or offsets[inside[-1], 1] < stretch.stop:
            return (NONE, NONE) if self.state.get("none") else (MISSING, MISSING)
        return int(inside[0]), int(inside[-1])

    def _offsets(self, text: Any) -> np.ndarray:
        if self.text_column is None:
            raise DataError("tags.no_text", name=self.name, of=self.of or "")
        return self.text_column.offsets(text)

    def collate(self, items: Any) -> tuple[np.ndarray, np.ndarray]:
        """(B, 2) int64, mask (B,): whether the truth is known."""
        x = np.asarray(items, np.int64).reshape(-1, 2)
        return x, x[:, 0] != MISSING

    # -- what the network says ---------------------------------------------------------------------------------------------
    def legal(self, row: np.ndarray, offsets: np.ndarray | None = None) -> Legal:
        """A row of the head (1 + T, 2): what beginning and ending are worth, first of "no answer", then at each position.

        A legal answer begins before it ends, is at most `most` tokens long, and holds no control token. The probability of one is
        exp(its start + its end) over the sum for all of them.
        """
        row = np.asarray(row, np.float64)
        start, end = row[1:, 0], row[1:, 1]
        count = len(start)
        first, last = np.divmod(np.arange(count * self.state["most"]), self.state["most"])
        last = first + last
        fits = last < count
        if offsets is not None:
            there = np.zeros(count, bool)
            there[: len(offsets)] = offsets[:count, 0] >= 0
            fits &= there[first] & there[np.minimum(last, max(count - 1, 0))]
        at = np.stack([first[fits], last[fits]], 1)
        worth = start[at[:, 0]] + end[at[:, 1]]
        if self.optional:
            at, worth = np.concatenate([at, [[NONE, NONE]]]), np.append(worth, row[0].sum())
        if not len(worth):
            return Legal(np.array([[NONE, NONE]]), np.array([-np.inf]))
        most = worth.max()
        return Legal(at, worth - most - np.log(np.exp(worth - most).sum()))

    def decode(self, array: np.ndarray, mask: np.ndarray | None = None, of: Any = None) -> Answer:
        """The likeliest legal answer: its words, "" for none, their characters in the text, and what else it might be."""
        offsets = self._offsets(of) if of is not None else None
        found = self.legal(array, offsets)
        order = np.argsort(-found.log, kind="stable")[: 1 + OTHERS]
        told = [self._told(found.at[i], found.log[i], offsets, of) for i in order]
        best = told[0]
        details = {"start": best["start"], "end": best["end"], "others": told[1:]}
        return Answer(best["text"], best["probability"], (), details)

    def decode_all(self, array: Any, mask: np.ndarray | None = None, of: Any = None) -> list[Answer]:
        texts = to_list(of) if of is not None else [None] * len(array)
        return [self.decode(array[i], None, text) for i, text in enumerate(texts)]

    def _told(self, at: np.ndarray, log: float, offsets: np.ndarray | None, of: Any) -> dict[str, Any]:
        chance = float(np.exp(log))
        if at[0] == NONE or offsets is None:
            return {"text": "", "start": None, "end": None, "probability": chance}
        stretch = self._characters(at, offsets, spans.text_of(of))
        words = spans.text_of(of)[stretch.start : stretch.stop]
        return {"text": words, "start": stretch.start, "end": stretch.stop, "probability": chance}

    @staticmethod
    def _characters(at: np.ndarray, offsets: np.ndarray, text: str) -> Stretch:
        """The characters of some positions; a token may begin with the blank before its word."""
        start, stop = int(offsets[at[0], 0]), int(offsets[at[1], 1])
        words = text[start:stop]
        return Stretch(start + len(words) - len(words.lstrip()), stop - len(words) + len(words.rstrip()))

    def spread(self, shown: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.asarray(shown)[..., None]

    # -- what explains it --------------------------------------------------------------------------------------------------
    def fixed(self, answer: Answer, target: Any = None, of: Any = None) -> tuple[np.ndarray, str]:
        """Which answer is explained: its positions (2,) as `score` takes them, and its words.

        `target`: None for the one answered, words of the text, `WORDS@12` those at a character, "" for no answer. Raises RequestError where
        there always is an answer and none is asked about, and where the words cannot be an answer: they do not stand there, lie beyond what the
        network sees, or are more than it may answer.
        """
        if target == "" and not self.optional:
            raise RequestError(problem("span.always", output=self.name))
        if target == "" or (target is None and answer.details.get("start") is None):
            return np.array([NONE, NONE]), say("span.none")
        offsets = self._offsets(of)
        words, _, place = str(target if target is not None else "").rpartition("@")
        words, place = (words, int(place)) if words and place.isdecimal() else (str(target), None)
        asked = (answer.value, answer.details["start"]) if target is None else (words, place)
        try:
            found = self._positions(asked, of, offsets)
        except DataError:
            found = (MISSING, MISSING)
        if target is not None and found[0] < 0:
            raise RequestError(problem("span.no_such_answer", target=str(target), of=self.of or ""))
        if target is not None and found[1] - found[0] >= self.state["most"]:
            raise RequestError(problem("span.too_long", target=str(target), most=self.state["most"]))
        return np.array(found), asked[0]

    # -- what others see of it -----------------------------------------------------------------------------------------------
    def features(self, values: Any) -> Any:
        """(N, 1): how many characters the answer has."""
        from scipy.sparse import csr_matrix

        return csr_matrix(
            [[float(len(next(iter(self.truth(v) or ()), "")))] for v in to_list(values)], dtype=np.float32
        )

    def schema(self) -> dict[str, Any]:
        kinds = ["string", "array", "object", "null"]
        return {"type": kinds, "items": {"type": ["string", "object"]}, "examples": [[]]}

    def render(self, value: Any, weights: Sequence[float] | None = None) -> str:
        return super().render(" | ".join(self.truth(value) or ()), weights)
