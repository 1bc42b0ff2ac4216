"""Which channels of which layers can be removed together, found by trying it on the network itself.

No table of architectures: a channel of one layer is set to two different values while every other layer keeps giving what
it gave, so that only the layers that read this channel, and only the columns that hold it, see a difference. What is found
is checked by cutting: a network without the channel must answer like one whose readers ignore it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luban.nn.edits import prune_channels
from luban.nn.quantized import QuantConv, QuantLinear
from luban.nn.tokens import Batch

LINEAR = (nn.Linear, QuantLinear)
CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d, QuantConv)
NORM = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
VALUES = (3.0, -3.0)  # far enough apart for every activation, not so far that a sigmoid is flat
SAME = 1e-4


@dataclass(frozen=True)
class Readers:
    """Who reads the channels of `layer`: per reader its column(s) of each channel, (C, columns of one channel).

    `others`: per reader its columns of no channel of this layer, which stay.
    """

    layer: str
    columns: Mapping[str, Tensor]
    others: Mapping[str, list[int]]

    def edit(self, keep: Tensor) -> dict[str, Any]:
        """The arguments of `prune_channels` that leave only the channels `keep`."""
        into = {n: sorted([*c[keep].flatten().tolist(), *self.others[n]]) for n, c in self.columns.items()}
        return {"layer": self.layer, "keep": keep.tolist(), "into": into}


def prunable(network: nn.Module) -> list[str]:
    """Layers with channels of their own, in the order of the modules; whether they can be cut is for `readers` to say."""
    whole = (*LINEAR, *CONVOLUTION)
    return [n for n, m in network.named_modules() if isinstance(m, whole) and getattr(m, "groups", 1) == 1]


@torch.no_grad()
def readers(network: Any, batch: Batch, layer: str) -> Readers | None:
    """The readers of a layer's channels; None where they cannot be cut out. `batch`: two examples or more, in eval mode."""
    module = network.get_submodule(layer)
    channels = module.weight.shape[0]
    if channels < 2:
        return None
    one = _repeated(batch, channels)
    try:
        usual, _ = _run(network, one, layer, None)
        seen = [_run(network, one, layer, v, usual) for v in VALUES]
    except (_Unfit, RuntimeError, IndexError):
        return None
    first, second = seen
    if any(not torch.equal(a, b) for a, b in zip(first[1].values(), second[1].values())):
        return None  # it reaches an answer past every layer that could be cut
    columns, others = {}, {}
    for name, x in first[0].items():
        changed = _columns(network.get_submodule(name), x, second[0][name])
        if changed is None:
            return None
        if changed.any():
            columns[name] = _even(changed)
            others[name] = (~changed.any(0)).nonzero()[:, 0].tolist()
    if not columns or any(c is None for c in columns.values()):
        return None
    found = Readers(layer, columns, others)
    return found if _checked(network, batch, found) else None


class _Unfit(Exception):
    pass


def _run(
    network: Any, batch: Batch, layer: str, value: float | None, held: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Without `value`: what each layer gives. With it: what each layer reads when channel i of example i is `value`
    and all others give what they gave. Beside it the answers."""
    found: dict[str, Tensor] = {}

    def hook(name: str, module: nn.Module) -> Callable[..., Any]:
        def record(_: Any, inputs: Any, output: Any) -> Any:
            if name in found:
                raise _Unfit  # used twice
            if value is None:
                found[name] = output
                return None
            found[name] = inputs[0]
            if name == layer:
                return _with(module, output, value)
            return None if isinstance(module, NORM) else held[name]

        return record

    with _hooked(network, hook):
        answers = network(batch)
    if layer not in found:
        raise _Unfit
    if value is not None:
        found.pop(layer)
    return found, answers


@contextmanager
def _hooked(network: nn.Module, hook: Callable[[str, nn.Module], Any]) -> Iterator[None]:
    leaves = [(n, m) for n, m in network.named_modules() if m.state_dict() and not any(m.children())]
    handles = [m.register_forward_hook(hook(n, m)) for n, m in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with(module: nn.Module, output: Tensor, value: float) -> Tensor:
    """Channel i of example i set to a value."""
    dim = 1 if isinstance(module, CONVOLUTION) else output.ndim - 1
    moved = output.movedim(dim, 1).clone()  # (C, C, ...)
    index = torch.arange(moved.shape[1], device=output.device)
    moved[index, index] = value
    return moved.movedim(1, dim)


def _columns(module: nn.Module, a: Any, b: Any) -> Tensor | None:
    """bool (C, columns): which columns of this reader differ for which channel; None where it is no layer to cut."""
    if not isinstance(a, Tensor) or a.shape != b.shape:
        return None
    if torch.equal(a, b):
        return torch.zeros(1, 1, dtype=torch.bool)
    if isinstance(module, (*CONVOLUTION, nn.modules.batchnorm._BatchNorm)) and getattr(module, "groups", 1) == 1:
        dim = 1
    elif isinstance(module, LINEAR):
        dim = a.ndim - 1
    else:
        return None
    return (a != b).movedim(dim, 1).flatten(2).any(2) if a.ndim > 2 else a != b


def _even(changed: Tensor) -> Tensor | None:
    """bool (C, columns) -> (C, n) column numbers, when every channel has the same number of columns, all its own."""
    each = changed.sum(1)
    if int(changed.sum(0).max()) > 1 or int(each.min()) == 0 or int(each.min()) != int(each.max()):
        return None
    return changed.nonzero()[:, 1].view(len(changed), -1)


def _checked(network: nn.Module, batch: Batch, found: Readers) -> bool:
    """A network with half of the channels cut answers like one whose readers ignore that half."""
    channels = len(next(iter(found.columns.values())))
    keep, gone = torch.arange(0, channels, 2), torch.arange(1, channels, 2)
    ignoring, cut = copy.deepcopy(network), copy.deepcopy(network)
    for name, columns in found.columns.items():
        module = ignoring.get_submodule(name)
        if not isinstance(module, NORM):
            stored = module.q if hasattr(module, "q") else module.weight
            stored[:, columns[gone].flatten()] = 0
    try:
        after = prune_channels(cut, **found.edit(keep))(batch)
    except (RuntimeError, ValueError, IndexError):
        return False
    before = ignoring(batch)
    return all(
        a.shape == b.shape and float((a - b).abs().max()) <= SAME * max(1.0, float(a.abs().max()))
        for a, b in zip(before.values(), after.values())
    )


def _repeated(batch: Batch, count: int) -> Batch:
    """The batch's first example, `count` times."""
    same = lambda pair: tuple(t[:1].expand(count, *t.shape[1:]).contiguous() for t in pair)  # noqa: E731
    return Batch({n: same(p) for n, p in batch.inputs.items()}, {}, count)
