"""Exact match and F1 of answers, as SQuAD defines them (Rajpurkar et al. 2016, 2018).

An answer is compared in lower case, without ASCII punctuation, without the articles a, an and the. Its tokens are what blanks part; a Chinese or
Japanese character is a token by itself, and CJK punctuation is left out, as CMRC 2018 does (Cui et al. 2019). Of several right answers
the best counts. No answer is the empty one: it matches only itself.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from luban.evaluation.text_metrics import HAN

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = re.compile(
    rf"[{re.escape(string.punctuation)}\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)
_HAN = re.compile(rf"([{HAN}])")


def tokens(text: str) -> list[str]:
    """What is compared of an answer."""
    return _HAN.sub(r" \1 ", _ARTICLES.sub(" ", _PUNCTUATION.sub("", text.lower()))).split()


def exact(truths: Sequence[str], answer: str) -> float:
    """1 where the answer is one of the right ones; `truths` empty: where it is none."""
    said = tokens(answer)
    return float(any(tokens(t) == said for t in truths or [""]))


def f1(truths: Sequence[str], answer: str) -> float:
    """The harmonic mean of the shares of tokens that the answer and a right one have in common; the best over all right ones."""
    return max(_f1(tokens(t), tokens(answer)) for t in truths or [""])


def _f1(true: list[str], said: list[str]) -> float:
    if not true or not said:
        return float(true == said)
    common = (Counter(true) & Counter(said)).total()
    return 2 * common / (len(true) + len(said))


def by_row(truths: Sequence[Sequence[str]], answers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Exact match and F1 of each row, (N,) each."""
    return np.array([exact(t, a) for t, a in zip(truths, answers)]), np.array(
        [f1(t, a) for t, a in zip(truths, answers)]
    )
