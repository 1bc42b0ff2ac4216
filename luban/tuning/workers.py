"""Where jobs run: in this process, or in processes of their own that a crash cannot take the search with it.

Parent and worker speak JSON lines: a job goes in; {"epoch": numbers} comes out and is answered by {"prune": reason or
null}; {"found": result} ends the job. The parent alone decides and writes the journal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from luban import machine
from luban.data.prepare import Data
from luban.errors import WorkError
from luban.messages import language, say
from luban.training.signals import listening
from luban.tuning.jobs import blind, save_rows, work

LOOK = 0.2  # seconds between looks whether a signal came
Heard = Callable[[Mapping[str, float]], "str | None"]


class Here:
    """Jobs in this process, one after another."""

    def __init__(self, data: Data):
        self.data = blind(data)

    def run(self, job: Mapping[str, Any], heard: Heard) -> dict[str, Any]:
        return work(job, self.data, heard)

    def stop(self) -> None:
        """A signal reaches the training itself."""

    def close(self) -> None:
        """Nothing to be left."""


class Process:
    """Jobs in one other process, made anew when it dies."""

    def __init__(self, rows: Path, threads: int, card: str | None = None):
        self.rows, self.threads, self.process, self.stopped = rows, threads, None, False
        self.card = {"CUDA_VISIBLE_DEVICES": card} if card is not None else {}

    def _start(self) -> Any:
        command = [sys.executable, "-m", "luban.tuning.worker", str(self.rows)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True,
            env={**os.environ, "PYTHONPATH": importable(), "LUBAN_LANG": language(), "OMP_NUM_THREADS": str(self.threads), **self.card},
        )  # fmt: skip

    def run(self, job: Mapping[str, Any], heard: Heard) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
        try:
            self._send(job)
            for line in self.process.stdout:
                message = json.loads(line)
                if "found" in message:
                    return message["found"]
                if "error" in message:
                    raise WorkError("tune.worker_error", reason=message["error"])
                self._send({"prune": heard(message["epoch"])})
        except (BrokenPipeError, ValueError):
            pass  # it died in the middle of a word
        return self._died()

    def _send(self, message: Mapping[str, Any]) -> None:
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def _died(self) -> dict[str, Any]:
        code = self.process.wait()
        self._shut()
        if self.stopped:
            return {"state": "stopped", "signal": signal.SIGTERM}
        name = signal.Signals(-code).name if code < 0 and -code in list(signal.Signals) else str(code)
        return {"state": "failed", "died": True, "why": say("tune.died", signal=name)}

    def stop(self) -> None:
        """Ask the training to end after its running update, with a checkpoint."""
        self.stopped = True
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.terminate()

    def _shut(self) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()  # without jobs it ends
        self.process.stdout.close()

    def close(self) -> None:
        if self.process is not None:
            self._shut()


def serve(board: Any, crew: list[Any]) -> None:
    """Every worker takes jobs from the board until there are none; a signal ends running trainings with a checkpoint.

    A board has take() -> (trial, values) or None, job, epoch, finish, and takes `signal` and `error`.
    """
    if len(crew) == 1 and isinstance(crew[0], Here):
        _work(board, crew[0])  # in the main thread, where signals are heard by the training itself
    else:
        _together(board, crew)
    if board.error is not None:
        raise board.error


def _together(board: Any, crew: list[Any]) -> None:
    threads = [threading.Thread(target=_work, args=(board, worker), daemon=True) for worker in crew]
    with listening() as (stop, caught):
        for thread in threads:
            thread.start()
        while any(t.is_alive() for t in threads):
            if stop.is_set() and not board.signal:
                board.signal = caught[0]
                for worker in crew:
                    worker.stop()
            for thread in threads:
                thread.join(LOOK / len(threads))


def _work(board: Any, worker: Any) -> None:
    try:
        while (taken := board.take()) is not None:
            trial, values = taken
            found = worker.run(board.job(trial, values), lambda numbers, trial=trial: board.epoch(trial, numbers))
            board.finish(trial, values, found)
    except BaseException as e:
        board.error = e


def importable() -> str:
    """A PYTHONPATH by which another process finds this Luban, wherever it was started from."""
    return os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2])) if p)


def cards_for(count: int) -> list[str | None]:
    """Which accelerator each worker sees: one after another where there are several, all there is otherwise."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return [cards[i % len(cards)] if len(cards) > 1 else None for i in range(count)]


def workers(engine: str, count: int, data: Data, folder: Path) -> list[Any]:
    """`count` workers of an engine: `local` processes (this one where one is enough), or `ray`."""
    if engine == "local" and count == 1:
        return [Here(data)]
    save_rows(data, folder / "rows")
    each = max(1, machine.threads() // count)
    if engine == "local":
        cards = cards_for(count)
        return [Process(folder / "rows", each, card) for card in cards]
    from luban.tuning.on_ray import actors

    return actors(count, folder / "rows", each)
