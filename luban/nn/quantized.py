"""Layers whose weights are stored as 8-bit integers: weight[o] = q[o] * scale[o], one scale for each output channel.

Symmetric, so the zero point is 0 and a weight that was pruned to zero stays zero. The product is made in floating point,
so gradients reach the input and what ships can be explained; how fast it runs is the business of an engine.
See `docs/decisions/0003-quantised-layers.md`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 127


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (O, ...) -> q int8 (O, ...), scale (O,): the nearest multiples of max |weight[o]| / 127."""
    scale = weight.detach().abs().flatten(1).amax(1) / LEVELS
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.round(weight.detach() / _over(scale, weight)).clamp(-LEVELS, LEVELS).to(torch.int8), scale


def _over(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.ndim - 1))


class Stored(nn.Module):
    """Weights as integers `q` with their scales. `weight` can be read like that of the layer it stands for; it has no gradient."""

    def __init__(self, q: Tensor, scale: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.register_buffer("q", q)
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)

    dense: Tensor | None = None  # the product, kept by `unpacked`

    @property
    def weight(self) -> Tensor:
        return self.dense if self.dense is not None else self.product()

    def product(self) -> Tensor:
        raise NotImplementedError


class Quantized(Stored):
    """One scale for each output channel."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__(*rounded(weight), bias)

    def product(self) -> Tensor:
        return self.q.to(self.scale.dtype) * _over(self.scale, self.q)


class QuantLinear(Quantized):
    """In the place of nn.Linear: (..., I) -> (..., O)."""

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.weight, layer.bias)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class QuantConv(Quantized):
    """In the place of nn.Conv1d, nn.Conv2d, nn.Conv3d with zero padding."""

    def __init__(self, layer: Any):
        super().__init__(layer.weight, layer.bias)
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.settings = {k: getattr(layer, k) for k in ("stride", "padding", "dilation", "groups")}
        self.groups = layer.groups

    def forward(self, x: Tensor) -> Tensor:
        convolve = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[self.q.ndim]
        return convolve(x, self.weight, self.bias, **self.settings)


class QuantConvTranspose(Quantized):
    """In the place of nn.ConvTranspose2d without groups, whose weights stand (I, O, h, w): stored (O, I, h, w)."""

    def __init__(self, layer: nn.ConvTranspose2d):
        super().__init__(layer.weight.transpose(0, 1), layer.bias)
        self.settings = {k: getattr(layer, k) for k in ("stride", "padding", "output_padding", "dilation")}

    def product(self) -> Tensor:
        return super().product().transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight, self.bias, **self.settings)


class QuantEmbedding(Quantized):
    """In the place of nn.Embedding: one scale a row; only the rows that are looked up are multiplied."""

    def __init__(self, layer: nn.Embedding):
        super().__init__(layer.weight)
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim

    def forward(self, x: Tensor) -> Tensor:
        if self.dense is not None:
            return F.embedding(x, self.dense)
        return F.embedding(x, self.q).to(self.scale.dtype) * self.scale[x][..., None]


RUN = {nn.LSTM: torch.lstm, nn.GRU: torch.gru, nn.RNN: torch.rnn_tanh}


class QuantRecurrent(nn.Module):
    """In the place of one layer of nn.LSTM, nn.GRU or a tanh nn.RNN read one way: (B, T, I) -> (B, T, H), state."""

    def __init__(self, layer: nn.RNNBase):
        super().__init__()
        self.hidden_size, self.kind = layer.hidden_size, type(layer)
        self.ih = Quantized(layer.weight_ih_l0, layer.bias_ih_l0)
        self.hh = Quantized(layer.weight_hh_l0, layer.bias_hh_l0)

    weight_ih_l0 = property(lambda self: self.ih.weight)  # the names that torch gives them
    weight_hh_l0 = property(lambda self: self.hh.weight)
    bias_ih_l0 = property(lambda self: self.ih.bias)
    bias_hh_l0 = property(lambda self: self.hh.bias)

    def forward(self, x: Tensor, states: Any = None) -> tuple[Tensor, Any]:
        if states is None:
            start = x.new_zeros(1, x.shape[0], self.hidden_size)
            states = (start, start) if self.kind is nn.LSTM else start
        weights = [self.ih.weight, self.hh.weight, self.ih.bias, self.hh.bias]
        found = RUN[self.kind](x, states, weights, True, 1, 0.0, self.training, False, True)
        return found[0], found[1:] if self.kind is nn.LSTM else found[1]


def unpacked(network: nn.Module) -> nn.Module:
    """A copy that keeps the products, so that an engine makes them once; the same answers bit for bit, more memory.

    The network itself where nothing of it is quantised.
    """
    if not any(isinstance(m, Stored) for m in network.modules()):
        return network
    twin = copy.deepcopy(network)
    whole = (
        set(twin.writer.modules()) if hasattr(twin, "writer") else ()
    )  # its table may give the logits of every token
    for module in twin.modules():
        few = isinstance(module, QuantEmbedding) and module not in whole  # only the rows that are looked up are made
        if isinstance(module, Stored) and not few:
            module.dense = module.weight.detach()
    return twin


def _one_layer(layer: nn.Module) -> bool:
    return (
        type(layer) in RUN
        and layer.batch_first
        and layer.bias
        and layer.num_layers == 1
        and not layer.bidirectional
        and not layer.proj_size
        and (type(layer) is not nn.RNN or layer.nonlinearity == "tanh")
    )


def stand_in(layer: nn.Module) -> nn.Module | None:
    """The quantised layer that can stand in the place of this one; None where there is none."""
    if type(layer) is nn.Linear:
        return QuantLinear(layer)
    if type(layer) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and layer.padding_mode == "zeros":
        return QuantConv(layer)
    if type(layer) is nn.ConvTranspose2d and layer.groups == 1:
        return QuantConvTranspose(layer)
    if type(layer) is nn.Embedding and layer.max_norm is None:
        return QuantEmbedding(layer)
    return QuantRecurrent(layer) if _one_layer(layer) else None
