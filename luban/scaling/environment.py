"""What ranks inherit from the process that starts them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from luban import machine
from luban.messages import language

LOOPBACK = {"linux": "lo", "darwin": "lo0"}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def environment(ranks: int, more: Mapping[str, str] | None = None, *, loopback: bool = True) -> Iterator[None]:
    """Their share of the threads, the language, this Luban, and (`loopback`) no network but the machine's own."""
    threads = str(max(1, machine.threads() // ranks))
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), here) if p)
    new = {**dict.fromkeys(THREADS, threads), "LUBAN_LANG": language(), "PYTHONPATH": path, **(more or {})}
    if loopback and sys.platform in LOOPBACK:
        new["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", LOOPBACK[sys.platform])
    before = {name: os.environ.get(name) for name in (*new, "TORCHELASTIC_SIGNALS_TO_HANDLE")}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
