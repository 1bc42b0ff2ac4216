"""A network whose layers hold integers, as the ordinary network that it was made of: its weights multiplied out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luban.nn.quantized import QuantRecurrent, Stored
from luban.nn.static import Levelled


def stored_layers(network: nn.Module) -> int:
    """Layers with weights as integers, whatever their bits."""
    inside = {id(m) for r in network.modules() if isinstance(r, QuantRecurrent) for m in r.children()}
    return sum(isinstance(m, (Stored, QuantRecurrent)) and id(m) not in inside for m in network.modules())


@torch.no_grad()
def multiplied_out(stored: nn.Module, plain: nn.Module, norms: Mapping[str, str]) -> nn.Module:
    """`plain`, the network as it was before layers were quantised, with the weights that `stored` computes with.

    `norms`: layer -> the batch norm behind it that was folded into it (`luban.nn.static`); that norm changes nothing now but adds the
    layer's bias. Raises ValueError where one network is not made of the other.
    """
    stored = _without_levels(copy.deepcopy(stored))
    state = plain.state_dict()
    for name, mine in state.items():
        if not any(name.startswith(f"{norm}.") for norm in norms.values()):
            place, _, leaf = name.rpartition(".")
            mine.copy_(_same_shape(getattr(stored.get_submodule(place), leaf, None), mine, name))
    for layer, norm in norms.items():
        _bare(plain.get_submodule(layer), plain.get_submodule(norm), stored.get_submodule(layer).bias)
    return plain


def _same_shape(theirs: Any, mine: Tensor, name: str) -> Tensor:
    if not isinstance(theirs, Tensor) or theirs.shape != mine.shape:
        raise ValueError(name)
    return theirs


def _without_levels(network: nn.Module) -> nn.Module:
    """The network with activations that round nothing."""
    for name, module in list(network.named_modules()):
        if isinstance(module, Levelled):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, module.inner)
    return network


def _bare(layer: Any, norm: Any, bias: Tensor) -> None:
    """A batch norm whose factor is 1; the bias of the layer before it stands there."""
    if layer.bias is not None:
        layer.bias.zero_()
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    norm.weight.fill_(1)
    norm.bias.copy_(bias)
