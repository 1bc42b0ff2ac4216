"""Which settings come next, and what came out so far: Optuna over a journal of JSON lines.

The journal is Optuna's own format (no pickle), so that `optuna-dashboard` and scripts read it too. A killed search goes on
from it: what is finished stays, what was running is taken up again from its own checkpoints. The sampler is made anew for
each trial from (seed, trial number), so that a search which was interrupted draws what the unbroken one would have drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from luban.errors import RequestError, need
from luban.messages import say
from luban.space import Dimension, label
from luban.training.random import key
from luban.tuning.goals import Goal

JOURNAL = "journal.jsonl"
ATTEMPTS = 3  # times that a trial is taken up again without having got an epoch further before its process died
REPEATS = 8  # draws that found nothing new, after which a combination of choices that was not tried is taken
LARGEST = 10_000  # combinations that are listed to find one
SETTLING = 3  # the first epoch after which a trial may be pruned


class NoLock:
    """The folder is held by one process, which alone writes the journal; a lock of its own would outlive a kill."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


@dataclass
class Trial:
    """One trial as the report shows it. `state`: complete, pruned, failed, running."""

    number: int
    state: str
    values: dict[str, Any]
    found: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    @property
    def score(self) -> float | None:
        return self.found.get("value") if self.state == "complete" else None


class Study:
    """One search in a folder. Not safe for several threads by itself; `luban.tuning.search` holds a lock."""

    def __init__(
        self, folder: Path, dimensions: Sequence[Dimension], goal: Goal, seed: int, *, about: str, prune: bool
    ):
        self.optuna = need("optuna", "tune")
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        self.dimensions, self.goal, self.seed = list(dimensions), goal, seed
        folder.mkdir(parents=True, exist_ok=True)
        self.study = self._open(folder / JOURNAL, prune)
        before = self.study.user_attrs.get("about")
        if before not in (None, about):
            raise RequestError("tune.other_search", path=str(folder.parent))
        if before is None:
            self.study.set_user_attr("about", about)

    def _open(self, path: Path, prune: bool) -> Any:
        storages = self.optuna.storages
        _mend(path)
        backend = storages.journal.JournalFileBackend(str(path), lock_obj=NoLock())
        pruners = self.optuna.pruners
        pruner = (
            pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=SETTLING, n_min_trials=3)
            if prune
            else pruners.NopPruner()
        )
        return self.optuna.create_study(
            storage=storages.JournalStorage(backend), study_name="luban", pruner=pruner, load_if_exists=True,
            direction="maximize" if self.goal.higher else "minimize", sampler=self._sampler(0),
        )  # fmt: skip

    def _sampler(self, number: int, place: int = 0) -> Any:
        """For each setting of a trial anew too: a kill between two of them must not change the second."""
        return self.optuna.samplers.TPESampler(
            seed=key(self.seed, "tune", number, place) & (2**32 - 1), n_startup_trials=6, constant_liar=True
        )

    # -- what comes next -----------------------------------------------------------------------------------------------
    def begin(self, first: Mapping[str, Any]) -> None:
        """The first trial has the recipe's own settings: these where they lie in the space, else what the recipe leaves open.

        So no search ends below the recipe it began from, and what it gained can be told.
        """
        if not self.study.trials:
            drawn = {d.path: label(first[d.path]) for d in self.dimensions if d.holds(first.get(d.path))}
            self.study.enqueue_trial(drawn, user_attrs={"own": list(drawn)})

    def interrupted(self) -> list[tuple[Any, dict[str, Any]]]:
        """Trials whose process died, each to be taken up again; one that dies again and again at the same place has failed."""
        states, again = self.optuna.trial.TrialState, []
        for old in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            self.study.sampler = self._sampler(old.number)
            trial = self.optuna.trial.Trial(self.study, old._trial_id)
            if self.worth_another(trial):
                again.append((trial, self._draw(trial)))
            else:
                self.finish(trial, {"state": "failed", "why": say("tune.died_again", count=ATTEMPTS + 1)}, died=True)
        return again

    def worth_another(self, trial: Any) -> bool:
        """Whether a trial whose process died is taken up again: it got further since the last time, or has not died often."""
        old = self.study.get_trials(deepcopy=False)[trial.number]
        reached = len(old.intermediate_values)
        stuck = reached <= old.user_attrs.get("reached", -1)
        attempts = old.user_attrs.get("attempts", 0) + 1 if stuck else 1
        trial.set_user_attr("attempts", attempts)
        trial.set_user_attr("reached", reached)
        return attempts <= ATTEMPTS

    def next(self) -> tuple[Any, dict[str, Any]] | None:
        """A new trial and its settings, none that was tried before; None where nothing new is found any more."""
        seen = {_same(t.values) for t in self.trials()}
        for _ in range(REPEATS):
            self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
            trial = self.study.ask()
            values = self._draw(trial)
            if _same(values) not in seen:
                return trial, values
            trial.set_user_attr("repeated", True)
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
        left = next((c for c in self._combinations() if _same(c) not in seen), None)
        if left is None:
            return None
        self.study.enqueue_trial({p: label(v) for p, v in left.items()})
        trial = self.study.ask()
        return trial, self._draw(trial)

    def _combinations(self) -> Iterator[dict[str, Any]]:
        """Every combination there is, where all settings are choices and they are not too many."""
        if all(d.choices for d in self.dimensions) and math.prod(len(d.choices) for d in self.dimensions) <= LARGEST:
            for drawn in product(*(d.choices for d in self.dimensions)):
                values: dict[str, Any] = {}
                for d, value in zip(self.dimensions, drawn):
                    values |= {d.path: value} if d.active(values) else {}
                yield values

    def _draw(self, trial: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        own = trial.user_attrs.get("own")
        for place, d in enumerate(self.dimensions, 1):
            self.study.sampler = self._sampler(trial.number, place)
            if not d.active(values) or (own is not None and d.path not in own):
                continue
            if d.choices:
                drawn = trial.suggest_categorical(d.path, d.labels())
            elif d.whole:
                drawn = trial.suggest_int(d.path, int(d.low), int(d.high), log=d.scale == "log")
            else:
                drawn = _rounded(trial.suggest_float(d.path, d.low, d.high, log=d.scale == "log"), d)
            values[d.path] = d.value(drawn)
        return values

    # -- what came out -------------------------------------------------------------------------------------------------
    def epoch(self, trial: Any, epoch: int, loss: float) -> bool:
        """Remember an epoch's validation loss; whether the trial should be pruned."""
        if epoch in self.study.get_trials(deepcopy=False)[trial.number].intermediate_values:
            return False  # made once before it was interrupted, and kept then
        trial.report(-loss if self.goal.higher else loss, epoch)
        return bool(trial.should_prune())

    def finish(self, trial: Any, found: Mapping[str, Any], *, died: bool = False) -> None:
        """Write down a result. Settings that failed count as bad, unless their process died: that may not be their fault."""
        states = self.optuna.trial.TrialState
        trial.set_user_attr("found", dict(found))
        if found["state"] == "complete":
            self.study.tell(trial, found["value"])
        else:
            self.study.tell(trial, state=states.FAIL if died else states.PRUNED)

    def trials(self) -> list[Trial]:
        """Every trial but repetitions of an earlier one, in their order."""
        found = []
        by_path = {d.path: d for d in self.dimensions}
        for t in self.study.get_trials(deepcopy=False):
            if t.user_attrs.get("repeated") or t.state == self.optuna.trial.TrialState.WAITING:
                continue
            values = {p: by_path[p].value(_rounded(v, by_path[p])) for p, v in t.params.items() if p in by_path}
            result = t.user_attrs.get("found") or {}
            losses = [-v if self.goal.higher else v for _, v in sorted(t.intermediate_values.items())]
            found.append(Trial(t.number, result.get("state", "running"), values, result, losses))
        return found

    def best(self) -> Trial | None:
        return min((t for t in self.trials() if t.score is not None), key=self.rank, default=None)

    def rank(self, t: Trial) -> tuple[Any, ...]:
        """The better score first; of equal ones the lower loss, then the earlier; those without a score last."""
        sign = -1 if self.goal.higher else 1
        return t.score is None, sign * (t.score or 0.0), t.found.get("loss") or math.inf, t.number

    def importance(self) -> dict[str, float]:
        """Share of each setting in what made scores differ (PED-ANOVA, Watanabe et al. 2023); {} for few trials."""
        scores = [t.score for t in self.trials() if t.score is not None]
        if len(scores) < 8 or len(set(scores)) < 3:
            return {}
        return {k: float(v) for k, v in self.optuna.importance.get_param_importances(self.study).items()}

    @property
    def spent(self) -> float:
        return self.study.user_attrs.get("spent", 0.0)

    def spend(self, seconds: float) -> None:
        self.study.set_user_attr("spent", round(seconds, 1))


def _rounded(value: Any, dimension: Dimension) -> Any:
    """Six digits are enough for a setting that was drawn from a range, and can be read."""
    return value if dimension.choices or dimension.whole else float(f"{value:.6g}")


def _same(values: Mapping[str, Any]) -> str:
    return json.dumps({k: label(v) for k, v in values.items()}, sort_keys=True, default=str)


def _mend(path: Path) -> None:
    """A kill in the middle of a write leaves half a line at the end, which would make every later line unreadable."""
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with open(path, "r+b") as file:
            file.truncate(len(whole))
