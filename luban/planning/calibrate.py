"""How fast this machine is: its matrix products and its memory, or a few steps of the very run that is planned."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from luban import machine
from luban.columns.base import Ragged
from luban.columns.examples import Examples
from luban.messages import say
from luban.planning.hardware import Device, assumption
from luban.planning.subject import Subject
from luban.training.batches import epochs_of, order
from luban.training.loop import Plan, evaluate, fit
from luban.training.objectives import supervised
from luban.training.precision import able, choose
from luban.training.random import seed_torch
from luban.training.recompute import recomputed

SIDE = 1024  # of the matrices that are multiplied
STREAMED = 1 << 24  # numbers that are copied
ENOUGH = 2.0  # CPU seconds that timing a run may take, when its steps are short
MOST = 400  # updates that are timed at most
FEW = (2, 4)  # updates that are timed at least: the difference has no start-up in it


def processor(threads: int) -> Device:
    """This machine's processor as a device: seconds of arithmetic and of memory measured now, a second of work in all."""
    a = torch.randn(SIDE, SIDE)
    flops = {"fp32": 2 * SIDE**3 / _least(lambda: a @ a)}
    if able("cpu"):
        half = a.bfloat16()
        flops["bf16"] = 2 * SIDE**3 / _least(lambda: half @ half)
    stream, target = torch.ones(STREAMED), torch.empty(STREAMED)
    bandwidth = 2 * 4 * STREAMED / _least(lambda: target.copy_(stream))
    free = machine.memory()
    return Device(
        name="cpu", title=say("plan.cpu_title", name=machine.processor()["name"], threads=threads),
        memory=free[0] if free else float("inf"), bandwidth=bandwidth, flops=flops,
        watts=assumption("cpu_core_watts") * threads, cores=threads,
        shares={"matrix_share": 1.0, "bandwidth_share": 1.0, "memory_share": 1.0},
    )  # fmt: skip


def _least(work: Callable[[], Any]) -> float:
    """CPU seconds over threads of the fastest of a few goes."""
    work()
    found = []
    for _ in range(5):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return max(min(found), 1e-6) / torch.get_num_threads()


@dataclass(frozen=True)
class Timed:
    """CPU seconds of one update, of judging the validation rows once, and the precision that was chosen for it."""

    update: float
    judging: float
    precision: str


def run(subject: Subject) -> Timed | None:
    """Some real updates of the run with its own loop, on some of its rows; None where there are no rows to train on."""
    examples = subject.examples
    if examples is None or not len(examples):
        return None
    network = new_network_of(subject)
    with recomputed(network) if subject.recompute else nullcontext():
        return _timed(subject, network, examples)


def _timed(subject: Subject, network: Any, examples: Examples) -> Timed:
    batch = min(subject.plan.batch, len(examples))
    precision = subject.precision
    if precision == "auto":
        precision = choose(network, examples, batch, "cpu", supervised).precision
    plan = replace(subject.plan, batch=batch, precision=precision, keep="last", patience=0)
    update = _update(network, examples, plan) * (1 if plan.tokens else subject.plan.batch / batch)
    some = min(len(examples), max(plan.batch, 256))
    judged = replace(examples, inputs=_first(examples.inputs, some), targets=_first(examples.targets, some), count=some)
    began = time.process_time()
    evaluate(network, judged, plan)
    return Timed(update, (time.process_time() - began) * subject.validation / some, precision)


def new_network_of(subject: Subject) -> Any:
    seed_torch(subject.plan.seed, "weights")
    return subject.build()


def _update(network: Any, examples: Examples, plan: Plan) -> float:
    """CPU seconds of an update whose rows are as long as on average: what more updates take than fewer."""
    few, more = FEW
    first = _seconds(network, examples, plan, few)
    second = _seconds(network, examples, plan, more)
    rest = max(1, min(MOST, int(ENOUGH / max((second - first) / (more - few), 1e-5))))
    spent = _seconds(network, examples, plan, few + rest) - first
    return spent / rest * _longer(examples, plan, few, rest)


def _seconds(network: Any, examples: Examples, plan: Plan, steps: int) -> float:
    trial = copy.deepcopy(network)
    plan = replace(plan, steps=steps, epochs=epochs_of(steps, examples, plan.batch, plan.seed, plan.tokens))
    began = time.process_time()
    fit(trial, examples, None, plan=plan, objective=supervised, title=say("plan.timing"))
    return time.process_time() - began


def _longer(examples: Examples, plan: Plan, skipped: int, timed: int) -> float:
    """How much longer the rows of all batches are, padding included, than those of the batches that were timed."""
    lengths = examples.lengths()
    if lengths is None:
        return 1.0
    sizes = np.array(
        [lengths[b].max() * len(b) for b in order(examples, plan.batch, plan.seed, 0, tokens=plan.tokens)], float
    )
    seen = sizes[np.arange(skipped, skipped + timed) % len(sizes)]
    return float(sizes.mean() / seen.mean())


def _first(encoded: Any, count: int) -> Any:
    return {
        n: Ragged(e.flat[: e.offsets[count]], e.offsets[: count + 1]) if isinstance(e, Ragged) else e[:count]
        for n, e in encoded.items()
    }
