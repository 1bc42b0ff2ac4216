"""A network with an output that is written token by token: inputs -> encoders -> memory -> decoder; or a decoder alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from luban import registry
from luban.columns.base import Column
from luban.errors import Unsupported
from luban.nn.before import Before
from luban.nn.network import Composed, build
from luban.nn.tokens import Batch, Tokens
from luban.recipe import Recipe, writes


class Generator(Protocol):
    """What `luban.generation` asks of a network. A state belongs to some texts that are being written; it has `lengths`
    (B,) read so far, `take(rows)` and `join(other)`, and nothing else of it is looked at; where the network `verifies` it
    also says whether it `rewinds` now, and can `rewind(lengths)` then.
    """

    verifies: bool

    def start(self, batch: Batch) -> Any: ...
    def advance(self, state: Any, tokens: Tensor, mask: Tensor) -> Tensor: ...
    def verify(self, state: Any, tokens: Tensor) -> Tensor: ...


class Generative(Composed):
    """The built-in network where one output is a text. Others may stand beside it where the fusion gives a summary (`join`).

    Raises Unsupported for two texts.
    """

    def __init__(self, recipe: Recipe, columns: Mapping[str, Column]):
        self.first = [columns[n] for n in recipe.inputs if recipe.before(n)]  # read by the writer itself
        self.put_ahead = bool(getattr(registry.find("fusions", recipe.fusion.type), "ahead", False))
        self.read = {n: columns[n] for n in recipe.inputs}
        super().__init__(recipe, columns)
        found = [n for n, head in self._heads() if getattr(head, "writes", False)]
        if len(found) > 1:
            raise Unsupported("text.two_outputs", outputs=found)
        if len(self.outputs) > 1 and recipe.fusion.type != "join":
            raise Unsupported("text.no_summary", outputs=list(self.outputs), fusion=recipe.fusion.type)
        self.written = found[0]
        self.which = list(self.outputs).index(self.written)
        for encoder in self.encoders:
            if isinstance(encoder, Before):
                encoder.writer = [self.writer]

    @property
    def writer(self) -> Any:
        """The head that writes. No attribute of its own: a checkpoint would hold its weights twice."""
        return self.heads[self.which]

    def _fusion(self, recipe: Recipe) -> nn.Module:
        if not self.put_ahead:
            return super()._fusion(recipe)
        written = next(n for n, part in recipe.outputs.items() if writes(part))
        width = recipe.head(written).settings["width"]
        return build("fusions", recipe.fusion, list(self.encoders), width)

    def _head(self, recipe: Recipe, name: str, column: Column, size: int) -> nn.Module:
        in_front = self.first or self.put_ahead
        if not (in_front and getattr(registry.find("heads", recipe.head(name).type), "writes", False)):
            return super()._head(recipe, name, column, size)
        return build("heads", recipe.head(name), column, 0, self._in_front())

    def _in_front(self) -> int:
        """Positions of all inputs at most, before a fusion makes them fewer."""
        most = lambda names, encoder: encoder.length or sum(self.read[n].most for n in names)  # noqa: E731
        return sum(most(*pair) for pair in zip(self.groups, self.encoders))

    @property
    def window(self) -> int:
        """Tokens that one text may have, those given included."""
        return self.writer.window

    def remembered(self, batch: Batch, embedded: Mapping[str, Tensor] | None = None) -> Tokens | None:
        """What the decoder reads beside the text; None where there are no inputs."""
        return self.fusion(self.tokens(batch, embedded)) if len(self.encoders) else None

    def forward(self, batch: Batch, embedded: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Logits of the next token after each of the true ones, (B, T, V); of other outputs what their heads say.

        An output whose text is not given is left out: it can only be written (`luban.generation`).
        """
        fused = self.remembered(batch, embedded)
        found = {}
        for name, head in self._heads():
            if head is not self.writer:
                found[name] = head(fused).float()
            elif name in batch.targets:
                found[name] = head(fused, *batch.targets[name]).float()
        return found

    # -- the Generator ---------------------------------------------------------------------------------------------------
    def start(self, batch: Batch) -> Any:
        """The state of one text for each example of a batch, with nothing written yet."""
        return self.writer.start(self.remembered(batch), batch.size)

    def advance(self, state: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        """Read tokens (B, n), mask (B, n) True = real and first, into the state; logits (B, V) of what follows."""
        return self.writer.advance(state, tokens, mask)

    @property
    def verifies(self) -> bool:
        """Whether it can read several tokens, and take back those that turn out wrong."""
        return self.writer.verifies

    def verify(self, state: Any, tokens: Tensor) -> Tensor:
        """Read tokens (B, n), all real, into the state; logits (B, n, V) of what follows each."""
        return self.writer.verify(state, tokens)
