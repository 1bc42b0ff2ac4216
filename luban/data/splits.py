"""Splits: which rows train, which validate, which test. Made on rows, before anything is learned from them.

Equal rows never straddle (a model must not be tested on a row that it has learned), nor do groups, nor rows
of the same moment. The same seed gives the same split on every machine and with every library version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from luban.data.blocks import LARGE, many
from luban.data.rows import Rows
from luban.data.same import codes, groups, keys, missing, mix, order
from luban.errors import DataError, Problem, problem
from luban.messages import say, together
from luban.settings import Fraction, Natural

PARTS = ("train", "validation", "test")
_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def part_of(word: str) -> str | None:
    """The part that a word names, such as `val` or `dev`; None for another word."""
    return _WORDS.get(word.lower())


@dataclass(frozen=True)
class Splits:
    """Row numbers (from 0) of each part, in the order of the rows, and a sentence (`method`) that says how it was done."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    method: str = ""
    notes: tuple[Problem, ...] = field(default=())

    def parts(self) -> dict[str, np.ndarray]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def how(self) -> str:
        """How the split was made, and how many rows each part has now."""
        counts = say("data.how_counts", **{name: len(part) for name, part in self.parts().items()})
        return together(self.method, counts)

    def moved(self, before: Rows, after: Rows) -> Splits:
        """The same split after rows were dropped: `after` is `before` without some of its rows."""
        sorter = np.argsort(after.lines, kind="stable")
        new = {}
        for name, part in self.parts().items():
            wanted = before.lines[part]
            at = sorter[np.minimum(np.searchsorted(after.lines, wanted, sorter=sorter), max(len(sorter) - 1, 0))]
            new[name] = at[after.lines[at] == wanted] if len(sorter) else np.zeros(0, np.int64)
        return Splits(**new, method=self.method, notes=self.notes)


def split(
    rows: Rows,
    same: Sequence[str] | None = None,
    *,
    validation: Fraction = 0.1,
    test: Fraction = 0.1,
    by: str | None = None,
    time: str | None = None,
    column: str | None = None,
    stratify: str | None = None,
    seed: Natural | None = None,
) -> Splits:
    """Split rows at random, by class (`stratify`), by group (`by`), by time (the last rows test), or as a column says.

    `same`: the columns (inputs and targets) that make two rows equal; all of them by default. `validation`,
    `test`: shares of the rows. `seed`: the recipe's where none is given, else 0. Raises DataError where there are too few rows or groups, or a cell cannot be read.
    """
    seed = seed or 0
    chosen = [n for n, v in (("by", by), ("time", time), ("column", column)) if v is not None]
    if len(chosen) > 1:
        raise DataError("data.split_both", first=chosen[0], second=chosen[1])
    if validation + test >= 1:
        raise DataError("data.split_shares", validation=validation, test=test)
    same = None if same is None else list(dict.fromkeys([*same, *filter(None, (by, time, column))]))
    if column is not None:
        return _by_column(rows, column, same, validation, seed)
    if time is not None:
        return _by_time(rows, time, validation, test)
    if many(rows.table):
        parts = _by_key(_keys(rows, by, same), (test, validation), seed)
        how = say("data.how_groups", column=by) if by else say("data.how_keyed")
        return _finished(rows, parts, validation, test, how, [])
    units = _units(rows, by, same)
    strata = np.zeros(len(rows), np.int64) if stratify is None else _strata(rows, stratify)
    parts, notes = _assign(units, strata, (test, validation), seed, rows, stratify)
    how = (
        say("data.how_groups", column=by)
        if by
        else say("data.how_classes", column=stratify)
        if stratify
        else say("data.how_random")
    )
    return _finished(rows, parts, validation, test, how, notes)


# ---- at random, many rows: each by the hash of what it holds, so that nothing has to be compared or counted


def _keys(rows: Rows, by: str | None, same: Sequence[str] | None) -> np.ndarray:
    """uint64 (N,): the same for rows that stay together."""
    if by is not None:
        _refuse_missing(rows, by)
    return keys(rows.table, same if by is None else [by])


def _by_key(units: np.ndarray, shares: tuple[float, float], seed: int) -> np.ndarray:
    """int8 (N,): 0 train, 1 validation, 2 test. Shares are met to about 1 / sqrt(N); a row keeps its part when others come."""
    draw = mix(units ^ mix(np.array([seed], np.uint64)))
    test, validation = (int(share * 2**64) for share in shares)
    parts = np.zeros(len(units), np.int8)
    parts[draw < min(test + validation, 2**64 - 1)] = 1
    parts[draw < test] = 2
    return parts


def _refuse_missing(rows: Rows, name: str) -> None:
    gone = missing(rows.column(name))
    if gone.any():
        raise DataError(problem("data.split_missing", place=rows.place(int(np.flatnonzero(gone)[0])), column=name))


# ---- at random: whole units (equal rows, groups), class by class


def _units(rows: Rows, by: str | None, same: Sequence[str] | None) -> np.ndarray:
    """int64 (N,): rows with the same number stay together."""
    alike = groups(rows.table, same)
    if by is None:
        return alike
    _refuse_missing(rows, by)
    return np.unique(codes(rows.column(by)), return_inverse=True)[1].reshape(-1)


def _strata(rows: Rows, stratify: str) -> np.ndarray:
    """The class of each row. Rows of a unit may differ; its first row then speaks for it."""
    return np.unique(codes(rows.column(stratify)), return_inverse=True)[1].reshape(-1)


def _assign(
    units: np.ndarray, strata: np.ndarray, shares: tuple[float, float], seed: int, rows: Rows, stratify: str | None
) -> tuple[np.ndarray, list[Problem]]:
    """int8 (N,): 0 train, 1 validation, 2 test. Every class keeps at least one unit in train."""
    _, first, sizes = np.unique(units, return_index=True, return_counts=True)
    unit_class, shuffled = strata[first], order(len(first), seed)
    part_of_unit = np.zeros(len(first), np.int8)
    notes = []
    owed = np.zeros(2)
    for kind in range(int(strata.max(initial=0)) + 1):
        mine = shuffled[unit_class[shuffled] == kind]
        total = int(sizes[mine].sum())
        wanted = np.array(shares) * total + owed
        counts = np.floor(wanted + 0.5).astype(int)
        if not stratify:
            counts = np.where(np.array(shares) > 0, np.maximum(counts, 1), 0)
        given = _fill(mine, sizes, counts, part_of_unit)
        owed = wanted - given
        if stratify and given.sum() == 0 and sum(shares) > 0:
            name = rows.column(stratify)[int(first[mine[0]])].as_py() if len(mine) else None
            notes.append(
                problem("data.class_only_trained", place=rows.source, column=stratify, name=str(name), count=total)
            )
    return part_of_unit[units], notes


def _fill(units: np.ndarray, sizes: np.ndarray, counts: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Give whole units to test (2) and validation (1) until `counts` rows are reached; one unit always trains."""
    given, at = np.zeros(2), 0
    free = units[:-1]
    for slot, number in ((0, 2), (1, 1)):
        room = counts[slot]
        if (sizes[free[at:]] == 1).all():  # the common case, without a loop
            take = free[at : at + max(0, room)]
            part[take], given[slot], at = number, len(take), at + len(take)
            continue
        for unit in free:
            if part[unit] == 0 and sizes[unit] <= room:
                part[unit] = number
                room -= sizes[unit]
                given[slot] += sizes[unit]
            if room <= 0:
                break
        left = free[part[free] == 0]
        if counts[slot] > 0 and given[slot] == 0 and len(left):  # few, large groups: the smallest goes
            smallest = left[np.argmin(sizes[left])]
            part[smallest], given[slot] = number, sizes[smallest]
    return given


# ---- by time


def _by_time(rows: Rows, time: str, validation: float, test: float) -> Splits:
    moments = _moments(rows, time)
    ordered = np.argsort(moments, kind="stable")
    count = len(rows)
    cuts = [
        _edge(moments[ordered], round(count * (1 - test - validation))),
        _edge(moments[ordered], round(count * (1 - test))),
    ]
    parts = np.zeros(count, np.int8)
    parts[ordered[cuts[0] :]] = 1
    parts[ordered[cuts[1] :]] = 2
    return _finished(rows, parts, validation, test, say("data.how_time", column=time), [])


def _edge(ordered: np.ndarray, cut: int) -> int:
    """The nearest cut at or after `cut` that does not part rows of one moment."""
    while 0 < cut < len(ordered) and ordered[cut] == ordered[cut - 1]:
        cut += 1
    return cut


def _moments(rows: Rows, time: str) -> np.ndarray:
    """(N,) numbers that order the rows. Text is read as numbers or as ISO 8601, all of one kind."""
    column = rows.column(time)
    _refuse_missing(rows, time)
    if pa.types.is_string(column.type):
        column = _read_times(rows, time, column)
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.timestamp("ns")) if not pa.types.is_time(column.type) else column
        column = column.cast(pa.int64()) if not pa.types.is_time32(column.type) else column.cast(pa.int32())
    return column.to_numpy()


def _read_times(rows: Rows, time: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = pc.utf8_trim_whitespace(column)
    for kind in (pa.float64(), pa.timestamp("ns"), pa.timestamp("ns", "UTC")):
        try:
            return text.cast(kind)
        except pa.ArrowInvalid:
            continue
    row = next((i for i, v in enumerate(text.to_pylist()) if not _is_time(v)), 0)
    raise DataError(problem("data.split_time", place=rows.place(row), column=time, value=str(column[row].as_py())[:80]))


def _is_time(value: str) -> bool:
    for kind in (pa.timestamp("ns"), pa.timestamp("ns", "UTC")):
        try:
            pa.array([value]).cast(kind)
            return True
        except pa.ArrowInvalid:
            continue
    return False


# ---- as a column says


def _by_column(rows: Rows, column: str, same: Sequence[str] | None, validation: float, seed: int) -> Splits:
    words, which = _words(rows.column(column))
    known = np.array([PARTS.index(_WORDS[w]) if w in _WORDS else -1 for w in words], np.int8)
    parts = known[which]
    if (parts < 0).any():
        wrong = int(np.flatnonzero(parts < 0)[0])
        found = rows.column(column)[wrong].as_py()
        raise DataError(
            problem("data.split_cell", place=rows.place(wrong), name=str(found), column=column, allowed=PARTS)
        )
    how, notes = say("data.how_column", column=column), []
    others = [n for n in (rows.columns if same is None else same) if n != column]
    units = groups(rows.table, others)
    if validation > 0 and not (parts == 1).any():
        train = np.flatnonzero(parts == 0)
        inner, _ = _assign(
            _renumbered(units[train]), np.zeros(len(train), np.int64), (0.0, validation), seed, rows, None
        )
        parts[train] = inner
        how = together(how, say("data.how_carved"))
    tested = np.isin(units, units[parts == 2]) & (parts != 2)
    if tested.any():
        notes.append(
            problem("data.split_leaks", place=rows.place(int(np.flatnonzero(tested)[0])), count=int(tested.sum()))
        )
    return _finished(rows, parts, validation if (parts == 1).any() else 0, 1 if (parts == 2).any() else 0, how, notes)


def _words(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The distinct cells in lower case, and for each row (N,) which it has."""
    coded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(coded, pa.ChunkedArray):
        return [], np.zeros(0, np.int32)
    words = ["" if v is None else str(v).strip().lower() for v in coded.dictionary.to_pylist()]
    return words, coded.indices.to_numpy(zero_copy_only=False)


def _renumbered(units: np.ndarray) -> np.ndarray:
    return np.unique(units, return_inverse=True)[1].reshape(-1)


def _finished(rows: Rows, parts: np.ndarray, validation: float, test: float, how: str, notes: list[Problem]) -> Splits:
    """Refuse a split with an empty part that was asked for."""
    kind = np.int32 if len(parts) > LARGE else np.int64
    train, val, held = (np.flatnonzero(parts == i).astype(kind) for i in range(3))
    for name, wanted, part in (("train", 1.0, train), ("validation", validation, val), ("test", test, held)):
        if wanted > 0 and not len(part):
            raise DataError(problem("data.split_too_few", place=rows.source, rows=len(rows), part=name))
    return Splits(train, val, held, how, tuple(notes))
