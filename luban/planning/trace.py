"""What one training step of a network does, counted on the real network with tensors that have shapes but no memory.

Nothing here knows an architecture. `Trace` sees every operation that PyTorch would run (forward, loss, backward) and keeps
the bytes that are alive, as an allocator would, the multiplications of matrices (`torch.utils.flop_counter`) and the bytes
that each kernel reads and writes. A stack of equal layers is measured at two depths and continued in a straight line.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from luban.nn.networks.masked import Guess
from luban.training.loop import Plan, State
from luban.training.objectives import supervised
from luban.training.recompute import stacks

aten = torch.ops.aten
SHALLOW, DEEPER = 4, 6  # layers of a stack that are measured
STACK = 8  # layers from which on a stack is measured at two depths
MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
HALF = (torch.bfloat16, torch.float16)
HALVES = ("bf16", "fp16")


def _recurrent(x: Any, w_in: Any, w_state: Any, *_: Any, **__: Any) -> int:
    """x (T, B, D) by a layer's weights (G, D), (G, H): 2 (D + H) G for each position."""
    return 2 * x.shape[0] * x.shape[1] * w_in.shape[0] * (w_in.shape[1] + w_state.shape[1])


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop(q.shape, k.shape, v.shape)


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop(grad.shape, q.shape, k.shape, v.shape)


def _convolution_backward(
    grad: Any, x: Any, weight: Any, _bias: Any, _stride: Any, _padding: Any, _dilation: Any, turned: bool, *rest: Any
) -> int:
    """A product for each of the two gradients that are asked for, each as large as that of the forward pass: every position by every weight.
    torch's table forgets that a channel's filter sees its own group alone."""
    asked = rest[-1]
    places = x if turned else grad
    return 2 * places.numel() // places.shape[1] * weight.numel() * sum(asked[:2])


COUNTED: dict[Any, Callable[..., int]] = {  # what torch's own table lacks, and what it has wrong
    aten.convolution_backward: _convolution_backward,
    aten.mkldnn_rnn_layer: _recurrent,
    aten.mkldnn_rnn_layer_backward: lambda *a, **k: 2 * _recurrent(*a, **k),
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}  # fmt: skip

# Memory that a kernel takes without saying so, in numbers for each position: oneDNN's LSTM writes its gates and states to a
# workspace in the forward pass, and their gradients beside them in the backward pass (measured with torch 2.13, float32).
GATES, STATES = (4.7, 1.2), (4.8, 4.8)  # x H, x the larger of D and H


def _workspace(x: Any, w_in: Any, w_state: Any, share: tuple[float, float]) -> int:
    hidden = w_state.shape[1]
    return int(4 * x.shape[0] * x.shape[1] * (share[0] * hidden + share[1] * max(w_in.shape[1], hidden)))


class Trace(TorchDispatchMode):
    """Counts what runs inside of it. `live` and `peak`: bytes of tensors made inside; `kernels`: (FLOPs, bytes, half) -> times.

    `casts`: bytes of weights copied to half precision, which autocast keeps for the backward pass.
    """

    def __init__(self, weights: set[int] | None = None):
        super().__init__()
        self.live = self.peak = self.flops = self.casts = 0
        self.kernels: Counter[tuple[int, int, bool]] = Counter()
        self._sizes: dict[int, int] = {}
        self._watched: dict[int, Any] = {}
        self._weights = weights or set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        fresh = sum(self._keep(t) for t in made)
        if func is aten.mkldnn_rnn_layer.default:
            self._grow(made[-1], _workspace(*args[:3], GATES))
        more = _workspace(*args[:3], STATES) if func is aten.mkldnn_rnn_layer_backward.default else 0
        self.peak = max(self.peak, self.live + more)
        if fresh and func is aten._to_copy.default and _place(args[0]) in self._weights:
            self.casts += fresh
        packet = func._overloadpacket
        count = COUNTED.get(packet)
        flops = count(*args, **kwargs) if count else self._known(packet, args, kwargs, out)
        self.flops += flops
        if fresh or flops or func._schema.is_mutable:  # the rest are views, which run nothing
            half = any(t.dtype in HALF for t in given)
            self.kernels[flops, sum(t.numel() * t.element_size() for t in (*given, *made)), half] += 1
        return out

    @staticmethod
    def _known(packet: Any, args: Any, kwargs: Any, out: Any) -> int:
        return int(flop_registry[packet](*args, **kwargs, out_val=out)) if packet in flop_registry else 0

    def _keep(self, tensor: Tensor) -> int:
        """The bytes of a tensor's memory where it is new; views of weights are in theirs."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes or key in self._weights:
            return 0
        self._sizes[key] = size = storage.nbytes()
        self.live += size
        self._watched[key] = weakref.ref(storage, lambda _: self._gone(key))
        return size

    def _grow(self, tensor: Tensor, size: int) -> None:
        """The memory that a tensor has although its shape does not tell (a real one's does)."""
        if not tensor.numel():
            self._sizes[tensor.untyped_storage()._cdata] += size
            self.live += size

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)
        self._watched.pop(key, None)


class Fused(TorchFunctionMode):
    """Attention as accelerators compute it: one kernel that keeps no T x T matrix, dropout or not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            kwargs = {**kwargs, "dropout_p": 0.0}
        return func(*args, **kwargs)


class Named(TorchFunctionMode):
    """How many places a mask names depends on values, which shapes do not have: so many of them as are expected."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not Tensor.nonzero:
            return func(*args, **kwargs)
        mask = args[0]
        count = max(1, round(self.share * mask.numel()))
        places = tuple(mask.new_zeros(count, dtype=torch.long) for _ in mask.shape)
        return places if kwargs.get("as_tuple") else torch.stack(places, 1)


@dataclass(frozen=True)
class Step:
    """One micro-batch of `examples`, forward and backward. Bytes beside weights, gradients and optimiser; FLOPs."""

    examples: int
    held: float  # alive when the loss is known: what the backward pass needs
    peak: float  # most at any moment
    casts: float  # of both, half-precision copies of weights
    forward: float
    backward: float
    crossing: float  # numbers that tensor parallelism would sum over devices: the smaller side of every matrix, once
    kernels: Counter[tuple[int, int, bool]] = field(repr=False, default_factory=Counter)

    def scaled(self, examples: int) -> Step:
        """The same step with another number of examples, but for its bytes, in proportion."""
        by = examples / self.examples
        kernels = Counter({(round(f * by), round(b * by), h): n for (f, b, h), n in self.kernels.items()})
        forward, backward, crossing = self.forward * by, self.backward * by, self.crossing * by
        return Step(examples, self.held, self.peak, self.casts, forward, backward, crossing, kernels)


@dataclass(frozen=True)
class Standing:
    """What stays from step to step, in bytes, and how the weights lie: `unit` is the largest layer of a stack, `root` the
    rest."""

    parameters: int
    trainable: int
    weights: int
    buffers: int
    gradients: int
    optimizer: int
    unit: int
    root: int


def fakes() -> FakeTensorMode:
    """A mode inside of which tensors have shapes and no memory; one that was made in it works in it again."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def standing(network: nn.Module, plan: Plan) -> Standing:
    """Weights, gradients and optimiser state of a network on the meta device, from the loop's own `State`."""
    weights = sum(_bytes(p) for p in network.parameters())
    with Trace() as trace:
        state = State(network, replace(plan, device="meta"), 1)
    gradients = _bytes(state.flat)
    units = [sum(_bytes(p) for p in layer.parameters()) for layers in stacks(network) for layer in layers]
    return Standing(
        parameters=sum(p.numel() for p in network.parameters()),
        trainable=sum(p.numel() for p in network.parameters() if p.requires_grad),
        weights=weights,
        buffers=sum(_bytes(b) for b in network.buffers()),
        gradients=gradients,
        optimizer=trace.live - gradients,  # and the average of the weights, where one is kept
        unit=max(units, default=0),
        root=weights - sum(units),
    )


def step(network: nn.Module, batch: Any, *, precision: str = "fp32", fused: bool = False) -> Step:
    """Count one forward and backward pass of a network under `fake`."""
    deep = {len(s) for s in stacks(network)}
    if len(deep) != 1 or min(deep) < STACK:
        return _counted(network, batch, precision, fused)
    (depth,) = deep
    with _cut(network, SHALLOW):
        low = _counted(network, batch, precision, fused)
    with _cut(network, DEEPER):
        high = _counted(network, batch, precision, fused)
    return _continued(low, high, (depth - SHALLOW) / (DEEPER - SHALLOW))


def forward_peak(network: nn.Module, batch: Any, *, precision: str = "fp32") -> int:
    """Bytes that judging a batch takes, nothing being kept for a backward pass."""
    was = network.training
    network.eval()
    shallow = _cut(network, SHALLOW) if any(len(s) >= STACK for s in stacks(network)) else nullcontext()
    with shallow, torch.no_grad(), Named(_share(network)), Trace(_places(network)) as trace:
        o = network(batch)
        network.loss(o, batch)
    network.train(was)
    return trace.peak


def _counted(network: nn.Module, batch: Any, precision: str, fused: bool) -> Step:
    network.train()
    trace = Trace(_places(network))
    half = torch.autocast("cpu", torch.bfloat16) if precision in HALVES else nullcontext()
    kernels = Fused() if fused else nullcontext()
    with kernels, Named(_share(network)), _given_back(network), _crossed(network) as crossed, trace:
        with half:
            losses = supervised(network, batch, np.random.default_rng(0))
        total = sum(each.sum() / weight.sum().clamp(min=1e-12) for each, weight in losses.values())
        held, forward = trace.live, trace.flops
        total.backward()
    backward = trace.flops - forward
    return Step(batch.size, held, trace.peak, trace.casts, forward, backward, sum(crossed), trace.kernels)


def _share(network: nn.Module) -> float:
    """Of the places that a mask could name."""
    return max((m.share for m in network.modules() if isinstance(m, Guess)), default=1.0)


@contextmanager
def _given_back(network: nn.Module) -> Iterator[None]:
    """A gradient goes as soon as it is known: the loop adds it to memory that is already there."""

    def forget(p: Tensor) -> None:
        p.grad = None

    hooks = [p.register_post_accumulate_grad_hook(forget) for p in network.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _crossed(network: nn.Module) -> Iterator[list[int]]:
    """How many numbers the smaller side of each matrix passes on (Shoeybi et al. 2020: one sum over devices for each)."""
    found: list[int] = []

    def note(layer: nn.Module, given: Any, out: Tensor) -> None:
        found.append(min(given[0].numel(), out.numel()))

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, MATRICES)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _continued(low: Step, high: Step, times: float) -> Step:
    """A stack of more layers. Each adds to the peak at least what it holds, whatever was at work at that moment."""

    def line(a: float, b: float) -> float:
        return a + (b - a) * times

    kernels = Counter({k: round(line(low.kernels[k], high.kernels[k])) for k in low.kernels | high.kernels})
    held = line(low.held, high.held)
    peak = max(line(low.peak, high.peak), high.peak + held - high.held)
    others = (line(getattr(low, n), getattr(high, n)) for n in ("casts", "forward", "backward", "crossing"))
    return Step(low.examples, held, peak, *others, +kernels)


# -- stacks of equal layers ----------------------------------------------------------------------------------------------


@contextmanager
def _cut(network: nn.Module, depth: int) -> Iterator[None]:
    """The stacks with only their first layers."""
    whole = [(s, list(s)) for s in stacks(network)]
    for layers, all_of_them in whole:
        layers._modules.clear()
        layers.extend(all_of_them[:depth])
    try:
        yield
    finally:
        for layers, all_of_them in whole:
            layers._modules.clear()
            layers.extend(all_of_them)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _places(network: nn.Module) -> set[int]:
    return {_place(p) for p in network.parameters()}


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
