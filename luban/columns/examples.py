"""Rows as arrays, ready to be cut into batches. numpy only: training, every engine and the server share this road."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from luban.columns.base import Column, Encoded, Ragged, take, to_list
from luban.data.halves import broken
from luban.errors import DataError

Pair = tuple[np.ndarray, np.ndarray]  # x (B, ...), mask (B,) or (B, T)
FLAT = ("scalar", "index")  # forms of one number per example


class Pairs(MutableMapping[str, Any]):
    """Column name -> (x, mask), numpy or torch. Columns of one number per example stand side by side in `blocks`,
    (names, x (B, F), mask (B, F)), and are cut out when somebody asks for one: sixty columns cost as little as one.
    """

    def __init__(self, blocks: Sequence[tuple[list[str], Any, Any]], others: dict[str, Any]):
        self.blocks, self.others = list(blocks), others

    def __getitem__(self, name: str) -> Any:
        if name in self.others:
            return self.others[name]
        for names, x, mask in self.blocks:
            if name in names:
                i = names.index(name)
                return x[:, i], mask[:, i]
        raise KeyError(name)

    def __setitem__(self, name: str, pair: Any) -> None:
        self.others[name] = pair

    def __delitem__(self, name: str) -> None:
        raise TypeError(name)

    def __iter__(self) -> Iterator[str]:
        inside = [n for names, _, _ in self.blocks for n in names]
        return iter(dict.fromkeys([*inside, *self.others]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __or__(self, other: Mapping[str, Any]) -> Pairs:
        return Pairs(self.blocks, {**self.others, **other})

    def block(self, names: Sequence[str]) -> Any:
        """(x (B, F), mask (B, F)) of exactly these columns in this order, None where they do not stand so."""
        for found, x, mask in self.blocks:
            if found == names and not (self.others and any(n in self.others for n in names)):
                return x, mask
        return None


@dataclass
class Arrays:
    """One batch in numpy; `luban.nn.tokens.Batch` is the same in torch. `inputs` may be a `Pairs`; `places`: where its
    examples stand among all.
    """

    inputs: MutableMapping[str, Pair]
    targets: dict[str, Pair]
    size: int
    rows: Any = None
    places: np.ndarray | None = None


@dataclass(frozen=True)
class Examples:
    """N encoded examples. `rows` are ids of the rows behind each; `stored`: blocks and flat targets that lie on disk."""

    columns: Mapping[str, Column]
    inputs: Mapping[str, Encoded]
    targets: Mapping[str, Encoded]
    rows: Any
    count: int
    stored: tuple[list[tuple[list[str], np.ndarray, np.ndarray]], dict[str, Pair]] | None = None

    def __len__(self) -> int:
        return self.count

    def lengths(self) -> np.ndarray | None:
        """Per example the longest of its inputs and texts to write, None where nothing is ragged."""
        sides = {**self.inputs, **self.targets}
        found = [
            self.reached(n)
            for n, e in sides.items()
            if isinstance(e, Ragged) and getattr(self.columns.get(n), "of_form", "") != "grid"
        ]
        return np.maximum.reduce(found) if found else None

    def reached(self, name: str) -> np.ndarray:
        """Per example how many positions of a ragged input or target stand in its batch: (N,)."""
        return (self.inputs if name in self.inputs else self.targets)[name].lengths  # type: ignore[union-attr]

    @property
    def redrawn(self) -> bool:
        """Whether `drawn` gives other examples in each epoch."""
        return False

    def drawn(self, random: Callable[[], np.random.Generator]) -> Examples:
        """The examples of an epoch, where one is something else each time (`luban.columns.windows.Drawn`)."""
        return self

    def arrays(self, index: np.ndarray, rng: np.random.Generator | None = None) -> Arrays:
        """The batch of some examples; with `rng` it is augmented, and columns `of:` another follow its change."""
        blocks = [
            (names, x.take(index, 0), _rows(mask, index, whole))
            for (names, x, mask), whole in zip(self.blocks, self.whole)
        ]
        inputs = Pairs(blocks, {n: self.columns[n].collate(take(self.inputs[n], index)) for n in self.others})
        targets = {n: (x.take(index, 0), mask.take(index, 0)) for n, (x, mask) in self.flat_targets.items()}
        targets |= {n: self.columns[n].collate(take(e, index)) for n, e in self.targets.items() if n not in targets}
        if rng is not None and self.augmented:
            self._augment(inputs, targets, rng)
        rows = self.rows[index] if isinstance(self.rows, np.ndarray) else None
        return Arrays(inputs, targets, len(index), rows, index)

    @cached_property
    def augmented(self) -> list[str]:
        """Inputs that `augment` may change."""
        return [n for n in self.inputs if type(self.columns[n]).augment is not Column.augment]

    @cached_property
    def held(self) -> dict[str, list[str]]:
        """Inputs that would be turned and sheared and are not, and the columns `of:` each that could not follow."""
        found = {n: [] for n in self.augmented if self.columns[n].turning}
        for name, column in self.columns.items():
            if getattr(column, "of", None) in found and not column.turns:
                found[column.of].append(name)
        return {n: behind for n, behind in found.items() if behind}

    @cached_property
    def others(self) -> list[str]:
        """Inputs that stand in no block."""
        inside = {n for names, _, _ in self.blocks for n in names}
        return [n for n in self.inputs if n not in inside]

    def _augment(self, inputs: Pairs, targets: dict[str, Pair], rng: np.random.Generator) -> None:
        changes = {}
        for name in self.augmented:
            column, (x, mask) = self.columns[name], inputs[name]
            column = column.still() if name in self.held else column
            changed, changes[name] = column.augment(x, mask, rng)
            if column.form in FLAT:
                x[:] = changed  # in place: x is a view of its block
            else:
                inputs[name] = (changed, mask)
        if all(change is None for change in changes.values()):
            return
        for side in (inputs, targets):
            for name, (x, mask) in side.items():
                change = changes.get(getattr(self.columns[name], "of", None))
                if change is not None:
                    side[name] = self.columns[name].followed(x, mask, change)

    @cached_property
    def blocks(self) -> list[tuple[list[str], np.ndarray, np.ndarray]]:
        """The inputs of one number per example, collated once: (names, x (N, F), mask (N, F)) for each form."""
        if self.stored:
            return self.stored[0]
        found = []
        for form in FLAT:
            names = [
                n
                for n, e in self.inputs.items()
                if self.columns[n].form == form and isinstance(e, np.ndarray) and e.ndim == 1
            ]
            if names:
                xs, masks = zip(*(self.columns[n].collate(self.inputs[n]) for n in names))
                found.append((names, np.stack(xs, 1), np.stack(masks, 1)))
        return found

    @cached_property
    def whole(self) -> list[bool]:
        """Of each block, whether nothing in it is missing."""
        return [bool(mask.all()) for _, _, mask in self.blocks]

    @cached_property
    def flat_targets(self) -> dict[str, Pair]:
        if self.stored:
            return self.stored[1]
        return {
            n: self.columns[n].collate(e)
            for n, e in self.targets.items()
            if self.columns[n].form in FLAT and isinstance(e, np.ndarray)
        }


def _rows(mask: np.ndarray, index: np.ndarray, whole: bool) -> np.ndarray:
    """The masks of some rows; where nothing is missing any stretch of them will do, and need not be gathered."""
    return mask[: len(index)] if whole and len(index) <= len(mask) else mask.take(index, 0)


def encode(columns: Mapping[str, Column], inputs: Sequence[str], outputs: Sequence[str], framed: Any) -> Examples:
    """Encode a framed table: its input columns, and those of its output columns that it has.

    Raises DataError where an input column is absent or a value cannot be encoded.
    """
    table = framed.table
    absent = [n for n in inputs if n not in table.column_names and not columns[n].drawn]
    if absent:
        raise DataError("data.columns_absent", columns=absent, found=table.column_names)

    def one(name: str) -> Encoded:
        column = columns[name]
        if column.drawn and name not in table.column_names:
            return column.encode_all(np.asarray(framed.rows))
        of = getattr(column, "of", None)
        return column.encode_all(cells(table[name]), of=cells(table[of]) if of else None)

    present = [n for n in outputs if n in table.column_names]
    return Examples(columns, {n: one(n) for n in inputs}, {n: one(n) for n in present}, framed.rows, len(framed))


def cells(chunked: Any) -> Any:
    """A table's column as what columns read: tensors as one numpy array (N, ...), all else as Arrow."""
    if hasattr(chunked.type, "value_type") and str(chunked.type).startswith("extension<arrow.fixed_shape_tensor"):
        return chunked.combine_chunks().to_numpy_ndarray()
    return chunked


def encode_values(
    columns: Mapping[str, Column], inputs: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> tuple[Examples, dict[int, str]]:
    """Encode raw records (what a server or Python gets): those that can be, and per bad one the reason.

    The Examples' `rows` are positions in `records`.
    """
    bad: dict[int, str] = {}
    encoded: dict[str, list[np.ndarray]] = {n: [] for n in inputs}
    good = []
    for i, record in enumerate(records):
        try:
            items = {
                n: columns[n].encode(_required(record, n) if n in record or not columns[n].drawn else i) for n in inputs
            }
        except DataError as e:
            bad[i] = str(e)
            continue
        good.append(i)
        for n, item in items.items():
            encoded[n].append(item)
    stacked = {n: Ragged.of(v) if columns[n].ragged else np.stack(v) if v else np.zeros(0) for n, v in encoded.items()}
    return Examples(columns, stacked, {}, np.array(good, np.int64), len(good)), bad


def _required(record: Mapping[str, Any], name: str) -> Any:
    if name not in record:
        raise DataError("data.value_absent", name=name)
    if broken(record[name]):
        raise DataError("data.lone_surrogate")
    return record[name]


def records(table: Any) -> list[dict[str, Any]]:
    """An Arrow table as records, tensors as numpy arrays."""
    columns = {n: cells(table[n]) for n in table.column_names}
    lists = {n: list(c) if isinstance(c, np.ndarray) else to_list(c) for n, c in columns.items()}
    return [dict(zip(lists, row)) for row in zip(*lists.values())] if lists else []
