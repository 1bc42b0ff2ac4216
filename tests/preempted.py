"""SIGTERM to the process group of a command at chosen and random moments, in forks of a process that has imported everything.

python -m tests.preempted '["first", "validation", ..., 0.4]'    one line of JSON a moment; a number is a share of the run

Attempt i has i % 3 loader workers.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from luban.cli import main as luban
from luban.columns.examples import Examples
from luban.training import checkpoints, feed, loop
from tests import tiny
from tests.torture import forked, memory

RECIPE = """luban: 1
data: {rows: rows.csv}
inputs: {price: number, shop: category}
outputs: {back: category}
size: nano
stages: [{train: {epochs: 6, batch: 8, patience: 0, precision: fp32, checkpoint_seconds: 0.01}}]
"""


def at_call(owner, name: str, number: int, times: int = 1) -> None:
    """At call `number` (from 1) of a function the process gets SIGTERM, before the function does its work."""
    real, calls = getattr(owner, name), [0]

    def told(*a, **k):
        calls[0] += 1
        if calls[0] == number:
            Path("signalled").touch()
            for _ in range(times):
                os.killpg(0, signal.SIGTERM)
        return real(*a, **k)

    setattr(owner, name, told)


MOMENTS = {
    "first": lambda: at_call(loop.Run, "_one", 1),
    "validation": lambda: at_call(loop, "evaluate", 2),
    "checkpoint": lambda: at_call(checkpoints, "pieces", 8),
    "loading": lambda: at_call(Examples, "arrays", 12),
    "after": lambda: after(),
    "twice": lambda: at_call(loop, "evaluate", 2, times=2),
    "shielded": lambda: in_a_process(signal.SIG_IGN),
    "unshielded": lambda: in_a_process(signal.SIG_DFL),
    "deaf": lambda: (deaf(), at_call(loop, "evaluate", 2)),
}


def after() -> None:
    """When training has ended."""
    real = loop.Run.go

    def told(self, *a):
        number = real(self, *a)
        Path("signalled").touch()
        os.killpg(0, signal.SIGTERM)
        return number

    loop.Run.go = told


def deaf() -> None:
    """A planted fault: a validation that lasts and hears nothing."""
    real = loop.evaluate

    def slow(network, examples, plan, ranks, heard):
        time.sleep(11)
        return real(network, examples, plan, ranks)

    loop.evaluate = slow


def in_a_process(handler) -> None:
    """Each batch waits for a process of its own, as a loader with worker processes has them; the ninth gets SIGTERM as the
    whole group does. Luban's own workers are threads: one that SIGTERM ends is the planted fault.
    """

    def ahead(make, places, workers=0):
        for number, place in enumerate(places, 1):
            read, write = os.pipe()
            worker = os.fork()
            if not worker:
                signal.signal(signal.SIGTERM, handler)
                if number == 9:
                    Path("signalled").touch()
                    os.killpg(0, signal.SIGTERM)
                os.write(write, b"made")
                os._exit(0)
            os.close(write)
            said = os.read(read, 4)
            os.close(read)
            os.waitpid(worker, 0)
            if not said:
                raise RuntimeError("a loader worker died")
            yield make(place)

    feed.ahead = ahead


def child(words: list[str], moment=None) -> int:
    def work() -> int:
        os.setpgrp()
        if moment in MOMENTS:
            MOMENTS[moment]()
        real = loop.Run._one

        def noted(self, batch):
            real(self, batch)
            Path("steps").write_text(str(self.state.step))

        loop.Run._one = noted
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        return luban(words)

    process = forked(work)
    with contextlib.suppress(OSError):  # whoever of the two comes first
        os.setpgid(process, process)
    return process


def ended(process: int) -> int:
    _, status = os.waitpid(process, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def weights() -> str:
    return json.loads(Path("m/MANIFEST.json").read_text())["files"]["model.safetensors"]


def tried(moment, length: float, whole: str, workers: int) -> dict:
    for name in ("m", "steps", "signalled"):
        shutil.rmtree(name, ignore_errors=True) if Path(name).is_dir() else Path(name).unlink(missing_ok=True)
    process = child(["run", "r.yaml", "--out", "m", "--set", f"train.loader_workers={workers}"], moment)
    if not isinstance(moment, str):
        time.sleep(moment * length)
        Path("signalled").touch()
        os.killpg(process, signal.SIGTERM)
    code = ended(process)
    seconds = time.time() - Path("signalled").stat().st_mtime
    steps = int(Path("steps").read_text() or 0) if Path("steps").exists() else 0
    kept = max((int(p.name[5:]) for p in Path("m/checkpoints").glob("step-*")), default=0)
    again = ended(
        child(["resume", "m"] if Path("m/checkpoints/run.yaml").exists() else ["run", "r.yaml", "--out", "m"])
    )
    left = [p.name for p in Path("m").rglob("*.tmp")]
    return {"moment": moment, "workers": workers, "code": code, "seconds": round(seconds, 2), "steps": steps, "kept": kept, "again": again,
            "exact": again == 0 and weights() == whole, "left": left}  # fmt: skip


def main(moments: list) -> None:
    torch.set_num_threads(1)
    tiny.model()
    place = Path(tempfile.mkdtemp(prefix="luban-preempted-", dir=memory()))
    os.chdir(place)
    try:
        tiny.csv(Path("rows.csv"), 120)
        Path("r.yaml").write_text(RECIPE)
        with contextlib.redirect_stdout(sys.stderr):
            assert luban(["run", "r.yaml", "--out", "warm", "--quiet"]) == 0  # what is imported on the way
        began = time.monotonic()
        assert ended(child(["run", "r.yaml", "--out", "m"])) == 0
        length, whole = time.monotonic() - began, weights()
        for i, moment in enumerate(moments):
            print(json.dumps(tried(moment, length, whole, i % 3)), flush=True)
    finally:
        os.chdir("/")
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
