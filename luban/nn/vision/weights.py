"""Published weights of image networks: a file, a sample model or a name on the hub, put in by name and shape."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from luban.console import tell
from luban.data import models
from luban.errors import RequestError, problem, raise_all, shortened
from luban.nn.tensor_files import read

HEADS = ("fc", "classifier", "head", "heads", "head_drist", "aux", "AuxLogits")  # layers over another person's classes
COUNTER = "num_batches_tracked"  # older checkpoints have none, and nothing reads it


@dataclass(frozen=True)
class Table:
    """How the names of one layout become ours: (pattern, replacement) one after the other; `extra`: names that have no place."""

    names: tuple[tuple[str, str], ...] = ()
    extra: tuple[str, ...] = HEADS

    def ours(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, tensor in theirs.items():
            for pattern, into in self.names:
                name = re.sub(pattern, into, name)
            if not any(name == e or name.startswith(e + ".") for e in self.extra):
                found[name] = tensor
        return found


def file(name: str, place: str, folder: Path | None = None) -> Path:
    """The file of tensors behind a name, in `folder` or where it is found. Raises RequestError where there is none, WorkError
    where it cannot be had.
    """
    raise_all(RequestError, filter(None, [models.weightless(name, place)]))
    if Path(name).is_file():
        return Path(name)
    folder = folder or models.found(name, models.IMAGES)
    for ending in models.WEIGHTS:
        if inside := sorted(folder.glob(f"*{ending}")):
            return inside[0]
    raise RequestError(problem("vision.no_weights", place=place, name=name, allowed=models.WEIGHTS))


def fitting(
    net: nn.Module, name: str, place: str, tables: Sequence[Table], folder: Path | None = None
) -> dict[str, Tensor]:
    """The weights of that name for a network; of the layouts that are known the one that fits best is taken.

    Raises RequestError with every name that lacks or has another shape.
    """
    theirs, wanted = read(file(name, place, folder)), net.state_dict()
    fits = [t.ours(theirs) for t in tables]
    best = max(fits, key=lambda found: sum(k in wanted for k in found))
    lacking = [k for k in wanted if k not in best and not k.endswith(COUNTER)]
    wrong = [k for k, v in best.items() if k in wanted and v.shape != wanted[k].shape]
    if lacking or wrong:
        values = {"lacking": shortened(lacking) or "-", "wrong": shortened(wrong) or "-"}
        raise RequestError(problem("vision.weights_differ", place=place, name=name, **values))
    return best


def put(net: nn.Module, name: str, place: str, tables: Sequence[Table]) -> None:
    """Those weights into a network. Raises what `fitting` raises."""
    best, wanted = fitting(net, name, place, tables), net.state_dict()
    if extra := [k for k in best if k not in wanted]:
        tell("model.extra", name=name, count=len(extra), names=shortened(extra))
    net.load_state_dict({k: v for k, v in best.items() if k in wanted}, strict=False)
