"""Beyond which numbers lie far out."""

from __future__ import annotations

import numpy as np

FAR = 3.0  # quartile distances beyond the quartiles: "far out" in Tukey 1977, "Exploratory Data Analysis"


def fences(x: np.ndarray) -> tuple[float, float] | None:
    """Tukey's far fences of numbers (N,); None where half of them are alike, so that nothing is far."""
    if not len(x):
        return None
    low, high = np.quantile(x, (0.25, 0.75))
    return (float(low - FAR * (high - low)), float(high + FAR * (high - low))) if high > low else None
