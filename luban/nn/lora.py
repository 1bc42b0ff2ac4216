"""LoRA: beside a layer that stays as it is, two thin ones that learn (Hu et al. 2021, "LoRA: Low-Rank Adaptation").

W x becomes W x + (alpha / rank) B A x, A (rank, I) random, B (O, rank) zero at first, so that nothing changes before the
first update. `lora` and `merge_lora` are edits: the one puts the thin layers in, the other adds B A to W and leaves the
layers that were there before, for the same answers at the old size and speed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from luban.nn.edits import put

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)


class LoraLinear(nn.Module):
    """In the place of nn.Linear: (..., I) -> (..., O). `weight` and `bias` can be read like those of the layer."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float):
        super().__init__()
        thin = min(rank, *base.weight.shape)
        self.base, self.scale, self.dropout = base, alpha / rank, nn.Dropout(dropout)
        self.a = nn.Linear(base.in_features, thin, bias=False)
        self.b = nn.Linear(thin, base.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.b(self.a(self.dropout(x)))

    @property
    def weight(self) -> Tensor:
        return self.base.weight + self.scale * self.b.weight @ self.a.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def merged(self) -> nn.Module:
        return _with(self.base, {"weight": self.weight})


class LoraConv(nn.Module):
    """In the place of nn.Conv1d, nn.Conv2d, nn.Conv3d: A sees what the layer sees, B joins its channels at one position.

    A layer with groups gets an A and a B for each.
    """

    def __init__(self, base: Any, rank: int, alpha: float, dropout: float):
        super().__init__()
        groups = base.groups
        thin = groups * min(rank, base.out_channels // groups, base.weight[0].numel())
        self.base, self.scale, self.dropout = base, alpha / rank, nn.Dropout(dropout)
        same = {k: getattr(base, k) for k in ("stride", "padding", "dilation", "groups", "padding_mode")}
        self.a = type(base)(base.in_channels, thin, base.kernel_size, bias=False, **same)
        self.b = type(base)(thin, base.out_channels, 1, bias=False, groups=groups)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.b(self.a(self.dropout(x)))

    @property
    def weight(self) -> Tensor:
        groups, whole = self.base.groups, self.base.weight
        a = self.a.weight.reshape(groups, -1, whole[0].numel())  # (groups, rank, I)
        b = self.b.weight.reshape(groups, whole.shape[0] // groups, -1)  # (groups, O, rank)
        return whole + self.scale * (b @ a).reshape(whole.shape)

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def merged(self) -> nn.Module:
        return _with(self.base, {"weight": self.weight})


class LoraRecurrent(nn.Module):
    """In the place of nn.RNN, nn.GRU, nn.LSTM: every matrix of the layer, input and state, all gates at once.

    The layer runs with W + (alpha / rank) B A, as its products are made inside one kernel. Dropout leaves out inputs of A,
    the same for all positions of a batch (Gal and Ghahramani 2016).
    """

    def __init__(self, base: nn.RNNBase, rank: int, alpha: float, dropout: float):
        super().__init__()
        self.base, self.scale, self.dropout = base, alpha / rank, nn.Dropout(dropout)
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        for name, whole in base.named_parameters():
            if whole.ndim == 2:
                thin = min(rank, *whole.shape)
                self.a[name] = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(thin, whole.shape[1]), a=5**0.5))
                self.b[name] = nn.Parameter(torch.zeros(whole.shape[0], thin))

    def forward(self, x: Any, state: Any = None) -> Any:
        return functional_call(self.base, self.weights(), (x, state))

    def weights(self) -> dict[str, Tensor]:
        """The matrices that the layer runs with, by torch's names."""
        thin = {n: self.dropout(a.new_ones(a.shape[1])) * a for n, a in self.a.items()}
        return {n: getattr(self.base, n) + self.scale * self.b[n] @ a for n, a in thin.items()}

    weight_ih_l0 = property(lambda self: self.weights()["weight_ih_l0"])  # what an exporter reads
    weight_hh_l0 = property(lambda self: self.weights()["weight_hh_l0"])
    bias_ih_l0 = property(lambda self: self.base.bias_ih_l0)
    bias_hh_l0 = property(lambda self: self.base.bias_hh_l0)

    def merged(self) -> nn.Module:
        return _with(self.base, self.train(False).weights())


LORA = (LoraLinear, LoraConv, LoraRecurrent)


def _with(base: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """The layer with other weights in parameters of its own: one that shared them no longer does."""
    for name, weight in weights.items():
        setattr(base, name, nn.Parameter(weight.detach().clone()))
    return base


# -- the edits ---------------------------------------------------------------------------------------------------------


def lora(network: nn.Module, *, layers: list[str], rank: int, alpha: float, dropout: float = 0.0) -> nn.Module:
    """Use to fine-tune a large network on few rows: all weights stay, beside each of `layers` two thin layers learn."""
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ValueError(rank, alpha, dropout)
    network.requires_grad_(False)
    _thin_only(network)
    for name in layers:
        layer = network.get_submodule(name)
        kind = stand_in(layer)
        if kind is None:
            raise ValueError(name)
        put(network, name, kind(layer, rank, alpha, dropout).to(next(layer.parameters()).device))
    return network


def merge_lora(network: nn.Module) -> nn.Module:
    """Use when LoRA has learned: its thin layers are added into the layers beside them, which all learn again."""
    for name, module in reversed(list(network.named_modules())):  # what stands inside another comes first
        if isinstance(module, LORA):
            put(network, name, module.merged())
    return network.requires_grad_(True)


# -- what they share ---------------------------------------------------------------------------------------------------


def stand_in(layer: nn.Module) -> type[nn.Module] | None:
    """The class that can stand in the place of this layer; None where there is none."""
    if type(layer) is nn.Linear:
        return LoraLinear
    if type(layer) in CONVOLUTIONS:
        return LoraConv
    return LoraRecurrent if type(layer) in RECURRENT and not layer.proj_size else None


def layers_in(network: nn.Module, parts: Collection[nn.Module]) -> list[str]:
    """Names of the layers inside some modules of a network that LoRA can stand beside, those of earlier LoRA left out."""
    inside = {id(m) for part in parts for m in part.modules()}
    taken = {id(m) for part in network.modules() if isinstance(part, LORA) for m in part.modules()}
    found = [(n, m) for n, m in network.named_modules() if id(m) in inside and id(m) not in taken]
    return [n for n, m in found if n and stand_in(m) is not None]


def _thin_only(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, LORA):
            for thin in (module.a, module.b):
                thin.requires_grad_(True)
