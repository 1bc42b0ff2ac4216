"""One network over each frame of a clip, another over what it gave, in the order of time."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Annotated, Any

from torch import Tensor, nn

from luban import registry
from luban.errors import RecipeError, problem
from luban.nn.tokens import Encoder, Pool, Tokens
from luban.part import Part
from luban.settings import Named


class Frames(Encoder):
    """Use for short clips: each frame is read by `each`, any image network, its vectors one after the other by `over`.

    (B, T, C, H, W) -> Tokens (B, T, D). `over` is what reads sequences of vectors: `gru` (default), `lstm`, `transformer`, or `bag`, which
    forgets the order (Donahue et al. 2015, "Long-term recurrent convolutional networks").
    """

    accepts = ("frames",)
    deep = True

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        each: Annotated[dict | str, Named("encoders")] = "cnn",
        over: Annotated[dict | str, Named("encoders")] = "gru",
    ):
        """Raises RecipeError where `each` reads no pictures or `over` no vectors."""
        super().__init__()
        column = columns[0]
        self.each = _built("each", "grid", each, column.picture)
        self.pool = Pool(self.each.pooling, self.each.size, self.each.length, self.each.ways)
        states = SimpleNamespace(name=column.name, form="vectors", size=self.pool.size, length=column.frames, state={})
        self.over = _built("over", "vectors", over, states)
        self.size, self.pooling, self.ways = self.over.size, self.over.pooling, self.over.ways
        self.length = self.over.length
        if self.feature_layer is not None:
            self.feature_layer.local = (
                True  # what speaks for an answer at the beginning may speak against it at the end
            )

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.each.embed(x.flatten(0, 1), _all(x)).unflatten(0, x.shape[:2])

    def forward(self, embedded: Tensor, mask: Tensor) -> Tokens:
        count, frames = embedded.shape[:2]
        h = self.pool(self.each(embedded.flatten(0, 1), _all(embedded))).unflatten(0, (count, frames))  # (B, T, D)
        return self.over(self.over.embed(h, _every(h)), _every(h))

    @property
    def feature_layer(self) -> nn.Module | None:
        return self.each.feature_layer


def _all(x: Tensor) -> Tensor:
    """The mask of B x T pictures: each is there."""
    return x.new_ones(x.shape[0] * x.shape[1], dtype=bool)


def _every(h: Tensor) -> Tensor:
    return h.new_ones(h.shape[:2], dtype=bool)


def _built(setting: str, form: str, asked: Any, column: Any) -> Encoder:
    part = Part.of(asked)
    kind = registry.find("encoders", part.type)
    if form not in kind.accepts:
        fitting = [n for n in registry.names("encoders") if form in registry.schema("encoders", n)["x-accepts"]]
        place = f"model.{column.name}.frames.{setting}"
        raise RecipeError(problem("frames.unfit", place=place, name=part.type, allowed=fitting))
    return kind([column], **{k: v for k, v in part.settings.items() if v is not None})
