"""The learning curve: one recipe on more and more of its rows, and at several sizes, judged on the same validation rows."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from luban import console, files
from luban.data.prepare import Data
from luban.errors import RequestError, Stopped, WorkError
from luban.recipe import Recipe
from luban.settings import SIZES, Count, NonNegative, Range
from luban.tuning.asked import counts_for, judgeable
from luban.tuning.goals import Goal, goal_of
from luban.tuning.jobs import fewer
from luban.tuning.workers import serve, workers

Share = Annotated[float, Range(above=0, high=1)]


@dataclass(frozen=True)
class Point:
    """So many training rows, at a size; `results` of its repetitions, each with another seed."""

    rows: int
    size: str
    results: tuple[dict[str, Any], ...] = ()

    @property
    def scores(self) -> np.ndarray:
        return np.array([r["value"] for r in self.results], float)

    def mean(self, name: str) -> float:
        return float(np.mean([r[name] for r in self.results]))


@dataclass
class Curve:
    """Every point with its results, and where the Bundle of each run lies."""

    points: list[Point]
    goal: Goal
    size: str
    folder: Path
    repeats: int
    worth: float

    def home(self, point: Point, repeat: int) -> Path:
        return self.folder / "trials" / _name(point, repeat)


def curve(
    recipe: Recipe,
    data: Data,
    folder: Path,
    *,
    rows: list[Share] = (0.125, 0.25, 0.5, 1.0),
    sizes: list[Literal["nano", "small", "base"]] = SIZES,
    grid: bool = False,
    repeats: Count = 2,
    metric: str = "auto",
    worth: NonNegative = 0.01,
    parallel: Count = 1,
    engine: Literal["local", "ray"] = "local",
) -> Curve:
    """Train on shares `rows` of the training rows at the recipe's size, and at `sizes` on all of them (`grid`: each on each).

    `repeats`: trainings of each point, with other seeds: the luck of a seed is a part of every interval. `worth`: a gain
    that counts, in the metric's own unit (in shares of the value for losses and errors). Raises RequestError, Stopped.
    """
    judgeable(data)
    counts = counts_for(len(data.part("train")), rows)
    goal = goal_of(recipe, metric)
    goal = goal if goal.output else goal_of(replace(recipe, outputs=dict([next(iter(recipe.outputs.items()))])), "auto")
    points = points_for(counts, sizes, recipe.size, grid)
    table = Runs(recipe, data, folder, goal, [(p, r) for p in points for r in range(repeats)])
    crew = workers(engine, parallel, data, folder)
    try:
        serve(table, crew)
    finally:
        for worker in crew:
            worker.close()
    if table.signal:
        raise Stopped("curve.stopped", number=table.signal, count=len(table.results))
    done = [replace(p, results=tuple(table.results[_name(p, r)] for r in range(repeats))) for p in points]
    return Curve(done, goal, recipe.size, folder, repeats, worth)


def points_for(counts: Sequence[int], sizes: Sequence[str], own: str, grid: bool) -> list[Point]:
    """What is trained, the cheapest first."""
    sizes = [s for s in SIZES if s in (*sizes, own)]
    wanted = [(n, s) for s in sizes for n in counts if grid or s == own or n == counts[-1]]
    return [Point(n, s) for n, s in sorted(wanted, key=lambda p: p[0] * 4 ** SIZES.index(p[1]))]


def _name(point: Point, repeat: int) -> str:
    return f"{point.rows}-{point.size}-{repeat}"


@dataclass
class Runs:
    """The board of a curve (see `workers.serve`): results lie in the folder, so that a killed curve goes on."""

    recipe: Recipe
    data: Data
    folder: Path
    goal: Goal
    todo: list[tuple[Point, int]]
    signal: int = 0
    error: BaseException | None = None
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.total = len(self.todo)
        about = _about(self.recipe, self.data, self.goal)
        path = self.folder / "about.json"
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != about:
            raise RequestError("tune.other_search", path=str(self.folder.parent))
        files.write_json(path, about)
        for point, repeat in list(self.todo):
            done = self.folder / "runs" / f"{_name(point, repeat)}.json"
            if done.is_file():
                self.results[_name(point, repeat)] = json.loads(done.read_text(encoding="utf-8"))
                self.todo.remove((point, repeat))

    def take(self) -> tuple[tuple[Point, int], dict[str, Any]] | None:
        with self.lock:
            if self.signal or self.error or not self.todo:
                return None
            return self.todo.pop(0), {}

    def job(self, run: tuple[Point, int], values: Any) -> dict[str, Any]:
        point, repeat = run
        plain = replace(
            self.recipe, size=point.size, seed=self.recipe.seed + repeat, tune={}, curve={}, scale={}
        ).plain()
        home = self.folder / "trials" / _name(point, repeat)
        return {
            "recipe": plain, "folder": str(home), "goal": asdict(self.goal), "rows": point.rows, "draw": self.recipe.seed
        }  # fmt: skip

    def epoch(self, run: Any, numbers: Any) -> None:
        """No run of a curve is cut short: it would not be the recipe's."""

    def finish(self, run: tuple[Point, int], values: Any, found: dict[str, Any]) -> None:
        with self.lock:
            if found["state"] == "stopped":
                self.signal = self.signal or found.get("signal") or 15
                return
            point, repeat = run
            if found["state"] != "complete":
                raise WorkError("curve.failed", rows=point.rows, size=point.size, reason=found.get("why", ""))
            self.results[_name(point, repeat)] = found
            files.write_json(self.folder / "runs" / f"{_name(point, repeat)}.json", found)
            console.tell(
                "curve.run", number=len(self.results), most=self.total, rows=point.rows, size=point.size, metric=self.goal.name,
                value=f"{found['value']:.4f}", seconds=f"{found['seconds']:.1f}",
            )  # fmt: skip


def _about(recipe: Recipe, data: Data, goal: Goal) -> dict[str, Any]:
    plain = {k: v for k, v in recipe.plain().items() if k not in ("tune", "curve", "scale")}
    parts = [hashlib.sha256(data.part(p).tobytes()).hexdigest() for p in ("train", "validation")]
    text = json.dumps([plain, data.rows.fingerprint(), parts, asdict(goal)], sort_keys=True, default=str)
    return {"about": hashlib.sha256(text.encode()).hexdigest()}


def nested(data: Data, counts: Sequence[int], seed: int) -> list[np.ndarray]:
    """The training rows of each count, as the runs see them."""
    return [fewer(data, n, seed).part("train") for n in counts]
