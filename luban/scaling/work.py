"""What a rank does: take up a job together with the others.

    python -m luban.scaling.work FOLDER      as torchrun starts it, RANK and WORLD_SIZE in the environment

A mistake that every rank would make again (wrong data, a diverged run) is written down and ends the rank with 0, so that
nobody starts it anew. Any other end asks for a restart from the newest checkpoint; LOST says that it was another rank's.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luban import console, registry
from luban.errors import LubanError, WorkError
from luban.messages import say
from luban.scaling import job

LOST = 75  # exit code of a rank whose partner is gone
GRACE = 60.0  # seconds that a rank without a launcher has to save


def work(folder: Path, again: bool, bundle: Any = None, data: Any = None) -> Any:
    """Train with the ranks that this process has joined; the trained Bundle. `again`: go on from the newest checkpoint."""
    settings = job.about(folder)["settings"]
    settings["resume"] = bool(settings.get("resume")) or again
    if bundle is None:
        bundle, data = job.read(folder)
    return registry.find("stages", "train")(bundle, data, **settings)


def take_part(folder: Path, first: bool, again: bool, joined: Callable[[Any], None] = lambda group: None) -> int:
    """Train the job of a folder as one of its ranks; 0, or LOST where another one is gone."""
    from luban.training import ranks

    about = job.about(folder)
    scale = about["scale"]
    speak(about["console"], first)
    try:
        group = ranks.join(scale["timeout"], scale["strategy"])
        joined(group)
        if again and first:
            console.tell("scale.restarted", most=scale["restarts"])
        with ranks.together(group):
            trained = work(folder, again)
        if first:
            job.finish(folder, trained)
        group.wait()  # nobody leaves before the result is there
        ranks.leave()
    except LubanError as e:
        job.fail(folder, e)
    except OSError as e:
        job.fail(folder, WorkError("io.failed", path=str(e.filename or ""), reason=e.strerror or str(e)))
    except RuntimeError as e:
        if not lost(e):
            raise
        if (folder / job.OUTCOME).is_file():  # the other one has said why
            return 0
        print(say("scale.lost_touch", reason=str(e)[:300]), file=sys.stderr)
        return LOST
    return 0


def main(folder: Path) -> int:
    """What torchrun starts."""
    from luban.training.ranks import restarts

    threading.Thread(target=_outlive, args=(os.getppid(),), daemon=True).start()
    rank = int(os.environ["RANK"])
    if rank:
        write_to(folder / log_of(rank))
    return take_part(folder, rank == 0, restarts() > 0)


def log_of(rank: int) -> str:
    """Where a rank that is not heard writes, in the folder of the job."""
    return f"rank-{rank}.log"


def write_to(path: Path) -> None:
    """All that this process prints from now on."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def speak(asked: dict[str, Any], first: bool) -> None:
    """Only the first rank is heard and writes the log."""
    console.configure(quiet=asked["quiet"] or not first, log=Path(asked["log"]) if asked["log"] and first else None)


def lost(error: RuntimeError) -> bool:
    """Whether a collective call failed because another rank is gone or silent."""
    import torch.distributed as dist

    words = ("gloo", "nccl", "connection", "socket", "peer", "timeout")
    return isinstance(error, dist.DistError) or any(w in str(error).lower() for w in words)


def _outlive(parent: int) -> None:
    """No orphans: a rank whose launcher is gone saves and ends, as on SIGTERM."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of a group that has lost a rank must not keep it waiting
