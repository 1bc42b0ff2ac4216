"""A language model that answers rows it never learned from: k examples stand in its prompt (Brown et al. 2020).

    sentence: a moving story        examples, drawn from the training rows
    sentiment: positive

    sentence: dull and long         the row that is asked about
    sentiment:                      every class is scored by how likely its name is here

The score of a class is the log-probability of its name, per token, so that a long name is not a bad one. Calibrated (Zhao et
al. 2021), its probability among the classes is divided by the one that it has where the row says nothing ("N/A", "[MASK]",
an empty value; the mean of the three), after the same examples. N rows, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from luban.errors import Problem, problem
from luban.nn.tokens import Batch
from luban.training.random import rng

NOTHING = ("N/A", "[MASK]", "")  # what stands for a row that says nothing
TOGETHER = 4096  # tokens of prompts that are read at once
HELD = re.compile(r"\{([^{}]+)\}")

Record = Mapping[str, str]


@dataclass(frozen=True)
class Template:
    """How a row becomes text. `row` has {NAME} for every input and ends with {TARGET}; `labels`: what is written for a class."""

    row: str
    target: str
    labels: Mapping[str, str]
    before: str = ""  # stands once, before all examples
    between: str = "\n\n"

    @classmethod
    def usual(cls, inputs: Sequence[str], target: str, labels: Sequence[str]) -> Template:
        lines = [f"{n}: {{{n}}}" for n in (*inputs, target)]
        return cls("\n".join(lines), target, {label: label for label in labels})

    def mistakes(self, inputs: Sequence[str]) -> list[Problem]:
        known = (*inputs, self.target)
        wrong = [problem("shots.no_column", name=n, allowed=known) for n in HELD.findall(self.row) if n not in known]
        if not self.row.endswith(f"{{{self.target}}}") or self.row.count(f"{{{self.target}}}") != 1:
            wrong.append(problem("shots.no_answer", name=None, target=self.target))
        if not {*HELD.findall(self.row)} & {*inputs}:
            wrong.append(problem("shots.no_input", name=None, allowed=list(inputs)))
        written = [*self.labels.values()]
        if any(not w.strip() for w in written) or len(set(written)) < len(written):
            wrong.append(problem("shots.same_names", name=None, found=written))
        return wrong

    @property
    def stem(self) -> str:
        return self.row.removesuffix(f"{{{self.target}}}")

    def asked(self, record: Record) -> str:
        """A row up to its answer. Blanks before the answer belong to it: a tokenizer cuts words with the blank before them."""
        return HELD.sub(lambda m: record.get(m[1], ""), self.stem.rstrip(" "))

    def answer(self, label: str) -> str:
        return self.stem[len(self.stem.rstrip(" ")) :] + self.labels[label]

    def prompt(self, shown: Sequence[tuple[Record, str]], record: Record) -> str:
        parts = [self.asked(r) + self.answer(label) for r, label in shown]
        return self.between.join([*([self.before] if self.before else []), *parts, self.asked(record)])


@dataclass(frozen=True)
class Shot:
    """What `k` examples make of N rows. D draws of examples; K classes in the order of the template's labels."""

    k: int
    used: int  # examples that there was room for
    plain: np.ndarray  # (D, N, K) probabilities among the classes
    calibrated: np.ndarray  # (D, N, K)
    prompt: str  # the first row's, as the network read it
    tokens: int  # of the longest prompt
    cut: bool  # a prompt lost its beginning: not even the row alone has room


def tried(
    network: Any,
    template: Template,
    pool: tuple[Sequence[Record], Sequence[str]],
    records: Sequence[Record],
    ks: Sequence[int],
    *,
    draws: int,
    seed: int,
) -> Iterator[Shot]:
    """Each number of examples in turn. `pool`: training rows and their labels; `network`: a language model."""
    column, labels = network.outputs[network.written], list(template.labels)
    answers = [template.answer(label) for label in labels]
    per_value = max(8, network.window // (2 * max(1, len(records[0]))))
    short = lambda r: {n: _cut(column, v, per_value) for n, v in r.items()}  # noqa: E731
    asked, (rows, given) = [short(r) for r in records], pool
    nothing = [dict.fromkeys(records[0], word) for word in NOTHING]
    room = network.window - max(len(_ids(column, a)) for a in answers) - 1
    for k in ks:
        plain, calibrated, used, longest = [], [], k, 0
        for draw in range(draws if k else 1):
            examples = [(short(rows[i]), given[i]) for i in balanced(given, labels, k, seed, draw)]
            shown, prompts = _fitting(column, template, examples, [*asked, *nothing], room)
            used = min(used, len(shown))
            found = scores(network, prompts, answers)
            p = _softmax(found)
            plain.append(p[: len(asked)])
            rest = p[len(asked) :].mean(0)  # (K,) of a row that says nothing
            ratio = p[: len(asked)] / rest.clip(1e-12)
            calibrated.append(ratio / ratio.sum(1, keepdims=True))
            longest = max(longest, *(len(_ids(column, t)) for t in (prompts[0], max(prompts, key=len))))
        yield Shot(k, used, np.stack(plain), np.stack(calibrated), prompts[0], longest, longest > room)


def balanced(given: Sequence[str], labels: Sequence[str], k: int, seed: int, draw: int = 0) -> list[int]:
    """Places of `k` examples, of every class as many (give or take one), in random order.

    Those of 4 are among those of 16, so that more is more. Classes without examples give none.
    """
    random = rng(seed, "shots", draw)
    of = {label: [i for i, g in enumerate(given) if g == label] for label in labels}
    piles = [random.permutation(of[label]).tolist() for label in random.permutation(list(labels))]
    turns = [int(i) for turn in zip_longest(*piles) for i in turn if i is not None][:k]
    return [turns[i] for i in rng(seed, "order", draw, k).permutation(len(turns))]


def _fitting(
    column: Any, template: Template, shown: list[tuple[Record, str]], asked: Sequence[Record], room: int
) -> tuple[list[tuple[Record, str]], list[str]]:
    """The last examples that leave room for every row, and the prompt of each."""
    longest = max(asked, key=lambda r: len(_ids(column, template.asked(r))))
    while shown and len(_ids(column, template.prompt(shown, longest))) > room:
        shown = shown[1:]
    return shown, [template.prompt(shown, r) for r in asked]


def _cut(column: Any, value: str, most: int) -> str:
    """A value on one line, `most` tokens of it at most: a long one must not push the question out of sight."""
    value = " ".join(value.split())
    offsets = column.tokenizer.encode(value, add_special_tokens=False).offsets
    return value if len(offsets) <= most else value[: offsets[most - 1][1]].rstrip()


def _ids(column: Any, text: str) -> list[int]:
    return column.prompt(text).tolist()


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@torch.inference_mode()
def scores(network: Any, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """(N, K): log-probability of each answer behind each prompt, the mean over its tokens (natural logarithm).

    What all prompts begin with, the examples, is read once: its state is taken as many times as there are prompts. A prompt
    that does not fit into the window loses its beginning.
    """
    column, device = network.outputs[network.written], next(network.parameters()).device
    cut = [_parted(column, p, answers) for p in prompts]
    room = network.window - max(len(t) for _, tails in cut for t in tails)
    contexts = [_last(c, room) for c, _ in cut]
    shared = min(_common(contexts[0], c) for c in contexts)
    shared = min(shared, min(map(len, contexts)) - 1)  # something is left to be read for each
    begun = network.start(Batch({}, {}, 1))
    if shared:
        _read(network, begun, [contexts[0][:shared]], device)
    found = np.zeros((len(prompts), len(answers)))
    order = sorted(range(len(prompts)), key=lambda i: len(contexts[i]))
    longest = max(map(len, contexts)) + 1
    size = max(1, TOGETHER // (longest * len(answers)))
    for at in range(0, len(order), size):
        rows = order[at : at + size]
        state = begun.take(torch.zeros(len(rows), dtype=torch.long, device=device))
        logits = _read(network, state, [contexts[i][shared:] for i in rows], device)
        found[rows] = _answered(network, state, logits, [cut[i][1] for i in rows], device)
    return found


def _answered(network: Any, state: Any, logits: Any, tails: list[list[list[int]]], device: Any) -> np.ndarray:
    """(B, K): the mean log-probability of the tokens of each answer; `logits` (B, V) are those of the first one."""
    total = np.zeros((len(tails), len(tails[0])))
    left = [(b, b, k) for b in range(len(tails)) for k in range(len(tails[0]))]  # row of the logits, text, answer
    for step in range(max(len(t) for row in tails for t in row)):
        chances = logits.log_softmax(-1)[[i for i, _, _ in left], [tails[b][k][step] for _, b, k in left]]
        for (_, b, k), p in zip(left, chances.tolist()):
            total[b, k] += p
        left = [(i, b, k) for i, b, k in left if len(tails[b][k]) > step + 1]
        if left:
            state = state.take(torch.tensor([i for i, _, _ in left], device=device))
            logits = _read(network, state, [[tails[b][k][step]] for _, b, k in left], device)
            left = [(i, b, k) for i, (_, b, k) in enumerate(left)]
    return total / np.array([[len(t) for t in row] for row in tails])


def _read(network: Any, state: Any, ids: Sequence[Sequence[int]], device: Any) -> Any:
    longest = max(map(len, ids))
    x = torch.zeros(len(ids), longest, dtype=torch.long)
    mask = torch.zeros(len(ids), longest, dtype=torch.bool)
    for i, row in enumerate(ids):
        x[i, : len(row)], mask[i, : len(row)] = torch.as_tensor(row), True
    return network.advance(state, x.to(device), mask.to(device))


def _parted(column: Any, prompt: str, answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """Ids of what stands before any of the answers, and of each answer: where the two are cut together (a blank and a word),
    that piece belongs to the answer."""
    alone, whole = _ids(column, prompt), [_ids(column, prompt + a) for a in answers]
    before = max(1, min(_common(alone, ids) for ids in whole))
    return whole[0][:before], [ids[before:] for ids in whole]


def _last(ids: list[int], room: int) -> list[int]:
    """What does not fit loses its beginning, all but the first id."""
    return ids if len(ids) <= room else [ids[0], *ids[len(ids) - max(room, 2) + 1 :]]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
