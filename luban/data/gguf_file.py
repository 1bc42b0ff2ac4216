"""What stands at the head of a GGUF file: its values and where its tensors lie. Nothing is executed, no tensor is read.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: magic, version, counts, values by name, tensors by name, then the data.
The head is read here and not by the `gguf` library, whose reader walks a count of 2^60 that a hostile file names to the end:
here a count is held against the bytes that are left.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luban.errors import DataError, problem

MAGIC, VERSIONS = b"GGUF", (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
MOST_DIMENSIONS = 4
LEAST_VALUE, LEAST_TENSOR = 13, 24  # bytes that one takes at least
ALIGNMENT = 32


@dataclass(frozen=True)
class Place:
    """A tensor: `kind` of storage by the number that ggml gives it, `shape` as in PyTorch (out, in), its first byte in the file."""

    kind: int
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Head:
    values: dict[str, Any]
    tensors: dict[str, Place]


def read(path: Path) -> Head:
    """Raises DataError for a file that is no GGUF, of another version, cut short or with values that cannot be."""
    with open(path, "rb") as file:
        first = file.read(len(MAGIC))
        if first != MAGIC:
            raise DataError(problem("gguf.foreign", place=str(path), found=first.hex(" ") or "-"))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _head(_Cursor(data, str(path)))


def _head(at: _Cursor) -> Head:
    version = at.number("I")
    if version not in VERSIONS:
        raise DataError(problem("gguf.version", place=at.path, found=version, known=VERSIONS))
    tensors, values = at.count(LEAST_TENSOR), at.count(LEAST_VALUE)
    known = {at.text(): at.value(at.number("I")) for _ in range(values)}
    placed = {}
    for _ in range(tensors):
        name, dimensions = at.text(), at.number("I")
        if not 0 < dimensions <= MOST_DIMENSIONS:
            raise at.wrong(name, dimensions)
        shape = tuple(reversed([at.number("Q") for _ in range(dimensions)]))  # ggml names the inner one first
        placed[name] = (at.number("I"), shape, at.number("Q"))
    step = known.get("general.alignment", ALIGNMENT)
    if not isinstance(step, int) or not 0 < step <= 1 << 20:
        raise at.wrong("general.alignment", step)
    begin = -(-at.place // step) * step
    return Head(known, {n: Place(kind, shape, begin + offset) for n, (kind, shape, offset) in placed.items()})


class _Cursor:
    """Goes through the bytes of a file; what would lead beyond its end is refused before anything is made of it."""

    def __init__(self, data: mmap.mmap, path: str):
        self.data, self.path, self.place = data, path, len(MAGIC)

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.place:
            raise DataError(
                problem("gguf.short", place=self.path, needed=f"{self.place + size:,}", found=f"{len(self.data):,}")
            )
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def count(self, least: int) -> int:
        """How many things follow, of at least so many bytes each."""
        many = self.number("Q")
        if many * least > len(self.data) - self.place:
            needed = f"{self.place + many * least:,}"
            raise DataError(problem("gguf.short", place=self.path, needed=needed, found=f"{len(self.data):,}"))
        return many

    def text(self) -> str:
        found = self.take(self.count(1))
        try:
            return found.decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong("UTF-8", found[:40]) from None

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == TEXT:
            return self.text()
        if kind != LIST:
            raise self.wrong("type", kind)
        inner = self.number("I")
        if inner == TEXT:
            return [self.text() for _ in range(self.count(8))]
        if inner not in NUMBERS:
            raise self.wrong("type", inner)
        size = struct.calcsize(f"<{NUMBERS[inner]}")
        return np.frombuffer(self.take(self.count(size) * size), np.dtype(f"<{NUMBERS[inner]}")).tolist()

    def wrong(self, key: str, found: Any) -> DataError:
        return DataError(problem("gguf.bad_value", place=self.path, key=key[:80], found=repr(found)[:80]))
