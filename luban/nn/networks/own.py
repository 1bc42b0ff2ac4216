"""A network of the user's own between the columns and the answers: any `torch.nn.Module`, a Keras model on torch too.

It is called with x of each input, in the order of the recipe: numbers (B,), category ids (B,) with 0 for unknown, token ids
(B, T) with 0 for padding, pixels (B, C, H, W) standardised. A module that takes one argument gets numbers together, (B, F),
and several inputs of other kinds as a list. One whose `forward` names `masks` also gets a tuple of them, bool, True = real.

It gives, per output, logits (B, K), for two classes also (B, 1) or (B,), the log-odds of the last label; for a number the
standardised value (B,) or (B, 1); for tags logits (B, T, K) over the positions of their text; for an answer that stands in a text
what beginning and ending is worth at each (B, T, 2), "no answer" first where there may be none (B, 1 + T, 2): one tensor, or several by name or in order. It is trained in place.

Saved weights go by the module's own names. Keras counts up the names of nameless layers: name them, or build the model
that is loaded into after `keras.utils.clear_session()`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luban import registry
from luban.columns.base import Column
from luban.errors import BundleError, RequestError
from luban.nn import forms
from luban.nn.network import Headed
from luban.nn.quantized import QuantEmbedding
from luban.nn.tokens import Batch
from luban.recipe import Recipe

TABLES = (nn.Embedding, QuantEmbedding)
LOOKED_UP = ("index", "ids")  # forms whose x are numbers of rows in a table


class Own(Headed):
    """The network of a recipe whose fusion is `own`. Raises BundleError without a module."""

    def __init__(self, recipe: Recipe, columns: Mapping[str, Column], module: nn.Module | None = None):
        super().__init__()
        if module is None:
            raise BundleError("own.no_module")
        self.inputs = {n: columns[n] for n in recipe.inputs}
        self.outputs = {n: columns[n] for n in recipe.outputs}
        self.module = module
        self.heads = nn.ModuleList(_without_layers(recipe, n, c) for n, c in self.outputs.items())
        self.grids = nn.ModuleDict()  # only buffers: mean and deviation of each channel
        for i, column in enumerate(self.inputs.values()):
            if column.form == "grid":
                self.grids[str(i)] = forms.make([column])
        self.takes = Takes(module)
        scalars = self.takes.one and all(c.form == "scalar" for c in self.inputs.values())
        self.numbers = list(self.inputs) if scalars else []  # inputs that the module gets as one (B, F)

    # -- what goes in --------------------------------------------------------------------------------------------------
    def _x(self, batch: Batch) -> dict[str, Tensor]:
        grids = {n: self.grids[str(i)] for i, n in enumerate(self.inputs) if str(i) in self.grids}
        return {n: grids[n].embed(*batch.inputs[n]) if n in grids else batch.inputs[n][0] for n in self.inputs}

    def _run(self, x: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        arguments = list(x.values())
        if self.takes.one:
            arguments = (
                [torch.stack(arguments, 1)] if self.numbers else [arguments] if len(arguments) > 1 else arguments
            )
        return self._shaped(self.module(*arguments, **self._named(batch)), batch)

    def _named(self, batch: Batch) -> dict[str, Any]:
        """What the module wants to be told beside x."""
        named: dict[str, Any] = {}
        if not (self.takes.masks or self.takes.training):
            return named
        if self.takes.masks:
            named["masks"] = tuple(batch.inputs[n][1] for n in self.inputs)
        if self.takes.training:
            named["training"] = self.training
        return named

    # -- the protocol --------------------------------------------------------------------------------------------------
    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Numbers and pixels as they are; ids as what the module's own embedding makes of them, else the bare ids."""
        x = self._x(batch)
        asked = {n: t for n, t in x.items() if self.inputs[n].form in LOOKED_UP}
        if not asked:
            return x
        found: dict[str, Tensor] = {}
        with self._watching(asked, lambda name, output: found.setdefault(name, output)):
            self._run(x, batch)
        return {n: found.get(n, t) for n, t in x.items()}

    def forward(self, batch: Batch, embedded: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        if embedded is None and self.numbers:
            return self._shaped(self.module(batch.together(self.numbers)[0], **self._named(batch)), batch)
        x = self._x(batch)
        if embedded is None:
            return self._run(x, batch)
        asked = {n: t for n, t in x.items() if self.inputs[n].form in LOOKED_UP and embedded[n].is_floating_point()}
        x |= {n: embedded[n] for n in x if n not in asked}
        with self._watching(asked, lambda name, output: embedded[name]):
            return self._run(x, batch)

    @contextmanager
    def _watching(self, asked: Mapping[str, Tensor], see: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        """`see(input, output)` stands for the output of each embedding that looks up an input's own ids."""

        def hook(table: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            ids = arguments[0]
            for name, x in asked.items():
                if x.data_ptr() == ids.data_ptr() and x.shape == ids.shape:
                    return see(name, output)
            return None

        with ExitStack() as stack:
            for module in self.module.modules():
                if isinstance(module, TABLES):
                    stack.callback(module.register_forward_hook(hook).remove)
            yield

    # -- what comes out ------------------------------------------------------------------------------------------------
    def _shaped(self, given: Any, batch: Batch) -> dict[str, Tensor]:
        names = list(self.outputs)
        if isinstance(given, Tensor):
            if len(names) == 1:
                return {names[0]: self._one(names[0], given, self.heads[0], batch)}
            given = (given,)
        if isinstance(given, Sequence) and len(given) == len(names):
            given = dict(zip(names, given))
        if not isinstance(given, Mapping) or any(not isinstance(given.get(n), Tensor) for n in names):
            found = sorted(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
            raise RequestError("own.outputs", found=found, want=names)
        return {n: self._one(n, given[n], head, batch) for n, head in self._heads()}

    def _one(self, name: str, o: Tensor, head: Any, batch: Batch) -> Tensor:
        """(B, K), or (B, 1) for a number or the log-odds of two classes, in float32; what a head that reads positions makes of
        (B, T, K)."""
        o = o.float()
        if getattr(head, "positions", False):
            of = self.outputs[name].of
            mask = batch.inputs[of][1]
            if (
                o.ndim != 3
                or o.shape[2] != head.classes
                or o.shape[1] not in (mask.shape[1], mask.shape[1] + head.ahead)
            ):
                found, want = list(o.shape[1:]), [mask.shape[1] + head.ahead, head.classes]
                raise RequestError("own.positions", output=name, of=of, found=found, want=want)
            return head.framed(o, mask)
        o = o[:, None] if o.ndim == 1 else o
        wide = getattr(head, "classes", 1)
        if getattr(head, "binary", False) and o.ndim == 2 and o.shape[1] == 2:
            return o[:, 1:] - o[:, :1]  # the softmax of two logits is the sigmoid of their difference
        if o.ndim != 2 or o.shape[1] != (1 if getattr(head, "binary", False) else wide):
            raise RequestError("own.shape", output=name, found=list(o.shape[1:]), want=wide)
        return o


class Takes:
    """How a module wants to be called: with one argument, with masks, told whether it trains (Keras)."""

    def __init__(self, module: nn.Module):
        keras = hasattr(module, "call")  # there forward(*args, **kwargs) hides it
        wanted = inspect.signature(module.call if keras else module.forward).parameters
        any_number = any(p.kind is p.VAR_POSITIONAL for p in wanted.values())
        plain = [p for p in wanted.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.one = not any_number and sum(p.default is p.empty and p.name != "masks" for p in plain) == 1
        self.masks = "masks" in wanted
        self.training = keras and "training" in wanted


def _without_layers(recipe: Recipe, name: str, column: Column) -> nn.Module:
    """The head of an output for its loss, score and glance; the module's own last layer stands for its layers."""
    settings = {k: v for k, v in recipe.head(name).settings.items() if v is not None and k not in ("hidden", "dropout")}
    head = registry.find("heads", recipe.head(name).type)(column, 1, **settings)
    head.hidden, head.out = nn.Identity(), nn.Identity()
    if hasattr(head, "none"):
        head.none = None
    return head
