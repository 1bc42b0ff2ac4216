"""Settings found by trying them on a copy of the network: the batch, the learning rate, whether to compile.

Nothing of the network, of random state or of the process changes by a trial. What was found goes into the resolved recipe
before the first update, so that a resumed run does not try again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from luban import machine
from luban.columns.examples import Examples
from luban.errors import Diverged
from luban.nn.tokens import Batch
from luban.training.batches import order, tokens_for
from luban.training.compiling import compiled
from luban.training.feed import Feed
from luban.training.plan import Plan
from luban.training.precision import aside, products
from luban.training.random import seed_torch
from luban.training.state import State
from luban.training.steps import plain

Objective = Callable[..., Any]

# -- the learning rate -------------------------------------------------------------------------------------------------

LOWEST, HIGHEST, SWEEP = 1e-6, 10.0, 100  # the rates that are tried, one an update
CHANCE = 10  # updates at first whose loss falls by the luck of a batch, not by learning
SMOOTHING = 0.9  # of the loss along them
WORSE = 4.0  # times the lowest loss: from there on it diverges
BELOW = 10.0  # times under the rate of the lowest loss is far enough from where it diverges


@dataclass(frozen=True)
class Curve:
    """A range test: the smoothed loss at each rate, and the rate that follows from it."""

    rate: float
    rates: list[float]
    losses: list[float]


def find_rate(network: Any, examples: Examples, plan: Plan, objective: Objective) -> Curve:
    """The learning-rate range test (Smith 2017): one update at each of 100 rising rates, until the loss diverges.

    A tenth of the rate where the smoothed loss is lowest. Without a finite loss at all, the lowest rate.
    """
    rates = np.geomspace(LOWEST, HIGHEST, SWEEP)
    sweep = replace(plan, rate=1.0, schedule="constant", warmup=0.0, epochs=1)
    with aside(network, plan.device) as trial, products(plan.precision, plan.device):
        losses = _swept(trial, examples, sweep, objective, rates)
    if not losses:
        return Curve(LOWEST, [], [])
    at = min(CHANCE, len(losses) - 1) + int(np.argmin(losses[CHANCE:] or losses[-1:]))
    return Curve(float(f"{rates[at] / BELOW:.2g}"), rates[: len(losses)].tolist(), losses)


def _swept(trial: Any, examples: Examples, plan: Plan, objective: Objective, rates: np.ndarray) -> list[float]:
    state = State(trial, plan, len(rates))
    state.factor = lambda step: float(rates[step])
    smoothed, losses = 0.0, []
    for batch in _endless(Feed(examples, plan), len(rates)):
        seed_torch(plan.seed, "sweep", state.step)
        try:
            numbers = plain(state, batch, objective)
        except Diverged:
            break
        state.step += 1
        loss = sum(float(s) / max(float(w), 1e-12) for s, w in numbers.values())
        smoothed = SMOOTHING * smoothed + (1 - SMOOTHING) * loss
        losses.append(smoothed / (1 - SMOOTHING**state.step))
        if not math.isfinite(loss) or losses[-1] > max(WORSE * min(losses), losses[0] + abs(losses[0])):
            break
    return [x for x in losses if math.isfinite(x)]


def _endless(feed: Feed, count: int) -> Iterator[Batch]:
    given = epoch = 0
    while given < count:
        for batch in feed.batches(epoch, 0):
            if given == count:
                return
            yield batch
            given += 1
        epoch += 1


# -- the batch ---------------------------------------------------------------------------------------------------------

SMALLEST, LARGEST = 8, 4096
UPDATES = 8  # an epoch has at least so many: a batch that is half of the rows teaches little
ENOUGH = 0.95  # of the highest speed: the smallest batch that reaches it is taken
SHARE = 0.5  # of the free memory that a batch's activations may take
PATIENCE = 60.0  # seconds of trying after which no larger batch is begun
ROUNDS = 3


@dataclass(frozen=True)
class Speeds:
    """Examples (or, where they have lengths, real positions) a second for each batch tried, and the one that was taken."""

    batch: int
    speeds: dict[int, float]
    stopped: str = ""  # why no larger one was tried: "rows", "memory", "time"


def find_batch(
    network: Any, examples: Examples, plan: Plan, objective: Objective, tokens: int | str = "auto"
) -> Speeds:
    """The smallest batch that is nearly as fast as the fastest: powers of two, each measured on the network's own rows.

    All that rows, memory and a minute allow are measured in turns; a slower one does not end the trial, since speed over
    the size of a batch has steps. `tokens`: the budget of a batch, which auto follows its size.
    """
    sizes = [s for s in _powers() if s <= max(SMALLEST, len(examples) // UPDATES)]
    began, stopped, speeds = time.monotonic(), "rows", {}
    with aside(network, plan.device) as trial, products(plan.precision, plan.device):
        state, ready = State(trial, plan, 1), {}
        for size in sizes:
            budget = tokens_for(examples, size) if tokens == "auto" else tokens
            batches = _some(examples, replace(plan, batch=size, tokens=budget))
            try:
                needed = _first(state, batches, objective)
            except (MemoryError, RuntimeError) as e:
                if not out_of_memory(e):
                    raise
                stopped = "memory"
                if plan.device.startswith("cuda"):
                    torch.cuda.empty_cache()
                break
            ready[size] = batches
            if 2 * needed > SHARE * _free(plan.device):
                stopped = "memory"
                break
            if time.monotonic() - began > PATIENCE:
                stopped = "time"
                break
        for _ in range(ROUNDS):
            for size, batches in ready.items():
                speeds[size] = max(speeds.get(size, 0.0), _speed(state, batches, objective, plan.device))
    best = max(speeds.values(), default=0.0)
    return Speeds(min((s for s, v in speeds.items() if v >= ENOUGH * best), default=plan.batch), speeds, stopped)


def _powers() -> Iterator[int]:
    return (1 << i for i in range(SMALLEST.bit_length() - 1, LARGEST.bit_length()))


def _some(examples: Examples, plan: Plan) -> list[tuple[Batch, int]]:
    """Batches of the first epoch that hold 256 examples or more together, each with what it counts: real positions, or
    examples where they have no lengths."""
    found, lengths, held = [], examples.lengths(), 0
    for index in order(examples, plan.batch, plan.seed, 0, tokens=plan.tokens):
        counts = len(index) if lengths is None else int(lengths[index].sum())
        found.append((Batch.of(examples.arrays(index), plan.device), counts))
        held += len(index)
        if held >= 256:
            break
    return found


def _first(state: State, batches: list[tuple[Batch, int]], objective: Objective) -> int:
    """One update that warms up: the bytes that the backward pass needs kept."""
    seen: dict[int, int] = {}

    def kept(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda t: t):
        _update(state, max((b for b, _ in batches), key=lambda b: b.size), objective)
    return sum(seen.values())


def _update(state: State, batch: Batch, objective: Objective) -> None:
    seed_torch(0, "trial")
    plain(state, batch, objective)


def _speed(state: State, batches: list[tuple[Batch, int]], objective: Objective, device: str) -> float:
    seconds = _timed(lambda: [_update(state, b, objective) for b, _ in batches], device)
    return sum(count for _, count in batches) / max(seconds, 1e-9)


def _timed(work: Callable[[], Any], device: str) -> float:
    """Seconds: of this process on a processor, where other work must not count; of the wall on a GPU."""
    gpu = device.startswith("cuda")
    clock = time.perf_counter if gpu else time.process_time
    began = clock()
    work()
    if gpu:
        torch.cuda.synchronize()
    return clock() - began


def _free(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return machine.free_memory() or math.inf


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: torch has a class of its own for it only on GPUs."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


# -- compiling ---------------------------------------------------------------------------------------------------------

LEAST, LEAST_ON_GPU = 600.0, 60.0  # seconds that a run must last without compiling before it is tried
MANY = 1000  # updates: a run of fewer that lasts so long on a processor has large products, where nothing is gained
FASTER = 0.95  # of the time of a step


@dataclass(frozen=True)
class Compiling:
    """Seconds of a step without and with torch.compile, and what compiling itself took; both 0 where it was not tried."""

    compile: str = "off"
    plain: float = 0.0
    compiled: float = 0.0
    cost: float = 0.0


def find_compile(network: Any, examples: Examples, plan: Plan, objective: Objective, updates: int) -> Compiling:
    """Whether `torch.compile` pays in a run of so many updates: the time it saves against the time it takes.

    Tried only where the run would last ten minutes without it, one on a GPU: compiling takes up to a minute by itself.
    """
    gpu = plan.device.startswith("cuda")
    if not gpu and updates < MANY:
        return Compiling()
    with aside(network, plan.device) as trial, products(plan.precision, plan.device):
        state = State(trial, plan, 1)
        batches = _some(examples, plan)[:1]
        without = _step_seconds(state, batches, objective, plan.device)
        if without * updates < (LEAST_ON_GPU if gpu else LEAST):
            return Compiling("off", without)
        try:
            with compiled(trial, "on", ragged=examples.lengths() is not None):
                began = time.monotonic()
                for batch, _ in batches:
                    _update(state, batch, objective)
                cost = time.monotonic() - began
                with_it = _step_seconds(state, batches, objective, plan.device)
        except (RuntimeError, ImportError, OSError):  # no compiler on this machine, or a network that it cannot read
            return Compiling("off", without)
    pays = with_it < FASTER * without and (without - with_it) * updates > cost
    return Compiling("on" if pays else "off", without, with_it, cost)


def _step_seconds(state: State, batches: list[tuple[Batch, int]], objective: Objective, device: str) -> float:
    work = lambda: [_update(state, b, objective) for b, _ in batches]  # noqa: E731
    return min(_timed(work, device) for _ in range(ROUNDS)) / max(1, len(batches))
