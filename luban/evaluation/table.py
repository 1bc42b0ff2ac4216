"""The table of rows: the model run once over the held-out rows. Every metric, plot, audit and threshold is a view of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from luban.columns import answering
from luban.columns.base import Answer, Column, to_list
from luban.columns.examples import Examples, cells, encode
from luban.columns.windows import opened
from luban.errors import DataError
from luban.evaluation.likelihood import hidden, likelihood


@dataclass(frozen=True)
class Predictions:
    """One output over N rows.

    raw: head outputs (N, ...); truth: encoded truth as the column encodes it, or of a column that is `of:` another, what its
    `truth` gives; known: bool (N,), False where the truth is missing.
    Of a text that is written, `losses` (N, 2), of hidden tokens (N, 3), as `luban.evaluation.likelihood` gives them; without inputs there are no `raw` and no answers.
    """

    column: Column
    raw: Any
    truth: Any
    known: np.ndarray
    answers: list[Answer]
    losses: np.ndarray | None = None

    def take(self, index: np.ndarray) -> Predictions:
        """Those of some rows, in this order; what has no answers keeps none."""
        some = lambda v: v[index] if isinstance(v, np.ndarray) else [v[i] for i in index]  # noqa: E731
        answers = some(self.answers) if self.answers else []
        losses = None if self.losses is None else self.losses[index]
        return Predictions(self.column, some(self.raw), some(self.truth), self.known[index], answers, losses)


def _truths(column: Column, values: Any, texts: Any) -> list[Any]:
    """Of a column that is `of:` another the truth as a person writes it, beyond what the network sees, too."""
    return [column.truth(v, t) for v, t in zip(to_list(values), to_list(texts))]  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Table:
    """Rows (ids into the data), their raw cells, and the predictions of each output."""

    rows: np.ndarray
    cells: Any  # Arrow table of the same rows
    outputs: dict[str, Predictions]
    witness: Any = None  # what pictures that were made are judged by, see `luban.evaluation.made_view`

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: np.ndarray) -> Table:
        return Table(self.rows[index], self.cells.take(index), {n: p.take(index) for n, p in self.outputs.items()})


def table(
    bundle: Any,
    data: Any,
    rows: np.ndarray | None = None,
    engine: Any = None,
    examples: Examples | None = None,
) -> Table:
    """Run the model over `rows` (default: the held-out ones). `examples`: these rows encoded, where that has been done.

    Raises DataError when no output has a truth column.
    """
    rows = data.held_out()[1] if rows is None else rows
    framed = data.framed(rows, bundle.recipe.frame)
    if examples is None:
        examples = encode(opened(bundle.columns), bundle.inputs, bundle.outputs, framed)
    if hidden_in := getattr(bundle.network, "masked", None):
        return Table(rows, framed.table, _hidden(bundle, hidden_in, framed))
    if written := getattr(bundle.network, "written", None):
        return Table(rows, framed.table, _texts(bundle, written, framed, examples, engine))
    raw = answering.outputs_of(engine or bundle.engine, examples)
    return Table(rows, framed.table, _judged(bundle, framed, examples, raw))


def _judged(bundle: Any, framed: Any, examples: Any, raw: dict[str, np.ndarray]) -> dict[str, Predictions]:
    outputs = {}
    for name, o in raw.items():
        column = examples.columns[name]
        if name in examples.targets:
            truth, known = column.collate(examples.targets[name])
            if column.form == "index":  # a label that training never saw is a known truth, and a wrong answer
                given = cells(framed.table[name])
                known = (
                    np.array([v is not None and v != "" and v == v for v in given.to_pylist()])
                    if hasattr(given, "to_pylist")
                    else known
                )
            answers = answering.decoded(column, o, lambda of: cells(framed.table[of]))
            if column.of_form:
                truth = _truths(column, cells(framed.table[name]), cells(framed.table[column.of]))
                known = np.array([t is not None for t in truth])
            outputs[name] = Predictions(column, o, truth, known, answers)
    return outputs


def _texts(bundle: Any, written: str, framed: Any, examples: Any, engine: Any) -> dict[str, Predictions]:
    """The predictions of a network that writes one of its outputs."""
    column = bundle.columns[written].whole()
    whole = encode({**bundle.columns, written: column}, bundle.inputs, bundle.outputs, framed)
    losses = None if written not in whole.targets else likelihood(bundle.engine.network, written, whole)
    if not bundle.inputs:
        if losses is None:
            raise DataError("data.columns_absent", columns=[written], found=framed.table.column_names)
        count = len(examples)
        return {written: Predictions(column, np.zeros((count, 0, 2)), np.zeros(count), losses[:, 1] > 0, [], losses)}
    raw = answering.outputs_of(engine or bundle.engine, examples)
    outputs = _judged(bundle, framed, examples, {n: o for n, o in raw.items() if n != written})
    if losses is not None:
        given = [v is not None and str(v) != "" for v in cells(framed.table[written]).to_pylist()]
        answers = column.decode_all(raw[written])
        outputs[written] = Predictions(column, raw[written], losses[:, 1], np.array(given), answers, losses)
    return outputs


def _hidden(bundle: Any, names: list[str], framed: Any) -> dict[str, Predictions]:
    """The predictions of a network that says hidden tokens of its inputs."""
    found = {}
    for name in names:
        whole = encode({name: bundle.columns[name].whole()}, [name], (), framed)
        examples = replace(whole, columns=bundle.columns)
        losses = hidden(bundle.engine.network, name, examples)
        found[name] = Predictions(bundle.columns[name], losses, examples.inputs[name], losses[:, 1] > 0, [], losses)
    return found
