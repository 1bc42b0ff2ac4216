"""What the benchmarks share: CPU seconds of a process tree, medians of pairs, the machine in the result."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
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


def finish(name: str, rows: Any, path: str | None) -> None:
    """Print, and write as JSON with the machine when a path is given."""
    result = {"name": name, "rows": rows, "environment": machine.environment()}
    print(json.dumps(rows, indent=1, ensure_ascii=False))
    if path:
        Path(path).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
