"""What the benchmarks share: CPU seconds of a process tree, medians of pairs, the machine in the result."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luban import machine


def cpu_seconds(command: Sequence[str], threads: int = 1, **environment: str) -> tuple[float, str]:
    """User and system seconds of a command and all its children, and what it printed. Raises when it fails."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads)), **environment}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1, 2):
        raise SystemExit(done.stderr[-2000:])
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def pairs(mine: Sequence[str], theirs: Sequence[str], count: int = 5, threads: int = 1) -> dict[str, float]:
    """Both commands in turn, A B A B, after a warm-up of each: medians, and the median of the pair ratios."""
    cpu_seconds(mine, threads), cpu_seconds(theirs, threads)
    found = [(cpu_seconds(mine, threads)[0], cpu_seconds(theirs, threads)[0]) for _ in range(count)]
    ratios = [a / b for a, b in found]
    return {
        "luban": statistics.median(a for a, _ in found),
        "rival": statistics.median(b for _, b in found),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "n": count,
    }


def luban(*words: str) -> list[str]:
    return [sys.executable, "-m", "luban.cli", *words]


def taught(recipe: str, seed: int, out: str | Path | None, changes: Sequence[str] = ()) -> tuple[Any, float]:
    """The model of a recipe, with `changes` as of `--set`, and the CPU seconds that it took, preparation of the data included. Where `out` holds one by this recipe it is not
    trained again: its seconds are those of its history.
    """
    import luban
    from luban.recipe import Recipe

    if out and (Path(out) / "MANIFEST.json").exists():
        model, asked = luban.load(str(out)), Recipe.load(recipe, tuple(changes))
        parts = asked.model if asked.stage("start") else asked.resolved().model  # what it started from may say the rest
        assert model.recipe.seed == seed and all(_holds(model.recipe.model[n], p) for n, p in parts.items()), out
        return model, learned(model)["cpu_seconds"]
    started = time.process_time()
    model = luban.train(recipe, seed=seed, set=changes, out=str(out) if out else None, evaluate=False)
    return model, time.process_time() - started


def examples(model: Any, data: Any, part: str, rows: int | None = None) -> Any:
    """The rows of a part of some data, the first `rows` of them, as a model's Examples."""
    from luban.columns.examples import encode

    framed = data.framed(data.part(part)[:rows], model.recipe.frame)
    return encode(model.columns, model.inputs, model.outputs, framed)


def _holds(made: Any, asked: Any) -> bool:
    """Whether a part of a model is what was asked for, and everything that was said of it."""
    return made.type == asked.type and all(made.settings.get(k) == v for k, v in asked.settings.items())


def learned(model: Any) -> dict[str, Any]:
    """What the history of a model says of its training."""
    return next(e for e in model.history if e["stage"] == "train")


def seeds(name: str, count: int, run: Callable[[int], dict[str, Any]], path: str | None) -> None:
    """`run` of the seeds 0, 1 ..., and the gain (`difference`) over them; written after each, for one takes minutes."""
    runs: list[dict[str, Any]] = []
    for seed in range(count):
        runs.append(run(seed))
        gain = [r["difference"]["value"] for r in runs]
        found = {"runs": runs, "gain": {"mean": statistics.mean(gain), "min": min(gain), "max": max(gain)}}
        finish(name, found, path)


def finish(name: str, rows: Any, path: str | None) -> None:
    """Print, and write as JSON with the machine when a path is given."""
    result = {"name": name, "rows": rows, "environment": machine.environment()}
    print(json.dumps(rows, indent=1, ensure_ascii=False))
    if path:
        Path(path).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
