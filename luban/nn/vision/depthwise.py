"""Convolutions with one filter for each channel whose gradients are cheap on processors, too.

Processors compute them in bf16 several times slower than in fp32: that of the weights always, that of the input where the filter moves by
more than one pixel. Here those are computed in fp32, and a step of EfficientNet-Lite0 takes two thirds of the time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Depthwise(torch.autograd.Function):
    """x (B, C, H, W), weight (C, 1, k, k) -> (B, C, H', W'), in what autocast asks for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            low = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(low), weight.to(low)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        exact = slope.float(), x.float(), weight.float()
        if ctx.stride == 1:
            into_x = _gradients(ctx, slope, x, weight, (True, False, False))[0]
            into_weight = _gradients(ctx, *exact, (False, True, False))[1]
        else:
            into_x, into_weight, _ = _gradients(ctx, *exact, (True, True, False))
        return into_x.to(x.dtype), into_weight, None, None


def _gradients(ctx: Any, slope: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]) -> Any:
    stride, padding = [ctx.stride] * 2, [ctx.padding] * 2
    return torch.ops.aten.convolution_backward(
        slope, x, weight, None, stride, padding, [1, 1], False, [0, 0], len(weight), wanted
    )
