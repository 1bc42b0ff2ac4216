"""The protocol that stages call, and nothing below it; and the built-in network: encoders + fusion + heads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from luban import registry
from luban.columns.base import Answer, Column
from luban.errors import RecipeError, problem
from luban.nn.before import Before
from luban.nn.forms import MANY
from luban.nn.joint import Joint
from luban.nn.tokens import Batch, Encoder, Span, Tokens
from luban.part import Part
from luban.recipe import Recipe

NONE: Mapping[int, Tokens] = MappingProxyType({})


class Network(Protocol):
    """What every stage may ask of a network. All is keyed by input or by output name.

    `separable`: an example's loss does not depend on its neighbours (False with BatchNorm, GAN, contrastive losses).
    `compares`: it is told from all others of its batch (GAN, contrastive losses), which several ranks do not see.
    `lacks` names what it does not have of the rest: a stage that needs it says so.
    """

    separable: bool
    compares: bool

    def embed(self, batch: Batch) -> dict[str, Tensor]: ...
    def forward(self, batch: Batch, embedded: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]: ...
    def loss(self, o: Mapping[str, Tensor], batch: Batch) -> dict[str, tuple[Tensor, Tensor]]: ...
    def divergence(
        self,
        o: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        temperature: float = 1.0,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]: ...
    def score(self, o: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def predict(self, batch: Batch) -> dict[str, list[Answer]]: ...


class Headed(nn.Module):
    """What networks that end in one head per output share: loss, divergence, score, predict."""

    heads: nn.ModuleList
    outputs: dict[str, Column]
    compares = False

    def _heads(self) -> list[tuple[str, Any]]:
        return list(zip(self.outputs, self.heads))

    @property
    def separable(self) -> bool:
        return not (self.compares or any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.modules()))

    def loss(self, o: Mapping[str, Tensor], batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Per output: loss of each example (B,), and its weight (B,), 0 where the truth is missing."""
        return {n: head.loss(o[n], *batch.targets[n]) for n, head in self._heads() if n in batch.targets}

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """Per output the weights (B,) that `loss` will give, known without a forward pass."""
        return {n: head.weigh(*batch.targets[n]) for n, head in self._heads() if n in batch.targets}

    def divergence(
        self,
        o: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        temperature: float = 1.0,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """`batch`: what both answered, so that of a text only the tokens that are to be learned count."""
        real = {n: {"target": batch.targets[n]} for n, h in self._heads() if batch is not None and n in batch.targets and getattr(h, "writes", False)}  # fmt: skip
        return {n: head.divergence(o[n], teacher[n], temperature, **real.get(n, {})) for n, head in self._heads()}

    def score(self, o: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The score of fixed answers, (B,) per output: what explanations explain."""
        return {n: head.score(o[n], answers[n]) for n, head in self._heads() if n in answers}

    def glance(self, o: Mapping[str, Tensor], batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Per output one number that a person watches while training: {"accuracy": (per example (B,), weight (B,))}."""
        many = len(self.outputs) > 1
        result = {}
        for n, head in self._heads():
            if n in batch.targets:
                name, each, weight = head.glance(o[n], *batch.targets[n])
                result[f"{n}_{name}" if many else name] = (each, weight)
        return result

    @torch.no_grad()
    def predict(self, batch: Batch) -> dict[str, list[Answer]]:
        o = self(batch)
        return {n: column.decode_all(o[n].float().cpu().numpy()) for n, column in self.outputs.items()}


class Composed(Headed):
    """Inputs -> encoders -> fusion -> heads.

    Scalar and index inputs that ask for the same encoder share one (x (B, F)); texts that are read jointly have one, see `Joint`;
    every other input has its own, or that of another input (`share`), the same module. A head that answers for each position of an input reads that input's positions
    instead of the pooled vector.
    """

    def __init__(self, recipe: Recipe, columns: Mapping[str, Column]):
        super().__init__()
        self._read(recipe, columns)
        sizes = self._fuse(recipe, self.outputs)
        self.heads = nn.ModuleList(self._head(recipe, n, c, sizes[n]) for n, c in self.outputs.items())

    def _head(self, recipe: Recipe, name: str, column: Column, size: int) -> nn.Module:
        return build("heads", recipe.head(name), column, size)

    def _read(self, recipe: Recipe, columns: Mapping[str, Column]) -> None:
        """The encoders, and which inputs each reads."""
        self.outputs = {n: columns[n] for n in recipe.outputs}
        self.groups = _groups(recipe, columns)
        self.many = [columns[names[0]].form in MANY for names in self.groups]
        made = {
            names[0]: _reader(recipe, names, [columns[n] for n in names])
            for names in self.groups
            if not recipe.shared(names[0])
        }
        self.encoders = nn.ModuleList(made[recipe.shared(names[0]) or names[0]] for names in self.groups)

    def _fuse(self, recipe: Recipe, outputs: Mapping[str, Column]) -> dict[str, int]:
        """The fusion, what of it some outputs read (`places`), and the size of that."""
        self.fusion = self._fusion(recipe)
        self.places = [_place(recipe, n, c, self.groups, list(self.encoders)) for n, c in outputs.items()]
        if any(at is not None for at in self.places) and not hasattr(self.fusion, "positions"):
            name = next(n for n, at in zip(outputs, self.places) if at is not None)
            fitting = [n for n in registry.names("fusions") if hasattr(registry.find("fusions", n), "positions")]
            raise RecipeError(
                problem("tags.fusion", place="fusion", fusion=recipe.fusion.type, output=name, allowed=fitting)
            )
        return {n: self.fusion.size if at is None else self.fusion.sizes[at[0]] for n, at in zip(outputs, self.places)}

    def _fusion(self, recipe: Recipe) -> nn.Module:
        return build("fusions", recipe.fusion, list(self.encoders))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Input name -> first differentiable form. A shared encoder's is split into one per column."""
        result = {}
        for names, many, encoder in zip(self.groups, self.many, self.encoders):
            if many:
                e = encoder.embed(*batch.together(names))
                result |= {n: e[:, i] for i, n in enumerate(names)}
            else:
                result |= {n: encoder.embed(*batch.inputs[n]) for n in names}
        return result

    def tokens(
        self, batch: Batch, embedded: Mapping[str, Tensor] | None = None, known: Mapping[int, Tokens] = NONE
    ) -> list[Tokens]:
        """The Tokens of each encoder, with the spans of its columns. `known`: those of some encoders, by their numbers."""
        result = []
        for i, (names, many, encoder) in enumerate(zip(self.groups, self.many, self.encoders)):
            if i in known:
                t, spans = known[i], ()
            elif many:
                x, mask = batch.together(names)
                e = encoder.embed(x, mask) if embedded is None else torch.stack([embedded[n] for n in names], 1)
                t = encoder(e, mask)
                spans = tuple(Span(n, at, at + 1, (1,)) for at, n in enumerate(names))
            else:
                parts = [encoder.embed(*batch.inputs[n]) if embedded is None else embedded[n] for n in names]
                masks = [batch.inputs[n][1] for n in names]
                t = encoder(parts, masks) if len(names) > 1 else encoder(parts[0], masks[0])
                spans = _spans(names, t, parts)
            result.append(t if t.spans else t._replace(spans=spans))
        return result

    def forward(self, batch: Batch, embedded: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        fused = self.fused(self.tokens(batch, embedded))
        return {n: head(fused[at]).float() for (n, head), at in zip(self._heads(), self.places)}  # losses are in fp32

    def fused(self, tokens: list[Tokens]) -> dict[tuple[int, str] | None, Tokens]:
        """What heads read, by their `places`."""
        found = {None: self.fusion(tokens)} if None in self.places else {}
        return found | {at: self._at(tokens, *at) for at in {*self.places} - {None}}

    def _at(self, tokens: list[Tokens], which: int, name: str) -> Tokens:
        """The positions of one input as the fusion gives them."""
        found, spans = self.fusion.positions(tokens, which), tokens[which].spans
        if len(spans) == 1:
            return found
        start, stop = next((s.start, s.stop) for s in spans if s.name == name)
        return Tokens(found.x.narrow(1, start, stop - start), found.mask.narrow(1, start, stop - start))

    def pooled(self, name: str, batch: Batch) -> Tensor:
        """The mean over the real positions that the encoder of an input gives, (B, D); other inputs may be absent."""
        encoder = self.encoder_of(name)
        x, mask = batch.inputs[name]
        e = encoder.embed(x, mask)
        t = encoder.alone(e, mask) if isinstance(encoder, Joint) else encoder(e, mask)
        real = t.mask[..., None].to(t.x.dtype)
        return (t.x * real).sum(1) / real.sum(1).clamp(min=1)

    def encoder_of(self, name: str) -> Any:
        """The encoder that reads an input."""
        return next(e for names, e in zip(self.groups, self.encoders) if name in names)

    def feature_layer(self, name: str, output: str) -> nn.Module | None:
        """The module whose output Grad-CAM reads, of an input for an output; None where there is none."""
        return self.encoder_of(name).feature_layer


def build(room: str, part: Part, *sources: Any) -> Any:
    """The module that a part of a resolved recipe names, made for what it reads."""
    settings = {k: v for k, v in part.settings.items() if v is not None}
    return registry.find(room, part.type)(*sources, **settings)


def _reader(recipe: Recipe, names: Sequence[str], columns: Sequence[Column]) -> Encoder:
    """The encoder of some inputs; of texts that are read in one sequence one that joins them."""
    if written := recipe.before(names[0]):
        return Before(recipe.head(written).settings["width"])
    if len(names) > 1 and recipe.together(names[0]):
        return Joint(lambda long: build("encoders", recipe.encoder(names[0]), [long]), columns)
    return build("encoders", recipe.encoder(names[0]), columns)


def _spans(names: Sequence[str], tokens: Tokens, parts: Sequence[Tensor]) -> tuple[Span, ...]:
    """Where each input's positions stand in the Tokens of its encoder."""
    if len(names) == 1:
        return (Span(names[0], 0, tokens.x.shape[1], tokens.x.shape[1:2]),)
    stops = list(accumulate(p.shape[1] for p in parts))
    return tuple(Span(n, b - p.shape[1], b, p.shape[1:2]) for n, b, p in zip(names, stops, parts))


def _place(
    recipe: Recipe, name: str, column: Column, groups: Sequence[Sequence[str]], encoders: Sequence[Encoder]
) -> tuple[int, str] | None:
    """The number of the encoder whose positions the head of an output reads, and of which input; None for the pooled vector.

    Raises RecipeError where that encoder gives one vector for all.
    """
    if not column.along:
        return None
    at = next((i for i, group in enumerate(groups) if column.of in group), None)
    if at is None:
        raise RecipeError(
            problem("column.of.ids", place=f"outputs.{name}.of", name=str(column.of), allowed=recipe.inputs)
        )
    if encoders[at].length is not None:
        part = recipe.encoder(column.of)
        fitting = [n for n in registry.names("encoders") if registry.schema("encoders", n).get("x-sequences")]
        raise RecipeError(
            problem("tags.one_vector", place=f"model.{column.of}", encoder=part.type, output=name, allowed=fitting)
        )
    return at, column.of


def _groups(recipe: Recipe, columns: Mapping[str, Column]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in recipe.inputs:
        form = columns[name].form
        alone = form not in MANY or recipe.shared(name)
        own = recipe.joined(name) or name
        key = json.dumps(["alone", own] if alone else [form, recipe.encoder(name).plain()])
        found = groups.setdefault(key, [])
        found.insert(0 if recipe.together(name) else len(found), name)  # the one that the others are read behind
    return list(groups.values())
