"""Where a network looks: the weights of its attention, as they are used while it reads a batch.

`looking` watches without changing what is computed. Luban's own attention is seen at its one place, the call of
`scaled_dot_product_attention`, whose very arguments are taken; pooling and the LSTM that looks back say their weights themselves; a network
of `transformers` is asked for them (its `eager` attention, which alone keeps them). B examples, H heads, T positions that look, S that are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from luban.nn.heads.text_rnn import LSTMText
from luban.nn.network import Composed
from luban.nn.tokens import Pool
from luban.nn.transformer import Attention
from luban.nn.vision.vit import Attention as PatchAttention

Kind = Literal["self", "memory", "pool"]


@dataclass(frozen=True)
class Look:
    """One layer's attention. `part`: inputs or the output whose network looks; `queries`, `keys`: the columns whose positions, one
    after another, the two axes are (none where that is not known).
    """

    part: tuple[str, ...]
    kind: Kind
    weights: Tensor  # (B, H, T, S): each row adds up to 1
    queries: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


class Owner(NamedTuple):
    """Whose network a module belongs to: that of inputs, or the one that writes, with what it looks back at."""

    part: tuple[str, ...]
    queries: tuple[str, ...]
    memory: tuple[str, ...] = ()


@contextmanager
def looking(network: nn.Module) -> Iterator[list[Look]]:
    """Inside, every pass through the network adds what it looked at, layer by layer, to the list. Its answers stay what they are."""
    found: list[Look] = []
    owners, called = _owners(network), {}

    def add(module: nn.Module, kind: Kind, weights: Tensor) -> None:
        some = owners.get(id(module), [Owner((), ())])
        key = id(module), kind
        owner = some[called.get(key, 0) % len(some)]  # an encoder that inputs share reads one after the other
        called[key] = called.get(key, 0) + 1
        keys = owner.memory if kind == "memory" else owner.queries
        found.append(Look(owner.part, kind, weights.detach(), () if kind == "pool" else owner.queries, keys))

    watch = _Watch(add)
    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, (Attention, PatchAttention)):
                stack.callback(module.register_forward_pre_hook(watch.enter).remove)
                stack.callback(module.register_forward_hook(watch.leave).remove)
            elif isinstance(module, Pool) and module.kind == "attention":
                stack.callback(module.register_forward_hook(_pooled(add)).remove)
            elif isinstance(module, LSTMText) and module.ask is not None:
                stack.callback(module.register_forward_hook(_looked_back(add)).remove)
            elif hasattr(module, "set_attn_implementation") and _outermost(module, network):
                stack.enter_context(_asked(module, add))
        stack.enter_context(watch)
        yield found


class _Watch(TorchFunctionMode):
    """Sees each call of `scaled_dot_product_attention`, and knows which module is at work."""

    def __init__(self, add: Any):
        super().__init__()
        self.add, self.inside = add, []

    def enter(self, module: nn.Module, _: Any) -> None:
        self.inside.append(module)

    def leave(self, *_: Any) -> None:
        self.inside.pop()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and self.inside:
            module = self.inside[-1]
            self.add(module, "memory" if getattr(module, "memory", 0) else "self", weights(*args, **kwargs))
        return function(*args, **kwargs)


def weights(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What `scaled_dot_product_attention` multiplies the values with, (B, H, T, S); its own arguments, in its own order.

    softmax(Q K' / sqrt(d)) over what the mask lets be seen; q (B, H, T, d), k (B, K, S, d). Dropout, which a network that answers has none of, is left out.
    """
    if enable_gqa:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
    energy = q @ k.transpose(-2, -1) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        ahead = torch.ones(energy.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        energy = energy.masked_fill(ahead, float("-inf"))
    if attn_mask is not None:
        seen = attn_mask.dtype is torch.bool
        energy = energy.masked_fill(~attn_mask, float("-inf")) if seen else energy + attn_mask
    return energy.softmax(-1)


def _pooled(add: Any) -> Any:
    def hook(pool: Pool, args: tuple[Any, ...], _: Any) -> None:
        add(pool, "pool", pool.weights(args[0])[:, None, None])

    return hook


def _looked_back(add: Any) -> Any:
    def hook(head: LSTMText, args: tuple[Any, ...], _: Any) -> None:
        add(head, "memory", head.looked(*args)[:, None])

    return hook


# -- networks of `transformers` ----------------------------------------------------------------------------------------


def _outermost(module: nn.Module, network: nn.Module) -> bool:
    """Whether no other network of the library holds this one: its output tells of all layers."""
    return not any(
        module is not other and hasattr(other, "set_attn_implementation") and any(m is module for m in other.modules())
        for other in network.modules()
    )


@contextmanager
def _asked(model: Any, add: Any) -> Iterator[None]:
    """The library's network keeps its weights: its `eager` attention, and afterwards what it was."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "set_attn_implementation")}.values()
    before = [(c, c._attn_implementation, c.output_attentions) for c in configs]
    model.set_attn_implementation("eager")
    for c in configs:
        c.output_attentions = True

    def hook(_: nn.Module, __: Any, out: Any) -> None:
        if not isinstance(out, Mapping):
            return
        for name, kind in (("attentions", "self"), ("decoder_attentions", "self"), ("cross_attentions", "memory")):
            for layer in out.get(name) or ():
                if isinstance(layer, Tensor) and layer.ndim == 4:
                    add(model, kind, layer)

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
        for c, _, kept in before:
            c.output_attentions = kept
        model.set_attn_implementation(before[0][1])


# -- whose they are ----------------------------------------------------------------------------------------------------


def _owners(network: nn.Module) -> dict[int, list[Owner]]:
    """By the id of every module below an encoder or a head: whose it is. One that several inputs share has several."""
    found: dict[int, list[Owner]] = {}
    for net in network.modules():
        if not isinstance(net, Composed):
            continue
        read = tuple(n for names in net.groups for n in names)
        for names, encoder in zip(net.groups, net.encoders):
            _claim(found, encoder, Owner(tuple(names), tuple(names)))
        _claim(found, net.fusion, Owner(read, read))
        for name, head in net._heads():
            ahead = read if getattr(head, "before", 0) else ()
            told = not getattr(net.fusion, "ahead", False)  # else there may be fewer positions than were read
            _claim(found, head, Owner((name,), (*ahead, name) if told else (), read))
    return found


def _claim(found: dict[int, list[Owner]], top: nn.Module, owner: Owner) -> None:
    for m in top.modules():
        some = found.setdefault(id(m), [])
        if owner not in some:
            some.append(owner)
