"""A Ray cluster: one that is there, or one that starts itself on this machine."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from luban import console
from luban.errors import WorkError

TRIES = 10  # starts of a local cluster: Ray gives its own processes up after 30 seconds, too few on a busy machine


def begin(ray: Any, *, patience: float, address: str | None = None, **settings: Any) -> None:
    """`ray.init`, a local cluster's again where it did not come and `patience` (seconds) is left.

    Raises WorkError in one sentence where there is no cluster in the end.
    """
    until = time.monotonic() + patience
    for left in reversed(range(TRIES)):
        before = _children()
        try:
            return ray.init(address=address or "local", log_to_driver=False, **settings)
        except SystemExit as e:  # Ray's handler of SIGTERM while it starts: there is nothing to save yet
            if e.code == signal.SIGTERM:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.raise_signal(signal.SIGTERM)
            raise
        except Exception as e:  # Ray raises plain Exception, RuntimeError, ConnectionError and more of its own
            reason = " ".join(str(e).split())[:300].rstrip(".") or type(e).__name__
            with suppress(Exception):
                ray.shutdown()
            _end(_children() - before)
            if address:
                raise WorkError("scale.no_cluster", address=address, reason=reason) from None
            if not left or time.monotonic() > until:
                raise WorkError("scale.ray_not_started", reason=reason) from None
            console.tell("scale.ray_again", reason=reason)


def _children() -> set[int]:
    """Processes that this one has started and that live; none are told where there is no /proc."""
    found: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError, ValueError):
            found |= set(map(int, path.read_text().split()))
    return found


def _end(processes: set[int]) -> None:
    """Servers that a start which failed left behind: Ray ends them with this process only, and they take time from the next."""
    for process in processes:
        with suppress(OSError):
            if b"ray" in Path(f"/proc/{process}/cmdline").read_bytes():
                os.kill(process, signal.SIGKILL)
