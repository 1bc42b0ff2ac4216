"""A run at one moment: everything that has to be kept to go on from there, as tensors and JSON, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, asdict, fields
from typing import Any

from torch import Tensor

from luban.errors import BundleError, RequestError, Unsupported
from luban.training.plan import History

Tensors = dict[str, dict[str, Tensor]]


def take(run: Any) -> tuple[Tensors, dict[str, Any]]:
    """Of a `Run`: {file: {name: tensor}}, the tensors being the live ones, and a JSON state."""
    owned = {key: read() for key, (read, _) in _owned(run).items()}
    tensors = {
        "model": run.state.weights.read(),
        "optimizer": run.state.optimizer.tensors(),
        "best": run.best,
        **({"average": run.state.average.tensors()} if run.state.average else {}),
        **owned,
    }
    if run.state.scaler:
        tensors["scaler"] = run.state.scaler.tensors()
    state = {
        "plan": asdict(run.plan),
        "step": run.state.step,
        "epoch": run.state.epoch,
        "position": run.position,
        "sums": run.sums.read(),
        "history": asdict(run.history),
        "spent": run.spent(),
        "schedule": run.state.factor.state,
        "examples": len(run.training),
        "data": run.data,
        "owned": [o.state() if hasattr(o, "state") else None for o in (run.objective, run.make_step)],
    }
    return tensors, state


FREE = ("checkpoint_seconds", "on_divergence", "loader_workers")  # settings that change nothing that is learned


def same_run(run: Any, state: Any) -> None:
    """Raises RequestError where a checkpoint is of other settings or other rows than the run that would go on from it,
    Unsupported where its batches were cut in pieces and the weights are.
    """
    if not isinstance(state, dict) or not isinstance(state.get("plan"), dict):
        raise BundleError("bundle.bad_checkpoint", path=str(run.folder), reason="state.json")
    defaults = {f.name: f.default for f in fields(run.plan) if f.default is not MISSING}
    then, now = defaults | state["plan"], asdict(run.plan)
    differ = [f"{k} {then.get(k)} -> {v}" for k, v in now.items() if then.get(k) != v and k not in FREE]
    if differ:
        raise RequestError("resume.other_settings", path=str(run.folder), settings=differ[:6])
    if (state.get("examples"), state.get("data")) != (len(run.training), run.data):
        raise RequestError("resume.other_rows", path=str(run.folder), then=state.get("examples"), now=len(run.training))
    pieces = (state.get("history") or {}).get("pieces", 0)  # memory was not enough for a whole batch
    if pieces > 1 and not run.state.weights.in_pieces:
        raise Unsupported("scale.ddp_only", settings=[f"accumulate: {pieces}"])


def put_back(run: Any, tensors: Tensors, state: dict[str, Any]) -> None:
    """Make a `Run` what it was. Raises KeyError, TypeError, ValueError, RuntimeError where the snapshot is of another."""
    run.state.weights.write(tensors["model"])
    run.state.optimizer.restore(tensors["optimizer"])
    if run.state.average:
        run.state.average.restore(tensors["average"])
    if run.state.scaler:
        run.state.scaler.restore(tensors["scaler"])
    run.best = tensors["best"]
    run.state.step, run.state.epoch, run.position = state["step"], state["epoch"], state["position"]
    run.state.factor.state = state["schedule"]
    run.sums.take_up(state["sums"])
    run.history = History(**state["history"])
    run.state.pieces = run.history.pieces or run.plan.accumulate
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
