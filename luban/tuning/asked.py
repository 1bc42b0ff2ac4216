"""What can be said against a search once the rows are known, before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence

from luban.data.prepare import Data
from luban.errors import RequestError

LEAST = 8  # training rows that a point of a curve must have


def judgeable(data: Data) -> None:
    """Raises RequestError where there are no validation rows: settings are judged on nothing else."""
    if not len(data.part("validation")):
        raise RequestError("tune.no_validation")


def counts_for(all_rows: int, shares: Sequence[float]) -> list[int]:
    """Numbers of rows, fewest first, all of them among them. Raises RequestError where a set would be too small."""
    counts = sorted({*(round(all_rows * s) for s in shares), all_rows})
    if counts[0] < LEAST:
        raise RequestError("curve.too_few", rows=counts[0], least=LEAST, all=all_rows)
    return counts
