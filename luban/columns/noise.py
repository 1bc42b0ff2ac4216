"""A column of noise: what a network makes something new from. A row's cell is a seed; without one, the row's own number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from luban.columns.base import Column, Segments, to_list
from luban.errors import DataError
from luban.settings import Count

MOST = 2**62  # seeds are below this
NONE = -1  # what stands for a missing seed: the middle of all that can be drawn


@dataclass(frozen=True)
class Noise(Column):
    """x is float32 (B, 1, D), standard normal: a function of the seed alone, so that every engine draws the same.

    In training each batch gets new noise (`augment`). Data need no such column.
    """

    dimensions: Count = field(default=64, kw_only=True)

    type: ClassVar[str] = "noise"
    encoder: ClassVar[str] = "bag"
    form: ClassVar[str] = "vectors"
    drawn: ClassVar[bool] = True

    def fit(self, values: Iterable[Any]) -> Self:
        """Learns nothing but how wide it is. Raises DataError where there are cells and none of them is a seed."""
        values = to_list(values)
        if values and all(_missing(v) for v in values):
            raise DataError("column.all_missing", name=self.name)
        return self.learned(dimensions=self.dimensions)

    def supposed(self) -> Self:
        return self.fit([])

    @property
    def size(self) -> int:
        return self.state["dimensions"]

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        """int64 (): the seed, `NONE` where it is missing. Raises DataError for what is no whole number from 0."""
        if _missing(value):
            return np.int64(NONE)[()]
        try:
            if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
                raise ValueError(value)
            seed = int(value)
        except (TypeError, ValueError, OverflowError):
            raise DataError("noise.no_seed", name=self.name, value=str(value)[:60], most=MOST) from None
        if not 0 <= seed < MOST:
            raise DataError("noise.no_seed", name=self.name, value=str(value)[:60], most=MOST)
        return np.int64(seed)[()]

    def encode_all(self, values: Any, of: Any = None) -> np.ndarray:
        return np.array([self.encode(v) for v in to_list(values)], np.int64)

    def collate(self, items: Any) -> tuple[np.ndarray, np.ndarray]:
        """mask (B, 1)."""
        seeds = np.asarray(items, np.int64)
        x = np.zeros((len(seeds), 1, self.size), np.float32)
        for row, seed in zip(x, seeds.tolist()):
            if seed != NONE:
                row[:] = np.random.Generator(np.random.Philox(key=seed)).standard_normal(self.size, np.float32)
        return x, (seeds != NONE)[:, None]

    def augment(self, x: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
        return rng.standard_normal(x.shape, np.float32), None

    def segments(self, value: Any) -> Segments:
        return Segments([self.name], np.zeros((), np.int64))

    def nothing(self, x: np.ndarray) -> np.ndarray:
        return np.int64(NONE)[()]

    def features(self, values: Any) -> Any:
        """(N, D): the noise itself."""
        from scipy.sparse import csr_matrix

        return csr_matrix(self.collate(self.encode_all(values))[0][:, 0])

    def schema(self) -> dict[str, Any]:
        return {"type": ["integer", "null"], "minimum": 0, "maximum": MOST - 1, "examples": [0]}


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and value != value)
