"""Masks of images held against what they must be before anything learns from them: class numbers, of their image's size, without loss."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from luban.data.images import LARGEST, decoding, opened, size_of
from luban.data.rows import Rows
from luban.errors import DataError, problem
from luban.messages import listed

MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # grey and palette pictures, as Pillow calls them
LOSSY = ("JPEG",)  # what such a file gives back is near to what went in, and a class has no near one
CLASSES = 255  # numbers that a class can have, from 0
TOLD = 5  # of the numbers that are no class

Fault = tuple[str, dict[str, Any]]


def masked(rows: Rows, name: str, of: str, labels: Sequence[str] = (), ignore: int = CLASSES) -> Rows:
    """Rows whose mask can be used; the others go to the quarantine, each with what is wrong with it.

    Arrays are left to the column. Raises DataError where no row is right.
    """
    cells, pictures = rows.column(name).to_pylist(), rows.column(of).to_pylist()
    found = {i: fault(cell, picture, len(labels) or CLASSES, ignore) for i, (cell, picture) in enumerate(zip(cells, pictures))}  # fmt: skip
    reasons = {i: (f[0], {"name": name, "of": of, **f[1]}) for i, f in found.items() if f}
    if reasons and len(reasons) == len(rows):
        id, more = reasons[min(reasons)]
        raise DataError(problem(id, place=rows.place(min(reasons)), **more))
    return rows.drop_each(reasons)


def fault(cell: Any, picture: Any, classes: int, ignore: int) -> Fault | None:
    """What is wrong with a mask (a file, bytes, base64) of a picture, where classes are 0 to `classes` - 1; None where nothing is."""
    if not cell or not isinstance(cell, (str, bytes)):
        return None
    from PIL import Image

    try:
        with opened(_source(cell)) as image, decoding():
            kind, mode, size = image.format, image.mode, image.size[::-1]
            if size[0] * size[1] > LARGEST:
                return "data.image_too_large", {"width": size[1], "height": size[0], "limit": LARGEST}
            if mode not in MODES:
                return "mask.colour", {"found": mode}
            numbers = np.unique(np.asarray(image)).astype(np.int64)
    except (OSError, ValueError, Image.DecompressionBombError) as e:
        return "mask.unreadable", {"reason": str(e)[:100]}
    strange = numbers[(numbers != ignore) & ((numbers >= classes) | (numbers < 0))].tolist()
    if kind in LOSSY:
        return "mask.lossy", {"kind": kind, "count": len(numbers), "numbers": _some(strange or numbers.tolist())}
    if strange:
        return "mask.no_class", {"numbers": _some(strange), "most": classes - 1, "ignore": ignore}
    whole = size_of(picture)
    if whole and whole != size:
        return "mask.other_size", {"found": list(size), "want": list(whole)}
    return None


def _source(cell: str | bytes) -> Any:
    """What Pillow opens. Raises ValueError for text that is no base64."""
    if isinstance(cell, bytes):
        return io.BytesIO(cell)
    if not cell.startswith("data:") and len(cell) <= 4096:
        return cell
    try:
        return io.BytesIO(base64.b64decode("".join(cell.rpartition(",")[2].split()), validate=True))
    except binascii.Error as e:
        raise ValueError(str(e)) from e


def _some(numbers: Sequence[int]) -> str:
    return listed([*numbers[:TOLD], *(["..."] if len(numbers) > TOLD else [])])
