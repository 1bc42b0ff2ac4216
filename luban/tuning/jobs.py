"""One training among several: built, trained and judged on validation rows. It never gets to see a test row.

A job is plain data, so that it can be handed to another process or machine:
{"recipe": plain recipe, "folder": where its Bundle goes, "goal": {...}}, and for a learning curve {"rows": how many of the
training rows, "draw": the seed that they are drawn by}.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luban import console, files, registry
from luban.applying import apply
from luban.data.prepare import Data
from luban.data.rows import Rows
from luban.data.splits import Splits
from luban.errors import LubanError
from luban.messages import say
from luban.part import Part
from luban.recipe import Recipe
from luban.training.random import rng
from luban.training.watching import listening_in
from luban.tuning.goals import Goal, best_loss, score

NOBODY = np.zeros(0, np.int64)
PARTS = ("train", "validation")


class Pruned(Exception):
    """Whoever watches the epochs says that this training is not worth its time; `str()` says why."""


@dataclass
class Watch:
    """Hands the numbers of each epoch on; an answer ends the training."""

    heard: Callable[[Mapping[str, float]], str | None]

    def epoch(self, numbers: Mapping[str, float]) -> None:
        reason = self.heard(numbers)
        if reason:
            raise Pruned(reason)


def blind(data: Data) -> Data:
    """The same data without its test rows: whoever chooses settings must not be able to look at them."""
    return replace(data, splits=replace(data.splits, test=NOBODY))


def fewer(data: Data, count: int, seed: int) -> Data:
    """`count` of the training rows. The smaller set is a part of every larger one; validation rows stay as they are.

    At random, each class of the first output in proportion; the last ones where rows have an order (by time, in windows).
    """
    train = data.part("train")
    if count >= len(train):
        return data
    chosen = train[np.sort(_nested(data, seed)[:count])]
    return replace(data, splits=replace(data.splits, train=chosen))


def _nested(data: Data, seed: int) -> np.ndarray:
    """Positions in the training part, those that go into the smallest set first."""
    train, recipe = data.part("train"), data.recipe
    if recipe.frame.type != "row" or (recipe.data.get("split") or {}).get("time"):
        return np.arange(len(train))[::-1]
    shuffled = rng(seed, "curve").permutation(len(train))
    name, part = next(iter(recipe.outputs.items()))
    if part.type != "category":
        return shuffled
    kinds = data.table[name].take(train[shuffled]).combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
    place = np.empty(len(train))
    for kind in np.unique(kinds):
        mine = np.flatnonzero(kinds == kind)
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return shuffled[np.argsort(place, kind="stable")]


def save_rows(data: Data, folder: Path) -> None:
    """Training and validation rows for other processes, which map them into memory; no test row is among them."""
    import pyarrow as pa

    folder.mkdir(parents=True, exist_ok=True)
    parts = [data.part(p) for p in PARTS]
    names = list(dict.fromkeys([*data.recipe.inputs, *data.recipe.outputs, *_framing(data.recipe)]))
    rows = data.rows.take(np.concatenate(parts))
    table = rows.table.select([n for n in names if n in rows.table.column_names])
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    np.save(folder / "lines.npy", rows.lines)
    root = str(rows.root) if rows.root else None
    files.write_json(folder / "rows.json", {"source": rows.source, "root": root, "parts": [len(p) for p in parts]})


def load_rows(folder: Path, recipe: Recipe) -> Data:
    import json

    import pyarrow as pa

    about = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    with pa.memory_map(str(folder / "rows.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    lines = np.load(folder / "lines.npy", allow_pickle=False)
    rows = Rows(table, lines, about["source"], Path(about["root"]) if about["root"] else None, rows_in=len(lines))
    first, second = about["parts"]
    return Data(rows, Splits(np.arange(first), np.arange(first, first + second), NOBODY), recipe)


def _framing(recipe: Recipe) -> list[str]:
    """Columns that a frame reads beside inputs and outputs."""
    found = recipe.frame.settings.values()
    return [
        v for value in found for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, str)
    ]


def work(job: Mapping[str, Any], data: Data, heard: Callable[[Mapping[str, float]], str | None]) -> dict[str, Any]:
    """Train and judge. {"state": complete | pruned | failed | stopped, "why": sentence, "value", "seconds", ...}.

    What goes wrong with these settings (diverged, out of memory, a network that cannot be built) is a result, not an error.
    """
    began = time.monotonic()
    try:
        with console.muted(), listening_in(Watch(heard)):
            found = _trained(job, data)
    except Pruned as e:
        found = {"state": "pruned", "why": str(e)}
    except LubanError as e:
        found = {"state": "failed", "why": str(e).splitlines()[0]}
    except (MemoryError, RuntimeError) as e:
        if not out_of_memory(e):
            raise
        found = {"state": "failed", "why": say("tune.out_of_memory")}
    return found | {"seconds": round(time.monotonic() - began, 3)}


def _trained(job: Mapping[str, Any], data: Data) -> dict[str, Any]:
    from luban.bundle import Bundle

    folder = Path(job["folder"])
    begun = folder / "checkpoints" / "recipe.yaml"  # with what was measured before the first update, so that it stays
    recipe = Recipe.load(begun) if begun.is_file() else Recipe.of(job["recipe"]).with_stage_default("train").resolved()
    bundle = Bundle(recipe)
    data = fewer(data, job["rows"], job["draw"]) if "rows" in job else data
    if recipe.stage("start"):
        bundle = registry.find("stages", "start")(bundle, data, **recipe.stage("start").settings)
    settings = dict(recipe.stage("train").settings) | {"out": str(folder), "resume": True}
    bundle = apply(bundle, data, Part("train", settings))
    entry = bundle.history[-1]
    if entry.get("stopped") == "signal":
        return {"state": "stopped", "signal": entry.get("signal", 0)}
    found = score(bundle, data, Goal(**job["goal"]), resamples=job.get("resamples", 200))
    if found["value"] is None:
        return {"state": "failed", "why": found.get("reason") or say("tune.no_score")}
    bundle.save(folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    facts = {k: entry.get(k) for k in ("parameters", "steps", "best_epoch", "energy") if entry.get(k) is not None}
    return {"state": "complete", **found, "loss": best_loss(bundle), "epochs": len(bundle.metrics), **facts}


def out_of_memory(error: BaseException) -> bool:
    """Of the machine or of an accelerator: PyTorch says it in a class of its own, or in words."""
    words = str(error).lower().split()
    return isinstance(error, MemoryError) or (
        ("memory" in words or "memory:" in words) and bool({"out", "allocate"} & {*words})
    )
