"""Measured energy: what the machine's own counters say, and nothing where it has none that may be read.

Processors: RAPL, through Linux's powercap (`/sys/class/powercap/intel-rapl:N`, AMD's as well), every package and its memory.
NVIDIA cards: NVML's total energy (Volta and newer), where `pynvml` is installed. Both count the whole device, so that
what else ran on it in the same time is in the figure too.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
EVERY = 30.0  # seconds between looks: the smallest counter goes round in about 3 minutes at full power
KWH = 3.6e6  # joules


@dataclass
class Counter:
    """One counter of energy: `read` gives joules since some moment; at `range` it begins anew (0: it never does)."""

    name: str
    read: Callable[[], float]
    range: float = 0.0
    last: float = 0.0
    used: float = 0.0

    def begin(self) -> None:
        self.last, self.used = self.read(), 0.0

    def look(self) -> None:
        now = self.read()
        step = now - self.last
        self.used += step + self.range if step < 0 else step
        self.last = now


@dataclass
class Meter:
    """`with Meter() as meter: ...`, then `meter.entry()`. Without counters it costs one look at a folder."""

    counters: list[Counter] | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Meter:
        found = counters() if self.counters is None else self.counters
        self.counters = [c for c in found if _works(c.begin)]
        if self.counters:
            threading.Thread(target=self._watch, name="energy", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(EVERY):
            self._look()

    def _look(self) -> None:
        with self._lock:
            self.counters = [c for c in self.counters or () if _works(c.look)]  # one that fails tells nothing at all

    def entry(self) -> dict[str, Any]:
        """For a line of history: {"energy": {"joules", "kwh", "by": {counter: joules}}}, or {} where nothing tells it."""
        used = {c.name: round(c.used, 3) for c in self.counters or ()}
        if not used:
            return {}
        total = round(sum(used.values()), 3)
        return {"energy": {"joules": total, "kwh": total / KWH, "by": used}}


def _works(act: Callable[[], None]) -> bool:
    try:
        act()
    except Exception:  # a file that may not be read, a card that fell off the bus: no figure, never a broken run
        return False
    return True


def counters(root: Path | None = None) -> list[Counter]:
    """Every counter of this machine that can be read."""
    return [*rapl(root or POWERCAP), *nvml()]


def rapl(root: Path) -> list[Counter]:
    """Packages, and the memory of each where it is counted apart. `psys` and `core` would count the same energy twice."""
    found = []
    for zone in sorted(root.glob("intel-rapl:*")):
        name, outer = _text(zone / "name"), _text(root / re.sub(r":\d+$", "", zone.name) / "name")
        inner = zone.name.count(":") == 2
        if (inner and name == "dram") or (not inner and name.startswith("package")):
            counted = _joules(zone / "energy_uj")
            label = f"{outer}-{name}" if inner else name
            if _works(lambda c=counted: c() and None):
                found.append(Counter(label, counted, _joules(zone / "max_energy_range_uj")()))
    return found


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip()
    return ""


def _joules(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_text()) / 1e6


def nvml() -> list[Counter]:
    """The NVIDIA cards that this process may see."""
    try:
        import pynvml

        pynvml.nvmlInit()
        cards = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # not installed, no driver, no card
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    allowed = {int(v) for v in visible.split(",") if v.strip().isdigit()} if visible else None

    def reader(card: Any) -> Callable[[], float]:
        return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3  # mJ

    found = [Counter(f"gpu-{i}", reader(c)) for i, c in enumerate(cards) if allowed is None or i in allowed]
    return [c for c in found if _works(lambda c=c: c.read() and None)]
