"""Texts written side by side: new ones join between two tokens, those that are done leave (Yu et al. 2022, "Orca").

What they go on with is guessed and read along where the network can take back what was wrong, see `guessing`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luban.errors import Unsupported
from luban.generation.choosing import choose
from luban.generation.guessing import MOST, TOGETHER, Guesses, Rates, worth
from luban.generation.sampling import END, GREEDY, LENGTH, STOP, Sampling
from luban.nn.tokens import Batch

BROKEN = "\ufffd"  # what half a character is decoded to


@dataclass(eq=False)
class Text:
    """One text that is asked for, and what is written of it.

    `prompt`: ids that are given, the column's `begin` first. `most`: tokens to write. `stop`: words it ends before.
    """

    prompt: Sequence[int]
    most: int
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    reason: str = ""  # of its end; empty while it is being written
    text: str = ""  # all that is sure to stay, without the word that ended it
    streamed: bool = False  # `text` is wanted after every token
    cut: int = 0  # tokens of the prompt that were left out at its beginning, for lack of room
    lost: int = 0  # tokens of the input that were cut off at its end
    read: list[int] = field(default_factory=list)  # the prompt and what is written, once it has begun
    guesses: Guesses | None = None


class Writer:
    """The texts that one network writes at this moment. Not for several threads at once.

    `ahead`: tokens that are guessed at once at most; one by one without.
    """

    def __init__(self, network: Any, precision: str = "fp32", ahead: int = MOST):
        self.network, self.column, self.half = network, network.outputs[network.written], precision == "bf16"
        self.ahead, self.rates = ahead if getattr(network, "verifies", False) else 0, Rates()
        self.device = next(network.parameters()).device
        self.texts: list[Text] = []
        self.state: Any = None
        self.next: list[tuple[int, float]] = []  # the token of each that comes next, and its log-probability

    @torch.inference_mode()
    def add(self, texts: Sequence[Text], batch: Batch | None = None) -> None:
        """Begin some texts together. `batch`: the inputs of each, for a network that has any."""
        if not texts:
            return
        for t in texts:
            self._fit(t)
        longest = max(len(t.prompt) for t in texts)
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        mask = torch.zeros(len(texts), longest, dtype=torch.bool)
        for i, t in enumerate(texts):
            ids[i, : len(t.prompt)], mask[i, : len(t.prompt)] = torch.as_tensor(np.asarray(t.prompt)), True
        with self.autocast():
            state = self.network.start(batch if batch is not None else Batch({}, {}, len(texts)))
            logits = self.network.advance(state, ids.to(self.device), mask.to(self.device))
        following = _chosen(logits, texts)
        # What fails has failed by now: a text that cannot be begun costs those that are being written nothing.
        self.state = self.state.join(state) if self.texts else state
        self.texts, self.next = [*self.texts, *texts], [*self.next, *following]

    def autocast(self) -> Any:
        """What the network computes in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def _fit(self, text: Text) -> None:
        """A prompt that leaves no room loses its beginning, all but the first id."""
        room = self.network.window - min(text.most, self.network.window // 2)
        if len(text.prompt) > room:
            text.cut = len(text.prompt) - room
            text.prompt = [text.prompt[0], *text.prompt[text.cut + 1 :]]
        text.most = min(text.most, self.network.window - len(text.prompt))
        text.read = [*text.prompt, *text.ids]
        text.guesses = Guesses(text.read)

    @torch.inference_mode()
    def step(self) -> list[Text]:
        """One more token of each text, and those that were guessed rightly; the texts that are done with it, which leave."""
        for t, (i, p) in zip(self.texts, self.next):
            self._write(t, i, p)
        done = self._leave()
        if self.texts:
            self._read(self._guessed())
        return done + self._leave()

    def _guessed(self) -> list[tuple[list[int], int]]:
        """What each text may go on with and the length of the ending that tells so, equally far for all that have one."""
        if not self.ahead or 2 * len(self.texts) > TOGETHER or not self.state.rewinds:
            return [([], 0)] * len(self.texts)
        room = self.network.window - max(len(t.read) for t in self.texts)
        found = [t.guesses.next(min(self.ahead, t.most - len(t.ids), room)) for t in self.texts]
        count = worth([(ids, self.rates.of(n) if ids else 0.0) for ids, n in found], self.ahead)
        if not count:
            for length in {n for ids, n in found if ids}:
                self.rates.left(length)
        return [(ids[:count], n) for ids, n in found]

    def _read(self, guessed: list[tuple[list[int], int]]) -> None:
        """Read what each text ends with and what was guessed to follow. What it would have written itself is written."""
        count = max(len(g) for g, _ in guessed)
        rows = [[t.read[-1], *g, *[0] * (count - len(g))] for t, (g, _) in zip(self.texts, guessed)]
        tokens = torch.tensor(rows, device=self.device)  # (B, 1 + count)
        with self.autocast():
            if count:
                before = self.state.lengths
                logits = self.network.verify(self.state, tokens)  # (B, 1 + count, V)
            else:
                logits = self.network.advance(self.state, tokens, torch.ones_like(tokens, dtype=torch.bool))[:, None]
        right = self._checked(logits, [g for g, _ in guessed])
        if not count:
            return
        for t, (g, length), n in zip(self.texts, guessed, right):
            if g:
                self.rates.add(length, n, n if t.reason else len(g))
        self.state.rewind(before + 1 + torch.tensor(right, device=self.device))

    def _checked(self, logits: Tensor, guesses: list[list[int]]) -> list[int]:
        """Writes the guesses that are right, logits (B, n, V) being of what follows each; how many those are of each text.

        One place after another: choosing is no small part of the time, and behind a wrong guess there is nothing to choose.
        """
        self.next = _chosen(logits[:, 0], self.texts)
        right, going = [0] * len(guesses), range(len(guesses))
        for n in range(1, logits.shape[1]):
            going = [i for i in going if n <= len(guesses[i]) and guesses[i][n - 1] == self.next[i][0]]
            for i in going:
                self._write(self.texts[i], *self.next[i])
                right[i] = n
            going = [i for i in going if not self.texts[i].reason]
            if not going:
                break
            for i, following in zip(going, _chosen(logits[going, n], [self.texts[i] for i in going])):
                self.next[i] = following
        return right

    def _write(self, t: Text, id_: int, chance: float) -> None:
        t.log_probabilities.append(chance)
        t.ids.append(id_)
        t.read.append(id_)
        self._look(t)

    def _leave(self) -> list[Text]:
        """Those that are done, which leave."""
        done = [t for t in self.texts if t.reason]
        if done:
            self._only([i for i, t in enumerate(self.texts) if not t.reason])
        return done

    def drop(self, text: Text) -> None:
        """Nobody waits for it any more."""
        if text in self.texts:
            self._only([i for i, t in enumerate(self.texts) if t is not text])

    def _only(self, stay: list[int]) -> None:
        """The texts at these places go on, the others have left."""
        for t in {*self.texts} - {self.texts[i] for i in stay}:
            t.guesses = None  # of a long text, megabytes
        keep = torch.tensor(stay, device=self.device, dtype=torch.long)
        self.texts, self.next = [self.texts[i] for i in stay], [self.next[i] for i in stay]
        self.state = self.state.take(keep) if stay else None

    def _look(self, t: Text) -> None:
        """Whether a text is done, and what of it is sure to stay."""
        if t.ids[-1] in self.column.stops:
            t.reason = END
        elif len(t.ids) >= t.most:
            t.reason = LENGTH
        if t.reason or t.stop or t.streamed:
            whole = self.column.text(t.ids)
            found = [at for at in (whole.find(word) for word in t.stop) if at >= 0]
            if found:
                t.reason, whole = STOP, whole[: min(found)]
            t.text = whole if t.reason else whole[: len(whole) - _unsure(whole, t.stop)]


def _chosen(logits: Tensor, texts: Sequence[Text]) -> list[tuple[int, float]]:
    """logits (B, V) of what follows each text -> its next token, and the log-probability of that."""
    settings, read, given = zip(*((t.sampling, t.read, len(t.prompt)) for t in texts))
    return list(zip(*choose(logits.float(), settings, read, given)))


def _unsure(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of a text that may yet become another one, or the word that ends it."""
    broken = len(text) - len(text.rstrip(BROKEN))
    begun = max((n for word in stop for n in range(1, len(word)) if text.endswith(word[:n])), default=0)
    return max(broken, begun)


def written(network: Any, texts: Sequence[Text], batch: Batch | None = None, precision: str = "fp32") -> Sequence[Text]:
    """All of them, written to their ends."""
    writer = Writer(network, precision)
    writer.add(texts, batch)
    while writer.texts:
        writer.step()
    return texts


def searched(
    network: Any, texts: Sequence[Text], width: int, batch: Batch | None = None, precision: str = "fp32"
) -> Sequence[Text]:
    """All of them, each the likeliest text that a search over `width` beginnings finds."""
    for _ in searching(network, texts, width, batch, precision):
        pass
    return texts


def searching(
    network: Any, texts: Sequence[Text], width: int, batch: Batch | None = None, precision: str = "fp32"
) -> Iterator[None]:
    """`searched`, pausing before every token. Those with inputs begin alike and are searched for together."""
    from luban.generation import beams

    writer = Writer(network, precision)
    for t in texts:
        writer._fit(t)
    groups = [(texts, batch)] if batch is not None else [([t], Batch({}, {}, 1)) for t in texts]
    for some, inputs in groups:
        search = beams.searching(network, inputs, some[0].most, width, prompt=some[0].prompt)
        each = yield from _computing(writer, search)
        for t, found in zip(some, each):
            t.ids, t.log_probabilities = found
            writer._look(t)


def _computing(writer: Writer, search: Generator[None, None, Any]) -> Generator[None, None, Any]:
    """A search in the writer's precision, which others that write in the pauses do not see."""
    while True:
        with writer.autocast():
            try:
                next(search)
            except StopIteration as end:
                return end.value
        yield


def streamed(network: Any, text: Text, batch: Batch | None = None, precision: str = "fp32") -> Iterator[str]:
    """A text piece by piece, as soon as each is sure."""
    text.streamed = True
    writer, told = Writer(network, precision), 0
    writer.add([text], batch)
    while not text.reason:
        writer.step()
        if len(text.text) > told:
            yield text.text[told:]
            told = len(text.text)


@torch.no_grad()
def respond(network: Any, batch: Batch) -> dict[str, Tensor]:
    """Per output what its column decodes: what `forward` gives; of a text (B, T, 2), see `write`.

    Raises Unsupported for a language model, which has no inputs to answer.
    """
    written, blind = getattr(network, "written", None), replace(batch, targets={})  # an answer knows no truth
    if written is None:
        return network(blind)
    if not len(network.encoders):
        raise Unsupported("text.nothing_to_answer", output=written)
    found = network(blind) if len(network.outputs) > 1 else {}
    return {n: write(network, batch) if n == written else found[n] for n in network.outputs}


def write(network: Any, batch: Batch) -> Tensor:
    """The answer to each example, as its column asks for it: (B, T, 2), ids with -1 behind the end, log-probabilities."""
    from luban.generation.beams import beams

    column = network.outputs[network.written]
    most = min(column.length + 1, network.window - 1)
    if column.beams > 1:
        found = beams(network, batch, most, column.beams)
    else:
        texts = [Text([column.begin], most) for _ in range(batch.size)]
        found = [(t.ids, t.log_probabilities) for t in written(network, texts, batch)]
    longest = max(len(ids) for ids, _ in found)
    result = torch.full((batch.size, longest, 2), -1.0, dtype=torch.float64)
    for row, (ids, chances) in zip(result, found):
        row[: len(ids), 0], row[: len(ids), 1] = torch.tensor(ids).double(), torch.tensor(chances).double()
    return result
