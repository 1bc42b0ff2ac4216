"""Learning a language from raw text: words are hidden, and the encoder says what they were (Devlin et al. 2019, "BERT"); or
words that stand near each other get vectors that tell it (`luban.nn.skip_gram`).

A model of its own that others begin with: `start: {source: FOLDER}` takes the encoder over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.columns.base import Column
from luban.errors import Unsupported
from luban.nn.network import Composed, build
from luban.nn.tokens import Batch
from luban.recipe import Recipe
from luban.settings import Fraction, Positive

A, B, M = 2_654_435_761, 40_503, 1_000_003  # of a hash that spreads ids and places evenly


class Masked(Composed):
    """Every text input is read and asked by the fusion what it itself holds; there are no outputs. `masked` are the inputs' names.

    `forward` gives what the fusion's `told` does, per input (B, 3 or more): the loss of what was asked, how much that is, and how
    much of it would have been said rightly. What is hidden is drawn anew each time while training; else it depends on the text alone, so that two
    networks are asked the same. Raises Unsupported for inputs that are no sequences of ids, and beside outputs.
    """

    def __init__(self, recipe: Recipe, columns: Mapping[str, Column]):
        nn.Module.__init__(self)
        other = [n for n in recipe.inputs if columns[n].form != "ids"]
        if other or recipe.outputs:
            raise Unsupported("masked.only_texts", inputs=other, outputs=list(recipe.outputs))
        self.outputs, self.groups = {}, [[n] for n in recipe.inputs]
        self.many = [False] * len(self.groups)
        self.encoders = nn.ModuleList(build("encoders", recipe.encoder(n), [columns[n]]) for n in recipe.inputs)
        self.fusion = nn.ModuleList(
            build("fusions", recipe.fusion, columns[n], e) for n, e in zip(recipe.inputs, self.encoders)
        )
        self.heads = nn.ModuleList()
        self.masked = list(recipe.inputs)

    def weights(self, batch: Batch) -> None:
        """How many words are hidden is known once they are."""

    def forward(self, batch: Batch, embedded: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        found = {}
        for name, encoder, guess in zip(self.masked, self.encoders, self.fusion):
            found[name] = guess.told(encoder, *batch.inputs[name])
        return found

    def divergence(self, *_: Any, **__: Any) -> Any:
        raise Unsupported("masked.no_answers")

    def loss(self, o: Mapping[str, Tensor], batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        return {n: (t[:, 0], t[:, 1].detach()) for n, t in o.items()}

    def glance(self, o: Mapping[str, Tensor], batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        many = len(o) > 1
        return {f"{n}_accuracy" if many else "accuracy": (t[:, 2], t[:, 1]) for n, t in o.items()}


class Guess(nn.Module):
    """Use to learn a language from raw text without any answers: tokens are hidden, and the encoder says what they were.

    `share` of the tokens (`whole_words`: of the words, all their pieces) are hidden: eight of ten become "nothing there", one
    another token, one stays as it is (Devlin et al. 2019). States of the hidden places (P, D) -> their losses (P,).
    """

    def __init__(
        self,
        column: Any,
        encoder: Any,
        *,
        share: Fraction = 0.15,
        whole_words: bool = False,
        epsilon: Positive = 1e-5,
    ):
        super().__init__()
        self.share, self.nothing, self.size = (
            share,
            int(column.nothing(np.zeros(1, np.int64))),
            column.size,
        )
        self.change = nn.Sequential(
            nn.Linear(encoder.size, encoder.size), nn.GELU(), nn.LayerNorm(encoder.size, eps=epsilon)
        )
        table = getattr(getattr(encoder, "form", None), "table", None)
        self.tied = [table] if table is not None and table.embedding_dim == encoder.size else []  # a list: not ours
        self.out = None if self.tied else nn.Linear(encoder.size, column.size, bias=False)
        self.bias = nn.Parameter(torch.zeros(column.size))
        begins = torch.tensor(column.begins()) if whole_words else torch.ones(column.size, dtype=torch.bool)
        self.register_buffer("begins", begins, persistent=False)
        self.name = column.name

    def told(self, encoder: Any, x: Tensor, mask: Tensor) -> Tensor:
        """(B, 3): the loss of the hidden tokens of each text, how many they are, how many are said rightly."""
        hidden, shown = self.hide(x, mask)
        states = encoder(encoder.embed(shown, mask), mask).x
        if states.shape[1] != x.shape[1]:
            raise Unsupported("masked.no_places", input=self.name, encoder=type(encoder).__name__)
        row, place = hidden.nonzero(as_tuple=True)  # how many they are is asked of the device once
        each, right = self(states[row, place], x[row, place])
        sums = [torch.zeros(len(x), device=x.device).index_add(0, row, t.float()) for t in (each, right)]
        return torch.stack([sums[0], hidden.sum(1).float(), sums[1]], 1)

    def hide(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Which places (B, T) are hidden, and the ids that are shown."""
        place = torch.arange(x.shape[1], device=x.device)
        word = (self.begins[x] & mask).long().cumsum(1)  # number of the word that a place belongs to
        if self.training:
            u, v = torch.rand(2, *x.shape, device=x.device)
        else:
            u, v = ((x * A + place * B + k) % M / M for k in (1, 7919))
            u = (u * 7919) % 1
        first = torch.zeros_like(u).scatter(1, word.clamp(max=x.shape[1] - 1), u)  # one number for each word
        hidden = (first.gather(1, word.clamp(max=x.shape[1] - 1)) < self.share) & mask
        other = torch.randint_like(x, self.size) if self.training else (x * B + place) % self.size
        shown = torch.where(v < 0.8, self.nothing, torch.where(v < 0.9, other, x))
        return hidden, torch.where(hidden, shown, x)

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., V)"""
        h = self.change(states)
        return (F.linear(h, self.tied[0].weight, self.bias) if self.tied else self.out(h) + self.bias).float()

    def forward(self, states: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(states)
        return F.cross_entropy(logits, truth, reduction="none"), logits.argmax(-1) == truth
