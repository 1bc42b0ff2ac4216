"""How much of a text a network that writes gives back when it is shown how the text begins (Carlini et al. 2021, 2023).

A passage is some tokens of a text, the prompt, and those that follow it. It is extracted where the network, always taking the
likeliest token, writes all that follow. What it copies beside that is the longest stretch of tokens that stands both in what
it wrote and in what follows. The same of texts that were never trained on says how much of this is skill, or chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luban.columns.base import Ragged
from luban.columns.examples import encode
from luban.evaluation import intervals
from luban.evaluation.intervals import Metric, wilson
from luban.generation.writing import Text, written
from luban.nn.tokens import Batch

TOGETHER = 32  # passages written on side by side
FEWEST = 8  # tokens that a passage must be followed by


@dataclass(frozen=True)
class Passage:
    """`example`: of which text; `prompt`, `truth`: ids; `wrote`: what the network made of it."""

    example: int
    prompt: list[int]
    truth: list[int]
    wrote: list[int]

    @property
    def extracted(self) -> bool:
        return self.wrote == self.truth

    @property
    def copied(self) -> int:
        """Tokens of the longest stretch that stands in both."""
        return longest_common(self.truth, self.wrote)


def passages(
    network: Any, columns: Mapping[str, Any], inputs: Sequence[str], framed: Any, *, count: int, context: int, follow: int, seed: int
) -> list[Passage]:  # fmt: skip
    """`count` passages out of some texts, each place of a text as likely as another, and what the network writes.

    Of a language model a passage begins anywhere; where there are inputs, at the beginning of the text. A prompt has `context`
    tokens and `follow` come after it, fewer where the network's window or the text is too short: half of it each.
    """
    name = network.written
    whole = {**columns, name: columns[name].whole()}
    examples = encode(whole, inputs, [name], framed)
    if name not in examples.targets:
        return []
    context, follow = min(context, network.window // 2), min(follow, network.window // 2 - 1)
    first = [] if columns[name].state.get("bare") else [network.outputs[name].begin]
    drawn = _drawn(examples.targets[name], columns[name], count, context, follow, seed, anywhere=not inputs)
    texts = [Text([*first, *prompt], len(truth)) for _, prompt, truth in drawn]
    order = sorted(range(len(drawn)), key=lambda i: len(texts[i].prompt))
    device = next(network.parameters()).device
    for at in range(0, len(order), TOGETHER):
        some = order[at : at + TOGETHER]
        batch = Batch.of(examples.arrays(np.array([drawn[i][0] for i in some])), device) if inputs else None
        written(network, [texts[i] for i in some], batch)
    return [Passage(*d, t.ids) for d, t in zip(drawn, texts)]


def _drawn(
    found: Ragged, column: Any, count: int, context: int, follow: int, seed: int, *, anywhere: bool
) -> list[tuple[int, list[int], list[int]]]:
    """(text, prompt, what follows), without an end that stands behind."""
    texts = [np.where(ids < 0, ~ids, ids) for ids in (np.asarray(found[i]) for i in range(len(found)))]
    texts = [t[:-1] if len(t) and int(t[-1]) in column.stops else t for t in texts]
    usable = np.array([i for i, t in enumerate(texts) if len(t) >= 2 * FEWEST], np.int64)
    if not len(usable):
        return []
    random = np.random.default_rng([seed, len(texts), count])
    places = np.array([max(1, len(texts[i]) - context - follow + 1) for i in usable], float)
    result, seen = [], set()
    for i in random.choice(usable, 4 * count, p=places / places.sum()):
        text = texts[int(i)]
        start = int(random.integers(max(1, len(text) - context - follow + 1))) if anywhere else 0
        given = min(context, (len(text) - start) // 2)
        if (i, start) in seen or len(result) == count:
            continue
        seen.add((i, start))
        piece = text[start : start + given + follow].tolist()
        result.append((int(i), piece[:given], piece[given:]))
    return result


def longest_common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest stretch that stands in both."""
    best, row = 0, [0] * (len(b) + 1)
    for x in a:
        row = [0] + [row[j] + 1 if x == y else 0 for j, y in enumerate(b)]
        best = max(best, *row)
    return best


def measured(found: Sequence[Passage], seed: int) -> dict[str, Metric]:
    """`extracted`: share of passages given back whole; `copied`: share of what follows that is copied in one stretch, the mean."""
    return {
        "extracted": intervals.mean([float(p.extracted) for p in found], seed=seed),
        "copied": intervals.mean([p.copied / len(p.truth) for p in found], seed=seed),
    }


def beyond(trained: Sequence[Passage], held: Sequence[Passage], seed: int) -> dict[str, Metric]:
    """By how much more is given back of texts that were trained on. Newcombe's interval (1998, method 10) of two shares,
    the bootstrap of two means."""
    a, b = (np.array([float(p.extracted) for p in side]) for side in (trained, held))
    c, d = (np.array([p.copied / len(p.truth) for p in side]) for side in (trained, held))
    return {"extracted": newcombe(a.sum(), len(a), b.sum(), len(b)), "copied": _means(c, d, seed)}


def newcombe(hits: float, n: float, others: float, m: float) -> Metric:
    p, q = hits / n, others / m
    (low, high), (floor, top) = wilson(hits, n), wilson(others, m)
    return Metric(p - q, p - q - math.hypot(p - low, top - q), p - q + math.hypot(high - p, q - floor))


def _means(a: np.ndarray, b: np.ndarray, seed: int, resamples: int = 500) -> Metric:
    draws = [
        np.concatenate([block @ x / len(x) for block in intervals.weights(len(x), resamples, seed + k)])
        for k, x in enumerate((a, b))
    ]
    return Metric(float(a.mean() - b.mean()), *intervals.percentile(draws[0] - draws[1]))
