"""Cells of Python objects with half of a Unicode surrogate pair in them, which no file and no request can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_HALF = re.compile("[\ud800-\udfff]")


def broken(value: Any) -> bool:
    """Whether a text, or any text inside lists and dicts, has half of a surrogate pair."""
    left = [value]
    while left:
        v = left.pop()
        if isinstance(v, str):
            if not v.isascii() and _HALF.search(v):
                return True
        elif isinstance(v, Mapping):
            left += [*v.keys(), *v.values()]
        elif isinstance(v, (list, tuple)):
            left += v
    return False


def apart(source: Any) -> tuple[Any, list[int], list[int]]:
    """A source of rows (a DataFrame, an array, a dict of columns, a list of dicts) without the broken ones; the numbers of the rows
    that stay, and of those that went.
    """
    if isinstance(source, Mapping):
        rows: Sequence[Any] = list(zip(*(list(v) for v in source.values())))
    elif hasattr(source, "iloc"):
        rows = list(zip(*(source.iloc[:, i].tolist() for i in range(source.shape[1]))))
    else:
        rows = source.tolist() if isinstance(source, np.ndarray) else source
    bad = [i for i, row in enumerate(rows) if broken(row)]
    good = sorted(set(range(len(rows))) - set(bad))
    return _only(source, good), good, bad


def _only(source: Any, good: list[int]) -> Any:
    if isinstance(source, Mapping):
        return {k: _only(v, good) for k, v in source.items()}
    if hasattr(source, "iloc"):
        return source.iloc[good].reset_index(drop=True)
    return source[good] if isinstance(source, np.ndarray) else [source[i] for i in good]
