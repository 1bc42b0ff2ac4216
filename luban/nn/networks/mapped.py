"""A network with heads that read an encoder's feature maps instead of its Tokens: boxes, masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from luban import registry
from luban.columns.base import Column
from luban.errors import RecipeError, problem
from luban.nn.network import Composed, build
from luban.nn.tokens import Batch, Tokens
from luban.recipe import Recipe


class Mapped(Composed):
    """Inputs -> encoders; their maps -> the heads with `reads = "maps"`, their Tokens -> fusion -> all others, of one pass.

    A head that reads maps is made for a `Pyramid` and called with the maps, finest first, and with the truth where the batch has it
    (x, mask): one that proposes regions learns from other regions than it answers with. What it returns then is its own affair;
    without the truth it is the tensor that engines see.
    Raises RecipeError where an input gives no maps, or is read by no output.
    """

    def __init__(self, recipe: Recipe, columns: Mapping[str, Column]):
        nn.Module.__init__(self)
        self._read(recipe, columns)
        self.seen = {
            n: _seen(recipe, n, columns) for n in self.outputs if recipe.maps(n)
        }  # output -> the input it looks at
        self.at = {n: next(i for i, g in enumerate(self.groups) if of in g) for n, of in self.seen.items()}
        for name, i in self.at.items():
            if not self.encoders[i].mapped:
                _refuse(recipe, name, self.seen[name])
        others = {n: c for n, c in self.outputs.items() if n not in self.seen}
        unread = [] if others else [n for i, g in enumerate(self.groups) if i not in self.at.values() for n in g]
        if unread:
            raise RecipeError(
                problem("mapped.unread", place=f"inputs.{unread[0]}", names=unread, outputs=list(self.seen))
            )
        sizes = {n: self.encoders[i].pyramid for n, i in self.at.items()}
        if others:
            sizes |= self._fuse(recipe, others)
        else:
            self.fusion, self.places = nn.Identity(), []
        self.heads = nn.ModuleList(build("heads", recipe.head(n), c, sizes[n]) for n, c in self.outputs.items())

    def forward(self, batch: Batch, embedded: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
        maps, known = self._maps(batch, embedded)
        fused = self.fused(self.tokens(batch, embedded, known)) if self.places else {}
        places = iter(self.places)
        found = {}
        for name, head in self._heads():
            if name in self.at:
                found[name] = head(maps[self.at[name]], batch.targets.get(name))
            else:
                found[name] = head(fused[next(places)]).float()
        return found

    def _maps(
        self, batch: Batch, embedded: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[int, list[Tensor]], dict[int, Tokens]]:
        maps: dict[int, list[Tensor]] = {}
        known: dict[int, Tokens] = {}
        for i in set(self.at.values()):
            (name,), encoder = self.groups[i], self.encoders[i]
            x, mask = batch.inputs[name]
            maps[i], known[i] = encoder.read(encoder.embed(x, mask) if embedded is None else embedded[name], mask)
        return maps, known

    def choices(self, batch: Batch) -> dict[str, Tensor]:
        """What heads choose by looking at an input, such as the regions to look at again: output -> (B, ...); {} where none chooses."""
        choosing = [(n, head) for n, head in self._heads() if n in self.at and hasattr(head, "choose")]
        maps = self._maps(batch)[0] if choosing else {}
        return {n: head.choose(maps[self.at[n]]) for n, head in choosing}

    @contextmanager
    def holding(self, choices: Mapping[str, Tensor]) -> Iterator[None]:
        """Batches are answered by these choices of `choices`, whatever their inputs would make a head choose."""
        heads = {n: head for n, head in self._heads() if n in choices}
        for name, head in heads.items():
            head.held = choices[name]
        try:
            yield
        finally:
            for head in heads.values():
                head.held = None

    def feature_layer(self, name: str, output: str) -> nn.Module | None:
        """A head over maps may have a layer of its own, such as the levels of its pyramid."""
        own = getattr(dict(self._heads()).get(output), "feature_layer", None)
        return own if own is not None and self.seen[output] == name else super().feature_layer(name, output)


def _seen(recipe: Recipe, output: str, columns: Mapping[str, Column]) -> str:
    """The input whose maps an output reads: the one that it is `of:`, else the only image. Raises RecipeError."""
    grids = [n for n in recipe.inputs if columns[n].form == "grid"]
    of = getattr(columns[output], "of", None) or (grids[0] if len(grids) == 1 else None)
    if of not in grids:
        raise RecipeError(problem("column.of.grid", place=f"outputs.{output}", name=str(of), allowed=grids))
    return of


def _refuse(recipe: Recipe, output: str, of: str) -> None:
    fitting = [n for n in registry.names("encoders") if registry.schema("encoders", n).get("x-mapped")]
    place, encoder = f"model.{of}", recipe.encoder(of).type
    raise RecipeError(problem("mapped.no_maps", place=place, encoder=encoder, output=output, allowed=fitting))
