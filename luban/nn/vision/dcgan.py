"""Pictures from noise, and the network that tells them from real ones (Radford et al. 2016, "DCGAN").

B pictures of C channels, side H x W = (h x w) 2^k with a smallest map of at most 8; Z numbers of noise, D of what is asked for.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from luban.errors import RecipeError, problem
from luban.settings import Count, Dial

SMALLEST, LARGEST = 4, 8  # sides of the map that a picture grows from


def doublings(name: str, hw: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """How often the smallest map is doubled, and its sides. Raises RecipeError for sides that are not made so."""
    times, (height, width) = 0, hw
    while min(height, width) >= 2 * SMALLEST and height % 2 == width % 2 == 0:
        times, height, width = times + 1, height // 2, width // 2
    if not times or max(height, width) > LARGEST:
        raise RecipeError(problem("gan.side", place=f"outputs.{name}", side=list(hw), low=SMALLEST, high=LARGEST))
    return times, (height, width)


class DCGAN(nn.Module):
    """Use to make new pictures like those of the training rows, of a class where one is given.

    The generator: noise (and what is asked for, beside it) through transposed convolutions that double the side, batch
    normalisation and ReLU between, tanh at the end. (B, Z), (B, D) -> (B, C, H, W) from -1 to 1. `width`: channels of the
    last map before the picture, twice as many for each map before it; `critic`: of the first map of the network that
    tells real from made (0: `width`), by `condition` told what was asked for: `projection` (Miyato and Koyama 2018), or
    `embedding`, a map beside the picture (Mirza and Osindero 2014). `spectral_norm`: its layers change nothing by more than their
    input changes (Miyato et al. 2018).
    """

    accepts = ("dcgan",)
    draws = True

    def __init__(
        self,
        column: Any,
        size: int,
        *,
        width: Annotated[Count, Dial(nano=16, small=64, base=128)] = 64,
        critic: Annotated[int, Dial(nano=16, small=32, base=64)] = 0,
        condition: Literal["projection", "embedding"] = "projection",
        spectral_norm: bool = True,
    ):
        """`size`: numbers of noise and condition together."""
        super().__init__()
        times, small = doublings(column.name, column.hw)
        self.channels, self.hw = column.size, column.hw
        self.asked = {"width": critic or width, "condition": condition, "spectral": spectral_norm}
        top = width << (times - 1)
        self.start = nn.Linear(size, top * small[0] * small[1], bias=False)
        self.first = nn.Unflatten(1, (top, *small))
        layers: list[nn.Module] = [nn.BatchNorm2d(top), nn.ReLU()]
        for _ in range(times - 1):
            layers += [nn.ConvTranspose2d(top, top // 2, 4, 2, 1, bias=False), nn.BatchNorm2d(top // 2), nn.ReLU()]
            top //= 2
        self.layers = nn.Sequential(*layers)
        self.out = nn.ConvTranspose2d(top, self.channels, 4, 2, 1)
        for m in self.modules():
            if isinstance(m, (nn.Linear, nn.ConvTranspose2d)):
                nn.init.normal_(m.weight, 0, 0.02)

    def forward(self, noise: Tensor) -> Tensor:
        """noise (B, Z + D)."""
        h = self.first(self.start(noise)).contiguous(memory_format=torch.channels_last)
        return torch.tanh(self.out(self.layers(h)).float())

    def rival(self, size: int) -> Critic:
        """The network that tells its pictures from real ones; `size`: D, 0 where nothing is asked for."""
        return Critic(self.channels, self.hw, size, **self.asked)


class Critic(nn.Module):
    """pictures (B, C, H, W) from -1 to 1, what was asked for (B, D) -> (B,): above 0 where it takes them for real.

    score = w phi(x) + b + (V c) phi(x), phi: strided convolutions with leaky ReLU, summed over the smallest map.
    """

    def __init__(self, channels: int, hw: tuple[int, int], size: int, *, width: int, condition: str, spectral: bool):
        super().__init__()
        times, _ = doublings("", hw)
        held = spectral_norm if spectral else lambda layer: layer
        self.plane = nn.Linear(size, hw[0] * hw[1]) if size and condition == "embedding" else None
        self.hw, layers, last = hw, [], channels + (self.plane is not None)
        for i in range(times):
            layers += [held(nn.Conv2d(last, width << i, 4, 2, 1)), nn.LeakyReLU(0.2)]
            last = width << i
        layers += [held(nn.Conv2d(last, 2 * last, 3, 1, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.out = held(nn.Linear(2 * last, 1))
        self.ask = held(nn.Linear(size, 2 * last, bias=False)) if size and condition == "projection" else None

    def forward(self, pictures: Tensor, asked: Tensor | None) -> Tensor:
        if self.plane is not None:
            pictures = torch.cat([pictures, self.plane(asked).unflatten(1, (1, *self.hw))], 1)
        h = self.layers(pictures.contiguous(memory_format=torch.channels_last)).sum((2, 3))  # (B, D')
        found = self.out(h)[:, 0]
        if self.ask is not None:
            found = found + (self.ask(asked) * h).sum(1)
        return found.float()


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """What the critic has to lower, per pair (B,) (Lim and Ye 2017)."""
    return F.relu(1 - real) + F.relu(1 + made)


def logistic(real: Tensor, made: Tensor) -> Tensor:
    """The same as a classification (Goodfellow et al. 2014)."""
    return F.softplus(-real) + F.softplus(made)


LOSSES = {  # of the critic, of the generator
    "hinge": (hinge, lambda made: -made),
    "non-saturating": (logistic, lambda made: F.softplus(-made)),
}
