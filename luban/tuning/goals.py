"""What a search is judged by: one metric of one output, or the validation loss over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from luban.evaluation import views
from luban.evaluation.table import table
from luban.recipe import Recipe
from luban.space import HIGHER


@dataclass(frozen=True)
class Goal:
    """`output` is empty for the loss, which counts every output."""

    metric: str
    output: str = ""
    higher: bool = False

    @property
    def name(self) -> str:
        return f"{self.output}.{self.metric}" if self.output else self.metric

    def better(self, a: float, b: float) -> bool:
        return a > b if self.higher else a < b


def goal_of(recipe: Recipe, metric: str) -> Goal:
    """`auto`: the metric that people look at first where there is one output, else the loss. Assumes it was checked."""
    outputs = {n: p.type for n, p in recipe.outputs.items()}
    if metric == "loss" or (metric == "auto" and (len(outputs) > 1 or next(iter(outputs.values())) not in views.MAIN)):
        return Goal("loss")
    if metric == "auto":
        ((name, kind),) = outputs.items()
        return Goal(views.MAIN[kind][0], name, views.MAIN[kind][1])
    name = max((n for n in outputs if metric.startswith(n + ".")), key=len, default=next(iter(outputs)))
    metric = metric.removeprefix(name + ".")
    return Goal(metric, name, HIGHER[outputs[name]][metric])


def score(bundle: Any, data: Any, goal: Goal, part: str = "validation", resamples: int = 200) -> dict[str, Any]:
    """{"value", "low", "high"} on the rows of `part`; `low`, `high` None where there is no interval."""
    if not goal.output:
        return {"value": best_loss(bundle), "low": None, "high": None}
    rows = data.part(part)
    judged = table(bundle, data, rows)
    seen = views.view(goal.output, judged.outputs[goal.output], judged, resamples=resamples, seed=bundle.recipe.seed)
    found = seen.metrics[goal.metric].to_json()
    return {k: found.get(k) for k in ("value", "low", "high", "reason") if k in found}


def best_loss(bundle: Any) -> float | None:
    """The lowest validation loss of its epochs: that of the weights which were kept."""
    losses = [e["validation_loss"] for e in bundle.metrics if "validation_loss" in e]
    return float(np.min(losses)) if losses else None
