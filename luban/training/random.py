"""Randomness is a function, not a stream: `rng(seed, purpose, epoch, step)` gives the same numbers whenever it is asked.

So nothing of it has to be saved, prefetching changes nothing, and a resumed run draws what the unbroken one would have.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch


def key(seed: int, purpose: str, *position: int) -> int:
    """A 128-bit key of a purpose at a position (epoch, step or row)."""
    text = f"{seed}/{purpose}/{'/'.join(map(str, position))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def rng(seed: int, purpose: str, *position: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *position)))


class later:
    """`rng(seed, purpose, *position)` made when something is drawn: most objectives never do."""

    __slots__ = ("_asked", "_made")

    def __init__(self, seed: int, purpose: str, *position: int):
        self._asked, self._made = (seed, purpose, *position), None

    def __getattr__(self, name: str) -> Any:
        if self._made is None:
            self._made = rng(*self._asked)
        return getattr(self._made, name)


def seed_torch(seed: int, purpose: str, *position: int) -> None:
    """Set torch's own generators (dropout, initial weights) to what belongs to this position."""
    number = key(seed, purpose, *position) & (2**63 - 1)
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
