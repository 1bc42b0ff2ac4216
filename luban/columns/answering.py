"""From raw values to answers, for every engine: encode, collate, run, decode. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from luban.columns.base import Answer, Column
from luban.columns.examples import Arrays, Examples, encode_values

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
    """The answers to one input row, or why there are none."""

    answers: Mapping[str, Answer] | None
    error: str | None = None

    def plain(self, probabilities: bool = True) -> dict[str, Any]:
        """As flat columns: NAME, NAME.probability, NAME.probability.LABEL; a bad row has `error`."""
        if self.answers is None:
            return {"error": self.error}
        result: dict[str, Any] = {}
        for name, answer in self.answers.items():
            result[name] = answer.value
            if probabilities and answer.probability is not None:
                result[f"{name}.probability"] = answer.probability
                result |= {f"{name}.probability.{label}": p for label, p in answer.candidates}
        return result


def finite(found: Answer) -> bool:
    """Whether every number of an answer is one; values far from all that was trained on can make them overflow."""
    numbers = (found.value, found.probability, *(p for _, p in found.candidates))
    return all(math.isfinite(n) for n in numbers if isinstance(n, float))


def outputs_of(engine: Engine, examples: Examples, batch: int = BATCH) -> dict[str, np.ndarray]:
    """Raw head outputs of all examples in their order, (N, ...). Long and short examples are run apart."""
    lengths = examples.lengths()
    order = np.arange(len(examples)) if lengths is None else np.argsort(lengths, kind="stable")
    found: dict[str, list[np.ndarray]] = {}
    for index in _chunks(order, lengths, batch):
        for name, o in engine.run(examples.arrays(index)).items():
            found.setdefault(name, []).append(o)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return {n: np.concatenate(alike(parts))[back] for n, parts in found.items()}


def alike(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Answers (B, T, ...) of several batches as long as the longest, -1 behind their ends."""
    if len({p.shape[1:] for p in parts}) == 1:
        return parts
    longest = max(p.shape[1] for p in parts)
    wide = lambda p: [(0, 0), (0, longest - p.shape[1]), *[(0, 0)] * (p.ndim - 2)]  # noqa: E731
    return [np.pad(p, wide(p), constant_values=-1) for p in parts]


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
    examples, bad = encode_values(engine.columns, engine.inputs, records)
    decoded: dict[str, list[Answer]] = {}
    if len(examples):
        for name, o in outputs_of(engine, examples, batch).items():
            decoded[name] = engine.columns[name].decode_all(o)
    rows: list[Row] = [Row(None, bad.get(i)) for i in range(len(records))]
    for k, i in enumerate(examples.rows):
        rows[i] = Row({n: answers[k] for n, answers in decoded.items()})
    return rows
