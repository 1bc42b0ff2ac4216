"""Cells as numbers, strictly: what is no number is put aside with its line, column, value and the reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from luban.data.rows import Rows
from luban.data.same import missing
from luban.errors import DataError, Problem, problem

EXACT = 2**53  # the largest integer up to which every integer is a float64
_SHAPE = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"
_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_POINT = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}([ ',._\u00a0\u202f]\d{3})+([.,]\d+)?")
_INFINITE = re.compile(r"[+-]?(inf|infinity)", re.IGNORECASE)
_NO_VALUE = {"na", "n/a", "nan", "null", "none", "-", "--", "?", "missing", "#n/a", "nil", "无", "空"}
_TRUTH = {"true", "false", "yes", "no", "t", "f", "y", "n"}


def typed(rows: Rows, types: Mapping[str, str], *, decimal: str = ".") -> Rows:
    """Columns of type `number` as float64 (missing: null); rows with a cell that is no number are quarantined.

    `decimal`: the decimal sign of text cells, "." or ",". Raises DataError for an unknown column.
    """
    reasons: dict[int, tuple[str, dict[str, Any]]] = {}
    notes: list[Problem] = []
    numbers: dict[str, pa.ChunkedArray] = {}
    for name in (n for n, kind in types.items() if kind == "number"):
        column = rows.column(name)
        numbers[name], bad = _numbers(column, decimal, rows, name)
        for row in np.flatnonzero(bad).tolist():
            if row not in reasons:
                reasons[row] = _reason(name, column[row].as_py(), decimal)
        notes += _beyond(column, numbers[name], rows, name)
    if len(reasons) == len(rows) > 0:
        id, values = reasons[min(reasons)]
        raise DataError(problem(id, place=rows.place(min(reasons)), **values))
    result = rows.drop_each(reasons)  # before the cells are changed: the ledger keeps them as they were
    kept = np.ones(len(rows), bool)
    kept[list(reasons)] = False
    for name, values in numbers.items():
        result = result.having(name, values.filter(pa.array(kept)) if reasons else values)
    return result.noted(*notes)


def _numbers(column: pa.ChunkedArray, decimal: str, rows: Rows, name: str) -> tuple[pa.ChunkedArray, np.ndarray]:
    """float64 with nulls, and bool (N,): the cell is there and is no finite number."""
    kind = column.type
    if pa.types.is_string(kind):
        return _parsed(column, decimal)
    if pa.types.is_boolean(kind):
        return column.cast(pa.uint8()).cast(pa.float64()), np.zeros(len(column), bool)
    if pa.types.is_integer(kind):
        return pc.cast(column, pa.float64(), safe=False), np.zeros(len(column), bool)
    if pa.types.is_floating(kind):
        values = column.cast(pa.float64())
        gone = missing(values)
        if gone.any():
            values = pc.if_else(pa.array(gone), pa.scalar(None, pa.float64()), values)
        return values, pc.is_inf(values).fill_null(False).to_numpy().astype(bool)
    raise DataError(problem("data.not_numbers", place=rows.source, column=name, type=str(kind)))


def _parsed(column: pa.ChunkedArray, decimal: str) -> tuple[pa.ChunkedArray, np.ndarray]:
    if decimal == ".":
        try:  # clean columns in one pass; "inf", "nan" and all that fails go the long way
            values = column.cast(pa.float64())
            if pc.all(pc.is_finite(values)).as_py() is not False:
                return values, np.zeros(len(column), bool)
        except pa.ArrowInvalid:
            pass
    text = pc.utf8_trim_whitespace(column)
    if decimal == ",":
        text = pc.if_else(pc.match_substring(text, "."), "?", pc.replace_substring(text, ",", "."))
    good = pc.match_substring_regex(text, _SHAPE)
    good_or_missing = pc.fill_null(good, True)
    plain = pc.if_else(good_or_missing, pc.replace_substring_regex(text, r"^\+", ""), pa.scalar(None, pa.string()))
    values = plain.cast(pa.float64())
    finite = pc.fill_null(pc.is_finite(values), True)
    bad = ~(good_or_missing.to_numpy().astype(bool) & finite.to_numpy().astype(bool))
    if bad.any():
        values = pc.if_else(pa.array(bad), pa.scalar(None, pa.float64()), values)
    return values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values]), bad


def _reason(column: str, value: Any, decimal: str) -> tuple[str, dict[str, Any]]:
    """The sentence that helps most with one bad cell."""
    text = str(value).strip()
    values = {"column": column, "value": str(value)[:80]}
    if not text:
        return "data.cell.blank", values
    if _INFINITE.fullmatch(text) or re.fullmatch(_SHAPE, text, re.ASCII):
        wrong_sign = decimal == "," and _POINT.fullmatch(text)
        return ("data.cell.decimal_point" if wrong_sign else "data.cell.not_finite"), values
    if _THOUSANDS.fullmatch(text) and not (decimal == "." and re.fullmatch(r"[+-]?0,\d+", text)):
        ambiguous = decimal == "." and re.fullmatch(r"[+-]?\d{1,3},\d{3}", text)
        return ("data.cell.thousands_or_decimal" if ambiguous else "data.cell.thousands"), values
    if decimal == "." and _COMMA.fullmatch(text):
        return "data.cell.decimal_comma", values
    if text.lower() in _NO_VALUE:
        return "data.cell.missing_word", values | {"word": text}
    if text.lower() in _TRUTH:
        return "data.cell.truth", values
    return "data.cell.text", values


def _beyond(column: pa.ChunkedArray, values: pa.ChunkedArray, rows: Rows, name: str) -> list[Problem]:
    """Integers that float64 cannot hold exactly."""
    if pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
        return []
    large = pc.greater_equal(pc.abs(values), float(EXACT)).fill_null(False).to_numpy().astype(bool)
    if large.any() and pa.types.is_integer(column.type):
        exact = pc.or_(pc.equal(column, pa.scalar(EXACT)), pc.equal(column, pa.scalar(-EXACT)))
        large &= ~exact.fill_null(True).to_numpy().astype(bool)
    elif large.any():
        digits = pc.match_substring_regex(pc.utf8_trim_whitespace(column), r"^[+-]?\d+$")
        large &= digits.fill_null(False).to_numpy().astype(bool)
    if not large.any():
        return []
    first = int(np.flatnonzero(large)[0])
    count = int(large.sum())
    value = str(column[first].as_py())
    return [problem("data.beyond_exact", place=rows.place(first), column=name, value=value, count=count)]
