"""Which channels of which layers can be removed together, found by trying it on the network itself.

No table of architectures: a channel of one layer is set to two different values while every other layer keeps giving what
it gave, so that only the layers that read this channel, and only the columns that hold it, see a difference. What is found
is checked by cutting: a network without the channel must answer like one whose readers ignore it.

Layers whose answers are added, as along a residual stream, write into the same columns of their readers: that ties them to a
`Group`, which is cut together.
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
class Group:
    """`layers` that give the same channels, and who reads them: per reader its column(s) of each channel, (C, columns of one)."""

    layers: tuple[str, ...]
    columns: Mapping[str, Tensor]

    @property
    def channels(self) -> int:
        return len(next(iter(self.columns.values())))


class Cutting:
    """The edits of several groups of one network, one after the other: each numbers the columns that the others have left."""

    def __init__(self, network: nn.Module):
        self.network, self.left = network, {}

    def edit(self, group: Group, keep: Tensor) -> dict[str, Any]:
        """The arguments of `prune_channels` that leave only the channels `keep` of a group."""
        gone = torch.ones(group.channels, dtype=torch.bool)
        gone[keep] = False
        into = {}
        for name, columns in group.columns.items():
            left = self.left.get(name) or list(range(_width(self.network.get_submodule(name))))
            lost = set(columns[gone].flatten().tolist())
            into[name] = [i for i, c in enumerate(left) if c not in lost]
            self.left[name] = [c for c in left if c not in lost]
        first, *also = group.layers
        return {"layer": first, "keep": keep.tolist(), "into": into} | ({"also": also} if also else {})


def _width(module: nn.Module) -> int:
    """How many columns a reader has."""
    return module.weight.shape[0 if isinstance(module, NORM) or _each(module) else 1]


def _each(module: nn.Module) -> bool:
    """A convolution with a filter for each channel, which gives as many as it reads."""
    return isinstance(module, CONVOLUTION) and module.groups > 1 and module.groups == module.weight.shape[0]


@torch.no_grad()
def groups(network: Any, batch: Batch) -> list[Group]:
    """Every group of layers whose channels can be cut, in the order of their first layers. `batch`: two examples or more, in eval mode."""
    reached = {n: found for n in prunable(network) if (found := _reached(network, batch, n)) is not None}
    together: list[list[str]] = []
    for name, found in reached.items():
        tied = [g for g in together if any(_share(found, reached[m]) for m in g)]
        together = [g for g in together if g not in tied] + [[*(m for g in tied for m in g), name]]
    result = []
    for names in together:
        columns: dict[str, Tensor] = {}
        for found in (reached[n] for n in names):
            columns |= found
        counts = {len(c) for c in columns.values()} | {network.get_submodule(n).weight.shape[0] for n in names}
        group = Group(tuple(n for n in reached if n in names), columns)
        if len(counts) == 1 and _checked(network, batch, group):
            result.append(group)
    order = list(reached)
    return sorted(result, key=lambda g: order.index(g.layers[0]))


def _share(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two layers write into the same columns of some reader."""
    return any(bool(torch.isin(a[n], b[n]).any()) for n in a.keys() & b.keys())


def prunable(network: nn.Module) -> list[str]:
    """Layers with channels of their own, in the order of the modules; whether they can be cut is for `groups` to say."""
    whole = (*LINEAR, *CONVOLUTION)
    return [n for n, m in network.named_modules() if isinstance(m, whole) and getattr(m, "groups", 1) == 1]


def _reached(network: Any, batch: Batch, layer: str) -> dict[str, Tensor] | None:
    """Who reads the channels of a layer, as in `Group`, before it is known whether they can be cut out."""
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
    columns = {}
    for name, read in first[0].items():
        calls = [_columns(network.get_submodule(name), a, b) for a, b in zip(read, second[0][name])]
        if any(c is None for c in calls):
            return None
        if differing := [c for c in calls if c.any()]:
            columns[name] = _even(torch.stack(differing).any(0))
    if not columns or any(c is None for c in columns.values()):
        return None
    return columns


class _Unfit(Exception):
    pass


def _run(
    network: Any, batch: Batch, layer: str, value: float | None, held: Mapping[str, list[Tensor]] | None = None
) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
    """Without `value`: what each layer gives, call by call. With it: what each layer reads when channel i of example i is `value`
    and all others give what they gave. Beside it the answers."""
    found: dict[str, list[Tensor]] = {}

    def hook(name: str, module: nn.Module) -> Callable[..., Any]:
        def record(_: Any, inputs: Any, output: Any) -> Any:
            calls = found.setdefault(name, [])
            calls.append(output if value is None else inputs[0])
            if value is None:
                return None
            if name == layer:
                return _with(module, output, value)
            return None if isinstance(module, NORM) or _each(module) else held[name][len(calls) - 1]

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
    plain = getattr(module, "groups", 1) == 1 or _each(module)
    if isinstance(module, (*CONVOLUTION, nn.modules.batchnorm._BatchNorm)) and plain:
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


def _checked(network: nn.Module, batch: Batch, found: Group) -> bool:
    """A network with half of the channels cut answers like one whose readers ignore that half."""
    keep, gone = torch.arange(0, found.channels, 2), torch.arange(1, found.channels, 2)
    ignoring, cut = copy.deepcopy(network), copy.deepcopy(network)
    for name, columns in found.columns.items():
        module = ignoring.get_submodule(name)
        if not (isinstance(module, NORM) or _each(module)):
            stored = module.q if hasattr(module, "q") else module.weight
            stored[:, columns[gone].flatten()] = 0
    try:
        after = prune_channels(cut, **Cutting(cut).edit(found, keep))(batch)
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
