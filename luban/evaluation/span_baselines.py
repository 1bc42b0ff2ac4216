"""Answers found without a network: the sentence, and the words, of a text that stand nearest to the question's words.

Words are weighed by how rare they are among the training texts (inverse document frequency). Letters: W words of a text.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from luban.evaluation.baselines import Baseline
from luban.evaluation.text_metrics import TOKEN

SENTENCE = re.compile(r"[^.!?。！？\n]+(?:[.!?]+(?=\s|$)|[。！？]+|\n|$)")
AROUND = 10  # words on each side of an answer that are looked at


def span_baselines(
    train: tuple[Sequence[str], Sequence[list[str] | None]], test: tuple[Sequence[str], Sequence[str]]
) -> list[Baseline]:
    """`train`: texts and their right answers; `test`: questions and texts, all raw. Answers are words of the text, "" for none.

    `first_sentence`; `nearest_sentence`, whose rare words the question has most of; `nearest_words`: as many words as the middle one of the training
    answers has, none of them the question's, with the question's rare words nearest around them (the sliding window of
    Richardson et al. 2013, which Rajpurkar et al. 2016 hold SQuAD against); `no_answer` where training rows have none.
    """
    texts, truths = train
    rarity = _rarity(texts)
    known = [t for t in truths if t is not None]
    sizes = [len(TOKEN.findall(t[0])) for t in known if t]
    usual = max(1, int(np.median(sizes))) if sizes else 1
    asked = list(zip(*test))
    found = [
        _timed("first_sentence", asked, lambda _, text: _sentences(text)[0]),
        _timed("nearest_sentence", asked, lambda question, text: _nearest_sentence(question, text, rarity)),
        _timed("nearest_words", asked, lambda question, text: _nearest_words(question, text, rarity, usual)),
    ]
    if any(not t for t in known):
        found.append(_timed("no_answer", asked, lambda _, text: ""))
    return found


def _timed(name: str, asked: Sequence[tuple[str, str]], answer: Callable[[str, str], str]) -> Baseline:
    began = time.perf_counter()
    answers = [answer(q, t) for q, t in asked]
    return Baseline(name, answers, seconds=time.perf_counter() - began)


def _rarity(texts: Sequence[str]) -> Callable[[str], float]:
    counts: Counter[str] = Counter()
    distinct = dict.fromkeys(texts)
    for text in distinct:
        counts.update(set(TOKEN.findall(text.lower())))
    return lambda word: math.log((1 + len(distinct)) / (1 + counts[word])) + 1


def _sentences(text: str) -> list[str]:
    return [s for m in SENTENCE.finditer(text) if (s := m[0].strip())] or [text.strip()]


def _nearest_sentence(question: str, text: str, rarity: Callable[[str], float]) -> str:
    asked = set(TOKEN.findall(question.lower()))

    def near(sentence: str) -> float:
        words = set(TOKEN.findall(sentence.lower()))
        size = math.sqrt(sum(rarity(w) ** 2 for w in words)) or 1.0
        return sum(rarity(w) ** 2 for w in words & asked) / size

    return max(_sentences(text), key=near)


def _nearest_words(question: str, text: str, rarity: Callable[[str], float], size: int) -> str:
    """The stretch of `size` words around which the question's words weigh most, each over its distance."""
    asked = set(TOKEN.findall(question.lower()))
    places = [(m.start(), m.end(), m[0].lower()) for m in TOKEN.finditer(text)]
    if len(places) <= size:
        return text.strip()
    weight = np.array([rarity(w) if w in asked else 0.0 for *_, w in places])  # (W,)
    inside = np.convolve(weight > 0, np.ones(size), "valid")  # how many of each stretch are the question's own
    worth = np.zeros(len(places) - size + 1)
    for distance in range(1, AROUND + 1):
        worth[distance:] += weight[: max(0, len(worth) - distance)] / distance
        behind = weight[size - 1 + distance :][: len(worth)]
        worth[: len(behind)] += behind / distance
    best = int(np.argmax(worth - 1e6 * inside))
    return text[places[best][0] : places[best + size - 1][1]]
