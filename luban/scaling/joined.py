"""Inside somebody else's torchrun: rank 0 leads, the other ranks wait for its train stages.

    torchrun --nnodes 2 --nproc-per-node 8 ... -m luban train recipe.yaml --out SHARED/FOLDER

Every process runs the same command. Rank 0 does all of it; the others do nothing but train when it trains, and end with it.
Jobs go from rank 0 to the others as the name of a folder, which has to be one that all machines see.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luban import console
from luban.scale import rank, world

_crew: Any = None  # the ranks that wait for rank 0


@contextmanager
def leading() -> Iterator[None]:
    """While a verb runs in rank 0: the other ranks wait for work, and are sent home at its end."""
    global _crew
    if world() == 1 or rank() or _crew is not None:
        yield
        return
    from luban.training.ranks import Crew, leave

    _crew = Crew()
    try:
        yield
    finally:
        _crew.told(None)
        _crew = None
        leave()


def follow() -> None:
    """All that a rank other than 0 does: the jobs that rank 0 hands out."""
    from luban.scaling.work import work
    from luban.training.ranks import Crew, Group, leave, restarts, together

    console.configure(quiet=True)
    crew = Crew()
    while (order := crew.told(None)) is not None:
        with together(Group(order["timeout"], order["strategy"])):
            work(Path(order["folder"]), restarts() > 0)
    leave()


def lead(folder: Path, bundle: Any, data: Any) -> Any:
    """Train `bundle` together with the ranks that wait."""
    from luban.scaling import job
    from luban.scaling.work import work
    from luban.training.ranks import Group, restarts, together

    scale = job.about(folder)["scale"]
    _crew.told({"folder": str(folder), "timeout": scale["timeout"], "strategy": scale["strategy"]})
    with together(Group(scale["timeout"], scale["strategy"])):
        return work(folder, restarts() > 0, bundle, data)
