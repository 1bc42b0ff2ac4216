"""A plan laid over devices: bytes of memory on each, bytes that each sends, seconds of an update.

- one: one device. ddp: every device holds everything and the gradients are summed (all-reduce, 2 (n - 1) / n of them).
- fsdp: weights, gradients and optimiser are cut into n parts; a layer is gathered when it is needed, in the forward and in
  the backward pass, and its gradients are summed and scattered (ZeRO stage 3, Rajbhandari et al. 2020): 3 (n - 1) / n.
- tensor: every matrix is cut over the devices of one node, activations too (sequence parallel, Korthikanti et al. 2022);
  between nodes as fsdp.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import torch

from luban.errors import Problem, problem
from luban.planning import trace
from luban.planning.hardware import Device
from luban.planning.subject import Subject
from luban.planning.trace import HALVES, Standing, Step
from luban.scale import clashes
from luban.training.divided import unfit
from luban.training.recompute import recomputed
from luban.training.shares import freeze

STRATEGIES = ("ddp", "fsdp", "tensor")
OWN = ("ddp", "fsdp")  # those that Luban trains with; a recipe can name them
PREFETCHED = 2  # layers that fsdp holds whole at once: the one at work and the next
JUDGED = 256  # examples that validation takes at once, at least
MOST = 1 << 20  # devices
BACKWARD = 2 / 3  # of a step's work, behind which gradients can be sent


@dataclass(frozen=True)
class Setup:
    """What a person can change about a run without changing what is learned."""

    device: Device
    devices: int
    strategy: str  # one, ddp, fsdp, tensor
    precision: str
    accumulate: int = 1
    recompute: bool = False

    @property
    def cut(self) -> int:
        """Devices that share every matrix."""
        return min(self.devices, self.device.per_node) if self.strategy == "tensor" else 1

    @property
    def replicas(self) -> int:
        """Groups of devices that work on examples of their own."""
        return self.devices // self.cut

    def micro(self, batch: int) -> int:
        """Examples that a device works on at once."""
        return -(-batch // (self.replicas * self.accumulate))


class Measured:
    """The counts of one subject, made when they are asked for and kept. `fused`: attention as accelerators compute it."""

    def __init__(self, subject: Subject, fused: bool):
        self.subject, self.fused = subject, fused
        self._fakes = trace.fakes()
        self._steps: dict[tuple[int, str, bool, bool], Step] = {}

    @cached_property
    def standing(self) -> Standing:
        with torch.device("meta"):
            return trace.standing(self.subject.build(), self.subject.plan)

    @cached_property
    def network(self) -> Any:
        with self._fakes:
            network = self.subject.build()
            freeze(network, self.subject.plan.freeze)
            return network

    @cached_property
    def unfit(self) -> dict[str, list[Problem]]:
        """Why several ranks cannot train the network, by strategy."""
        return {way: list(unfit(self.network, way)) for way in OWN}

    @cached_property
    def separable(self) -> bool:
        """Whether an update may be made of pieces."""
        mixed = any(self.subject.settings.get(name) for name in ("mixup", "cutmix"))
        return getattr(self.network, "separable", True) and not mixed

    def of(self, subject: Subject) -> Measured:
        """The same counts for the same network with another batch."""
        other = copy.copy(self)
        other.subject = subject
        vars(other).pop("judged", None)
        return other

    @cached_property
    def judged(self) -> int:
        """Bytes that judging the validation rows takes at once."""
        count = self.subject.validation
        if not count:
            return 0
        chunks = max(1, count // max(self.subject.plan.batch, JUDGED))
        network = self.network
        with self._fakes:
            return trace.forward_peak(network, self.subject.batch(-(-count // chunks), True))

    def step(self, examples: int, precision: str, recompute: bool, longest: bool = True) -> Step:
        """One micro-batch, of rows as long as the longest (for memory) or as on average (for time)."""
        longest = longest or self.subject.positions == self.subject.longest
        key = (examples, precision, recompute, longest)
        if key not in self._steps:
            network = self.network
            with self._fakes, recomputed(network) if recompute else nullcontext():
                batch = self.subject.batch(examples, longest)
                self._steps[key] = trace.step(network, batch, precision=precision, fused=self.fused)
        return self._steps[key]

    def _seen(self, *kind: Any) -> list[int]:
        return sorted(k[0] for k in self._steps if k[1:] == kind)

    def pace(self, examples: int, precision: str, recompute: bool) -> Step:
        """One micro-batch of average rows, for its time: measured at one size, in proportion for others."""
        longest = self.subject.positions == self.subject.longest
        seen = self._seen(precision, recompute, longest)
        base = next((n for n in seen if n >= examples), seen[-1] if seen else examples)
        found = self.step(base, precision, recompute, longest)
        return found if base == examples else found.scaled(examples)

    def memory(self, examples: int, precision: str, recompute: bool) -> tuple[float, float]:
        """(bytes of activations at the worst moment, of these copies of weights).

        Between two measured sizes a straight line: the peak is the largest of several lines, so this is never too little.
        """
        seen = self._seen(precision, recompute, True)
        if examples in seen or examples <= 2 or not seen or examples > seen[-1]:
            step = self.step(examples, precision, recompute)
            return step.peak, step.casts
        low, high = self.step(min(2, seen[-1]), precision, recompute), self.step(seen[-1], precision, recompute)
        part = (examples - low.examples) / (high.examples - low.examples)
        return low.peak + (high.peak - low.peak) * part, high.casts


@dataclass(frozen=True)
class Layout:
    """One setup of one subject: bytes on a device by what they are for, bytes sent and seconds for an update."""

    setup: Setup
    micro: int
    memory: dict[str, float]
    limit: float
    sent: float
    link: str
    sending: float
    computing: float
    seconds: float
    refused: tuple[Problem, ...] = ()  # why training would refuse it

    @property
    def total(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.limit

    def able(self, batch: int) -> bool:
        """Whether it can be trained so, and every device has something to do."""
        return self.fits and not self.refused and not self.idle(batch)

    def idle(self, batch: int) -> int:
        """Devices that an update of `batch` examples leaves without any."""
        return max(0, self.setup.replicas - batch) * self.setup.cut

    @property
    def share(self) -> float:
        """Of an update's time, that the link is busy."""
        return self.sending / self.seconds if self.seconds else 0.0


def lay(
    measured: Measured,
    setup: Setup,
    *,
    achieved: float | None = None,
    beside: dict[str, float] | None = None,
    timed: float | None = None,
) -> Layout:
    """Memory, traffic and time of a setup. `achieved`: share of the peak instead of the roofline; `beside`: more bytes on
    the device, by name; `timed`: seconds that an update was seen to take.
    """  # fmt: skip
    micro = setup.micro(measured.subject.update)
    sent, link, sending = _traffic(measured, setup, micro)
    computing = timed if timed is not None else _computing(measured, setup, micro, achieved)
    hidden = computing * {"ddp": BACKWARD, "fsdp": 1.0}.get(setup.strategy, 0.0)
    seconds = computing + max(0.0, sending - hidden)
    return Layout(
        setup, micro, bytes_on(measured, setup, beside), room(setup.device), sent, link, sending, computing, seconds,
        refusals(measured, setup),
    )  # fmt: skip


def refusals(measured: Measured, setup: Setup) -> tuple[Problem, ...]:
    """Why training would refuse a setup; another engine's `tensor` is not judged."""
    if setup.strategy == "tensor":
        return ()
    pieces = {"accumulate": setup.accumulate}
    found = [*measured.unfit.get(setup.strategy, ()), *clashes(setup.strategy, {**measured.subject.settings, **pieces})]
    if setup.accumulate > 1 and not measured.separable:
        found.append(problem("train.not_separable", place="train.accumulate"))
    if hasattr(measured.network, "rivals") and setup.recompute:
        found.append(problem("gan.not_so", place="train.recompute", settings=["recompute"]))
    return tuple(found)


def room(device: Device) -> float:
    """Bytes that tensors can have."""
    return device.memory * device.assumed("memory_share")


def bytes_on(measured: Measured, setup: Setup, beside: dict[str, float] | None = None) -> dict[str, float]:
    """Bytes on one device, by what they are for."""
    s, micro = measured.standing, setup.micro(measured.subject.most)
    peak, casts = measured.memory(micro, setup.precision, setup.recompute)
    half = 0.5 if setup.precision in HALVES else 1.0
    gathered = 0.0
    parts = setup.devices if setup.strategy in ("fsdp", "tensor") else 1
    if setup.strategy == "fsdp" or (setup.strategy == "tensor" and setup.replicas > 1):
        peak -= casts  # layers are gathered in half precision already
        gathered = half * (s.root + (PREFETCHED + 1) * s.unit) / setup.cut  # and the gradients of one of them
    return {
        "weights": s.weights / parts + s.buffers,
        "gradients": s.gradients / parts,
        "optimizer": s.optimizer / parts,
        "gathered": gathered,
        "activations": max(peak, measured.judged) / setup.cut,
        "best": s.weights / parts + s.buffers
        if setup.device.cpu
        else 0.0,  # of the epochs so far, kept beside the processor
    } | (beside or {})


def _traffic(measured: Measured, setup: Setup, micro: int) -> tuple[float, str, float]:
    """Bytes that a device sends for one update, over which link, and the seconds of that."""
    s, n = measured.standing, setup.replicas
    half = 0.5 if setup.precision in HALVES else 1.0
    share = setup.device.assumed("link_share")
    link, speed = setup.device.wire(setup.devices)
    around = (n - 1) / n
    if setup.strategy == "ddp":
        sent = 2 * around * s.gradients
    elif setup.strategy in ("fsdp", "tensor"):
        sent = setup.accumulate * around * (2 * half * s.weights + s.gradients) / setup.cut
    else:
        return 0.0, "", 0.0
    seconds = sent / (speed * share) if sent else 0.0
    if setup.cut > 1:
        numbers = measured.pace(micro, setup.precision, setup.recompute).crossing * setup.accumulate
        inside = 2 * (setup.cut - 1) / setup.cut * numbers * 4 * half
        within, fast = setup.device.wire(setup.cut)
        sent, seconds = sent + inside, seconds + inside / (fast * share)
        link = within if setup.cut == setup.devices else f"{within} + {link}"
    return sent, link, seconds


def _computing(measured: Measured, setup: Setup, micro: int, achieved: float | None) -> float:
    """Seconds of an update's own work on a device: every kernel at the pace of the slower of arithmetic and memory."""
    d, s = setup.device, measured.standing
    step = measured.pace(micro, setup.precision, setup.recompute)
    if achieved:
        work = (step.forward + step.backward) / (d.peak(setup.precision) * achieved) / setup.cut
    else:
        rate = {h: d.peak(setup.precision if h else "fp32") * d.assumed("matrix_share") for h in (True, False)}
        wide, least = d.bandwidth * d.assumed("bandwidth_share"), d.assumed("kernel_seconds")
        work = sum(
            n * max(f / rate[h] / setup.cut, b / wide / setup.cut, least) for (f, b, h), n in step.kernels.items()
        )
    parts = setup.devices if setup.strategy in ("fsdp", "tensor") else 1
    update = (2 * s.weights + 4 * s.gradients + 2 * s.optimizer) / parts / (d.bandwidth * d.assumed("bandwidth_share"))
    return setup.accumulate * work + update


# -- the nearest plan that fits ----------------------------------------------------------------------------------------------


def nearest(
    measured: Measured,
    asked: Setup,
    laid: Callable[[Setup], Layout],
    ways: Sequence[str],
    beside: dict[str, float] | None,
) -> Layout | None:
    """What can be trained and fits with the fewest settings changed, on as few other devices as will do; of several the
    fastest.

    Changed may be: precision (where the device has bf16), recompute, accumulate, strategy (one of `ways`), devices.
    None where nothing does on a million devices.
    """
    batch, limit = measured.subject.update, room(asked.device)
    for count in _counts(asked, batch, ways, bool(refusals(measured, asked))):
        setups = [s for s in _setups(asked, count, batch, ways) if s.replicas <= batch and not refusals(measured, s)]
        for changes in sorted({_changes(asked, s) for s in setups}):
            some = [s for s in setups if _changes(asked, s) == changes]
            fitting = [s for s in some if sum(bytes_on(measured, s, beside).values()) <= limit]
            if fitting:
                return min((laid(s) for s in fitting), key=lambda e: e.seconds)
    return None


def _counts(asked: Setup, batch: int, ways: Sequence[str], refused: bool) -> list[int]:
    """As many devices as asked for, or as have something to do, or one where several cannot train this; then twice as many as
    asked for, and so on; a machine has one processor.
    """
    busy = batch * (asked.device.per_node if "tensor" in ways else 1)
    counts = [asked.devices, min(asked.devices, busy), *([1] if refused else [])]
    if not asked.device.cpu:
        counts += [asked.devices << i for i in range(MOST.bit_length() - asked.devices.bit_length() + 1)]
    return list(dict.fromkeys(counts))


def _setups(asked: Setup, count: int, batch: int, ways: Sequence[str]) -> list[Setup]:
    precisions = (
        [asked.precision, "bf16"] if asked.precision not in HALVES and asked.device.can("bf16") else [asked.precision]
    )
    again = [False, True] if not asked.recompute else [True]
    found = []
    for strategy, precision, recompute in product(ways if count > 1 else ("one",), precisions, again):
        setup = replace(asked, devices=count, strategy=strategy, precision=precision, recompute=recompute)
        whole = replace(setup, accumulate=1).micro(batch)
        steps = {1} | {asked.accumulate << i for i in range(whole.bit_length())}
        found += [replace(setup, accumulate=a) for a in sorted(steps) if a <= max(whole, asked.accumulate)]
    return found


def _changes(a: Setup, b: Setup) -> int:
    names = ("devices", "strategy", "precision", "accumulate", "recompute")
    return sum(getattr(a, n) != getattr(b, n) for n in names)
