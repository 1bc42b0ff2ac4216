"""What happens when training leaves the numbers: found before the update, named down to the row, undone, gone on from.

A loss or gradient that is not finite, or out of all bounds (`LIMIT`, `RISE`), stops the update. Then, in this order:

1. The weights are looked at, then the batch's examples, by halves, each half by itself: which rows are to blame? Only
   those that are so with the weights that were last good, too: with weights that have blown up many rows look bad.
2. Rows to blame: the batch is left out. The update was not made, so this is what going back and coming again would give.
   Nobody to blame: the run goes back to the last checkpoint that was good (without a folder: to a copy in memory), and as
   `on_divergence` says leaves the batch out when it comes to it again (`skip`), or goes on at a tenth of the rate (`slower`).
3. After `TRIES` of them, or with `on_divergence: stop` at once, Diverged is raised; the best weights so far are kept.

Each of these is told, stands in run.log and in the model's history. A run in which nothing happens is the same bits with
and without. Out of memory is answered by halving the part of a batch that is computed at once, see `Guard.halve`.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luban.console import record, tell
from luban.errors import Diverged, OutOfMemory
from luban.messages import say
from luban.nn.tokens import Batch
from luban.training import snapshot
from luban.training.random import seed_torch
from luban.training.ranks import Replicated
from luban.training.state import LIMIT, loss_of
from luban.training.steps import Numbers, backward, plain

TRIES = 3
CUT = 0.1  # what `slower` leaves of the rate
SHOWN = 8  # rows that a sentence names; the log names all


class Again(Exception):
    """The run was put back to where it stood before: its epoch is to be begun from there."""


class Guard:
    """Watches the steps of one `Run`. What it did stands in `run.history.incidents`, so that a resumed run knows it."""

    def __init__(self, run: Any):
        self.run, self.policy = run, run.plan.on_divergence
        self.good: Any = None  # without a folder: the run as it last was when it was sound
        self.newer: Any = None  # the same of later, before a step with its weights was made
        self.high = False  # whether the last loss looked like a divergence
        self.careful = -1  # up to this step an accelerator is waited for, so that the bad step is found
        self.begun = False
        self.given = set(
            wild(dict(run.network.named_buffers()))
        )  # constants of the network's own, such as "no bin here"

    # -- steps -------------------------------------------------------------------------------------------------------
    def step(self, batch: Batch) -> Numbers | None:
        """One step; None where its batch is left out. Raises Again, or Diverged where the run ends here."""
        run = self.run
        if (run.history.incidents or self.careful >= 0) and self._known():
            return None
        try:
            numbers = self._made(batch)
        except Diverged:
            self._met(batch)
            raise
        if not self.begun:
            self._begin(numbers)
        self._look(numbers)
        return numbers

    def _look(self, numbers: Numbers) -> None:
        """What the loss says of the weights that it was made with: are they a place to go back to?"""
        state = self.run.state
        self.high = not state.late and self._is_high(loss_of(numbers))
        if not self.high:
            self.good = self.newer or self.good
            self.run.history.sound = -1 if state.late else state.step
        self.newer = None

    def _is_high(self, loss: float) -> bool:
        first = self.run.history.first_loss
        return first is not None and not loss <= 10 * (first + 1)

    def _made(self, batch: Batch) -> Numbers:
        """The step; where memory is not enough for it, in twice as many pieces, and so from now on."""
        run = self.run
        while True:
            try:
                return run.make_step(run.state, batch, run.objective)
            except (RuntimeError, MemoryError) as e:
                if not exhausted(e):
                    raise
                reason = str(e)[:200]
            self._halve(batch, reason)  # outside of the except: what failed is let go of first
            seed_torch(run.plan.seed, "dropout", run.state.step, *run.ranks.own)

    def _halve(self, batch: Batch, reason: str) -> None:
        """Raises OutOfMemory where the network's examples depend on each other, or there is one left."""
        run = self.run
        whole = max(run.plan.batch, batch.size)
        pieces = 2 * run.state.pieces
        able = run.make_step is plain and run.separable and run.ranks.world == 1
        if not able or pieces > batch.size:
            raise OutOfMemory("guard.no_memory", batch=-(-whole // run.state.pieces), reason=reason)
        self._discard()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        run.state.pieces = run.history.pieces = pieces
        record("out_of_memory", step=run.state.step, pieces=pieces, reason=reason)
        tell("guard.halved", batch=whole, pieces=pieces, piece=-(-whole // pieces))

    def _known(self) -> bool:
        """Whether this step's batch is left out; sets what earlier incidents have left behind."""
        state, incidents = self.run.state, self.run.history.incidents
        state.slower = CUT ** sum(i["action"] == "slower" for i in incidents)
        state.late = state.far and state.step > self.careful
        return any(i["action"] == "left_out" and i["step"] == state.step for i in incidents)

    def _begin(self, numbers: Numbers) -> None:
        """The first loss says what a loss of this run is."""
        self.begun, history = True, self.run.history  # of this process
        if history.first_loss is None and not self.run.state.late:
            history.first_loss = loss_of(numbers)
        self.run.state.ceiling = ceiling(history.first_loss)

    def late(self) -> None:
        """An accelerator may have skipped updates that were bad: then the run comes again, watched, to the first of them."""
        step = self.run.state.skipped()
        if step < 0:
            return
        if step <= self.careful:
            self._met(None)
        self.careful = step
        self._back()
        raise Again

    def unsound(self) -> None:
        """Before a checkpoint: weights that are not finite must not get into it. Raises Again or Diverged."""
        if self._wild():
            self._met(None)

    def judged(self, loss: float) -> None:
        """A validation loss must be a number, and no mean of what is left when bad rows are dropped. Raises as `step`."""
        run = self.run
        if math.isfinite(loss):
            return
        if "loss" in getattr(run.network, "lacks", ()):
            self._met(None)
        able = run.validation is not None and not self._wild()
        some = lambda rows: 0 < len(rows) < len(run.validation)  # noqa: E731
        if able and some(senseless(run)) and self._take_good() and some(rows := senseless(run)):
            self._end(self._incident("validation", rows))
        self._met(None)

    def _wild(self) -> list[str]:
        return [n for n in wild(self._all()) if n not in self.given]

    def _all(self, buffers: bool = True) -> dict[str, Tensor]:
        """Weights and buffers, where all of them lie in this rank."""
        if not isinstance(self.run.state.weights, Replicated):
            return {}
        return self.run.state.weights.read() if buffers else dict(self.run.network.named_parameters())

    # -- an incident -------------------------------------------------------------------------------------------------
    def _incident(self, cause: str, rows: list[Any], weights: list[str] | None = None) -> dict[str, Any]:
        state = self.run.state
        return {"step": state.step, "epoch": state.epoch + 1, "cause": cause, "rows": rows, "weights": weights or []}

    def _met(self, batch: Batch | None) -> None:
        """Who is to blame, and what is done about it. Raises Again or Diverged."""
        run = self.run
        names = wild(self._all(buffers=False))  # which have seen the batch that is to be judged
        rows = self._to_blame(batch) if batch is not None and not names else []
        blamed = bool(run.ranks.ask(lambda: bool(rows))())
        every = [] if batch is None or batch.rows is None else ids(batch.rows)
        incident = self._incident("weights" if names else "rows" if blamed else "batch", rows or every, names[:8])
        if self.policy == "stop" or self._before() >= TRIES:
            self._end(incident)
        chance = not blamed and not any(i["step"] == incident["step"] for i in run.history.incidents)
        left_out = blamed or (self.policy == "skip" and batch is not None)
        back = self._back(incident)
        self._remember(incident, "again" if chance else "left_out" if left_out else "slower", back)
        run.checkpoint()
        raise Again

    def _to_blame(self, batch: Batch) -> list[Any]:
        """Ids of the rows that are bad by themselves, with the weights as they are and with those that were last good."""
        run = self.run
        found = offending(run, batch)
        suspects = found if len(found) < batch.size or batch.size == 1 else []
        if not run.ranks.ask(lambda: bool(suspects))() or not self._take_good() or not suspects:
            return []
        part = batch.take(torch.tensor(suspects, device=run.plan.device))
        return ids(part.rows[offending(run, part)])

    def _take_good(self) -> bool:
        """The run gets what it had learned when it was last good, to judge rows with; False where that is not known. Its
        step and history stay, for the incident that is to be described: `_back` or `_end` then put back those, too.
        """
        run = self.run
        now, found = (run.state.step, run.state.epoch, run.history), self._good()
        if found is None:
            return False
        snapshot.put_back(run, *found)
        run.state.step, run.state.epoch, run.history = now
        return True

    def _remember(self, incident: dict[str, Any], action: str, back: int) -> None:
        run = self.run
        incident |= {"action": action, "back": back}
        run.history.incidents.append(incident)
        record("divergence", **incident)
        if run.ranks.first:
            tell(f"guard.{action}", what=what(incident), back=back, rate=self._rate())

    def _rate(self) -> str:
        """The rate that the cuts have left."""
        cuts = sum(i["action"] == "slower" for i in self.run.history.incidents)
        return f"{self.run.plan.rate * CUT**cuts:.3g}"

    def _end(self, incident: dict[str, Any]) -> None:
        """What is left behind are the weights of before."""
        record("divergence", **incident, action="stop")
        before, advice, found = self._before(), self._advice(incident), self._good()
        if found:
            snapshot.put_back(self.run, *found)
        self._discard()
        raise Diverged("guard.stop", what=what(incident), before=before, advice=advice)

    def _advice(self, incident: dict[str, Any]) -> str:
        """What to do; nothing that is done already."""
        if incident["cause"] in ("rows", "validation"):
            return say("guard.advice_rows")
        return say("guard.advice_rate" if self.policy == "slower" else "guard.advice_slower", rate=self._rate())

    def _before(self) -> int:
        """How often something was done about an incident, other than to try once more."""
        return sum(i["action"] != "again" for i in self.run.history.incidents)

    def _back(self, incident: dict[str, Any] | None = None) -> int:
        """Put the run back to where it was last good; what happened since is not forgotten. The step it stands at."""
        run, found = self.run, self._good()
        if found is None:
            self._end(incident or self._incident("batch", []))
        incidents, pieces = run.history.incidents, run.history.pieces
        snapshot.put_back(run, *found)
        run.history.incidents, run.history.pieces = incidents, pieces
        run.state.pieces = pieces or run.plan.accumulate
        self.newer, self.high = None, False
        self._discard()
        return run.state.step

    def _discard(self) -> None:
        """Gradients that no update is made of, those of objective and step included."""
        run = self.run
        run.state.discard()
        for owner in (run.objective, run.make_step):
            for module in getattr(owner, "modules", {}).values():
                if isinstance(module, torch.nn.Module):
                    module.zero_grad(set_to_none=False)

    def _good(self) -> Any:
        """The newest snapshot with whose weights a step was made that was sound: one of later may be of after the update
        that made them bad. Where there is none, the newest that was taken for good when it was saved.
        """
        run = self.run
        if not run.folder:
            return copy.deepcopy(self.good)
        return run.newest(good=True, before=run.history.sound + 1) or run.newest(good=True)

    # -- what is good ------------------------------------------------------------------------------------------------
    def suspect(self) -> bool:
        """Whether the loss looks as if the run diverges, though all is finite: no place to go back to."""
        return self.high or self._is_high(self.run.sums.loss())

    def keep(self) -> None:
        """Without a folder: remember the run as it is now, in memory."""
        if not (self.good and self.suspect()):
            tensors, state = snapshot.take(self.run)
            copies = {f: {n: t.detach().clone() for n, t in c.items()} for f, c in tensors.items()}
            kept = copies, copy.deepcopy(state)
            self.good, self.newer = (self.good, kept) if self.good else (kept, None)


# -- looking -------------------------------------------------------------------------------------------------------------

RISE = 1e6  # no loss is so many times larger than the first one and still of use


EXHAUSTED = re.compile("out.of.memory|can.t.allocate.memory", re.IGNORECASE)


def exhausted(e: BaseException) -> bool:
    """Whether an error of PyTorch means that there was not enough memory, of whatever device."""
    return isinstance(e, (torch.OutOfMemoryError, MemoryError)) or bool(EXHAUSTED.search(str(e)))


def ceiling(first: float | None) -> float:
    """The largest loss that is taken for one, when the first was `first`."""
    return min(LIMIT, RISE * (abs(first) + 1)) if first is not None and math.isfinite(first) else LIMIT


def wild(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of those with a value that is not finite, or as large as no weight is."""
    named = {n: t.detach() for n, t in tensors.items() if t.is_floating_point() and t.numel()}
    if not named:
        return []
    largest = torch.stack([m.float() for m in torch._foreach_norm(list(named.values()), ord=math.inf)])
    return [n for n, m in zip(named, largest.tolist()) if not m < LIMIT]


@torch.no_grad()
def senseless(run: Any) -> list[Any]:
    """Ids of the validation rows whose loss is not finite."""
    found, network = [], run.network
    network.eval()
    for index in np.array_split(
        np.arange(len(run.validation)), max(1, len(run.validation) // max(run.plan.batch, 256))
    ):
        batch = Batch.of(run.validation.arrays(index), run.plan.device)
        losses = [each for each, _ in network.loss(network(batch), batch).values()]
        bad = ~torch.stack(losses).isfinite().all(0)
        found += [] if batch.rows is None else ids(batch.rows[bad.cpu().numpy()])
    return found


@torch.enable_grad()
def offending(run: Any, batch: Batch) -> list[int]:
    """Places in the batch of the rows that by themselves give a loss or gradient that is none; found by halving it.

    Empty where no part of the batch does, or it cannot be cut (a step with an own objective, weights spread over ranks).
    """
    state = run.state
    if run.objective is None or batch.rows is None or not isinstance(state.weights, Replicated):
        return []
    buffers = [(b, b.clone()) for b in state.network.buffers()]
    try:
        return _halved(run, batch, list(range(batch.size)))
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
        state.discard()


def _halved(run: Any, batch: Batch, index: list[int]) -> list[int]:
    if not index or not _bad(run, batch.take(torch.tensor(index, device=run.plan.device))):
        return []
    if len(index) == 1:
        return index
    middle = len(index) // 2
    return _halved(run, batch, index[:middle]) + _halved(run, batch, index[middle:])


def _bad(run: Any, part: Batch) -> bool:
    state = run.state
    state.discard()
    seed_torch(run.plan.seed, "dropout", state.step, *run.ranks.own)
    with state.autocast():
        losses = run.objective(state.network, part, state.rng())
    sums = {n: (each.detach().sum(), weight.sum()) for n, (each, weight) in losses.items()}
    backward(losses, sums)
    return not (float(state.flat.norm()) < LIMIT and abs(loss_of(sums)) < state.ceiling)


def ids(rows: Any) -> list[Any]:
    """Ids as JSON has them; of an example made of several rows, all of them."""
    return [r.tolist() if hasattr(r, "tolist") else r for r in rows]


def what(incident: dict[str, Any]) -> str:
    """The sentence that says what happened and who is to blame."""
    rows, names = incident["rows"], incident.get("weights", [])
    more = say("error.more", count=len(rows) - SHOWN) if len(rows) > SHOWN else ""
    cause = incident["cause"] if rows else f"{incident['cause']}_alone"
    return say(
        f"guard.what_{cause}", step=incident["step"], epoch=incident["epoch"], rows=rows[:SHOWN], more=more,
        weights=names,
    )  # fmt: skip
