"""The one training loop, with two holes: what is minimised (objective) and how an update is made (step).

    fit(network, training, validation, objective=..., step=..., plan=..., folder=...) -> History

Everything that is random is a function of (seed, epoch, step), so a checkpoint needs weights, optimiser and a
position, and a resumed run goes on bit for bit.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luban.columns.examples import Examples
from luban.console import Progress, record, tell
from luban.errors import BundleError, Diverged
from luban.messages import say
from luban.nn.tokens import Batch
from luban.training import checkpoints, optimizers
from luban.training.batches import batches_in, order
from luban.training.precision import autocast
from luban.training.random import rng, seed_torch
from luban.training.steps import plain


@dataclass(frozen=True)
class Plan:
    """The settings of one run, all resolved. `steps` (0 = none) cuts `epochs` short; `patience` 0 = never stop early."""

    epochs: int
    batch: int
    rate: float
    steps: int = 0
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: float = 0.05
    clip: float = 1.0
    patience: int = 0
    augment: bool = True
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    keep: str = "best"
    checkpoint_seconds: float = 60.0


@dataclass
class History:
    """What happened: one dict an epoch, the best epoch, why it stopped ("done", "early", "signal")."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    best: int = -1
    best_loss: float = math.inf
    stopped: str = "done"
    signal: int = 0
    step: int = 0
    seconds: float = 0.0


class State:
    """What a step works on. Gradients are views of one flat buffer, so that a norm, a finite check and a zero are one call."""

    def __init__(self, network: nn.Module, plan: Plan, total: int):
        self.network, self.plan, self.step, self.epoch = network, plan, 0, 0
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.flat = torch.zeros(sum(p.numel() for p in self.parameters), device=plan.device)
        start = 0
        for p in self.parameters:
            p.grad = self.flat[start : start + p.numel()].view_as(p)
            start += p.numel()
        self.optimizer = optimizers.Optimizer(
            network, name=plan.optimizer, momentum=plan.momentum, weight_decay=plan.weight_decay
        )
        self.factor = optimizers.schedule(plan.schedule, plan.warmup, total)

    def rng(self) -> np.random.Generator:
        return rng(self.plan.seed, "objective", self.step)

    def autocast(self) -> Any:
        """The context of a forward pass, by the plan's precision."""
        return autocast(self.plan.precision, self.plan.device)

    def update(self) -> None:
        """Clip, check, step and zero. Raises Diverged before the weights are touched when a gradient is not finite."""
        norm = float(self.flat.norm())
        if not math.isfinite(norm):
            raise Diverged("train.diverged", step=self.step, epoch=self.epoch + 1)
        if self.plan.clip and norm > self.plan.clip:
            self.flat.mul_(self.plan.clip / (norm + 1e-6))
        self.optimizer.update(self.plan.rate * self.factor(self.step))
        self.flat.zero_()


class Run:
    """One call of `fit`: the state, where it stands in its epoch, and what it has seen."""

    def __init__(
        self,
        network: nn.Module,
        training: Examples,
        validation: Examples | None,
        plan: Plan,
        objective: Any,
        step: Any,
        folder: Path | None,
    ):
        self.network, self.training, self.validation = network.to(plan.device), training, validation
        self.plan, self.objective, self.make_step, self.folder = plan, objective, step, folder
        self.per_epoch = batches_in(len(training), plan.batch)
        whole = plan.epochs * self.per_epoch
        self.total = min(plan.steps, whole) if plan.steps else whole
        self.state = State(network, plan, self.total)
        self.history, self.position = History(), 0
        self.sums: dict[str, list[float]] = {}
        self.shown: dict[str, float] = {}  # the last validation, beside the progress
        self.pending: list[dict[str, tuple[Tensor, Tensor]]] = []
        self.best: dict[str, Tensor] = {}
        self.saved_at = time.monotonic()

    # -- one epoch ---------------------------------------------------------------------------------------------------
    def epoch(self, stop: threading.Event, progress: Progress) -> bool:
        """Train to the end of the epoch; False when stopped on the way."""
        self.network.train()
        batches = order(self.training, self.plan.batch, self.plan.seed, self.state.epoch)
        while self.position < len(batches) and self.state.step < self.total:
            index = batches[self.position]
            self._one(index)
            self.position += 1
            if progress.due():
                self._read_sums()
                progress.update(self.state.step, {"loss": self._loss(), **self.shown}, unit=say("progress.steps"))
            if stop.is_set():
                return False
            if self.folder and time.monotonic() - self.saved_at > self.plan.checkpoint_seconds:
                self.checkpoint()
        return True

    def _one(self, index: np.ndarray) -> None:
        seed, step = self.plan.seed, self.state.step
        augment = rng(seed, "augment", step) if self.plan.augment else None
        batch = Batch.of(self.training.arrays(index, augment), self.plan.device)
        seed_torch(seed, "dropout", step)
        try:
            self.pending.append(self.make_step(self.state, batch, self.objective))
        except Diverged as e:
            rows = [] if batch.rows is None else [int(r) for r in batch.rows[:8]]
            raise Diverged("train.diverged_rows", step=step, epoch=self.state.epoch + 1, rows=rows) from e
        self.state.step += 1

    def _read_sums(self) -> None:
        for numbers in self.pending:
            for name, (total, weight) in numbers.items():
                sums = self.sums.setdefault(name, [0.0, 0.0])
                sums[0] += float(total)
                sums[1] += float(weight)
        self.pending.clear()

    def _loss(self) -> float:
        return sum(total / max(weight, 1e-12) for total, weight in self.sums.values())

    # -- the end of an epoch -----------------------------------------------------------------------------------------
    def finish_epoch(self) -> dict[str, float]:
        """Validate, remember, decide which weights are the best."""
        self._read_sums()
        numbers = {"epoch": self.state.epoch + 1, "step": self.state.step, "loss": self._loss()}
        if self.validation is not None and len(self.validation):
            numbers |= {f"validation_{k}": v for k, v in evaluate(self.network, self.validation, self.plan).items()}
        self.history.epochs.append(numbers)
        self.shown = {k: v for k, v in numbers.items() if k.startswith("validation_")}
        watched = numbers.get("validation_loss", numbers["loss"])
        if not math.isfinite(watched):
            raise Diverged("train.diverged", step=self.state.step, epoch=self.state.epoch + 1)
        if watched < self.history.best_loss:
            self.history.best, self.history.best_loss = self.state.epoch, watched
            self.best = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}
        self.sums, self.position = {}, 0
        self.state.epoch += 1
        record("epoch", **numbers)
        return numbers

    def over(self) -> bool:
        patience = self.plan.patience
        if self.position:
            return False  # the last update is made, its epoch not yet judged
        if self.state.step >= self.total or self.state.epoch >= self.plan.epochs:
            return True
        if patience and self.state.epoch - 1 - self.history.best >= patience:
            self.history.stopped = "early"
            return True
        return False

    # -- saving ------------------------------------------------------------------------------------------------------
    def checkpoint(self) -> None:
        self._read_sums()
        if self.folder is None:
            return
        owned = {key: thing() for key, (thing, _) in self._owned().items()}
        tensors = {
            "model": self.network.state_dict(),
            "optimizer": self.state.optimizer.tensors(),
            "best": self.best,
            **owned,
        }
        state = {
            "plan": asdict(self.plan),
            "step": self.state.step,
            "epoch": self.state.epoch,
            "position": self.position,
            "sums": self.sums,
            "history": asdict(self.history),
            "examples": len(self.training),
            "owned": [o.state() if hasattr(o, "state") else None for o in (self.objective, self.make_step)],
        }
        checkpoints.save(self.folder, self.state.step, tensors, state)
        self.saved_at = time.monotonic()

    def _owned(self) -> dict[str, tuple[Callable[[], dict[str, Tensor]], Callable[[dict[str, Tensor]], Any]]]:
        """What objective and step own, as (read, restore) by file name."""
        found = {}
        for i, owner in enumerate((self.objective, self.make_step)):
            for name, module in getattr(owner, "modules", {}).items():
                found[f"owned-{i}-{name}"] = (module.state_dict, module.load_state_dict)
            for name, optimizer in getattr(owner, "optimizers", {}).items():
                found[f"owned-{i}-{name}-optimizer"] = (optimizer.tensors, optimizer.restore)
        return found

    def resume(self) -> bool:
        """Take up the newest good checkpoint of the folder, if it is one of this plan."""
        found = checkpoints.newest(self.folder) if self.folder else None
        if found is None:
            return False
        tensors, state = found
        free = {"checkpoint_seconds": self.plan.checkpoint_seconds}  # changes nothing that is learned
        same = isinstance(state, dict) and {**(state.get("plan") or {}), **free} == asdict(self.plan)
        if not same or state.get("examples") != len(self.training):
            tell("train.other_checkpoint")
            return False
        try:
            self._take_up(tensors, state)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, IndexError) as e:
            raise BundleError("bundle.bad_checkpoint", path=str(self.folder), reason=str(e)[:200]) from e
        return True

    def _take_up(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        self.network.load_state_dict(tensors["model"])
        self.state.optimizer.restore(tensors["optimizer"])
        self.best = tensors["best"]
        self.state.step, self.state.epoch, self.position = state["step"], state["epoch"], state["position"]
        self.sums, self.history = state["sums"], History(**state["history"])
        for key, (_, restore) in self._owned().items():
            restore(tensors[key])
        for i, owner in enumerate((self.objective, self.make_step)):
            if hasattr(owner, "restore"):
                owner.restore(state["owned"][i])


def fit(
    network: nn.Module,
    training: Examples,
    validation: Examples | None,
    *,
    plan: Plan,
    objective: Callable[..., Any],
    step: Callable[..., Any] = plain,
    folder: Path | None = None,
    resume: bool = False,
    title: str = "",
    watch: Callable[[dict[str, float]], None] | None = None,
) -> History:
    """Train `network` in place and leave it with the best weights (or the last, as the plan says), in eval mode.

    `folder` gets checkpoints; `resume` goes on from the newest. SIGINT and SIGTERM end after the running step with a
    checkpoint; the History says so. Raises Diverged (the network then holds the best weights so far).
    """
    run = Run(network, training, validation, plan, objective, step, folder)
    progress = Progress(title, run.total)
    if resume and run.resume():
        progress.resume_at(run.state.step)
        run.history.stopped, run.history.signal = "done", 0
    began = time.monotonic()
    try:
        with listening() as (stop, caught):
            while not run.over():
                if not run.epoch(stop, progress):
                    run.history.stopped, run.history.signal = "signal", caught[0]
                    break
                numbers = run.finish_epoch()
                if watch:
                    watch(numbers)
                if stop.is_set() and not run.over():
                    run.history.stopped, run.history.signal = "signal", caught[0]
                    break
            if run.history.stopped == "signal":
                run.checkpoint()
    finally:
        progress.close()
        run.history.step = run.state.step
        run.history.seconds += time.monotonic() - began
        if run.best and plan.keep == "best":
            network.load_state_dict(run.best)
        for p in run.state.parameters:
            p.grad = None
        network.eval()
    return run.history


@torch.no_grad()
def evaluate(network: Any, examples: Examples, plan: Plan) -> dict[str, float]:
    """The mean loss over all outputs, and each output's glance (accuracy, mean absolute error) in evaluation mode."""
    was = network.training
    network.eval()
    sums: dict[str, list[float]] = {}
    for index in np.array_split(np.arange(len(examples)), max(1, len(examples) // max(plan.batch, 256))):
        batch = Batch.of(examples.arrays(index), plan.device)
        o = network(batch)
        numbers = {("loss", n): pair for n, pair in network.loss(o, batch).items()}
        numbers |= {("glance", k): pair for k, pair in getattr(network, "glance", lambda *_: {})(o, batch).items()}
        for key, (each, weight) in numbers.items():
            pair = sums.setdefault(key, [0.0, 0.0])
            pair[0] += float(each.sum())
            pair[1] += float(weight.sum())
    network.train(was)
    mean = {key: total / max(weight, 1e-12) for key, (total, weight) in sums.items()}
    return {"loss": sum(v for (kind, _), v in mean.items() if kind == "loss")} | {
        k: v for (kind, k), v in mean.items() if kind == "glance"
    }


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
