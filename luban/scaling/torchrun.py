"""Ranks on this machine, started and started anew by torchrun's own agent (torch.distributed.elastic)."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luban.errors import RankLost
from luban.messages import say
from luban.scaling.environment import environment
from luban.scaling.work import GRACE, LOST, log_of


def launch(folder: Path, scale: dict[str, Any]) -> int:
    """Run the job of a folder in `scale["ranks"]` processes until it is done or a signal ends it; the signal's number, or 0.

    Raises RankLost where a rank ended and no restart was left.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=scale["ranks"], run_id="ranks", rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1", max_restarts=scale["restarts"], shutdown_timeout=int(GRACE),
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )  # fmt: skip
    with environment(scale["ranks"]), _quiet_agent():
        try:
            elastic_launch(config, sys.executable)("-m", "luban.scaling.work", str(folder))
        except SignalException as e:
            return int(e.sigval)
        except ChildFailedError as e:
            raise _lost(e.failures, scale, folder) from None
    return 0


def _lost(failures: dict[int, Any], scale: dict[str, Any], folder: Path) -> RankLost:
    """The rank that ended by itself: the others lost touch with it, or were ended by the agent."""
    others = (LOST, -signal.SIGTERM)
    rank, failure = min(
        failures.items(), key=lambda item: (item[1].exitcode in others, item[1].exitcode != LOST, item[0])
    )
    code = failure.exitcode
    how = signal.Signals(-code).name if code < 0 else say("scale.exit", code=code)
    log = folder / log_of(rank) if rank else folder.parent.parent / "run.log"  # rank 0 speaks on this terminal
    return RankLost(
        "scale.rank_lost", rank=rank, world=scale["ranks"], how=how, restarts=scale["restarts"], log=str(log)
    )


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """The agent's own tables are for its developers; its handlers of signals go with it."""
    logger = logging.getLogger("torch.distributed.elastic")
    level, signals = logger.level, {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        logger.setLevel(level)
        if threading.current_thread() is threading.main_thread():
            for number, handler in signals.items():
                signal.signal(number, handler)
