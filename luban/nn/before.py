"""Texts that a network reads before it writes one, all in one sequence (a prefix language model, as GPTs are fine-tuned).

    tokens of the inputs | begin | tokens of the text that is written

One vocabulary, one table of embeddings and one stack of causal layers for all, so that a word of the input can be written again as
it stands. B examples, M positions of the inputs, T of the text, D features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luban.nn.tokens import Encoder, Tokens


class Before(Encoder):
    """What stands for the encoder of such an input: the embeddings of the network that writes. ids (B, M) -> Tokens (B, M, D)."""

    accepts = ("ids",)
    sequences = True
    bare = True  # nothing is to be added to them

    def __init__(self, width: int):
        super().__init__()
        self.size = width
        self.writer: list[Any] = []  # in a list, so that its weights are not here, too

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.writer[0].embedding(x)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tokens:
        return Tokens(embedded, mask)


def closed_up(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, N, D), mask (B, N), padding anywhere -> the real positions in their order, padding behind them."""
    order = (~mask).to(torch.uint8).argsort(stable=True, dim=1)
    return x.gather(1, order[..., None].expand_as(x)), mask.gather(1, order)


def behind(tokens: Tokens, h: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A text h (B, T, D) behind what is read first -> both (B, M + T, D), its mask, and where the text's positions are (B, T)."""
    x, real = closed_up(torch.cat([tokens.x.to(h.dtype), h], 1), torch.cat([tokens.mask, mask], 1))
    at = tokens.mask.sum(1, keepdim=True) + torch.arange(h.shape[1], device=h.device)
    return x, real, at
