"""From raw values to answers, for every engine: encode, collate, run, decode. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from luban.columns.base import Answer, Column, Encoded, Ragged
from luban.columns.examples import Arrays, Examples, encode_values
from luban.columns.windows import Windows, opened

BATCH = 256
TOKENS = 65_536  # padded positions in one batch


class Engine(Protocol):
    """Something that runs the network: PyTorch, ONNX Runtime ..."""

    columns: Mapping[str, Column]
    inputs: Sequence[str]
    outputs: Sequence[str]

    def run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Output name -> raw head output (B, ...)."""
        ...


@dataclass(frozen=True)
class Row:
    """The answers to one input row, or why there are none. `asked`: what tells which row it was, such as its file."""

    answers: Mapping[str, Answer] | None
    error: str | None = None
    asked: Mapping[str, str] = field(default_factory=dict)

    def plain(self, probabilities: bool = True) -> dict[str, Any]:
        """As flat columns: what was asked, NAME, NAME.probability, NAME.probability.LABEL; a bad row has `error`."""
        if self.answers is None:
            return {**self.asked, "error": self.error}
        result: dict[str, Any] = dict(self.asked)
        for name, answer in self.answers.items():
            result[name] = answer.value
            if probabilities and answer.probability is not None:
                result[f"{name}.probability"] = answer.probability
                result |= {f"{name}.probability.{label}": p for label, p in answer.candidates}
            result |= {f"{name}.{key}": value for key, value in answer.details.items()}
        return result


def finite(found: Answer) -> bool:
    """Whether every number of an answer is one; values far from all that was trained on can make them overflow."""
    numbers = (found.value, found.probability, *(p for _, p in found.candidates))
    return all(math.isfinite(n) for n in numbers if isinstance(n, float))


def outputs_of(engine: Engine, examples: Examples, batch: int = BATCH) -> dict[str, Encoded]:
    """Raw head outputs of all examples in their order, (N, ...); Ragged for one answer a position (see `unpadded`).

    Long and short examples are run apart; texts that `opened` columns read whole are read in windows (`luban.columns.windows`).
    """
    writes = any(engine.columns[n].form == "ids" for n in getattr(engine, "outputs", ()))
    if (windows := Windows.of(examples, sentences=writes)) is not None:
        parts = outputs_of(engine, windows.examples, batch)
        return {n: windows.whole(n, engine.columns[n], o) for n, o in parts.items()}
    lengths = examples.lengths()
    order = np.arange(len(examples)) if lengths is None else np.argsort(lengths, kind="stable")
    found: dict[str, list[Any]] = {}
    for index in _chunks(order, lengths, batch):
        arrays = examples.arrays(index)
        for name, o in engine.run(arrays).items():
            column = engine.columns[name]
            found.setdefault(name, []).append(unpadded(column, o, arrays) if column.along else column.narrowed(o))
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return {n: _joined(parts, back) for n, parts in found.items()}


def _joined(parts: list[Any], back: np.ndarray) -> Encoded:
    if isinstance(parts[0], list):
        return Ragged.of([row for part in parts for row in part])[back]
    return np.concatenate(alike(parts))[back]


def alike(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Answers (B, T, ...) of several batches as long as the longest, -1 behind their ends."""
    if len({p.shape[1:] for p in parts}) == 1:
        return parts
    longest = max(p.shape[1] for p in parts)
    wide = lambda p: [(0, 0), (0, longest - p.shape[1]), *[(0, 0)] * (p.ndim - 2)]  # noqa: E731
    return [np.pad(p, wide(p), constant_values=-1) for p in parts]


def unpadded(column: Column, o: np.ndarray, arrays: Arrays) -> list[np.ndarray]:
    """The rows of an output with an answer for each position of the column that it is `of:`, without those of padding.

    Lines before the first position, such as the worth of their order, stay.
    """
    x, mask = arrays.inputs[column.of]  # type: ignore[attr-defined]
    before = o.shape[1] - x.shape[1]
    real = np.where(mask.any(1), mask.shape[1] - mask[:, ::-1].argmax(1), 0)
    return [row[: before + n] for row, n in zip(o, real)]


def decoded(column: Column, o: Encoded, cells: Callable[[str], Any]) -> list[Answer]:
    """The answers of an output; `cells` gives the raw values of another column for the same rows."""
    return column.decode_all(o, of=cells(column.of)) if column.of_form else column.decode_all(o)  # type: ignore[attr-defined]


def _chunks(order: np.ndarray, lengths: np.ndarray | None, batch: int) -> list[np.ndarray]:
    chunks, start = [], 0
    while start < len(order):
        stop = min(start + batch, len(order))
        if lengths is not None:  # sorted by length: the last one is the longest
            while stop > start + 1 and lengths[order[stop - 1]] * (stop - start) > TOKENS:
                stop = start + (stop - start) // 2
        chunks.append(order[start:stop])
        start = stop
    return chunks


def answer(engine: Engine, records: Sequence[Mapping[str, Any]], batch: int = BATCH) -> list[Row]:
    """One Row per record, in order; a record that cannot be read gets its error, never a gap."""
    columns = opened(engine.columns)
    examples, bad = encode_values(columns, engine.inputs, records)
    found: dict[str, list[Answer]] = {}
    if len(examples):
        for name, o in outputs_of(engine, examples, batch).items():
            found[name] = decoded(columns[name], o, lambda of: [records[i][of] for i in examples.rows])
    rows: list[Row] = [Row(None, bad.get(i)) for i in range(len(records))]
    for k, i in enumerate(examples.rows):
        rows[i] = Row({n: answers[k] for n, answers in found.items()})
    return rows
