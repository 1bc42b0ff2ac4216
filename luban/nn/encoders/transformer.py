"""The transformer encoder, for sequences and for images in patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn import forms
from luban.nn.tokens import Encoder, Span, Tokens
from luban.nn.transformer import BERT as SHAPE
from luban.nn.transformer import CLASSIC, GPT2, Shape
from luban.nn.transformer import Transformer as Layers
from luban.settings import Count, Dial, Fraction, Natural, Positive

LONGEST = 512  # positions that are learnt where the column does not say how long a value can be


class Transformer(Encoder):
    """Use with many rows, or where far-apart positions belong together. Instead: `cnn` or `bilstm` with few rows.

    Pre-norm blocks of self-attention and a dense layer four times as wide (Vaswani et al. 2017); images are cut into
    patches first (Dosovitskiy et al. 2021). `stochastic_depth`: share of examples that pass by the last block while
    training, evenly fewer by the others. ids, vectors (B, T) -> Tokens (B, T, D); grid -> (B, patches, D).
    """

    accepts = ("ids", "vectors", "grid")
    deep = True
    sequences = True

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        width: Annotated[Count, Dial(nano=32, small=96, base=256)] = 96,
        layers: Annotated[Count, Dial(nano=1, small=2, base=4)] = 2,
        heads: Count = 4,
        positions: Literal["sinusoidal", "learnt", "rotary", "none"] = "sinusoidal",
        patch: Count | Literal["auto"] = "auto",
        dropout: Fraction = 0.1,
        stochastic_depth: Fraction = 0.0,
        pooling: Literal["last", "mean", "max", "attention"] = "mean",
        **shape: Any,
    ):
        super().__init__()
        self.form = forms.make(columns, width=width)
        self.grid = columns[0].form == "grid"
        inside, longest = self.form.size, getattr(columns[0], "length", LONGEST)
        self.length, self.span = None, ()
        if self.grid:
            height, width_ = columns[0].hw
            self.patch = max(1, round(max(height, width_) / 8)) if patch == "auto" else patch
            cut = -(-height // self.patch), -(-width_ // self.patch)
            self.short = cut[0] * self.patch - height, cut[1] * self.patch - width_
            inside, longest = inside * self.patch**2, cut[0] * cut[1]
            self.length, self.span = longest, (Span(columns[0].name, 0, longest, cut),)
        self.project = nn.Linear(inside, width) if inside != width or self.grid else nn.Identity()
        self.layers = Layers(
            Shape(
                width,
                layers,
                heads,
                positions=positions,
                length=longest,
                dropout=dropout,
                depth=stochastic_depth,
                **shape,
            )
        )
        self.size, self.pooling = width, pooling

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.form.embed(x, mask)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tokens:
        h = self.form.lift(embedded, mask)
        if self.grid:
            h = F.unfold(F.pad(h, (0, self.short[1], 0, self.short[0])), self.patch, stride=self.patch).transpose(1, 2)
            mask = h.new_ones(h.shape[:2], dtype=torch.bool)
        h = self.project(h)  # (B, T, D)
        return Tokens(self.layers(h, mask), mask, self.span)


class Classic(Transformer):
    """Use for the encoder of the textbook: sinusoidal positions, ReLU, the norm behind each branch or, with `order: pre`,
    before it (Vaswani et al. 2017). Instead: `transformer`, which learns faster.
    """

    accepts = ("ids", "vectors")

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        width: Annotated[Count, Dial(nano=32, small=96, base=512)] = 96,
        layers: Annotated[Count, Dial(nano=1, small=2, base=6)] = 2,
        heads: Annotated[Count, Dial(nano=4, small=4, base=8)] = 4,
        hidden: Natural = 0,
        order: Literal["pre", "post"] = "post",
        dropout: Fraction = 0.1,
        pooling: Literal["last", "mean", "max", "attention"] = "mean",
    ):
        shape = {k: v for k, v in CLASSIC.items() if k != "positions"} | {"order": order, "hidden": hidden}
        super().__init__(columns, width=width, layers=layers, heads=heads, dropout=dropout, pooling=pooling, **shape)


class BERT(Transformer):
    """Use for a text encoder in the shape of BERT (Devlin et al. 2019), above all one that has read much raw text before
    (`fusion: masked`). Instead: `transformer`, which learns faster from little. Learnt positions, the norm behind each branch.
    The weights of a checkpoint of that shape go into it: `luban import`.
    """

    accepts = ("ids",)

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        width: Annotated[Count, Dial(nano=64, small=128, base=256)] = 128,
        layers: Annotated[Count, Dial(nano=2, small=4, base=6)] = 4,
        heads: Annotated[Count, Dial(nano=2, small=4, base=8)] = 4,
        hidden: Natural = 0,
        epsilon: Positive = 1e-12,
        dropout: Fraction = 0.1,
        pooling: Literal["first", "last", "mean", "max", "attention"] = "mean",
    ):
        shape = {k: v for k, v in SHAPE.items() if k != "positions"} | {"hidden": hidden, "epsilon": epsilon}
        super().__init__(
            columns,
            width=width,
            layers=layers,
            heads=heads,
            positions="learnt",
            dropout=dropout,
            pooling=pooling,
            **shape,
        )


class GPT(Transformer):
    """Use for a text encoder that reads one way, as a language model does. Instead: `bert`. Learnt positions,
    the norm before each branch (Radford et al. 2019).
    """

    accepts = ("ids",)

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        width: Annotated[Count, Dial(nano=64, small=128, base=256)] = 128,
        layers: Annotated[Count, Dial(nano=2, small=4, base=6)] = 4,
        heads: Annotated[Count, Dial(nano=2, small=4, base=8)] = 4,
        dropout: Fraction = 0.1,
        pooling: Literal["last", "mean", "max", "attention"] = "last",
    ):
        shape = {k: v for k, v in GPT2.items() if k != "positions"}
        super().__init__(
            columns,
            width=width,
            layers=layers,
            heads=heads,
            positions="learnt",
            dropout=dropout,
            pooling=pooling,
            **shape,
        )
