"""A network without outputs: its inputs become vectors, and the two of one row are learned to lie close (see `Match`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.columns.base import Column
from luban.errors import Unsupported
from luban.nn.network import Composed
from luban.nn.tokens import Batch
from luban.recipe import Recipe

NAME = "match"  # of its loss, and of the closeness of two inputs


class Matching(Composed):
    """Inputs -> vectors of length 1, (B, D) each. To be trained it needs two inputs; one is enough to search."""

    compares = True  # the other rows of a batch are what each is told from

    def __init__(self, recipe: Recipe, columns: Mapping[str, Column]):
        super().__init__(recipe, columns)
        sizes = {v.size for v in self.fusion.vectors}
        if len(sizes) > 1:
            raise Unsupported("match.sizes", sizes=sorted(sizes))

    def forward(self, batch: Batch, embedded: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        x = self.fusion(self.tokens(batch, embedded)).x.float()
        return {names[0]: x[:, i] for i, names in enumerate(self.groups)}

    def vector(self, name: str, batch: Batch) -> Tensor:
        """The vectors of one input (B, D); the others may be absent."""
        i = next(i for i, names in enumerate(self.groups) if names[0] == name)
        x, mask = batch.inputs[name]
        encoder = self.encoders[i]
        return self.fusion.vectors[i](encoder(encoder.embed(x, mask), mask)).float()

    def loss(self, o: Mapping[str, Tensor], batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        if len(o) != 2:
            raise Unsupported("match.not_two", inputs=list(o))
        near = self._near(o, batch)
        truth = torch.arange(len(near), device=near.device)
        each = (F.cross_entropy(near, truth, reduction="none") + F.cross_entropy(near.T, truth, reduction="none")) / 2
        return {NAME: (each, torch.ones_like(each))}

    def _near(self, o: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """u_i v_j / temperature, (B, B); a partner that is the same as the row's own, twice in the batch, is no wrong one."""
        (u, v), (x, y) = o.values(), (batch.inputs[n][0].flatten(1) for n in o)
        same = (y[:, None] == y[None]).all(-1) | (x[:, None] == x[None]).all(-1)
        other = ~torch.eye(len(u), dtype=torch.bool, device=u.device)
        return (u @ v.T / self.fusion.temperature).masked_fill(same & other, -1e4)

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        return {NAME: next(iter(batch.inputs.values()))[0].new_ones(batch.size, dtype=torch.float32)}

    def glance(self, o: Mapping[str, Tensor], batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """How often the own partner is the nearest of the batch."""
        near = self._near(o, batch)
        hit = (near.argmax(1) == torch.arange(len(near), device=near.device)).float()
        return {"recall_1": (hit, torch.ones_like(hit))}

    def divergence(
        self,
        o: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        temperature: float = 1.0,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """KL(teacher || student) of which of the batch's partners is a row's own, (B,), times temperature squared; the vectors may be of
        different sizes."""

        def near(vectors: Mapping[str, Tensor]) -> Tensor:
            u, *v = vectors.values()
            return F.log_softmax(u @ (v[0] if v else u).T / (self.fusion.temperature * temperature), 1)

        each = F.kl_div(near(o), near(teacher), log_target=True, reduction="none").sum(1)
        return {NAME: each * temperature**2}

    def predict(self, batch: Batch) -> dict[str, Any]:
        raise Unsupported("match.no_answer")


class Close(nn.Module):
    """The same network as one that answers: the cosine of the two vectors of a row, (B, 1). What is explained is the cosine itself."""

    def __init__(self, network: Matching):
        super().__init__()
        self.network = network

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        return self.network.embed(batch)

    def feature_layer(self, name: str, output: str) -> nn.Module | None:
        return self.network.feature_layer(name, output)

    def forward(self, batch: Batch, embedded: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        u, v = self.network(batch, embedded).values()
        return {NAME: (u * v).sum(1, keepdim=True)}

    def score(self, o: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: o[n][:, 0] for n in answers}
