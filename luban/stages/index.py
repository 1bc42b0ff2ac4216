"""index: the rows of a table with their vectors, kept in the Bundle, to be searched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from luban.bundle import Bundle
from luban.columns import searching
from luban.columns.base import to_list
from luban.columns.examples import cells
from luban.console import tell
from luban.errors import DataError, RequestError, problem

TABLE = "index"


def index(bundle: Bundle, data: Any, *, input: str | None = None, personal: bool = True) -> Bundle:
    """All rows of `data` with the vectors of one input (the last unless named), as tables/index.arrow.

    `personal`: the table stays behind when the model is saved to be shared. The table holds one row for each distinct value.
    Raises RequestError for a name that is no input, DataError where the rows lack it.
    """
    name = input or bundle.inputs[-1]
    if name not in bundle.inputs:
        raise RequestError(problem("search.no_input", name=name, allowed=bundle.inputs))
    if name not in data.table.column_names:
        raise DataError(problem("data.no_column", place=data.rows.source, name=name, allowed=data.table.column_names))
    values = to_list(cells(data.table[name]))
    first = list({v: i for i, v in reversed([*enumerate(values)])}.values())[::-1]
    rows = data.table.take(first)
    found = searching.vectors(bundle.engine, name, [values[i] for i in first])
    table = searching.table_of(rows, found, name, bundle.fingerprint(), personal)
    tell("search.indexed", rows=len(rows), input=name, size=found.shape[1])
    return replace(bundle, tables={**bundle.tables, TABLE: table})
