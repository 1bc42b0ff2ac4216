"""What the network sees as one example, made from rows.

A frame is a function `(table, rows, **settings) -> Framed`: the cells of the examples and, for each, the ids of the
rows it was made from. Splits are made on rows before framing, so a frame only ever gets the rows of one split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Framed:
    """`table`: one row an example (Arrow); `rows`: per example the ids of its rows, an int array (N,) or a list of arrays."""

    table: Any
    rows: np.ndarray | Sequence[np.ndarray]

    def __len__(self) -> int:
        return self.table.num_rows


def row(table: Any, rows: np.ndarray) -> Framed:
    """Use for everything that stands in one row: each row is one example."""
    return Framed(table.take(rows), np.asarray(rows))
