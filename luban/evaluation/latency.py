"""How long an answer takes: engines timed in turn, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

ROUNDS, SECONDS, WARM = 60, 2.0, 3
FASTER = 1.05  # a smaller gain is not told from the noise of a machine


@dataclass(frozen=True)
class Timing:
    """Seconds of each round; `batch` rows at once."""

    seconds: np.ndarray
    batch: int

    @property
    def per_row(self) -> float:
        """Median milliseconds a row."""
        return float(np.median(self.seconds)) / self.batch * 1e3


def timings(engines: Sequence[Any], arrays: Any, rounds: int = ROUNDS, limit: float = SECONDS) -> list[Timing]:
    """The same batch through every engine, round by round; at most about `limit` seconds in all, at least seven rounds."""
    for engine in engines:
        for _ in range(WARM):
            engine.run(arrays)
    found: list[list[float]] = [[] for _ in engines]
    began = time.perf_counter()
    while len(found[0]) < rounds and (len(found[0]) < 7 or time.perf_counter() - began < limit):
        for engine, seconds in zip(engines, found):
            start = time.perf_counter()
            engine.run(arrays)
            seconds.append(time.perf_counter() - start)
    return [Timing(np.array(s), arrays.size) for s in found]


def speedup(before: Timing, after: Timing) -> dict[str, Any]:
    """How many times faster: the ratio of medians, the middle half of the rounds' ratios, and whether it may be called so."""
    ratios = before.seconds / after.seconds
    low, high = np.quantile(ratios, [0.25, 0.75])
    ratio = float(np.median(before.seconds) / np.median(after.seconds))
    return {"value": ratio, "low": float(low), "high": float(high), "faster": ratio >= FASTER and float(low) > 1.0}


@contextmanager
def one_thread() -> Any:
    """PyTorch on one thread, and afterwards on as many as before."""
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
