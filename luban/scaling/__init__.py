"""Training in several processes, on engines that are there already: torchrun and Ray Train.

The train stage is a job: a folder with everything it needs (`job`). Ranks take it up together (`work`), started by
Luban (`torchrun`, `on_ray`) or by somebody else's torchrun, whose ranks Luban joins (`joined`). Everything else, the
other stages and all that is written for the user, stays in one process: this one, or rank 0 of those joined.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luban import console, machine
from luban.errors import LubanError, Problem, RankLost, Unsupported, raise_all
from luban.scale import chosen, world

FOLDER = "checkpoints/ranks"  # of the run's own folder: the job, and what its ranks said


def spread(recipe: Any) -> bool:
    """Whether a recipe asks for, or the environment is, more than one rank."""
    return chosen(recipe.scale)["ranks"] > 1


def train(bundle: Any, data: Any, **settings: Any) -> Any:
    """The train stage in several processes; takes and gives what the stage itself does.

    Raises what the stage raises, RankLost where a rank ended and no restart was left, Unsupported for what cannot be cut.
    """
    from luban.scaling import job, joined

    scale = chosen(bundle.recipe.scale)
    raise_all(Unsupported, _unfit(bundle, scale["strategy"]))
    if world() == 1 and scale["ranks"] > machine.processor()["cores"] and not _gpus():
        console.tell("scale.many_ranks", ranks=scale["ranks"], cores=machine.processor()["cores"])
    with _folder(settings.get("out")) as folder:
        settings["out"] = str(
            Path(settings.get("out") or folder).absolute()
        )  # a restart needs checkpoints, wherever it is
        job.write(folder, bundle, data, settings, scale)
        if world() > 1:
            return joined.lead(folder, bundle, data)
        console.tell("scale.started", ranks=scale["ranks"], engine=scale["engine"], strategy=scale["strategy"])
        number = _launch(folder, scale)
        trained = job.result(folder, bundle)
    if trained is None and not number:
        raise RankLost("scale.no_result", ranks=scale["ranks"])
    if trained is None:  # a signal before there was anything to save
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    return trained


def _unfit(bundle: Any, strategy: str) -> list[Problem]:
    """Why ranks cannot train the network, told before any starts: it is built without memory, from columns as they may be.

    Nothing where the columns cannot be known without their rows: then the ranks tell it.
    """
    import torch

    from luban.bundle import build_network
    from luban.columns.base import make, together
    from luban.training.divided import unfit

    network, recipe = bundle.network, bundle.recipe.resolved()
    if network is None:
        parts = {**recipe.inputs, **recipe.outputs}
        try:
            columns = bundle.columns or together(
                {n: make(n, p.type, dict(p.settings)).supposed() for n, p in parts.items()}
            )
            with torch.device("meta"):
                network = build_network(recipe, columns, bundle.edits)
        except LubanError:
            return []
    return list(unfit(network, strategy))


def _launch(folder: Path, scale: dict[str, Any]) -> int:
    if scale["engine"] == "ray":
        from luban.scaling import on_ray

        return on_ray.launch(folder, scale)
    from luban.scaling import torchrun

    return torchrun.launch(folder, scale)


@contextmanager
def _folder(out: str | None) -> Iterator[Path]:
    """Where the job lies while it is worked on; what the ranks said stays there when it fails."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="luban-ranks-") as place:
            yield Path(place)
        return
    folder = (Path(out) / FOLDER).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
