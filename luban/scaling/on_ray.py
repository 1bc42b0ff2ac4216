"""Ranks that Ray Train starts, on a cluster of its own on this machine or on one that is there already."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from luban.errors import RankLost, need
from luban.scaling import cluster, work
from luban.scaling.environment import environment

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
BEGUN = "begun"  # a file of the job: its ranks have been started before
STOP = "stop"  # a file with a signal's number, for ranks that get no signals


def launch(folder: Path, scale: dict[str, Any]) -> int:
    """Run the job of a folder in Ray's workers until it is done or a signal ends it; the signal's number, or 0.

    On a cluster of several machines the folder has to be one that all of them see. Raises MissingExtra without Ray,
    RankLost where a rank ended and no restart was left, WorkError where there is no cluster.
    """
    patience = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(scale["timeout"])}
    with environment(scale["ranks"], QUIET | patience, loopback=not scale["address"]), Caught(folder) as caught:
        ray = need("ray", "ray")
        need("ray.train.torch", "ray")
        with _cluster(ray, scale), _telling(folder / work.log_of(0)):
            caught.listen()
            try:
                _trainer(ray, folder, scale).fit()
            except Exception as e:  # Ray wraps what a worker raised in types of its own, which change with its versions
                raise RankLost("scale.ray_failed", restarts=scale["restarts"], reason=_last_line(e)) from None
    return caught.number


def _trainer(ray: Any, folder: Path, scale: dict[str, Any]) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    there = ray.cluster_resources()
    gpus = there.get("GPU", 0) >= scale["ranks"]
    share = min(1.0, 0.9 * there.get("CPU", 1.0) / scale["ranks"])  # a part of the processors is Ray's own

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Ray's own would end the ranks unasked; ours asks them to save."""

    return Trainer(
        take_part,
        train_loop_config={"folder": str(folder.absolute()), "here": str(Path.cwd())},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=int(scale["timeout"])),
        scaling_config=ScalingConfig(num_workers=scale["ranks"], use_gpu=gpus, resources_per_worker={"CPU": share}),
        run_config=RunConfig(
            name="ranks", storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=scale["restarts"])
        ),
    )


def take_part(config: dict[str, str]) -> None:
    """What runs in each of Ray's workers, where torch.distributed is set up already."""
    from ray.train import get_context

    with suppress(
        OSError
    ):  # Ray starts its workers in folders of its own: names in a recipe count from where it was run
        os.chdir(config["here"])
    folder, rank = Path(config["folder"]), get_context().get_world_rank()
    work.write_to(folder / work.log_of(rank))
    threading.Thread(target=_listen, args=(folder / STOP,), daemon=True).start()
    again = (folder / BEGUN).exists()

    def joined(group: Any) -> None:
        group.wait()  # all have looked
        (folder / BEGUN).touch()

    if work.take_part(folder, rank == 0, again, joined):
        raise RuntimeError(work.LOST)  # for Ray, which starts all ranks anew


def _listen(path: Path) -> None:
    """A signal that the driver got reaches the ranks as a file: Ray ends workers without asking them."""
    import time

    from luban.training import signals

    while not path.exists():
        time.sleep(0.2)
    signals.ask_to_stop(int(path.read_text() or signal.SIGTERM))


@contextmanager
def _cluster(ray: Any, scale: dict[str, Any]) -> Iterator[None]:
    """A cluster that is there stays; one that was started here ends here."""
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        address = scale["address"]
        cluster.begin(
            ray, patience=scale["timeout"], address=address, logging_level=logging.ERROR, configure_logging=False,
            **({} if address else {"include_dashboard": False}),
        )  # fmt: skip
        try:
            yield
        finally:
            ray.shutdown()


class Caught:
    """The first signal asks the ranks to save and end. `number`: which it was, 0 where there was none.

    Ray sets handlers of its own when its cluster begins, in Python and below it: `listen` once more after that.
    """

    def __init__(self, folder: Path):
        self.folder, self.number = folder, 0
        self.able = threading.current_thread() is threading.main_thread()
        self.before: dict[Any, Any] = {}

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM) if self.able else ():
            before = signal.signal(number, self._heard)
            self.before.setdefault(number, before)

    def _heard(self, number: int, frame: Any) -> None:
        if self.number:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = number
        (self.folder / STOP).write_text(str(int(number)))

    def __enter__(self) -> Caught:
        self.listen()
        return self

    def __exit__(self, *why: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


@contextmanager
def _telling(log: Path) -> Iterator[None]:
    """What rank 0 says, as it says it."""
    done = threading.Event()

    def follow() -> None:
        place = 0
        while True:
            last = done.wait(0.3)
            if log.exists():
                with open(log, encoding="utf-8", errors="replace") as file:
                    file.seek(place)
                    sys.stderr.write(file.read())
                    place = file.tell()
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
