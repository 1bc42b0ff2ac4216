"""A network that says hidden words as one with an output: what it says in one place is its answer, the words around that place are its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luban.columns.asked import Blank, Word
from luban.columns.base import Answer, Column
from luban.errors import DataError, RequestError, problem
from luban.nn.tokens import Batch

OUTPUT = "hidden"
OTHERS = 4  # words told beside the likeliest


class FillingIn(nn.Module):
    """One input of a masked network. A word that is gone becomes "nothing there", as the place that is asked about is; the network was
    trained on just that. B examples, T positions, A places that are asked about (one, or as many as the word that is asked for has tokens).
    """

    def __init__(self, network: Any, name: str | None, columns: Mapping[str, Column], target: str | None):
        super().__init__()
        if name is not None and name not in network.masked:
            raise RequestError(problem("explain.no_such_output", name=name, allowed=network.masked))
        self.name = name or network.masked[0]
        self.reads = self.input = self.part = self.name
        self.output = OUTPUT
        at = network.masked.index(self.name)
        self.encoder, self.guess, self.network = network.encoders[at], network.fusion[at], network
        self.word = Word.of(columns[self.name], OUTPUT)
        self.asked = 1 if target is None else len(self.word.encode(target))
        if not self.asked:
            raise RequestError(problem("explain.no_word", target=str(target)))
        self.column = Blank.of(columns[self.name], self.asked)
        self.cut: list[int] = []

    def prompts(
        self, values: Sequence[Any], tokens: int = 1, places: Sequence[str] = ()
    ) -> tuple[dict[str, Column], list[dict[str, Any]], list[dict]]:
        """The columns of this network, its raw rows and their encoded values. Raises DataError for a value without two words."""
        raw = [self.column.asking(v) for v in values]
        if not all(raw):
            place = places[raw.index("")] if places else ""
            raise DataError(problem("explain.no_place", place=place, input=self.name))
        self.cut = [i for i, v in enumerate(raw) if self.column.overlong([v])]
        columns: dict[str, Column] = {self.name: self.column, OUTPUT: self.word}
        return columns, [{self.name: v} for v in raw], [{self.name: self.column.encode(v)} for v in raw]

    def answered(self, values: Sequence[Mapping[str, np.ndarray]], tokens: int = 1) -> tuple[list[Answer], np.ndarray]:
        """The likeliest token in each place, and the ids (R, A)."""
        answers, ids = [], []
        for v in values:
            x, mask = map(torch.as_tensor, self.column.collate([v[self.name]]))
            device = next(self.parameters()).device
            batch = Batch({self.name: (x.to(device), mask.to(device))}, {}, 1)
            with torch.no_grad():
                log = self.forward(batch)[OUTPUT][0].log_softmax(-1).cpu().double()  # (A, V)
            ids.append(log.argmax(-1).numpy())
            first = [(self.word.text([i]), float(log[0, i].exp())) for i in log[0].topk(1 + OTHERS).indices.tolist()]
            answers.append(Answer(self.word.text(ids[-1]), float(log.amax(-1).sum().exp()), tuple(first)))
        return answers, np.stack(ids)

    def read_as(self, x: Mapping[str, np.ndarray], answer: np.ndarray) -> list[str]:
        """The names of all positions that it reads."""
        return self.column.positions(x[self.name])

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        x, mask = batch.inputs[self.name]
        return {self.name: self.encoder.embed(torch.where(x < 0, ~x, x), mask)}

    def forward(self, batch: Batch, embedded: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Logits of each place that is asked about, (B, A, V)."""
        x, mask = batch.inputs[self.name]
        states = self.encoder((embedded or self.embed(batch))[self.name], mask).x
        asked = (x < 0).nonzero()  # (B x A, 2)
        return {OUTPUT: self.guess.logits(states[asked[:, 0], asked[:, 1]]).view(len(x), self.asked, -1)}

    def score(self, o: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Log-probability of the tokens of a word in their places, (B,); below 0 what is not scored."""
        each = {n: o[n].log_softmax(-1).gather(2, a.clamp(min=0)[..., None])[..., 0] for n, a in answers.items()}
        return {n: (each[n] * (a >= 0)).sum(1) for n, a in answers.items()}
