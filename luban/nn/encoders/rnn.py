"""Recurrent encoders: rnn, gru, lstm, bilstm.

Every step from the first to the last *real* position; a backward layer reads each sequence reversed within its own
length. So padding never changes an answer, and the graph exports to ONNX (packed sequences do not).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from luban.nn import forms
from luban.nn.recurrence import Recurrence
from luban.nn.tokens import Encoder, Tokens
from luban.settings import Count, Dial, Fraction

Pooling = Literal["last", "mean", "root", "max", "attention"]


class Recurrent(Encoder):
    """What the recurrent encoders share: ids, vectors (B, T) -> Tokens (B, T, D), D = hidden, or 2 x hidden both ways.

    `hidden`: size of every layer, or a list with one for each. With both ways, D is (forward, backward) side by side.
    """

    accepts = ("ids", "vectors")
    deep = True
    sequences = True
    kind = "rnn"

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        hidden: Annotated[Count | list[Count], Dial(nano=32, small=64, base=256)] = 64,
        layers: Count = 1,
        embedding: Annotated[Count, Dial(nano=32, small=100, base=200)] = 100,
        grams: Literal[1, 2, 3] = 1,
        dropout: Fraction = 0.2,
        pooling: Pooling = "last",
    ):
        super().__init__()
        self.form = forms.make(columns, width=embedding, grams=grams)
        sizes = [hidden] * layers if isinstance(hidden, int) else list(hidden)
        inside = [self.form.size, *(self.ways * size for size in sizes[:-1])]
        self.forwards = nn.ModuleList(Recurrence(self.kind, i, o) for i, o in zip(inside, sizes))
        pairs = zip(inside, sizes) if self.ways == 2 else ()
        self.backwards = nn.ModuleList(Recurrence(self.kind, i, o) for i, o in pairs)
        self.dropout = nn.Dropout(dropout)
        self.size, self.length, self.pooling = self.ways * sizes[-1], None, pooling

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.form.embed(x, mask)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tokens:
        h = self.form.lift(embedded, mask)
        back = reversal(mask) if self.ways == 2 else None
        for i, layer in enumerate(self.forwards):
            h = self.dropout(h)
            states = layer(h)  # (B, T, hidden)
            if back is not None:
                turned = self.backwards[i](rearranged(h, back))
                states = torch.cat([states, rearranged(turned, back)], dim=2)
            h = states
        return Tokens(h, mask)


class RNN(Recurrent):
    """Use to see what a plain tanh recurrence does, h_t = tanh(W x_t + U h_{t-1} + b). Instead: `gru` or `lstm`, which
    forget more slowly (Elman 1990)."""

    kind = "rnn"


class GRU(Recurrent):
    """Use where an `lstm` would do, with a quarter fewer weights (Cho et al. 2014)."""

    kind = "gru"


class LSTM(Recurrent):
    """Use for text whose word order matters, read one way; stack with `layers` (Hochreiter and Schmidhuber 1997).
    Instead: `bilstm` when the whole text is there before the answer."""

    kind = "lstm"


class BiLSTM(Recurrent):
    """Use for text whose word order matters. Instead: `cnn`, faster and often as good; `lstm` to read one way only."""

    kind = "lstm"
    ways = 2


def reversal(mask: Tensor) -> Tensor:
    """Positions (B, T) that reverse each sequence within its own length and leave padding where it is. Its own inverse."""
    position = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, mask.sum(1, keepdim=True) - 1 - position, position)


def rearranged(x: Tensor, positions: Tensor) -> Tensor:
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[2]))
