"""Changes to a built network, by name and with JSON arguments, replayed after build and before the weights are loaded.

An edit is a function `(network, **arguments) -> network` in the registry `edits`. It changes which modules and
parameters there are; the weights come afterwards from `model.safetensors`, so an edit must not need them when replayed.
An edit that meets a network it does not fit raises BundleError: its arguments came out of a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luban import registry
from luban.errors import BundleError
from luban.nn.grouped import in_groups
from luban.nn.quantized import Quantized, Stored, stand_in


def replay(network: nn.Module, edits: Sequence[dict[str, Any]]) -> nn.Module:
    """Apply recorded edits `{"edit": name, **arguments}` in order.

    Raises RecipeError for an unknown name, BundleError for arguments that do not fit the network.
    """
    for edit in edits:
        try:
            name, arguments = edit["edit"], {k: v for k, v in edit.items() if k != "edit"}
            network = registry.find("edits", name)(network, **arguments)
        except (AttributeError, TypeError, KeyError, ValueError, IndexError, RuntimeError) as e:
            raise BundleError("bundle.bad_edit", edit=str(edit)[:80], reason=str(e)[:200]) from e
    return network


def put(network: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module at a dotted name, keeping its mode (train or eval)."""
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module.train(network.get_submodule(name).training))


# -- the edits ---------------------------------------------------------------------------------------------------------


def quantize_linear(network: nn.Module, *, layers: list[str]) -> nn.Module:
    """Use for a file of a quarter the size: linear, convolution and embedding weights as int8, one scale a channel."""
    for name in layers:
        module = stand_in(network.get_submodule(name))
        if module is None:
            raise ValueError(name)
        put(network, name, module)
    return network


def quantize_groups(network: nn.Module, *, layers: list[str], zeros: bool = False) -> nn.Module:
    """Use for a file of a seventh the size: linear and embedding weights in four bits, one scale and, with `zeros`, one zero point
    for each 32 of a row; models that were saved earlier have none.
    """
    for name in layers:
        module = in_groups(network.get_submodule(name), zeros)
        if module is None:
            raise ValueError(name)
        put(network, name, module)
    return network


def prune_channels(
    network: nn.Module, *, layer: str, keep: list[int], into: dict[str, list[int]], also: list[str] = ()
) -> nn.Module:
    """Use for really smaller layers: `layer`, and those `also` that are added to it, give only the channels `keep`; `into` says which
    columns each reader keeps.
    """
    for name in (layer, *also):
        _cut(network.get_submodule(name), _index(keep, name), 0)
    for name, columns in into.items():
        reader, index = network.get_submodule(name), _index(columns, name)
        if getattr(reader, "groups", 1) > 1:  # a filter for each channel
            _cut(reader, index, 0)
            reader.in_channels = reader.groups = len(index)
        else:
            _cut(reader, index, 0 if isinstance(reader, nn.modules.batchnorm._BatchNorm) else 1)
    return network


def prune_magnitude(network: nn.Module, *, layers: list[str], share: float) -> nn.Module:
    """Use for a file that packs better: the smallest weights of each layer become zero; nothing runs faster."""
    if not 0 <= share < 1:
        raise ValueError(share)
    for name in layers:
        layer = network.get_submodule(name)
        if isinstance(layer, Stored) and not isinstance(layer, Quantized):
            raise ValueError(name)  # four bits have no weight of their own to set to zero
        gone = smallest(layer.weight.detach(), share)
        stored = layer.q if isinstance(layer, Quantized) else layer.weight.data
        stored.masked_fill_(gone, 0)
    return network


def low_rank(network: nn.Module, *, ranks: dict[str, int]) -> nn.Module:
    """Use where a linear layer is wide: W (O, I) becomes two thinner layers of the given rank (truncated SVD)."""
    for name, rank in ranks.items():
        layer = network.get_submodule(name)
        if not isinstance(layer, nn.Linear) or not 1 <= rank <= min(layer.weight.shape):
            raise ValueError(name)
        u, s, v = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        first = nn.Linear(layer.in_features, rank, bias=False)
        second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
        root = s[:rank].sqrt()
        first.weight.data, second.weight.data = root[:, None] * v[:rank], u[:, :rank] * root
        if layer.bias is not None:
            second.bias.data = layer.bias.detach().clone()
        put(network, name, nn.Sequential(first, second))
    return network


# -- what they share ---------------------------------------------------------------------------------------------------


def smallest(weight: Tensor, share: float) -> Tensor:
    """bool, like weight: the `share` of entries with the smallest magnitude."""
    count = int(share * weight.numel())
    gone = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    gone[weight.abs().flatten().argsort(stable=True)[:count]] = True
    return gone.view_as(weight)


SIZES = {  # attributes that tell a layer's sizes, by the dimension of its weight that they follow
    0: ("out_features", "out_channels", "num_features"),
    1: ("in_features", "in_channels"),
}
OWN = ("weight", "bias", "q", "scale", "running_mean", "running_var")  # tensors with one entry a channel


def _index(numbers: Sequence[int], name: str) -> Tensor:
    """Positions as a tensor. Raises ValueError unless they rise from 0 or more."""
    index = torch.as_tensor(numbers, dtype=torch.long)
    if not len(index) or int(index[0]) < 0 or (index.diff() <= 0).any():
        raise ValueError(name)
    return index


def _cut(layer: nn.Module, index: Tensor, dim: int) -> None:
    """Keep some channels of a layer, along dimension 0 (what it gives) or 1 (what it reads)."""
    for name in OWN:
        tensor = layer._parameters.get(name, layer._buffers.get(name))
        if tensor is None or tensor.ndim <= dim:
            continue
        cut = tensor.detach().index_select(dim, index.to(tensor.device)).clone()
        if name in layer._parameters:
            setattr(layer, name, nn.Parameter(cut, requires_grad=tensor.requires_grad))
        else:
            setattr(layer, name, cut)
    for name in SIZES[dim]:
        if hasattr(layer, name):
            setattr(layer, name, len(index))
    if isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (len(index),)
