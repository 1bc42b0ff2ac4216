"""What a person sees while work goes on: sentences and a progress line on stderr, everything in `run.log`.

Results go to stdout, elsewhere. Without a terminal: one line per ten seconds and no control codes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import contextmanager

from luban.messages import say
from luban.wrapping import cells, padded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any, TextIO

EVERY = 10.0  # seconds between progress lines without a terminal
REDRAW = 0.2  # seconds between redraws on one
_quiet = False
_log: Path | None = None
_waiting: list[bytes] = []  # lines that the disk did not take
MOST = 10_000  # of them are kept


def configure(*, quiet: bool = False, log: Path | None = None) -> None:
    """Silence stderr; name the run.log (None = none)."""
    global _quiet, _log
    _quiet, _log = quiet, log


def settings() -> dict[str, Any]:
    """What `configure` takes, as JSON: for a process that speaks for this one."""
    return {"quiet": _quiet, "log": str(_log.absolute()) if _log else None}


def log_to(path: Path | None) -> None:
    global _log
    if path != _log:
        _waiting.clear()
    _log = path


@contextmanager
def muted() -> Iterator[None]:
    """Nothing on stderr for a while; the log hears on. Trials of a search are told in one line each."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


def tell(id: str, /, **values: Any) -> None:
    """A sentence on stderr and in the log."""
    text = say(id, **values)
    if not _quiet:
        print(text, file=sys.stderr, flush=True)
    record("message", id=id, text=text)


def block(text: str) -> None:
    """Ready text (made of sentences) on stderr."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


def record(event: str, **values: Any) -> None:
    """A line of run.log. A full disk does not stop the work: the line waits until the disk takes it."""
    if _log is None:
        return
    line = json.dumps({"time": round(time.time(), 3), "event": event, **values}, ensure_ascii=False, default=str)
    _waiting.append(line.encode("utf-8", "backslashreplace") + b"\n")
    try:
        _append(b"".join(_waiting))
        _waiting.clear()
    except OSError:
        del _waiting[:-MOST]


def _append(lines: bytes) -> None:
    """All of it or nothing: half a line would spoil the one after it."""
    with open(_log, "ab", buffering=0) as file:
        start = file.tell()
        try:
            if file.write(lines) != len(lines):
                raise OSError
        except OSError:
            if file.seekable():
                file.truncate(start)
            raise


class Progress:
    """One line that tells how far a piece of work is: `update(done, loss=...)` is cheap, it draws a few times a second."""

    def __init__(self, title: str, total: int, stream: TextIO | None = None):
        self.title, self.total = title, max(total, 1)
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty() and "NO_PROGRESS" not in os.environ
        self.start = self.drawn = time.monotonic()
        self.begun = 0
        self.wide = 0

    def resume_at(self, done: int) -> None:
        self.begun = done

    def due(self) -> bool:
        return not _quiet and time.monotonic() - self.drawn >= (REDRAW if self.live else EVERY)

    def update(self, done: int, numbers: Mapping[str, float] | None = None, *, unit: str = "") -> None:
        self.drawn = time.monotonic()
        if _quiet:
            return
        text = self._line(done, numbers or {}, unit)
        if self.live:
            print("\r" + padded(text, self.wide), end="", file=self.stream, flush=True)
            self.wide = cells(text)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        if self.live and self.wide:
            print("\r" + " " * self.wide + "\r", end="", file=self.stream, flush=True)
            self.wide = 0

    def _line(self, done: int, numbers: Mapping[str, float], unit: str) -> str:
        spent = self.drawn - self.start
        speed = (done - self.begun) / spent if spent > 0 else 0.0
        left = (self.total - done) / speed if speed else 0.0
        first = [self.title, f"{done / self.total:4.0%}"]
        last = [f"{speed:.4g} {unit}/s", say("progress.left", time=clock(left))]
        bar = [self._bar(done)] if self.live else []
        told = [f"{name} {value:.4g}" for name, value in numbers.items()]
        while True:  # without the bar, then without the last numbers, where the line is too short for them
            text = "  ".join(p for p in (*first, *bar, *told, *last) if p)
            if cells(text) <= self._room() or not (bar or told):
                return text
            (bar or told).pop()

    def _room(self) -> float:
        """Cells of a line: one that goes on in the next is not drawn over."""
        if not self.live:
            return float("inf")
        try:
            # The last cell would move the line on.
            return (os.get_terminal_size(self.stream.fileno()).columns or 80) - 1
        except (OSError, ValueError):
            return 79

    def _bar(self, done: int, width: int = 24) -> str:
        full = round(width * done / self.total)
        return "█" * full + "·" * (width - full)


def clock(seconds: float) -> str:
    """12s, 3m10s, 2h05m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    return (
        f"{seconds // 60}m{seconds % 60:02d}s" if seconds < 3600 else f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    )
