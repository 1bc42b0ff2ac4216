"""A text written by an LSTM that looks back at the inputs by attention (Bahdanau et al. 2015, Luong et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.nn.heads.text import Written
from luban.nn.tokens import Tokens
from luban.nn.transformer import seen
from luban.settings import Count, Dial, Fraction, Positive

ENDLESS = 1 << 20  # tokens that it may write: its state does not grow


@dataclass
class Reading:
    """Where each text is: states h and c of every layer (B, D), tokens read (B,), the memory (B, M, D) and its mask."""

    states: list[tuple[Tensor, Tensor]]
    lengths: Tensor
    memory: Tensor | None = None
    mask: Tensor | None = None

    @property
    def longest(self) -> int:
        return int(self.lengths.max()) if len(self.lengths) else 0

    def take(self, rows: Tensor) -> Reading:
        pick = lambda t: None if t is None else t.index_select(0, rows)  # noqa: E731
        states = [(pick(h), pick(c)) for h, c in self.states]
        return Reading(states, pick(self.lengths), pick(self.memory), pick(self.mask))

    def join(self, other: Reading) -> Reading:
        states = [(torch.cat([a, b]), torch.cat([c, d])) for (a, c), (b, d) in zip(self.states, other.states)]
        lengths = torch.cat([self.lengths, other.lengths])
        if self.memory is None or other.memory is None:
            return Reading(states, lengths)
        most = max(self.memory.shape[1], other.memory.shape[1])
        wide = [F.pad(r.memory, (0, 0, 0, most - r.memory.shape[1])) for r in (self, other)]
        masks = [F.pad(r.mask, (0, most - r.mask.shape[1])) for r in (self, other)]
        return Reading(states, lengths, torch.cat(wide), torch.cat(masks))


class LSTMText(Written):
    """Use to see what writing was like before transformers, and for texts of a few tokens. Instead: `llama`.

    s_t = LSTM(s_t-1, y_t-1); a_t = softmax(s_t W M'), c_t = a_t M; answer from tanh(V [s_t; c_t]). Without inputs there is no c_t.
    """

    def __init__(
        self,
        column: Any,
        size: int,
        *,
        width: Annotated[Count, Dial(nano=64, small=256, base=512)] = 256,
        layers: Annotated[Count, Dial(nano=1, small=1, base=2)] = 1,
        dropout: Fraction = 0.1,
        label_smoothing: Fraction = 0.0,
        weight: Positive = 1.0,
    ):
        super().__init__()
        self.column, self.smoothing, self.weight = column, label_smoothing, weight
        self.embedding = nn.Embedding(column.size, width)
        nn.init.normal_(self.embedding.weight, 0, width**-0.5)
        self.layers = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(layers))
        self.size, self.window = size, ENDLESS
        self.begin = nn.Linear(size, width) if size else None
        self.ask = nn.Linear(width, size, bias=False) if size else None
        self.merge = nn.Linear(width + size, width)
        self.dropout = nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(column.size))
        self.last: list[nn.Module] = []

    def start(self, tokens: Tokens | None, rows: int) -> Reading:
        like = self.embedding.weight
        zero = like.new_zeros(rows, like.shape[1])
        first = zero
        if self.begin is not None:
            real = tokens.mask[..., None].to(tokens.x.dtype)
            first = torch.tanh(self.begin((tokens.x * real).sum(1) / real.sum(1).clamp(min=1)))
        memory, mask = (None, None) if self.begin is None else (tokens.x, seen(tokens.mask))
        lengths = torch.zeros(rows, dtype=torch.long, device=like.device)
        return Reading([(first, zero) for _ in self.layers], lengths, memory, mask)

    def _states(self, state: Reading, embedded: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """What the layers make of further tokens (B, T, D): (B, T, D), and where they stand then."""
        h, found = self.dropout(embedded), []
        for layer, (hidden, cell) in zip(self.layers, state.states):
            h, (hidden, cell) = layer(h, (hidden[None].contiguous(), cell[None].contiguous()))
            h = self.dropout(h)
            found.append((hidden[0], cell[0]))
        return h, found

    def _answers(self, state: Reading, h: Tensor) -> Tensor:
        """(B, T, D) -> logits (B, T, V)"""
        if self.ask is not None:
            h = torch.cat([h, torch.bmm(self._weights(state, h), state.memory)], -1)
        return F.linear(self.dropout(torch.tanh(self.merge(h))), self.embedding.weight, self.bias)

    def _weights(self, state: Reading, h: Tensor) -> Tensor:
        """a_t of each position: (B, T, D) -> (B, T, M)"""
        energy = torch.bmm(self.ask(h), state.memory.transpose(1, 2)).masked_fill(~state.mask[:, None], -1e9)
        return energy.softmax(-1)

    def looked(self, tokens: Tokens | None, x: Tensor, mask: Tensor) -> Tensor:
        """Where `forward` of the same looks in the memory, (B, T, M)."""
        state = self.start(tokens, len(x))
        return self._weights(state, self._states(state, self.embedding(self.shifted(x)))[0])

    def logits(self, tokens: Tokens | None, ids: Tensor, mask: Tensor) -> Tensor:
        state = self.start(tokens, len(ids))
        return self._answers(state, self._states(state, self.embedding(ids))[0])

    def continued(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """Embedded tokens (B, T, D) without memory -> logits (B, T, V) of what follows each."""
        state = self.start(None, len(embedded))
        return self._answers(state, self._states(state, embedded)[0])

    def advance(self, state: Reading, ids: Tensor, mask: Tensor) -> Tensor:
        last = self.embedding.weight.new_zeros(len(ids), self.embedding.embedding_dim)
        for t in range(ids.shape[1]):  # rows that are through keep where they are
            h, found = self._states(state, self.embedding(ids[:, t : t + 1]))
            real = mask[:, t : t + 1]
            state.states = [
                (torch.where(real, a, b), torch.where(real, c, d)) for (a, c), (b, d) in zip(found, state.states)
            ]
            last = torch.where(real, h[:, 0], last)
        state.lengths = state.lengths + mask.sum(1)
        return self._answers(state, last[:, None])[:, 0].float()
