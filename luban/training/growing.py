"""Progressive resizing: an epoch on images of half the side costs a quarter, and what it teaches holds for whole ones.

The first epochs see every image made smaller, the last ones as it is (Howard 2018, "Training Imagenet in 3 hours for 25
minutes"; Tan and Le 2021, "EfficientNetV2", whose augmentation grows along). Only networks that take any size can do so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from luban.columns.examples import Examples
from luban.errors import Unsupported
from luban.nn.tokens import Batch
from luban.training.precision import aside


def scale(sides: Sequence[float], epoch: int, epochs: int) -> float:
    """The share of the side in an epoch: each of `sides` for an equal part of the epochs, the last one for what is over."""
    return sides[len(sides) - 1 - (epochs - 1 - epoch) * len(sides) // epochs] if sides else 1.0


def whole_from(sides: Sequence[float], epochs: int) -> int:
    """The first epoch in which images have the last of the sides."""
    return next((e for e in range(epochs) if not sides or scale(sides, e, epochs) == sides[-1]), 0)


def shrunk(batch: Batch, names: Sequence[str], share: float) -> Batch:
    """The batch with the grids of some inputs, (B, C, H, W), at `share` of their side."""
    if share != 1:
        for name in names:
            x, mask = batch.inputs[name]
            batch.inputs[name] = (smaller(x, share), mask)
    return batch


def smaller(x: Tensor, share: float) -> Tensor:
    """(B, C, H, W) -> (B, C, H', W'), each pixel the mean of those that it covers; whole numbers stay whole."""
    size = [max(1, round(n * share)) for n in x.shape[2:]]
    found = F.interpolate(x.float(), size=size, mode="area")
    return found if x.is_floating_point() else found.round().to(x.dtype)


def grids(examples: Examples) -> list[str]:
    return [n for n in examples.inputs if examples.columns[n].form == "grid"]


def check(network: Any, examples: Examples, sides: Sequence[float]) -> None:
    """Raises Unsupported where there is no grid, where an answer lies on one, or where the network wants its own size."""
    if not sides or list(sides) == [1.0]:
        return
    found = grids(examples)
    tied = [n for n, c in examples.columns.items() if getattr(c, "of", None) in found]
    if not found or tied:
        raise Unsupported("train.progressive_columns", columns=tied or list(examples.inputs))
    device = str(next(network.parameters()).device)
    batch = Batch.of(examples.arrays(np.arange(min(2, len(examples)))), device)
    with aside(network, device) as trial, torch.no_grad():
        try:
            trial.eval()(shrunk(batch, found, min(sides)))
        except (RuntimeError, ValueError, IndexError) as e:
            raise Unsupported("train.progressive_fixed", side=min(sides)) from e
