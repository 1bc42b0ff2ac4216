"""What the network sees as one example, made from rows.

A frame is a function `(table, rows, **settings) -> Framed`: the cells of the examples and, for each, the ids of the
rows it was made from. Splits are made on rows before framing, so a frame only ever gets the rows of one split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np

from luban.data.blocks import pieces, taken
from luban.settings import Count, Dial


@dataclass(frozen=True)
class Framed:
    """`source`: Arrow cells; `rows`: per example the ids of its rows, an int array (N,) or a list of arrays.

    `index`: which rows of `source` the examples are, None = each in its order. Nothing is copied before it is asked for.
    """

    source: Any
    rows: np.ndarray | Sequence[np.ndarray]
    index: np.ndarray | None = None
    pack: int = 0  # > 0: what is learned are stretches of so many tokens of all examples one after another

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def table(self) -> Any:
        """One row an example."""
        return self.source if self.index is None else taken(self.source, self.index)

    def blocks(self, size: int | None = None) -> Iterator[Framed]:
        """The same examples in order, some at once, so that no more than that is in memory."""
        start = 0
        for table in pieces(self.source, self.index, size):
            yield Framed(table, self.rows[start : start + table.num_rows], None, self.pack)
            start += table.num_rows

    def only(self, name: str) -> Any:
        """One column of the examples."""
        if self.index is None or "table" in self.__dict__:
            return self.table[name]
        return taken(self.source.select([name]), self.index)[name]

    def some(self, most: int) -> Framed:
        """At most so many of the examples, evenly spaced."""
        if len(self) <= most:
            return self
        chosen = np.linspace(0, len(self) - 1, most).astype(np.int64)
        index = chosen if self.index is None else self.index[chosen]
        rows = self.rows[chosen] if isinstance(self.rows, np.ndarray) else [self.rows[i] for i in chosen]
        return Framed(self.source, rows, index, self.pack)


def pack(
    table: Any, rows: np.ndarray, *, length: Annotated[Count, Dial(nano=128, small=256, base=1024)] = 256
) -> Framed:
    """Use for a language model: all texts one after another, each with its end, cut into stretches of `length` tokens."""
    return Framed(table, np.asarray(rows), np.asarray(rows), length)


def row(table: Any, rows: np.ndarray) -> Framed:
    """Use for everything that stands in one row: each row is one example."""
    return Framed(table, np.asarray(rows), np.asarray(rows))
