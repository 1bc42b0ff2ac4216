"""Grad-CAM (Selvaraju et al. 2017): where in its feature layer the network found what speaks for an answer.

An answer that comes from one place, such as a box, has slopes near that place only: their mean over a map says little, and where it is high is
somewhere else. The same goes for a network that has weights of its own for each place, as behind a flattened map, or for each time, as over the frames of a
clip. A layer with `local` says so, and each position is then weighted by its own slope (HiResCAM, Draelos and Carin 2020).

Letters: B examples, C channels, H x W or T positions of the feature layer; F pictures that each example has of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRETCHED = {1: "linear", 2: "bilinear", 3: "trilinear"}  # by the number of axes


def grad_cam(score: Callable[[], Tensor], layer: nn.Module, size: tuple[int, ...]) -> Tensor:
    """The map of one forward pass, (B, *size): positive where a position speaks for the answer, never negative.

    `score` runs the network and gives (B,); `layer` gives (B, C, H, W), (B, C, T), or (B x F, C, H, W). Channels are weighted by the mean of
    their gradient, added, cut off at zero and stretched to `size` (H, W), (T,) or (F, H, W). Of a layer that is asked several times, once for
    each level of a pyramid, the maps are added.
    Raises ValueError where the layer was not part of the pass or gives another shape.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_(True))
        return seen[-1].clone()  # a layer after it may work in place

    handle = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            total = score().sum()
    finally:
        handle.remove()
    if not seen or not all(s.ndim == len(size) + 2 or _of_many(s, size) for s in seen):
        raise ValueError([tuple(s.shape) for s in seen])
    slopes = torch.autograd.grad(total, seen, allow_unused=True)
    return sum(
        _map(s.detach(), slope, size, getattr(layer, "local", False))
        for s, slope in zip(seen, slopes)
        if slope is not None
    )


def _of_many(seen: Tensor, size: tuple[int, ...]) -> bool:
    """Whether a layer gives each of F pictures as an example of its own."""
    return len(size) == 3 and seen.ndim == 4 and len(seen) % size[0] == 0


def _map(seen: Tensor, slope: Tensor, size: tuple[int, ...], local: bool) -> Tensor:
    if _of_many(seen, size):  # (B, C, F, H, W)
        seen, slope = (t.unflatten(0, (-1, size[0])).transpose(1, 2) for t in (seen, slope))
    mean = slope.flatten(2).mean(2).view(*slope.shape[:2], *[1] * len(size))  # (B, C, 1, 1)
    strength = slope if local else mean
    found = torch.relu((strength * seen).sum(1, keepdim=True))  # (B, 1, H, W)
    return F.interpolate(found, size=size, mode=STRETCHED[len(size)], align_corners=False)[:, 0]
