"""SIGINT and SIGTERM end a run after the step, or the batch of a validation, that is being made."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(Exception):
    """A signal was heard where there is no end of a step: what was being done is done again by the run that goes on."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


_asked = 0


def ask_to_stop(number: int) -> None:
    """As if the signal had come: for a process whose signals are another one's."""
    global _asked
    _asked = number


def asked() -> int:
    return _asked


@contextmanager
def listening() -> Iterator[tuple[threading.Event, list[int]]]:
    """The first SIGINT or SIGTERM sets the event, a second one ends the process at once. Main thread only."""
    stop, caught = threading.Event(), [0]
    if threading.current_thread() is not threading.main_thread():
        yield stop, caught
        return

    def heard(number: int, frame: Any) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        caught[0] = number
        stop.set()

    before = {s: signal.signal(s, heard) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop, caught
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
