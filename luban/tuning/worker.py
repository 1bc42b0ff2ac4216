"""A process that runs the jobs of a search: `python -m luban.tuning.worker FOLDER_OF_ROWS`, JSON lines in and out."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ORPHANED = 1.0  # seconds between looks whether the search still lives


def serve(rows: Path, lines: Any, out: Any) -> None:
    """Answer jobs until there are no more. What is nobody's fault but ours goes back as an error, not as a bad trial."""
    from luban.recipe import Recipe
    from luban.tuning.jobs import load_rows, work

    def send(message: Mapping[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    def heard(numbers: Mapping[str, float]) -> str | None:
        send({"epoch": dict(numbers)})
        return json.loads(lines.readline())["prune"]

    data = None
    for line in iter(lines.readline, ""):
        job = json.loads(line)
        data = data or load_rows(rows, Recipe.of(job["recipe"]).resolved())
        try:
            send({"found": work(job, data, heard)})
        except Exception as e:
            traceback.print_exc()
            send({"error": f"{type(e).__name__}: {e}"[:300]})


def _leave_with(parent: int) -> None:
    """A worker whose search was killed must not go on writing into a folder that the next search takes up."""
    while os.getppid() == parent:
        time.sleep(ORPHANED)
    os._exit(1)


def main(rows: str) -> None:
    from luban.machine import set_threads

    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    set_threads()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not be taken for an answer
    serve(Path(rows), sys.stdin, out)


if __name__ == "__main__":
    main(sys.argv[1])
