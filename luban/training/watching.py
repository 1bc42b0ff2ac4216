"""Who else hears the numbers of a run: a search that prunes, a sink such as TensorBoard.

    with listening_in(sink):
        luban.train(...)        # every `fit` below tells `sink` its numbers

A listener has `epoch(numbers)` and, where it wants more, `step(numbers)`. It hears a step a few times a minute at most:
reading a loss makes an accelerator wait, so that it happens between updates that nobody listens to. An exception of a
listener ends the run, with the best weights so far in the network; that is how a hopeless trial is pruned.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

EVERY = 5.0  # seconds between two steps that listeners hear of
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


class Listener(Protocol):
    """`numbers`: step, loss, and at the end of an epoch epoch, validation_loss and each output's glance."""

    def epoch(self, numbers: Mapping[str, float]) -> None: ...


@contextmanager
def listening_in(*listeners: Any) -> Iterator[None]:
    """What is trained inside tells these listeners, those of an outer `listening_in` first."""
    token = _listeners.set((*_listeners.get(), *listeners))
    try:
        yield
    finally:
        _listeners.reset(token)


class Ears:
    """The listeners of one run, as they were when it began. Of several ranks only the first is heard."""

    def __init__(self, first: bool = True) -> None:
        self.all = _listeners.get() if first else ()
        self.fine = [listener for listener in self.all if hasattr(listener, "step")]
        self.heard = time.monotonic()

    def due(self) -> bool:
        return bool(self.fine) and time.monotonic() - self.heard >= EVERY

    def step(self, numbers: Mapping[str, float]) -> None:
        self.heard = time.monotonic()
        for listener in self.fine:
            listener.step(numbers)

    def epoch(self, numbers: Mapping[str, float]) -> None:
        for listener in self.all:
            listener.epoch(numbers)
