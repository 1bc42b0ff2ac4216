"""Where the numbers of a run can go beside `metrics.jsonl`: TensorBoard, MLflow. Both optional, imported where used.

A sink is a listener (`luban.training.watching`): it hears the numbers that the loop reads anyway, at the end of an epoch
and a few times a minute within one, and makes no update wait.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from luban.errors import RequestError, need
from luban.training.watching import listening_in

NOT_TOLD = ("epoch", "step")  # positions, not numbers to plot


@contextmanager
def tracked(names: list[str], out: str | None, settings: Mapping[str, Any], recipe: str) -> Iterator[None]:
    """What is trained inside is told to the named sinks.

    Raises MissingExtra where a library is absent, RequestError where a sink would have no place to write to.
    """
    with ExitStack() as open_sinks:
        sinks = [open_sinks.enter_context(_closing(SINKS[n](out, settings, recipe))) for n in dict.fromkeys(names)]
        open_sinks.enter_context(listening_in(*sinks))
        yield


def needed(names: list[str], out: str | None) -> None:
    """What `tracked` would raise, before anything is done."""
    for name in names:
        need(*SINKS[name].library)
        if out is None and not (name == "mlflow" and os.environ.get("MLFLOW_TRACKING_URI")):
            raise RequestError("track.no_folder", sink=name)


@contextmanager
def _closing(sink: Any) -> Iterator[Any]:
    try:
        yield sink
    except BaseException:
        sink.close(False)
        raise
    sink.close(True)


class TensorBoard:
    """Event files in `OUT/tensorboard`. A resumed run hides the steps that it makes again (`purge_step`)."""

    library = ("tensorboard", "track")

    def __init__(self, out: str | None, settings: Mapping[str, Any], recipe: str):
        need(*self.library)
        self.folder, self.recipe, self.writer = Path(out or ".") / "tensorboard", recipe, None

    def step(self, numbers: Mapping[str, float]) -> None:
        self._write("step", numbers)

    def epoch(self, numbers: Mapping[str, float]) -> None:
        self._write("epoch", numbers)
        self.writer.flush()

    def _write(self, kind: str, numbers: Mapping[str, float]) -> None:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder), purge_step=int(numbers["step"]))
            self.writer.add_text("recipe", "    " + self.recipe.replace("\n", "\n    "))
        for name, value in _finite(numbers).items():
            self.writer.add_scalar(f"{kind}/{name}", value, int(numbers["step"]))

    def close(self, done: bool) -> None:
        if self.writer is not None:
            self.writer.close()


class MLflow:
    """A run of the tracking server that `MLFLOW_TRACKING_URI` names, else of the file `OUT/mlflow.db`."""

    library = ("mlflow", "mlflow")

    def __init__(self, out: str | None, settings: Mapping[str, Any], recipe: str):
        self.mlflow = need(*self.library)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(out or '.').absolute() / 'mlflow.db'}"
        if out:
            Path(out).mkdir(parents=True, exist_ok=True)
        self.client = self.mlflow.MlflowClient(tracking_uri=uri)
        found = self.client.get_experiment_by_name("luban")
        experiment = found.experiment_id if found else self.client.create_experiment("luban")
        self.run = self.client.create_run(experiment, run_name=Path(out).name if out else None).info.run_id
        for name, value in settings.items():
            self.client.log_param(self.run, name, value)

    def step(self, numbers: Mapping[str, float]) -> None:
        self._write("step", numbers)

    def epoch(self, numbers: Mapping[str, float]) -> None:
        self._write("epoch", numbers)

    def _write(self, kind: str, numbers: Mapping[str, float]) -> None:
        for name, value in _finite(numbers).items():
            self.client.log_metric(self.run, f"{kind}/{name}", value, step=int(numbers["step"]))

    def close(self, done: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if done else "FAILED")


SINKS: dict[str, Any] = {"tensorboard": TensorBoard, "mlflow": MLflow}


def _finite(numbers: Mapping[str, float]) -> dict[str, float]:
    return {k: float(v) for k, v in numbers.items() if k not in NOT_TOLD and math.isfinite(v)}
