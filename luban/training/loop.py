"""The one training loop, with two holes: what is minimised (objective) and how an update is made (step).

    fit(network, training, validation, objective=..., step=..., plan=..., folder=...) -> History

Everything that is random is a function of (seed, epoch, step), so a checkpoint needs weights, optimiser and a
position, and a resumed run goes on bit for bit. What a run is made of has a file each: `plan` (settings, history),
`feed` (batches), `state` (gradients, optimiser, update), `sums` (the loss so far), `validation`, `snapshot`
(what is kept), `checkpoints` (on disk), `signals`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luban.columns.examples import Examples
from luban.console import Progress, record, tell
from luban.errors import BundleError, DiskError, Unsupported
from luban.messages import say
from luban.nn.tokens import Batch
from luban.training import checkpoints, signals, snapshot
from luban.training.compiling import compiled
from luban.training.feed import Feed
from luban.training.guard import Again, Guard
from luban.training.objectives import Mixed
from luban.training.plan import History, Plan
from luban.training.precision import products
from luban.training.random import rng, seed_torch
from luban.training.ranks import here
from luban.training.remembering import remembering
from luban.training.signals import Stopped, listening
from luban.training.state import State
from luban.training.steps import plain
from luban.training.sums import Sums
from luban.training.validation import evaluate
from luban.training.watching import Ears

__all__ = ["History", "Plan", "State", "evaluate", "fit"]


REMEMBER = 10.0  # seconds between two copies in memory, of a run without a folder
SAVE, STOP = 1, 2  # what a rank may wish after a step: a checkpoint, or (times the signal's number) to end there


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
        data: str = "",
    ):
        self.data = data
        self.ranks, self.training = here(), training
        fixed = partial(rng, plan.seed, "windows")  # of a long text the same one in every epoch
        self.validation = validation.drawn(fixed) if validation is not None else None
        self.plan, self.objective, self.make_step, self.folder = plan, objective, step, folder
        self.feed = Feed(training, plan, self.ranks)
        whole = self.feed.updates
        self.total = min(plan.steps, whole) if plan.steps else whole
        self.state = State(network.to(plan.device), plan, self.total, self.ranks)
        self.network = self.state.network
        if hasattr(step, "begin"):
            step.begin(self.state)
        self.history, self.position, self.sums = History(), 0, Sums()
        self.shown: dict[str, float] = {}  # the last validation, beside the progress
        self.best: dict[str, Tensor] = {}
        self.saved_at = self.began = time.monotonic()
        self.began_cpu, self.earlier = time.process_time(), {}
        self.ears = Ears(self.ranks.first)
        self.guard = Guard(self)

    # -- one epoch ---------------------------------------------------------------------------------------------------
    def epoch(self, heard: Callable[[], int], progress: Progress) -> int:
        """Train to the end of the epoch; the signal that stopped it on the way, else 0."""
        self.state.train()
        for batch in self.feed.batches(self.state.epoch, self.position):
            if self.state.step >= self.total:
                break
            asked = self.ranks.ask(lambda: max(SAVE * self._due(), STOP * heard()))
            self._one(batch)
            self.position += 1
            if progress.due():
                self.guard.late()
                progress.update(self.state.step, {"loss": self.sums.loss(), **self.shown}, unit=say("progress.steps"))
            if self.ears.due():
                self.ears.step({"step": self.state.step, "loss": self.sums.loss(), "rate": self._rate()})
            wish = asked()
            if wish >= STOP:
                return wish // STOP
            if wish == SAVE:
                self.checkpoint()
        return 0

    def _due(self) -> bool:
        seconds = self.plan.checkpoint_seconds if self.folder else min(self.plan.checkpoint_seconds, REMEMBER)
        return time.monotonic() - self.saved_at > seconds

    def spent(self) -> dict[str, float]:
        """Seconds of this process and of those before it, for who goes on from here."""
        now = {"seconds": time.monotonic() - self.began, "cpu_seconds": time.process_time() - self.began_cpu}
        return {k: v + self.earlier.get(k, 0.0) for k, v in now.items()}

    def _one(self, batch: Batch) -> None:
        step = self.state.step
        seed_torch(self.plan.seed, "dropout", step, *self.ranks.own)
        numbers = self.guard.step(batch)
        if numbers is not None:
            self.sums.add(numbers)
        self.state.step += 1

    def _rate(self) -> float:
        return self.plan.rate * self.state.factor(self.state.step - 1)

    # -- the end of an epoch -----------------------------------------------------------------------------------------
    def finish_epoch(self, heard: Callable[[], int]) -> dict[str, float]:
        """Validate, remember, decide which weights are the best. Raises Stopped, with nothing judged, on a signal."""
        self.guard.late()
        self.state.weights.check()
        numbers = {"epoch": self.state.epoch + 1, "step": self.state.step, "loss": self.sums.loss()}
        left_out = [i for i in self.history.incidents if i["action"] == "left_out" and i["epoch"] == numbers["epoch"]]
        numbers |= {"left_out": len(left_out)} if left_out else {}
        if hasattr(self.make_step, "judged"):
            with self.state.averaged():
                watched, judged = self.make_step.judged(self)
            numbers |= judged
        else:
            if self.validation is not None and len(self.validation):
                with self.state.averaged():
                    judged = evaluate(self.network, self.validation, self.plan, self.ranks, heard)
                numbers |= {f"validation_{k}": v for k, v in judged.items()}
            watched = numbers.get("validation_loss", numbers["loss"])
        self.guard.judged(watched)
        self.history.epochs.append(numbers)
        self.shown = {k: v for k, v in numbers.items() if k.startswith(("validation_", "frechet"))}
        self.state.factor.judged(watched)
        if watched < self.history.best_loss:
            self.history.best, self.history.best_loss = self.state.epoch, watched
            with self.state.averaged():
                self.best = {k: v.detach().cpu().clone() for k, v in self.state.weights.read().items()}
        self.sums, self.position = Sums(), 0
        self.state.epoch += 1
        record("epoch", **numbers)
        return numbers

    def over(self) -> bool:
        patience = self.plan.patience
        if self.position:
            return False  # the last update is made, its epoch not yet judged
        if self.state.step >= self.total or self.state.epoch >= self.plan.epochs:
            return True
        since = max(self.history.best, self.feed.whole_from - 1)  # what is judged on whole images must have seen some
        if patience and self.state.epoch - 1 - since >= patience:
            self.history.stopped = "early"
            return True
        return False

    # -- saving ------------------------------------------------------------------------------------------------------
    def checkpoint(self, needed: bool = False) -> None:
        """On disk; without a folder in memory, to go back to. Raises Again where there is nothing good to keep.

        A disk that is full does not end the training: it is told, and tried again at the next time. Raises DiskError where
        it is `needed`: the process is about to end.
        """
        self.guard.late()
        self.guard.unsound()
        try:
            if self.folder is None:
                self.guard.keep()
            else:
                kept, owners = snapshot.take(self), self.state.optimizer.owners()
                good = not self.guard.suspect()
                self.state.weights.save(self.folder, self.state.step, *kept, owners, good=good)
        except DiskError as e:
            if needed:
                raise
            tell("checkpoint.not_written", step=self.state.step, reason=str(e))
        self.saved_at = time.monotonic()

    def resume(self) -> bool:
        """Take up the newest good checkpoint of the folder, if there is one.

        Raises RequestError, with nothing changed, where it is of other settings or other rows.
        """
        found = self.newest() if self.folder else None
        if found is None:
            return False
        tensors, state = found
        snapshot.same_run(self, state)
        try:
            snapshot.put_back(self, tensors, state)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, IndexError) as e:
            raise BundleError("bundle.bad_checkpoint", path=str(self.folder), reason=str(e)[:200]) from e
        self.earlier = state.get("spent", {})
        return True

    def newest(self, good: bool = False, before: int | None = None) -> Any:
        """The newest checkpoint (a good one, of an earlier step than `before`), the same in every rank: the first one
        tidies the folder up before the others look.
        """
        owners = self.state.optimizer.owners()

        def look() -> Any:
            return checkpoints.newest(
                self.folder, good=good, before=before, load=lambda path: self.state.weights.load(path, owners)
            )

        found = look() if self.ranks.first else None
        self.ranks.wait()
        found = found if self.ranks.first else look()
        self.ranks.same("checkpoint", found and found[1].get("step"))
        return found

    def go(self, heard: Callable[[], int], progress: Progress, watch: Callable[[dict[str, float]], None] | None) -> int:
        """Train to the end, and keep where that is; the signal that stopped it on the way, else 0."""
        while True:
            try:
                number = self._epochs(heard, progress, watch)
                self.checkpoint(needed=bool(number))
                return number
            except Again:
                continue

    def _epochs(self, heard: Callable[[], int], progress: Progress, watch: Any) -> int:
        while not self.over():
            try:
                number = self.epoch(heard, progress)
                if number:
                    return number
                numbers = self.finish_epoch(heard)
            except Stopped as e:
                return e.number
            if watch and self.ranks.first:
                watch(numbers)
            self.ears.epoch(numbers)
            number = self.ranks.ask(heard)()
            if number and not self.over():
                return number
        return 0


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
    data: str = "",
    title: str = "",
    watch: Callable[[dict[str, float]], None] | None = None,
    begun: Callable[[], None] = lambda: None,
) -> History:
    """Train `network` in place and leave it with the best weights (or the last, as the plan says), in eval mode.

    `folder` gets checkpoints, the last one at the end; `resume` goes on from the newest. `begun` is called once nothing is refused any more. `data`: fingerprint of the rows,
    so that no other ones are taken for them. SIGINT and SIGTERM end after the running step with a checkpoint; the History
    says so. Raises Diverged (the network then holds the best weights so far), RequestError where a checkpoint to go on
    from is another run's, DiskError where that of a stopped run cannot be written.
    """
    separable = getattr(network, "separable", True) and getattr(objective, "separable", True)
    if plan.accumulate > 1 and not separable:
        raise Unsupported("train.not_separable")
    run = Run(network, training, validation, plan, objective, step, folder, data)
    run.separable = separable
    progress = Progress(title, run.total)
    goes_on = resume and run.resume()
    begun()
    if goes_on:
        progress.resume_at(run.state.step)
        run.history.stopped, run.history.signal = "done", 0
    else:
        run.checkpoint()  # the place to go back to, as long as there is no other
    try:
        ragged = training.lengths() is not None
        exact, fast = products(plan.precision, plan.device), compiled(run.network, plan.compile, ragged=ragged)
        changing = isinstance(objective, Mixed) or (plan.augment and bool(training.augmented))
        once = remembering(run.network, plan, changing=changing, alone=run.ranks.world == 1)
        with exact, fast, once, listening() as (stop, caught):
            number = run.go(lambda: caught[0] if stop.is_set() else signals.asked(), progress, watch)
            if stop.is_set() and run.ranks.world == 1:  # be it after the last step: what follows training is not begun
                number = caught[0]
            if number:
                run.history.stopped, run.history.signal = "signal", number
    finally:
        progress.close()
        run.history.step = run.state.step
        run.history.earlier = run.earlier
        if run.best and plan.keep == "best":
            run.state.weights.write(run.best)
        elif run.state.average:
            run.state.average.settle()
        run.state.release()
        network.eval()
    return run.history
