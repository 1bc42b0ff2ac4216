"""Layers that compute with integers on both sides: weights in 8 bits as in `quantized`, and activations, by scales learned
beforehand (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference").

    activation = (level - zero) * scale, level 0 to 255; one scale for a whole tensor, one for each output channel of a weight

In PyTorch a layer rounds to those levels and goes on in floating point: the same answers, gradients straight through the
rounding (Bengio et al. 2013), no gain in time. In an exported file the rounding stands as QuantizeLinear and
DequantizeLinear, which an engine turns into integer products.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.parts import same_padded
from luban.nn.quantized import QuantConv, QuantLinear, rounded

TOP = 255
Scale = tuple[float, int]  # of a tensor: the width of a level, and the level that is zero


def levelled(x: Tensor, scale: Scale | None) -> Tensor:
    """x rounded to the levels of a scale, cut off at the first and the last; as it is where there is no scale."""
    if scale is None:
        return x
    if torch.compiler.is_exporting():
        return torch.ops.luban.levelled(x, *scale)
    return torch.fake_quantize_per_tensor_affine(x.float(), *scale, 0, TOP)


@torch.library.custom_op("luban::levelled", mutates_args=())
def _levelled(x: Tensor, scale: float, zero: int) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, TOP)


@_levelled.register_fake
def _(x: Tensor, scale: float, zero: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("luban::unstored", mutates_args=())
def _unstored(q: Tensor, scale: Tensor) -> Tensor:
    return q.to(scale.dtype) * scale.view(-1, *[1] * (q.ndim - 1))


@_unstored.register_fake
def _(q: Tensor, scale: Tensor) -> Tensor:
    return scale.new_empty(q.shape)


def onnx_table() -> dict[Any, Any]:
    """For `torch.onnx.export(..., custom_translation_table=...)`."""
    import onnx
    from onnxscript import opset20 as op

    def levels(x: Any, scale: float, zero: int) -> Any:
        width = op.Constant(value_float=scale)
        at = op.Constant(value=onnx.helper.make_tensor("zero", onnx.TensorProto.UINT8, (), [zero]))
        return op.DequantizeLinear(op.QuantizeLinear(x, width, at), width, at)

    def stored(q: Any, scale: Any) -> Any:
        return op.DequantizeLinear(q, scale, axis=0)

    return {torch.ops.luban.levelled.default: levels, torch.ops.luban.unstored.default: stored}


# -- the layers --------------------------------------------------------------------------------------------------------


class StaticLinear(QuantLinear):
    """In the place of nn.Linear; `before`: the scale of what it reads where nobody has rounded that yet, `after`: of its answer."""

    def __init__(self, layer: nn.Linear, before: Scale | None, after: Scale | None):
        super().__init__(layer)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return levelled(F.linear(levelled(x, self.before), _weight(self), self.bias), self.after)


class StaticConv(QuantConv):
    """In the place of nn.Conv2d, likewise."""

    def __init__(self, layer: nn.Conv2d, before: Scale | None, after: Scale | None):
        super().__init__(layer)
        self.before, self.after = before, after

        self.same = getattr(layer, "same", False)

    def forward(self, x: Tensor) -> Tensor:
        x = levelled(x, self.before)
        x = same_padded(x, self.q.shape[-1], self.settings["stride"][0]) if self.same else x
        return levelled(F.conv2d(x, _weight(self), self.bias, **self.settings), self.after)


def _weight(layer: Any) -> Tensor:
    return torch.ops.luban.unstored(layer.q, layer.scale) if torch.compiler.is_exporting() else layer.weight


class Levelled(nn.Module):
    """An activation whose answer is rounded."""

    def __init__(self, inner: nn.Module, after: Scale):
        super().__init__()
        self.inner, self.after = inner, after

    def forward(self, x: Tensor) -> Tensor:
        return levelled(self.inner(x), self.after)


class Learning(nn.Module):
    """A layer while it learns with rounding: its weights are floating point and rounded at every call (quantisation-aware
    training); what it becomes afterwards has these very answers.
    """

    def __init__(self, layer: Any, before: Scale | None, after: Scale | None):
        super().__init__()
        self.layer, self.before, self.after = layer, before, after

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        weight, x = _straight(layer.weight), levelled(x, self.before)
        if isinstance(layer, nn.Linear):
            return levelled(F.linear(x, weight, layer.bias), self.after)
        x = same_padded(x, layer.kernel_size[0], layer.stride[0]) if getattr(layer, "same", False) else x
        shape = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return levelled(F.conv2d(x, weight, layer.bias, *shape), self.after)


def _straight(weight: Tensor) -> Tensor:
    """The rounded weights, with the gradient of the others."""
    q, scale = rounded(weight)
    return weight + (q * scale.view(-1, *[1] * (weight.ndim - 1)) - weight).detach()


def fits(layer: nn.Module) -> bool:
    """Whether a layer can compute with integers."""
    if type(layer) is nn.Conv2d or (isinstance(layer, nn.Conv2d) and getattr(layer, "same", False)):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


# -- the edit ----------------------------------------------------------------------------------------------------------


def quantize_static(
    network: nn.Module, *, norms: dict[str, str], layers: dict[str, list[Any]], points: dict[str, list[Any]]
) -> nn.Module:
    """Use where answers must be quick on a processor: weights and activations as 8-bit integers, batch norms folded in."""
    return settled(prepared(network, norms=norms, layers=layers, points=points), layers)


def settled(network: nn.Module, layers: Iterable[str]) -> nn.Module:
    """The network with layers that have learned replaced by such as hold integers."""
    for name in layers:
        place = network.get_submodule(name)
        kind = StaticLinear if isinstance(place.layer, nn.Linear) else StaticConv
        _put(network, name, kind(place.layer, place.before, place.after))
    return network


def prepared(
    network: nn.Module, *, norms: Mapping[str, str], layers: Mapping[str, Any], points: Mapping[str, Any]
) -> nn.Module:
    """The same network with layers that learn while they round. `norms`: layer -> the batch norm behind it; `layers`: name
    -> [before, after]; `points`: activation -> its scale.
    """
    for name, norm in norms.items():
        fold(network.get_submodule(name), network.get_submodule(norm))
        _put(network, norm, nn.Identity())
    for name, (before, after) in layers.items():
        layer = network.get_submodule(name)
        if not fits(layer):
            raise ValueError(name)
        _put(network, name, Learning(layer, _scale(before), _scale(after)))
    for name, after in points.items():
        scale = _scale(after)
        if scale is None:
            raise ValueError(name)
        _put(network, name, Levelled(network.get_submodule(name), scale))
    return network


@torch.no_grad()
def fold(layer: Any, norm: Any) -> None:
    """The batch norm's factor and shift become the layer's: the same answers in eval mode."""
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = layer.bias if layer.bias is not None else torch.zeros_like(factor)
    layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias = nn.Parameter((bias - norm.running_mean) * factor + norm.bias)


def _scale(given: Any) -> Scale | None:
    """A scale out of a file. Raises ValueError for what is none."""
    if given is None:
        return None
    width, zero = given
    if not (isinstance(width, float) and 0 < width < 1e30 and isinstance(zero, int) and 0 <= zero <= TOP):
        raise ValueError(given)
    return width, zero


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module.train(network.get_submodule(name).training))


def is_static(network: nn.Module) -> bool:
    """Whether activations are rounded somewhere."""
    return any(isinstance(m, (StaticConv, StaticLinear, Levelled)) for m in network.modules())
