"""Batch norms of several ranks: the mean and variance of the whole global batch, as one process would have them.

    with Norms(network, ranks)(counts):      a forward pass and its backward pass

Of each batch norm a rank sends how many values it has, their mean and their variance for each channel, and in the backward
pass two sums a channel (Ioffe and Szegedy 2015, over the rows of all ranks; `torch.nn.SyncBatchNorm` does so on GPUs only).
Ranks may have different numbers of rows. The modules stay what they are: names, running statistics and what is saved too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from luban.training.ranks import Ranks


class Norms:
    """The batch norms of a network; none where a rank is alone, whose batch is the whole one."""

    def __init__(self, network: nn.Module, ranks: Ranks):
        self.ranks = ranks
        self.found = [m for m in network.modules() if isinstance(m, _BatchNorm)] if ranks.world > 1 else []

    @contextmanager
    def __call__(self, counts: bool) -> Iterator[None]:
        """Inside, every rank has to make the same passes. `counts`: whether this rank's rows are of the global batch."""
        for norm in self.found:
            norm.forward = partial(_forward, norm, self.ranks, counts)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for norm in self.found:
                del norm.forward


@torch.compiler.disable
def _forward(norm: Any, ranks: Ranks, counts: bool, x: Tensor) -> Tensor:
    """(B, C, ...) -> (B, C, ...). A norm that uses the statistics that it has (frozen, or judging) mixes nothing."""
    if not norm.training and norm.running_mean is not None:
        return _BatchNorm.forward(norm, x)
    weight = x.new_ones(norm.num_features) if norm.weight is None else norm.weight
    bias = torch.zeros_like(weight) if norm.bias is None else norm.bias
    y, mean, var, total = Whole.apply(x, weight, bias, norm.eps, ranks, counts)
    if norm.running_mean is not None:
        norm.num_batches_tracked.add_(1)
        share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
        unbiased = var * (total / (total - 1).clamp(min=1))
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), share)
    return y


class Whole(torch.autograd.Function):
    """x (B, C, ...), weight and bias (C,) -> (y, mean (C,), variance (C,), values of a channel), the last three of all ranks.

    Sums are made in fp32 whatever x is. Where all ranks have one value a channel, y is the bias.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, ranks: Ranks, counts: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        over = _but_channels(x)
        var, mean = torch.var_mean(x.float(), over, correction=0)  # (C,), (C,)
        count = mean.new_full((1,), x.numel() // x.shape[1] * counts)
        each = ranks.gather(torch.cat([count, mean, var]))  # (W, 1 + 2 C)
        counted, means, variances = each.split([1, len(mean), len(mean)], 1)
        total = counted.sum()
        share = counted / total  # (W, 1)
        mean = (share * means).sum(0)
        var = (share * (variances + (means - mean).square())).sum(0)
        scale = (var + eps).rsqrt()
        factor = scale * weight.float()
        y = torch.addcmul(_wide(bias.float() - mean * factor, x), x, _wide(factor, x)).to(x.dtype)
        ctx.save_for_backward(x, weight, mean, scale, total)
        ctx.ranks, ctx.counts = ranks, counts
        ctx.mark_non_differentiable(mean, var, total)
        return y, mean, var, total

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> Any:
        x, weight, mean, scale, total = ctx.saved_tensors
        over = _but_channels(x)
        dy = dy.float()
        unit = (x - _wide(mean, x)) * _wide(scale, x)
        of_bias, of_weight = dy.sum(over), (dy * unit).sum(over)
        whole = ctx.ranks.add(torch.cat([of_bias, of_weight])) / total * ctx.counts
        a, b = (_wide(each, x) for each in whole.split(len(mean)))
        dx = (dy - a - unit * b) * _wide(scale * weight.float(), x)
        return dx.to(x.dtype), of_weight.to(weight.dtype), of_bias.to(weight.dtype), None, None, None


def _but_channels(x: Tensor) -> list[int]:
    return [d for d in range(x.ndim) if d != 1]


def _wide(each: Tensor, x: Tensor) -> Tensor:
    """(C,) -> (1, C, 1, ...)"""
    return each.view(1, -1, *[1] * (x.ndim - 2))
