"""What a run is asked to do, and what happened in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """The settings of one run, all resolved. `steps` (0 = none) cuts `epochs` short; `patience` 0 = never stop early."""

    epochs: int
    batch: int
    rate: float
    steps: int = 0
    tokens: int = 0  # budget of a batch, 0 = none, see `batches.order`
    optimizer: Any = "adamw"  # as in a recipe: a name, or {name: settings}
    weight_decay: float = 0.01
    schedule: Any = "cosine"
    warmup: float = 0.05
    clip: float = 1.0
    clip_value: float = 0.0
    clip_weights: float = 0.0
    accumulate: int = 1  # pieces that a batch is computed in
    ema: float = 0.0  # decay of the average of the weights, 0 = none
    freeze: list[str] = field(default_factory=list)  # parts that do not learn
    rates: dict[str, float] = field(default_factory=dict)  # factor on the rate by part
    layer_decay: float = 1.0
    patience: int = 0
    augment: bool = True
    progressive: list[float] = field(default_factory=list)  # shares of the side that grids have, one after the other
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    compile: str = "off"
    keep: str = "best"
    checkpoint_seconds: float = 60.0
    on_divergence: str = "skip"
    loader_workers: int = 0  # threads that make batches ahead


@dataclass
class History:
    """What happened: one dict an epoch, the best epoch, why it stopped ("done", "early", "signal"), what the guard met."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    best: int = -1
    best_loss: float = math.inf
    stopped: str = "done"
    signal: int = 0
    step: int = 0
    first_loss: float | None = None
    sound: int = -1  # the last step whose loss did not look like a divergence; -1 where none was looked at
    pieces: int = 0  # that a batch had to be cut in, 0 = as planned
    incidents: list[dict[str, Any]] = field(default_factory=list)
    earlier: dict[str, float] = field(
        default_factory=dict
    )  # seconds, cpu_seconds up to the checkpoint that it went on from
