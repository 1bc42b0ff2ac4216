"""A picture, a video or a sound file given by itself instead of a table: one row, of a model that reads one such file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from luban.columns.base import Column
from luban.data.images import ENDINGS, VIDEOS
from luban.data.rows import Rows
from luban.errors import DataError, problem

SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac")  # files that nobody means as a table either


def lone(columns: Mapping[str, Column], inputs: Sequence[str], source: Any) -> Rows | None:
    """The row that a file is by itself; None for a table, a folder, or what is no file.

    Raises DataError where the model does not read exactly one file of this kind.
    """
    if not isinstance(source, (str, os.PathLike)) or not Path(source).expanduser().is_file():
        return None
    path = Path(source).expanduser()
    ending = path.suffix.lower()
    wanted = [n for n in inputs if not columns[n].drawn]
    if len(wanted) == 1 and ending in columns[wanted[0]].endings:
        cells = pa.array([str(path.absolute())])
        return Rows(pa.table({wanted[0]: cells}), np.array([1]), str(source), None, [], 1, ())
    if ending in (*ENDINGS, *VIDEOS, *SOUNDS):
        kinds = [f"{n} ({columns[n].type})" for n in wanted]
        raise DataError(problem("predict.lone_file", place=str(source), inputs=kinds))
    return None
