"""A network that makes something new from noise, trained against another that tells it from what is real.

Goodfellow et al. 2014. Only the generator is a part of the model: its rival is made when training begins and let go of at its
end. What is asked for (classes, numbers, texts) goes through encoders and a fusion, as anywhere, into one vector beside the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from luban.columns.base import Column
from luban.errors import Unsupported
from luban.nn.network import Composed, build
from luban.nn.tokens import Batch
from luban.nn.vision.dcgan import LOSSES
from luban.recipe import Recipe


class Adversarial(Composed):
    """`drawn`: the output that is made; `noise`: the input that it is made from. Raises Unsupported beside other outputs."""

    updates = 6000  # that `epochs: auto` comes to
    lacks = ("loss", "score", "divergence")
    compares = True  # a picture is judged beside the others of its batch

    def __init__(self, recipe: Recipe, columns: Mapping[str, Column]):
        nn.Module.__init__(self)
        self.noise = [n for n in recipe.inputs if columns[n].drawn]
        if len(recipe.outputs) > 1 or len(self.noise) != 1:
            raise Unsupported("gan.one_output", outputs=list(recipe.outputs), noise=self.noise)
        (self.drawn,) = recipe.outputs
        self.asked = replace(recipe, inputs={n: p for n, p in recipe.inputs.items() if n not in self.noise})
        self.columns = dict(columns)
        condition = conditions(self.asked, columns)
        self.outputs = {self.drawn: columns[self.drawn]}
        self.groups, self.many = condition.groups, condition.many
        self.encoders, self.fusion = condition.encoders, condition.fusion
        size = columns[self.noise[0]].size + (self.fusion.size if self.groups else 0)
        self.heads = nn.ModuleList([build("heads", recipe.head(self.drawn), columns[self.drawn], size)])
        self.rivals: tuple[Any, ...] = ()

    # -- the generator -------------------------------------------------------------------------------------------------
    def embed(self, batch: Batch) -> dict[str, Tensor]:
        return super().embed(batch) | {n: batch.inputs[n][0] for n in self.noise}

    def forward(self, batch: Batch, embedded: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """{output: (B, C, H, W) from -1 to 1}"""
        (name,) = self.noise
        noise = (batch.inputs[name][0] if embedded is None else embedded[name])[:, 0]  # (B, Z)
        if self.groups:
            noise = torch.cat([noise, self.fusion(self.tokens(batch, embedded)).x[:, 0]], 1)
        return {self.drawn: self.heads[0](noise)}

    def loss(self, o: Any, batch: Batch) -> Any:
        raise Unsupported("gan.no_loss")

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        return {self.drawn: batch.targets[self.drawn][1].float()}

    def divergence(self, *_: Any, **__: Any) -> Any:
        raise Unsupported("gan.no_loss")

    def score(self, *_: Any) -> Any:
        raise Unsupported("gan.no_score")

    # -- training --------------------------------------------------------------------------------------------------------
    def refer(self) -> None:
        """Make the rival that it is trained against."""
        self.rivals = (Rival(self.asked, self.columns, self.heads[0], self.drawn),)

    def forget(self) -> None:
        self.rivals = ()


class Rival(nn.Module):
    """The critic with its own reading of what was asked for."""

    def __init__(self, recipe: Recipe, columns: Mapping[str, Column], head: Any, drawn: str):
        super().__init__()
        self.drawn = drawn
        self.condition = conditions(recipe, columns)
        self.critic = head.rival(self.condition.fusion.size if self.condition.groups else 0)

    def asked(self, batch: Batch) -> Tensor | None:
        c = self.condition
        return c.fusion(c.tokens(batch)).x[:, 0] if c.groups else None  # (B, D)

    def forward(self, made: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores (B,) of the real pictures of a batch and of made ones, in one go."""
        asked = self.asked(batch)
        both = torch.cat([real(batch.targets[self.drawn][0]), made])
        found = self.critic(both, None if asked is None else torch.cat([asked, asked]))
        return found[: len(made)], found[len(made) :]

    def of(self, pictures: Tensor, batch: Batch) -> Tensor:
        """Scores (B,) of some pictures."""
        return self.critic(pictures, self.asked(batch))


def real(pixels: Tensor) -> Tensor:
    """uint8 pixels from -1 to 1."""
    return pixels.float() / 127.5 - 1


def both(network: Any, batch: Batch, rng: Any = None, loss: str = "hinge") -> dict[str, tuple[Tensor, Tensor]]:
    """The losses of generator and critic on one batch, each with a gradient of its own: what a trial of a step computes."""
    (rival,) = network.rivals
    rival = rival.to(batch.targets[network.drawn][0].device)
    critic, generator = LOSSES[loss]
    made = network(batch)[network.drawn]
    known = batch.targets[network.drawn][1].float()
    return {
        "critic": (critic(*rival(made.detach(), batch)) * known, known),
        "generator": (generator(rival.of(made, batch)) * known, known),
    }


both.separable = False  # type: ignore[attr-defined]


def conditions(recipe: Recipe, columns: Mapping[str, Column]) -> Any:
    """Encoders and fusion of what is asked for, without heads."""
    if recipe.inputs:
        return Composed(replace(recipe, outputs={}), columns)
    nothing = nn.Module()
    nothing.groups, nothing.many, nothing.encoders, nothing.fusion = [], [], nn.ModuleList(), nn.Identity()
    return nothing
