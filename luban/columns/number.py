"""A column of numbers: standardised, its quantiles known, missing values marked."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np

from luban.columns.base import Answer, Column, to_list
from luban.data.fences import fences
from luban.errors import DataError

QUANTILES = 48  # bins that an encoder may use are chosen among these


@dataclass(frozen=True)
class Number(Column):
    """x is a float32 scalar: (value - mean) / deviation of the training rows, NaN where missing until `collate`.

    `missing` is what then stands in its place, beside the mask that says so. `outliers` clip: values beyond the far fences
    of the training rows become the fence.
    """

    scale: Literal["standard", "none"] = field(default="standard", kw_only=True)
    missing: Literal["median", "mean", "zero"] = field(default="median", kw_only=True)
    outliers: Literal["keep", "clip"] = field(default="keep", kw_only=True)

    type: ClassVar[str] = "number"
    encoder: ClassVar[str] = "mlp"
    form: ClassVar[str] = "scalar"
    head: ClassVar[str] = "number"
    pools: ClassVar[bool] = True

    def fit(self, values: Iterable[Any]) -> Self:
        """Learns mean, deviation, median, range, quantiles and fences. Raises DataError when no value is present."""
        x = self._floats(values)
        x = x[~np.isnan(x)]
        if not len(x):
            raise DataError("column.all_missing", name=self.name)
        found = fences(x) if self.outliers == "clip" else None
        x = x if found is None else np.clip(x, *found)
        standard = self.scale == "standard"
        mean, deviation = (float(x.mean()), float(x.std())) if standard else (0.0, 1.0)
        deviation = deviation if deviation > 1e-12 * max(1.0, abs(mean)) else 1.0
        learned = self.learned(mean=mean, deviation=deviation, fences=found and list(found))
        scaled = learned._scaled(x)
        fill = {"median": np.median(x), "mean": x.mean(), "zero": np.float64(0)}[self.missing]
        edges = np.unique(np.quantile(scaled, np.linspace(0, 1, QUANTILES + 1)).astype(np.float32))
        return learned.learned(
            middle=float(np.median(scaled)),
            fill=float(learned._scaled(fill)),
            edges=[float(e) for e in edges],
            low=float(x.min()),
            high=float(x.max()),
            whole=bool((x == np.round(x)).all()),
        )

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        if value is None or value == "":
            return np.float32(np.nan)[()]
        if not isinstance(value, (float, np.floating)):
            try:
                value = float(value)
            except (TypeError, ValueError, OverflowError):
                raise DataError("column.not_a_number", name=self.name, value=str(value)[:60]) from None
        if math.isinf(value):
            raise DataError("column.not_a_number", name=self.name, value=str(value))
        return self._scaled(np.float64(value))

    def encode_all(self, values: Any, of: Any = None) -> np.ndarray:
        return self._scaled(self._floats(values))

    def supposed(self) -> Self:
        edges = np.linspace(-2, 2, QUANTILES + 1)
        return self.learned(
            mean=0.0, deviation=1.0, fences=None, middle=0.0, fill=0.0, edges=edges.tolist(), low=-2.0, high=2.0, whole=False
        )  # fmt: skip

    def collate(self, items: Any) -> tuple[np.ndarray, np.ndarray]:
        x = np.asarray(items, np.float32)
        mask = ~np.isnan(x)
        return (x, mask) if mask.all() else (np.where(mask, x, np.float32(self.state["fill"])), mask)

    def decode(self, array: np.ndarray, mask: np.ndarray | None = None) -> Answer:
        """array: () or (1,) in standardised units -> the value in raw units."""
        return Answer(
            float(np.asarray(array, np.float64).reshape(-1)[0]) * self.state["deviation"] + self.state["mean"]
        )

    def nothing(self, x: np.ndarray) -> np.ndarray:
        return np.float32(self.state["middle"])[()]

    def features(self, values: Any) -> Any:
        """(N, 2): the standardised value, and whether it was missing."""
        from scipy.sparse import csr_matrix

        x, mask = self.collate(self.encode_all(values))
        return csr_matrix(np.stack([x, ~mask], axis=1))

    def schema(self) -> dict[str, Any]:
        return {"type": ["number", "null"], "examples": [self._typical()]}

    def render(self, value: Any, weights: Any = None) -> str:
        return super().render(html.unescape(f"{value:g}") if isinstance(value, float) else value, weights)

    def _typical(self) -> float | int:
        value = self.state["middle"] * self.state["deviation"] + self.state["mean"]
        return round(value) if self.state["whole"] else float(f"{value:.6g}")

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        if self.state["fences"]:
            x = np.clip(x, *self.state["fences"])
        return ((x - self.state["mean"]) / self.state["deviation"]).astype(np.float32)

    def _floats(self, values: Any) -> np.ndarray:
        if hasattr(values, "to_numpy") and "string" not in str(getattr(values, "type", "string")):
            x = values.to_numpy() if hasattr(values, "num_chunks") else values.to_numpy(zero_copy_only=False)
            x = np.asarray(x, np.float64)
        elif isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
            x = values.astype(np.float64)
        else:
            x = np.array([self._float(v) for v in to_list(values)], np.float64)
        if np.isinf(x).any():
            raise DataError("column.not_a_number", name=self.name, value=str(x[np.isinf(x)][0]))
        return x

    def _float(self, value: Any) -> float:
        if value is None or value == "":
            return math.nan
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise DataError("column.not_a_number", name=self.name, value=str(value)[:60]) from None
