"""How a stage is run: timed, its energy measured where the machine tells it, its line of history written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from luban import files, machine, registry, scaling
from luban.energy import Meter
from luban.part import Part
from luban.report import Report

if TYPE_CHECKING:
    from luban.bundle import Bundle
    from luban.data.prepare import Data


def apply(bundle: Bundle, data: Data, part: Part) -> Bundle:
    """One stage. A Report is kept in the Bundle; each stage leaves a line of history."""
    from luban.bundle import Bundle
    from luban.data.prepare import taken

    bundle.refuse_without_outputs(part.type)
    spread = part.type == "train" and scaling.spread(bundle.recipe)
    function = scaling.train if spread else registry.find("stages", part.type)
    settings = {k: v for k, v in part.settings.items() if v is not None}
    data = taken(data, bundle.columns)
    began, cpu = time.monotonic(), time.process_time()
    with Meter() as meter:
        result = function(bundle, data, **settings)
    cost = {"seconds": round(time.monotonic() - began, 3), "cpu_seconds": round(time.process_time() - cpu, 3)}
    cost |= meter.entry()
    if isinstance(result, Report):
        return bundle.with_report(result).with_history(part.type, settings=settings, **cost)
    if isinstance(result, Bundle):
        if len(result.history) == len(bundle.history):
            return result.with_history(part.type, settings=settings, **cost)
        for name, seconds in result.history[-1].get("earlier", {}).items():  # of the processes before a resume
            cost[name] = round(cost[name] + seconds, 3)
        result.history[-1] |= {**cost, "environment": machine.environment(), "data": data.rows.fingerprint()}
        return result
    return bundle.with_history(part.type, settings=settings, wrote=str(result), **cost)


@contextmanager
def claimed(out: str | Path | None) -> Iterator[None]:
    """The folder is this process's to write, and holds nothing that is not Luban's."""
    if not out:
        yield
        return
    folder = Path(out).resolve()
    with files.held(folder):
        files.refuse_foreign(folder, "bundle")
        yield
