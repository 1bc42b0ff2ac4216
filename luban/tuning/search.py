"""The search: trials until the budget is spent, every one on the same rows, judged on validation rows."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from luban import console
from luban.data.prepare import Data
from luban.errors import Stopped, WorkError
from luban.messages import listed, say
from luban.recipe import Recipe
from luban.settings import Count, NonNegative
from luban.space import Space, default_search, label, value_at, with_values
from luban.tuning.asked import judgeable
from luban.tuning.goals import Goal, goal_of
from luban.tuning.study import Study, Trial
from luban.tuning.workers import serve, workers

TRIALS = 20  # where neither trials nor minutes are named


def search(
    recipe: Recipe,
    data: Data,
    folder: Path,
    *,
    trials: Count | Literal["auto"] = "auto",
    minutes: NonNegative = 0.0,
    metric: str = "auto",
    search: dict[str, Any] = None,
    prune: bool = True,
    parallel: Count = 1,
    engine: Literal["local", "ray"] = "local",
) -> Found:
    """Look for settings in the space `search` (`luban.space`; a sensible one where none is given), from where it stands.

    `trials`: how many in all, earlier sessions in the folder included; auto = 20, or as many as `minutes` allow (0: no
    limit). `metric`: auto, loss, a metric of the output, or OUTPUT.METRIC. `prune`: end trials early whose validation loss is
    above the median of the others'. `parallel`: trials at the same time. Raises RequestError where there are no validation
    rows or the folder holds another search, MissingExtra without Optuna, WorkError where no trial succeeds, Stopped.
    """
    judgeable(data)
    space = dict(search or default_search(recipe))
    dimensions = Space({**recipe.plain(), "tune": {"search": space}}).dimensions()
    goal = goal_of(recipe, metric)
    fixed = _about(recipe, data, dimensions, goal, prune)
    study = Study(folder, dimensions, goal, recipe.seed, about=fixed, prune=prune)
    study.begin({d.path: value_at(recipe, d.path) for d in dimensions})
    most = (TRIALS if not minutes else None) if trials == "auto" else trials
    board = Board(study, recipe, folder, goal, most, minutes * 60 or None)
    crew = workers(engine, parallel, data, folder)
    try:
        serve(board, crew)
    finally:
        for worker in crew:
            worker.close()
    if board.signal:
        raise Stopped("tune.stopped", number=board.signal, count=len(board.done()))
    best = study.best()
    if best is None:
        failed = [t.found.get("why", "") for t in study.trials() if t.found.get("why")]
        raise WorkError("tune.none", count=len(failed), reason=failed[-1] if failed else "")
    return Found(study, goal, space, best, board.home(best.number))


@dataclass
class Found:
    """A finished search: every trial, the best one, and where its Bundle lies."""

    study: Study
    goal: Goal
    space: dict[str, Any]
    best: Trial
    home: Path

    @property
    def first(self) -> Path | None:
        """The Bundle of trial 0, which has the recipe's own settings; None where it did not succeed."""
        path = self.home.with_name("0")
        return path if (path / "MANIFEST.json").is_file() else None


def _about(recipe: Recipe, data: Data, dimensions: list[Any], goal: Goal, prune: bool) -> str:
    """What must be the same for a search to go on: settings, rows, splits, space, goal; the budget may change."""
    plain = {k: v for k, v in recipe.plain().items() if k not in ("tune", "curve", "scale")}
    parts = [hashlib.sha256(data.part(p).tobytes()).hexdigest() for p in ("train", "validation")]
    about = [plain, data.rows.fingerprint(), parts, [asdict(d) for d in dimensions], asdict(goal), prune]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


@dataclass
class Board:
    """What is to be done and what is done; several threads take trials from it, one at a time."""

    study: Study
    recipe: Recipe
    folder: Path
    goal: Goal
    most: int | None
    seconds: float | None
    signal: int = 0
    error: BaseException | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.began, self.before = time.monotonic(), self.study.spent
        self.again = self.study.interrupted()

    def home(self, number: int) -> Path:
        return self.folder / "trials" / str(number)

    def spent(self) -> float:
        return self.before + time.monotonic() - self.began

    def over_time(self) -> bool:
        return self.seconds is not None and self.spent() >= self.seconds

    def done(self) -> list[Trial]:
        return [t for t in self.study.trials() if t.state != "running"]

    def take(self) -> tuple[Any, dict[str, Any]] | None:
        """The next trial and its settings; None when the budget is spent, or somebody asked to stop."""
        with self.lock:
            if self.signal or self.error:
                return None
            if self.again:
                return self.again.pop(0)
            begun = len(self.study.trials())
            if (self.most is not None and begun >= self.most) or (self.over_time() and begun):
                return None
            found = self.study.next()
            if found is None:
                console.tell("tune.exhausted", count=begun)
            return found

    def job(self, trial: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "recipe": with_values(self.recipe, values).plain(),
            "folder": str(self.home(trial.number)),
            "goal": asdict(self.goal),
        }

    def epoch(self, trial: Any, numbers: Mapping[str, float]) -> str | None:
        """Why the trial should end now, or None."""
        with self.lock:
            if self.study.epoch(trial, int(numbers["epoch"]), float(numbers["validation_loss"])):
                return say("tune.pruned", epoch=int(numbers["epoch"]))
            if self.over_time() and self.study.best() is not None:
                return say("tune.time_over", epoch=int(numbers["epoch"]))
            return None

    def finish(self, trial: Any, values: Mapping[str, Any], found: dict[str, Any]) -> None:
        with self.lock:
            self.study.spend(self.spent())
            if found["state"] == "stopped":
                self.signal = self.signal or found.get("signal") or 15
                return
            died = found.pop("died", False)
            if died and self.study.worth_another(trial):  # a machine's bad moment: on from the last checkpoint
                self.again.append((trial, dict(values)))
                console.tell("tune.again", number=trial.number, reason=found["why"])
                return
            self.study.finish(trial, found, died=died)
            self._told(trial.number, values, found)
            self._tidy()

    def _told(self, number: int, values: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        best = self.study.best()
        settings = listed(f"{k}={label(v)}" for k, v in values.items())
        said = (
            say(
                "tune.scored",
                metric=self.goal.name,
                value=f"{found['value']:.4f}",
                best=f"{best.score:.4f}",
                at=best.number,
            )
            if found["state"] == "complete"
            else found["why"]
        )
        of = self.most if self.most is not None else "?"
        console.tell(
            "tune.trial", number=number, most=of, said=said, seconds=f"{found['seconds']:.1f}", settings=settings
        )

    def _tidy(self) -> None:
        """Only two models are kept: the best one, and the first one to compare it with."""
        best = self.study.best()
        running = {str(t.number) for t in self.study.trials() if t.state == "running"}
        keep = {"0", *running, *([str(best.number)] if best else [])}
        for path in (self.folder / "trials").glob("*"):
            if path.name not in keep and path.name.isdecimal():
                shutil.rmtree(path, ignore_errors=True)
