"""Jobs on a Ray cluster: the one whose address `RAY_ADDRESS` gives, else a local one that starts itself.

Each worker is an actor that holds the rows. On several machines the output folder must lie on storage that all of them
share, as Ray's own training needs it too.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luban.errors import need
from luban.messages import say
from luban.scaling import cluster
from luban.tuning.workers import Heard, importable

PATIENCE = 600.0  # seconds in which a cluster of our own may be tried to start again


class Hand:
    """The actor: runs one job while others ask it what it has to say. Three calls at a time (run, listen, answer)."""

    def __init__(self, rows: str):
        self.rows, self.data = rows, None
        self.said: queue.Queue = queue.Queue()
        self.answers: queue.Queue = queue.Queue()

    def run(self, job: Mapping[str, Any]) -> None:
        from luban.recipe import Recipe
        from luban.tuning.jobs import load_rows, work

        self.data = self.data or load_rows(Path(self.rows), Recipe.of(job["recipe"]).resolved())

        def heard(numbers: Mapping[str, float]) -> str | None:
            self.said.put({"epoch": dict(numbers)})
            return self.answers.get()

        self.said.put({"found": work(job, self.data, heard)})

    def listen(self) -> dict[str, Any]:
        return self.said.get()

    def answer(self, prune: str | None) -> None:
        self.answers.put(prune)


class RayWorker:
    """One actor, made anew when it dies. `last`: the cluster was started for this search and ends with this worker."""

    def __init__(self, ray: Any, rows: Path, cpus: float, gpus: float, last: bool):
        self.ray, self.rows, self.cpus, self.gpus, self.last = ray, rows, cpus, gpus, last
        self.actor, self.stopped = None, False

    def run(self, job: Mapping[str, Any], heard: Heard) -> dict[str, Any]:
        if self.actor is None:
            kind = self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_concurrency=3, max_restarts=0)(Hand)
            self.actor = kind.remote(str(self.rows.absolute()))
        try:
            running = self.actor.run.remote(job)
            while True:
                message = self._message(running)
                if "found" in message:
                    return message["found"]
                self.actor.answer.remote(heard(message["epoch"]))
        except self.ray.exceptions.RayActorError:
            self.actor = None
            return {"state": "stopped", "signal": 15} if self.stopped else {
                "state": "failed", "died": True, "why": say("tune.died", signal="ray")
            }  # fmt: skip

    def _message(self, running: Any) -> dict[str, Any]:
        """What the actor says next; its own error, where the job raised one."""
        said = self.actor.listen.remote()
        done, _ = self.ray.wait([said, running], num_returns=1)
        if running in done:
            self.ray.get(running)
        return self.ray.get(said)

    def stop(self) -> None:
        self.stopped = True
        if self.actor is not None:
            self.ray.kill(self.actor)

    def close(self) -> None:
        if self.actor is not None:
            self.ray.kill(self.actor)
        if self.last:
            self.ray.shutdown()


def actors(count: int, rows: Path, threads: int) -> list[RayWorker]:
    """Raises MissingExtra without Ray, WorkError where there is no cluster. Actors share the processors of a machine that has fewer of them."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = need("ray", "ray")
    ours = not ray.is_initialized()
    if ours:
        address = os.environ.get("RAY_ADDRESS")
        cluster.begin(
            ray, patience=PATIENCE, address=address, logging_level="ERROR", **({} if address else {"include_dashboard": False}),
            runtime_env={"env_vars": {"PYTHONPATH": importable(), "OMP_NUM_THREADS": str(threads)}},
        )  # fmt: skip
    there = ray.cluster_resources()
    cpus, gpus = (min(1.0, there.get(kind, least) / count) for kind, least in (("CPU", 1.0), ("GPU", 0.0)))
    return [RayWorker(ray, rows, cpus, gpus, ours and i == count - 1) for i in range(count)]
