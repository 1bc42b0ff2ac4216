"""The table of rows: the model run once over the held-out rows. Every metric, plot, audit and threshold is a view of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from luban.columns import answering
from luban.columns.base import Answer, Column
from luban.columns.examples import cells, encode


@dataclass(frozen=True)
class Predictions:
    """One output over N rows.

    raw: head outputs (N, ...); truth: encoded truth as the column encodes it; known: bool (N,), False where the truth is missing.
    """

    column: Column
    raw: np.ndarray
    truth: np.ndarray
    known: np.ndarray
    answers: list[Answer]


@dataclass(frozen=True)
class Table:
    """Rows (ids into the data), their raw cells, and the predictions of each output."""

    rows: np.ndarray
    cells: Any  # Arrow table of the same rows
    outputs: dict[str, Predictions]

    def __len__(self) -> int:
        return len(self.rows)


def table(bundle: Any, data: Any, rows: np.ndarray | None = None, engine: Any = None) -> Table:
    """Run the model over `rows` (default: the held-out ones). Raises DataError when no output has a truth column."""
    rows = data.held_out()[1] if rows is None else rows
    framed = data.framed(rows, bundle.recipe.frame)
    examples = encode(bundle.columns, bundle.inputs, bundle.outputs, framed)
    raw = answering.outputs_of(engine or bundle.engine, examples)
    outputs = {}
    for name, o in raw.items():
        column = bundle.columns[name]
        if name in examples.targets:
            truth, known = column.collate(examples.targets[name])
            if column.form == "index":  # a label that training never saw is a known truth, and a wrong answer
                given = cells(framed.table[name])
                known = (
                    np.array([v is not None and v != "" and v == v for v in given.to_pylist()])
                    if hasattr(given, "to_pylist")
                    else known
                )
            outputs[name] = Predictions(column, o, truth, known, column.decode_all(o))
    return Table(rows, framed.table, outputs)
