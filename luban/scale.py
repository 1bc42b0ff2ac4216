"""The recipe's key `scale`: how many processes train, who starts them, and how the weights lie in them. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Literal

from luban.errors import Problem, problem
from luban.settings import Count, Natural, Positive

WHOLE = ("muon",)  # optimisers whose rule is about whole matrices
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torch's own: what torchrun sets


def scale(
    *,
    engine: Literal["torchrun", "ray"] = "torchrun",
    ranks: Count | Literal["auto"] = "auto",
    strategy: Literal["ddp", "fsdp"] = "ddp",
    restarts: Natural = 3,
    timeout: Positive = 600.0,
    address: str | None = None,
) -> dict[str, Any]:
    """How training is spread over processes.

    `ranks`: processes that train one network; auto = those that torchrun started this one among, else 1. `strategy`: ddp
    keeps all weights in every rank, fsdp cuts weights, gradients and optimiser into as many parts. `restarts`: how often all
    ranks go on from the newest checkpoint after one has died. `timeout`: seconds that a rank waits for the others.
    `address`: a Ray cluster; without it Ray starts one on this machine.
    """
    ranks = world() if ranks == "auto" else ranks
    return {
        "engine": engine, "ranks": ranks, "strategy": strategy, "restarts": restarts, "timeout": timeout, "address": address
    }  # fmt: skip


def chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With every default; `ranks` a number."""
    return scale(**{k: v for k, v in settings.items() if v is not None})


def world() -> int:
    """How many ranks the environment says that this process is one of; 1 outside of torchrun."""
    given = [os.environ.get(name, "") for name in ENVIRONMENT]
    return int(given[1]) if all(given) and given[0].isdecimal() and given[1].isdecimal() else 1


def rank() -> int:
    """Which of them this process is."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def mistakes(settings: Mapping[str, Any]) -> Iterator[Problem]:
    """What can be nowhere, of settings that are each right by themselves. Places are names of settings."""
    found = {k: v for k, v in settings.items() if v is not None}
    if found.get("strategy") == "fsdp" and found.get("ranks") == 1:
        yield problem("scale.fsdp_alone", place="strategy")
    if "address" in found and found.get("engine") != "ray":
        yield problem("scale.address", place="address")


def clashes(strategy: str, train: Mapping[str, Any]) -> Iterator[Problem]:
    """Settings of a train stage that do not go with a strategy: what has to see whole weights, or asks for as many passes in
    every rank.
    """
    if strategy != "fsdp":
        return
    optimizer = train.get("optimizer") or ""
    if (optimizer if isinstance(optimizer, str) else next(iter(optimizer), "")) in WHOLE:
        yield problem("scale.whole_matrices", place="train.optimizer")
    usual = {"ema": 0.0, "accumulate": 1}
    asked = [f"{k}: {train[k]}" for k, v in usual.items() if train.get(k) not in (None, v)]
    if asked:
        yield problem("scale.ddp_only", settings=asked)


def unready(settings: Mapping[str, Any]) -> Iterator[Problem]:
    """What cannot be here and now: another number of ranks than were started, an engine that is not installed."""
    found = chosen(settings)
    if world() > 1 and found["ranks"] != world():
        yield problem("scale.other_world", place="scale.ranks", ranks=found["ranks"], world=world())
    elif found["strategy"] == "fsdp" and found["ranks"] == 1:
        yield problem("scale.fsdp_alone", place="scale.strategy")
    if found["engine"] == "ray" and found["ranks"] > 1 and find_spec("ray") is None:
        yield problem("extra.missing", place="scale.engine", module="ray", extra="ray")
