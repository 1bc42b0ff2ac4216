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

from luban.columns.asked import HIDDEN, Talk
from luban.columns.base import GONE, Answer, Column, make, text_of
from luban.errors import DataError, Unsupported, problem
from luban.generation.writing import Text, written
from luban.nn.tokens import Batch

INPUT = "prompt"
PROMPT, TALK = 64, 256  # positions of a text that is gone on from, of a conversation


class GoingOn(nn.Module):
    """`writer`: the head of a network that writes without inputs. The prompt stands between the id that begins and the answer; of a
    network that reads a text before it writes another (`behind`) that id stands between the two.

    A hidden word is the mean of all embeddings: a language model has no token that says nothing. B examples, T positions of
    the prompt, A of the answer.
    """

    def __init__(self, network: Any, said: str = ""):
        """`said`: the name of the conversations that are read, of a network that writes texts and knows how one looks.

        Raises Unsupported where it does not know.
        """
        super().__init__()
        self.writer, self.written, self.network = network.writer, network.written, network
        self.reads, self.output, self.part = said or self.written, self.written, self.written
        self.input = INPUT
        self.column = network.outputs[self.written]
        if said:
            self.column = _talking(self.column, said)
        self.outputs, state = network.outputs, self.column.state
        self.talks = hasattr(self.column, "asked")
        # a network that reads one thing before it writes another begins behind the prompt
        self.behind = [self.column.begin] if state.get("behind") and not self.talks else []
        self.first = [] if self.behind or (state.get("bare") and not self.talks) else [self.column.begin]
        self.cut: list[int] = []  # prompts that were too long, by their rows

    def prompts(
        self, values: Sequence[Any], tokens: int, places: Sequence[str] = ()
    ) -> tuple[dict[str, Column], list[dict[str, Any]], list[dict]]:
        """The columns of this network, its raw rows and their encoded values: the beginnings of some texts, or all of a
        conversation up to what is answered; as many positions as leave room for `tokens`. `places`: where each stands.

        Raises DataError for one with nothing in it.
        """
        most = max(1, self.network.window - tokens - len(self.first) - len(self.behind) - 1)
        most = min(most, TALK if self.talks else PROMPT)
        if self.talks:
            column, talks = Talk.of(self.column, INPUT, most), [self.column.asked(v) for v in values]
            raw = [column.near(said) for said in talks]
            empty = [i for i, said in enumerate(raw) if not said]
        else:
            state = {**self.column.state, "before": [], "after": [], "hide": HIDDEN}
            column = replace(self.column, name=INPUT, length=most, keep="start", state=state)
            raw = [text_of(v) or "" for v in values]
            empty = [i for i, t in enumerate(raw) if not t.strip()]
        if empty:
            raise DataError(problem("explain.empty_prompt", place=places[empty[0]] if places else ""))
        self.cut = [i for i, v in enumerate(raw) if column.overlong([v])]
        encoded = [{INPUT: column.encode(v)} for v in raw]
        return {INPUT: column, self.written: self.outputs[self.written]}, [{INPUT: v} for v in raw], encoded

    def answered(self, values: Sequence[Mapping[str, np.ndarray]], count: int) -> tuple[list[Answer], np.ndarray]:
        """What it writes after each prompt, the likeliest token each, and the ids (R, A), GONE behind the end."""
        texts = [Text([*self.first, *v[INPUT].tolist(), *self.behind], count) for v in values]
        written(self.network, texts)
        ids = np.full((len(texts), max(len(t.ids) for t in texts)), GONE, np.int64)
        for row, t in zip(ids, texts):
            row[: len(t.ids)] = t.ids
        chances = [float(np.exp(sum(t.log_probabilities))) for t in texts]
        return [Answer(self.column.text(t.ids), p) for t, p in zip(texts, chances)], ids

    def read_as(self, x: Mapping[str, np.ndarray], answer: np.ndarray) -> list[str]:
        """The names of all positions that it reads of a prompt and its answer."""
        return self.column.positions(np.array([*self.first, *x[INPUT], *self.behind, *answer]))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        ids, table = batch.inputs[INPUT][0], self.writer.embedding
        h = table(ids.clamp(min=0))
        if HIDDEN in ids:
            mean = table(torch.arange(self.column.size, device=ids.device)).mean(0)
            h = torch.where((ids == HIDDEN)[..., None], mean, h)
        return {INPUT: h}

    def forward(self, batch: Batch, embedded: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Logits of each token of the answer, (B, A, V). Each answer stands right behind the end of its prompt."""
        h = (embedded or self.embed(batch))[INPUT]
        real, (x, _) = batch.inputs[INPUT][1], batch.targets[self.written]
        ids = torch.where(x < 0, ~x, x)
        given, opening = (self._given(some, ids) for some in (self.first, self.behind))
        whole = torch.cat([given, h, opening, self.writer.embedding(ids)], 1)
        place = torch.arange(whole.shape[1], device=ids.device)[None]
        before = len(self.first) + real.sum(1, keepdim=True)  # (B, 1) positions up to the answer
        gap = h.shape[1] - real.sum(1, keepdim=True)  # padding of the prompt, which is moved to the end
        order = torch.where(place < before, place, place + gap)
        order = torch.where(order < whole.shape[1], order, order - gap - ids.shape[1]).clamp(min=0)
        whole = whole.gather(1, order[..., None].expand_as(whole))
        before = before + len(self.behind)
        logits = self.writer.continued(whole, place < before + ids.shape[1])
        asked = before - 1 + torch.arange(ids.shape[1], device=ids.device)  # the position before each token
        return {self.written: logits.gather(1, asked[..., None].expand(-1, -1, logits.shape[2])).float()}

    def _given(self, some: Sequence[int], like: Tensor) -> Tensor:
        ids = torch.tensor(some, dtype=torch.long, device=like.device)
        return self.writer.embedding(ids.expand(len(like), -1))  # (B, len(some), D)

    def score(self, o: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: self.writer.score(o[n], a) for n, a in answers.items()}


def _talking(column: Any, name: str) -> Any:
    """The column of a text that is written as one of conversations."""
    if column.chat is None:
        raise Unsupported("chat.no_template", output=column.name)
    return column.keeping(column.becomes(make(name, "chat", {})))
