"""What a plan runs on: datasheet figures with their sources (`hardware.json`), or this machine's processor. No torch.

Figures are dense peaks, links are one way. `docs/plan.md` shows the table; a test holds the two together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from luban.errors import RequestError, problem

GIGA = 10**9
COUNTED = re.compile(r"(?:(-?\d+)\s*[x×*]\s*)?(.+)", re.IGNORECASE)


@dataclass(frozen=True)
class Device:
    """One accelerator, or one process of this machine. FLOP/s by precision, bytes, bytes a second, watts."""

    name: str
    title: str
    memory: float
    bandwidth: float
    watts: float
    flops: Mapping[str, float]  # precision -> dense peak; one that is absent is not computed there
    per_node: int = 1
    link: str = ""
    link_speed: float = 0.0  # within a node, one way
    between: str = ""
    between_speed: float = 0.0  # between nodes, one way
    price: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)  # measured ones instead of the assumed
    cores: int = 0  # of a processor, that compute

    @property
    def cpu(self) -> bool:
        return self.cores > 0

    def peak(self, precision: str) -> float:
        return self.flops.get(precision) or self.flops["fp32"]

    def can(self, precision: str) -> bool:
        return precision in self.flops

    def assumed(self, name: str) -> float:
        """`matrix_share` and the like: what was measured on this device, else what is assumed of all."""
        return self.shares.get(name, assumption(name))

    def wire(self, count: int) -> tuple[str, float]:
        """The slowest link of a ring over so many devices, and its bytes a second."""
        return (self.between, self.between_speed) if count > self.per_node else (self.link, self.link_speed)


@cache
def _written() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "hardware.json").read_text(encoding="utf-8"))


def assumption(name: str) -> float:
    return _written()["assumptions"][name]["value"]


def names() -> tuple[str, ...]:
    return tuple(_written()["devices"])


def device(name: str) -> Device:
    """The device of a name, as people write it: `h100`, `A100 80GB`, `rtx_4090`. Raises RequestError with the nearest."""
    known = {_key(n): n for n in names()} | {_key(a): n for a, n in _written()["aliases"].items()}
    key = _key(name).removeprefix("nvidia").removeprefix("amd").removeprefix("instinct").removeprefix("geforce")
    if key not in known:
        raise RequestError(problem("plan.no_gpu", place="--gpus", name=name, allowed=names()))
    plain = _written()["devices"][known[key]]
    return Device(
        name=known[key], title=plain["title"], memory=plain["memory_gb"] * GIGA, watts=plain["watts"],
        bandwidth=plain["bandwidth_gb_s"] * GIGA,
        flops={k: v * 1e12 for k, v in plain["tflops"].items() if v}, per_node=plain["per_node"],
        link=plain["link"], link_speed=plain["link_gb_s"] * GIGA,
        between=plain["between"], between_speed=plain["between_gb_s"] * GIGA, price=plain["usd_hour"],
    )  # fmt: skip


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower())


def gpus(text: str) -> tuple[Device, int]:
    """`64xH100` -> the device and how many. Raises RequestError for none, for two kinds, for an unknown name."""
    text = str(text).strip()
    if "+" in text or "," in text:
        raise RequestError(problem("plan.one_kind", place="--gpus", found=text))
    found = COUNTED.fullmatch(text)
    if not found or not found[2].strip() or re.fullmatch(r"-?\d+", text):
        raise RequestError(problem("plan.want_gpus", place="--gpus", found=text, allowed=names()))
    count = int(found[1] or 1)
    if count < 1:
        raise RequestError(problem("plan.no_devices", place="--gpus", found=text))
    return device(found[2].strip()), count
