"""A language model as a network with an input: the prompt is what it reads, what it wrote on from there is its answer.

So all that explains a network with inputs explains this one, and a matrix of words of the prompt against tokens comes with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luban.columns.base import Answer, Column, text_of
from luban.errors import DataError, Unsupported
from luban.generation.writing import Text, written
from luban.nn.tokens import Batch

INPUT = "prompt"


class GoingOn(nn.Module):
    """`writer`: the head of a network that writes without inputs. The prompt stands between the id that begins and the answer.

    A hidden word is the mean of all embeddings: a language model has no token that says nothing. B examples, T positions of
    the prompt, A of the answer.
    """

    def __init__(self, network: Any):
        super().__init__()
        self.writer, self.written, self.network = network.writer, network.written, network
        if not hasattr(self.writer, "continued") or getattr(network.outputs[self.written], "alone", False):
            raise Unsupported("explain.not_this_writer", output=self.written)
        self.column = network.outputs[self.written]
        self.outputs = network.outputs
        self.first = [] if self.column.state.get("bare") else [self.column.begin]

    def prompts(self, values: Sequence[Any], most: int) -> tuple[dict[str, Column], list[dict[str, Any]], list[dict]]:
        """The columns of this network, its raw rows and their encoded values: the beginnings of some texts.

        Raises DataError for a text with nothing in it.
        """
        column = replace(self.column, name=INPUT, length=most, keep="start", state={**self.column.state, "before": [], "after": []})  # fmt: skip
        texts = [text_of(v) or "" for v in values]
        if any(not t.strip() for t in texts):
            raise DataError("explain.empty_prompt")
        return (
            {INPUT: column, self.written: self.column},
            [{INPUT: t} for t in texts],
            [{INPUT: column.encode(t)} for t in texts],
        )

    def answered(self, values: Sequence[Mapping[str, np.ndarray]], count: int) -> tuple[list[Answer], np.ndarray]:
        """What it writes after each prompt, the likeliest token each, and the ids (R, A), 0 = padding."""
        texts = [Text([*self.first, *v[INPUT].tolist()], count) for v in values]
        written(self.network, texts)
        ids = np.zeros((len(texts), max(len(t.ids) for t in texts)), np.int64)
        for row, t in zip(ids, texts):
            row[: len(t.ids)] = t.ids
        chances = [float(np.exp(sum(t.log_probabilities))) for t in texts]
        return [Answer(self.column.text(t.ids), p) for t, p in zip(texts, chances)], ids

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        ids, table = batch.inputs[INPUT][0], self.writer.embedding
        h = table(ids)
        if (nothing := self.column.state.get("hide", 1)) in ids:
            mean = table(torch.arange(self.column.size, device=ids.device)).mean(0)
            h = torch.where((ids == nothing)[..., None], mean, h)
        return {INPUT: h}

    def forward(self, batch: Batch, embedded: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Logits of each token of the answer, (B, A, V). Each answer stands right behind the end of its prompt."""
        h = (embedded or self.embed(batch))[INPUT]
        real, (x, _) = batch.inputs[INPUT][1], batch.targets[self.written]
        ids = torch.where(x < 0, ~x, x)
        given = self.writer.embedding(torch.tensor([self.first] * len(ids), dtype=torch.long, device=ids.device))
        whole = torch.cat([given, h, self.writer.embedding(ids)], 1)
        place = torch.arange(whole.shape[1], device=ids.device)[None]
        before = len(self.first) + real.sum(1, keepdim=True)  # (B, 1) positions up to the answer
        gap = h.shape[1] - real.sum(1, keepdim=True)  # padding of the prompt, which is moved to the end
        order = torch.where(place < before, place, place + gap)
        order = torch.where(order < whole.shape[1], order, order - gap - ids.shape[1]).clamp(min=0)
        whole = whole.gather(1, order[..., None].expand_as(whole))
        logits = self.writer.continued(whole, place < before + ids.shape[1])
        asked = before - 1 + torch.arange(ids.shape[1], device=ids.device)  # the position before each token
        return {self.written: logits.gather(1, asked[..., None].expand(-1, -1, logits.shape[2])).float()}

    def score(self, o: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: self.writer.score(o[n], a) for n, a in answers.items()}
