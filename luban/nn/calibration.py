"""Where the activations of a network are to be rounded, and by which scales: found by running it on rows it learned from.

No table of architectures: which layer a batch norm or an activation stands behind is seen from what each module reads,
tensor by tensor. A layer whose answer goes straight into an activation is rounded behind that; one whose answer is added
to something, at once. So all that a convolution reads stands on levels already, and nothing is rounded twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from luban.nn import static
from luban.nn.parts import Joined
from luban.nn.tokens import Batch

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh, Joined)
SAME_LEVELS = (nn.MaxPool2d, nn.Flatten)  # what they give stands on the levels of what they read
VALUES = 4096  # looked at of each tensor of a batch
SHRINK = np.linspace(0.4, 1.0, 25)  # of the range: a few values cut off may cost less than wide levels


class Call(NamedTuple):
    name: str
    module: nn.Module
    x: Any
    y: Any


@torch.no_grad()
def calibrated(network: Any, batches: Iterable[Batch]) -> dict[str, Any]:
    """The arguments of the edit `quantize_static` for a network in eval mode; no layers where nothing fits."""
    batches = list(batches)
    calls = _calls(network, batches[0])
    norms = _norms(calls)
    behind = {norm: layer for layer, norm in norms.items()}
    points, layers, wanted = _places(calls, norms, behind)
    seen = _values(network, batches, wanted)
    scale = {key: scale_of(np.concatenate(v)) for key, v in seen.items()}
    return {
        "norms": norms,
        "layers": {n: [scale.get((before, "x")), scale.get((after, "y"))] for n, (before, after) in layers.items()},
        "points": {n: scale[n, "y"] for n in points},
    }


def scale_of(values: np.ndarray) -> list[Any]:
    """[width of a level, level of zero] with the least mean squared error over the values; zero is a level, for padding is."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if high - low < 1e-12:
        return [1.0, 0]
    best = (np.inf, 1.0, 0)
    for share in SHRINK:
        width = (high - low) * share / static.TOP
        zero = round(-low * share / width)
        level = np.clip(np.round(values / width) + zero, 0, static.TOP)
        error = float(np.square((level - zero) * width - values).mean())
        best = min(best, (error, width, zero))
    return [best[1], best[2]]


@torch.no_grad()
def norms_behind(network: Any, batch: Batch) -> dict[str, str]:
    """Layer -> the batch norm that alone reads it."""
    return _norms(_calls(network, batch))


# -- how the network is made -------------------------------------------------------------------------------------------


def _calls(network: Any, batch: Batch) -> list[Call]:
    """Every call of a module without parts, in order."""
    found: list[Call] = []
    with _heard(network, lambda name, module, x, y: found.append(Call(name, module, x, y))):
        network(batch)
    times = Counter(c.name for c in found)
    return [c for c in found if times[c.name] == 1]


@contextmanager
def _heard(network: nn.Module, tell: Any) -> Iterator[None]:
    def hook(name: str) -> Any:
        return lambda module, inputs, y: tell(name, module, inputs[0] if inputs else None, y) and None

    leaves = [(n, m) for n, m in network.named_modules() if not any(m.children())]
    handles = [m.register_forward_hook(hook(n)) for n, m in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _readers(calls: list[Call], y: Any) -> list[Call]:
    return [c for c in calls if c.x is y]


def _norms(calls: list[Call]) -> dict[str, str]:
    """Layer -> the batch norm that alone reads it."""
    found = {}
    for call in calls:
        readers = _readers(calls, call.y)
        if static.fits(call.module) and [type(r.module) for r in readers] in ([nn.BatchNorm2d], [nn.BatchNorm1d]):
            norm = readers[0].module
            if norm.affine and norm.track_running_stats:
                found[call.name] = readers[0].name
    return found


def _places(
    calls: list[Call], norms: dict[str, str], behind: dict[str, str]
) -> tuple[list[str], dict[str, tuple[str | None, str | None]], set[tuple[str, str]]]:
    """Activations to round behind; per layer whose input and whose output is rounded there (names in `calls`), None where that
    is done elsewhere; all (name, "x" or "y") whose values are wanted.
    """
    by_name = {c.name: c for c in calls}
    points, layers, level = [], {}, set()
    for call in calls:
        if static.fits(call.module):
            last = by_name[norms[call.name]] if call.name in norms else call
            before = None if id(call.x) in level else call.name
            active = [r for r in _readers(calls, last.y) if isinstance(r.module, ACTIVATIONS)]
            ends = isinstance(call.module, nn.Linear) or bool(active)
            layers[call.name] = (before, None if ends else last.name)
            if not ends:
                level.add(id(last.y))
        elif isinstance(call.module, ACTIVATIONS) and isinstance(call.y, Tensor):
            points.append(call.name)
            level.add(id(call.y))
        elif isinstance(call.module, SAME_LEVELS) and id(call.x) in level:
            level.add(id(call.y))
    wanted = {(n, "y") for n in points}
    wanted |= {(before, "x") for before, _ in layers.values() if before}
    wanted |= {(after, "y") for _, after in layers.values() if after}
    return points, layers, wanted


def _values(
    network: Any, batches: list[Batch], wanted: set[tuple[str, str]]
) -> dict[tuple[str, str], list[np.ndarray]]:
    """Some values of every tensor that is wanted, its smallest and its largest among them."""
    seen: dict[tuple[str, str], list[np.ndarray]] = {key: [] for key in wanted}

    def tell(name: str, module: nn.Module, x: Any, y: Any) -> None:
        for side, tensor in (("x", x), ("y", y)):
            if (name, side) in seen:
                flat = tensor.float().flatten()
                step = max(1, len(flat) // VALUES) | 1  # odd, so that not every channel of a kind is passed over
                seen[name, side].append(torch.cat([flat[::step], flat.min()[None], flat.max()[None]]).cpu().numpy())

    with _heard(network, tell):
        for batch in batches:
            network(batch)
    return seen
