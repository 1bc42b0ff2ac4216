"""Which channels of which layers can be removed together, found by trying it on the network itself.

No table of architectures: channels of one layer are set to two different values while every other layer keeps giving what
it gave, so that only the layers that read them, and only the columns that hold them, see a difference. Which channel a column
holds is read off a few examples (`_code`). What is found is checked by cutting: a network without the channels must answer
like one whose readers ignore them.

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
    reached = _all_reached(network, batch)
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


def _all_reached(network: Any, batch: Batch) -> dict[str, dict[str, Tensor]]:
    """`_reached` of every layer where it is something, in the order of the modules."""
    names = prunable(network)
    codes = {n: _code(network.get_submodule(n).weight.shape[0]) for n in names}
    found = {}
    for count in sorted({len(c) for c in codes.values()} - {0}):  # those with as many examples share what is usual
        one = _repeated(batch, count)
        try:
            usual = _usual(network, one)
        except (RuntimeError, IndexError):
            continue
        found |= {n: _reached(network, one, n, codes[n], usual) for n in names if len(codes[n]) == count}
    return {n: found[n] for n in names if found.get(n)}


def _code(channels: int) -> Tensor:
    """bool (E, channels): which channels are set in which example. Example j sets those with bit j in their number, and another one
    those without, so what holds one channel alone differs in the examples of its number, and in half of them; what holds several does in more."""
    bits = torch.arange(channels) >> torch.arange((channels - 1).bit_length())[:, None] & 1 == 1
    return torch.cat([bits, ~bits])


def _reached(
    network: Any, one: Batch, layer: str, code: Tensor, usual: Mapping[str, list[Tensor]]
) -> dict[str, Tensor] | None:
    """Who reads the channels of a layer, as in `Group`, before it is known whether they can be cut out. `one`: an example for each row of `code`."""
    try:
        first, second = (_run(network, one, layer, code, v, usual) for v in VALUES)
    except (_Unfit, RuntimeError, IndexError):
        return None
    if any(not torch.equal(a, b) for a, b in zip(first[1].values(), second[1].values())):
        return None  # it reaches an answer past every layer that could be cut
    columns = {}
    for name, read in first[0].items():
        calls = [_columns(network.get_submodule(name), code, a, b) for a, b in zip(read, second[0][name])]
        if any(c is None for c in calls):
            return None
        if differing := [c for c in calls if c.any()]:
            columns[name] = _even(torch.stack(differing).any(0))
    if any(c is None for c in columns.values()):
        return None
    return columns


class _Unfit(Exception):
    pass


def _usual(network: Any, batch: Batch) -> dict[str, list[Tensor]]:
    """What each layer gives, call by call."""
    found: dict[str, list[Tensor]] = {}

    def recorded(name: str, module: nn.Module) -> Callable[..., Any]:
        def forward(*inputs: Any, **more: Any) -> Any:
            output = type(module).forward(module, *inputs, **more)
            found.setdefault(name, []).append(output)
            return output

        return forward

    with _instead(network, recorded):
        network(batch)
    return found


def _run(
    network: Any, batch: Batch, layer: str, code: Tensor, value: float, held: Mapping[str, list[Tensor]]
) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
    """What each layer reads when the channels of each example that `code` says are `value`, and all others give what they gave,
    which is not computed anew. Beside it the answers."""
    found: dict[str, list[Tensor]] = {}

    def changed(name: str, module: nn.Module) -> Callable[..., Any]:
        passes = name == layer or isinstance(module, NORM) or _each(module)

        def forward(*inputs: Any, **more: Any) -> Any:
            calls = found.setdefault(name, [])
            calls.append(inputs[0])
            if not passes:
                return held[name][len(calls) - 1]
            output = type(module).forward(module, *inputs, **more)
            return _with(module, output, code, value) if name == layer else output

        return forward

    with _instead(network, changed):
        answers = network(batch)
    if found.pop(layer, None) is None:
        raise _Unfit
    return found, answers


@contextmanager
def _instead(network: nn.Module, forward: Callable[[str, nn.Module], Callable[..., Any]]) -> Iterator[None]:
    """Every layer with numbers of its own does something else meanwhile."""
    leaves = [(n, m) for n, m in network.named_modules() if m.state_dict() and not any(m.children())]
    for name, module in leaves:
        module.forward = forward(name, module)
    try:
        yield
    finally:
        for _, module in leaves:
            del module.forward


def _with(module: nn.Module, output: Tensor, code: Tensor, value: float) -> Tensor:
    """The channels of each example that `code` says set to a value."""
    dim = 1 if isinstance(module, CONVOLUTION) else output.ndim - 1
    moved = output.movedim(dim, 1)
    return moved.masked_fill(code.to(output.device).view(*code.shape, *[1] * (output.ndim - 2)), value).movedim(1, dim)


def _columns(module: nn.Module, code: Tensor, a: Any, b: Any) -> Tensor | None:
    """bool (C, columns): which columns of this reader hold which channel; None where it is no layer to cut."""
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
    changed = ((a != b).movedim(dim, 1).flatten(2).any(2) if a.ndim > 2 else a != b).cpu()
    if len(changed) != len(code):
        return None
    columns = changed.any(0).nonzero()[:, 0]
    seen, bits = changed[:, columns], len(code) // 2
    channel = (seen[:bits] << torch.arange(bits)[:, None]).sum(0)
    if int(channel.max()) >= code.shape[1] or not torch.equal(code[:, channel], seen):
        return None
    holds = torch.zeros(code.shape[1], changed.shape[1], dtype=torch.bool)
    holds[channel, columns] = True
    return holds


def _even(changed: Tensor) -> Tensor | None:
    """bool (C, columns) -> (C, n) column numbers, when every channel has the same number of columns, all its own."""
    each = changed.sum(1)
    if int(changed.sum(0).max()) > 1 or int(each.min()) == 0 or int(each.min()) != int(each.max()):
        return None
    return changed.nonzero()[:, 1].view(len(changed), -1)


def _checked(network: nn.Module, batch: Batch, found: Group) -> bool:
    """A network with half of the channels cut answers like one whose readers ignore that half."""
    keep, gone = torch.arange(0, found.channels, 2), torch.arange(1, found.channels, 2)
    ignoring, cut = _twin(network, found), _twin(network, found)
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


def _twin(network: nn.Module, found: Group) -> nn.Module:
    """A copy of a network that shares with it what a group does not touch: copying all of it for every group would be most of the work."""
    touched = {*found.layers, *found.columns}
    leaves = [m for n, m in network.named_modules() if n not in touched and not any(m.children())]
    return copy.deepcopy(network, {id(m): m for m in leaves})


def _repeated(batch: Batch, count: int) -> Batch:
    """The batch's first example, `count` times."""
    same = lambda pair: tuple(t[:1].expand(count, *t.shape[1:]).contiguous() for t in pair)  # noqa: E731
    return Batch({n: same(p) for n, p in batch.inputs.items()}, {}, count)
