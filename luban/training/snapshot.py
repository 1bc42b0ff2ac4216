"""A run at one moment: everything that has to be kept to go on from there, as tensors and JSON, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from luban.training.plan import History

Tensors = dict[str, dict[str, Tensor]]


def take(run: Any) -> tuple[Tensors, dict[str, Any]]:
    """Of a `Run`: {file: {name: tensor}}, the tensors being the live ones, and a JSON state."""
    owned = {key: read() for key, (read, _) in _owned(run).items()}
    tensors = {
        "model": run.state.weights.read(),
        "optimizer": run.state.optimizer.tensors(),
        "best": run.best,
        **owned,
    }
    state = {
        "plan": asdict(run.plan),
        "step": run.state.step,
        "epoch": run.state.epoch,
        "position": run.position,
        "sums": run.sums.read(),
        "history": asdict(run.history),
        "examples": len(run.training),
        "owned": [o.state() if hasattr(o, "state") else None for o in (run.objective, run.make_step)],
    }
    return tensors, state


def put_back(run: Any, tensors: Tensors, state: dict[str, Any]) -> None:
    """Make a `Run` what it was. Raises KeyError, TypeError, ValueError, RuntimeError where the snapshot is of another."""
    run.state.weights.write(tensors["model"])
    run.state.optimizer.restore(tensors["optimizer"])
    run.best = tensors["best"]
    run.state.step, run.state.epoch, run.position = state["step"], state["epoch"], state["position"]
    run.sums.read_so_far, run.history = state["sums"], History(**state["history"])
    for key, (_, restore) in _owned(run).items():
        restore(tensors[key])
    for i, owner in enumerate((run.objective, run.make_step)):
        if hasattr(owner, "restore"):
            owner.restore(state["owned"][i])


def _owned(run: Any) -> dict[str, tuple[Callable[[], dict[str, Tensor]], Callable[[dict[str, Tensor]], Any]]]:
    """What objective and step own, as (read, restore) by file name."""
    found = {}
    for i, owner in enumerate((run.objective, run.make_step)):
        for name, module in getattr(owner, "modules", {}).items():
            found[f"owned-{i}-{name}"] = (module.state_dict, module.load_state_dict)
        for name, optimizer in getattr(owner, "optimizers", {}).items():
            found[f"owned-{i}-{name}-optimizer"] = (optimizer.tensors, optimizer.restore)
    return found
