"""What a simple system answers where the answer is a text: what a network that writes must beat.

`copy` answers with the input, `first_sentence` with its beginning, `translation_memory` with what was answered to the most similar training
text, `nearest_row` with what was answered to the most similar training row of any kind. Validation rows choose what there is to choose; test rows nothing. For language models see `luban.evaluation.ngram`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from luban.evaluation.baselines import Baseline
from luban.evaluation.text_metrics import TOKEN, chrf_by_row, longest_common

SENTENCE = re.compile(r".*?(?:[.!?](?=\s)|[。！？]|\n|\Z)", re.DOTALL)
BLOCK = 500  # test rows whose similarities are held at once
CANDIDATES = 20
FEW = 4096  # features of a row up to which they are held as one dense array
LIKENESS = {"characters": ("char_wb", (2, 5)), "words": ("word", (1, 2))}  # analyzer and lengths of the n-grams
LONG = 300  # characters that an input has on average from which on only words are compared, to keep it cheap
WORD = r"[^\W\d_]+|\d+|\S"
MOST_VALIDATION = 1000

Score = Callable[[Sequence[str], Sequence[str]], np.ndarray]


def text_baselines(
    train: tuple[Sequence[str], Sequence[str]],
    validation: tuple[Sequence[str], Sequence[str]],
    test: Sequence[str],
    *,
    score: Score = chrf_by_row,
    seed: int = 0,
) -> list[Baseline]:
    """All of them for inputs and answers that are texts: `train` and `validation` are pairs of lists, `test` are inputs.

    `score(truth, answers)` gives one number a row (the higher the better) by which validation rows choose.
    """
    return [
        copy(test),
        first_sentence(validation, test, score=score),
        translation_memory(train, validation, test, score=score, seed=seed),
    ]


def copy(test: Sequence[str]) -> Baseline:
    """The input itself: what of the score comes from names and numbers that stay as they are."""
    return Baseline("copy", _texts(test))


def first_sentence(
    validation: tuple[Sequence[str], Sequence[str]], test: Sequence[str], *, score: Score = chrf_by_row
) -> Baseline:
    """The first sentence, whole or cut after as many words as is best on validation rows (`settings["words"]`, 0 for whole)."""
    started, inputs, truth = time.perf_counter(), *validation
    found = {0: _mean(score, truth, [lead(x) for x in inputs])} if len(inputs) else {0: 0.0}
    for words in (*range(1, 21), 25, 30, 40) if len(inputs) else ():
        found[words] = _mean(score, truth, [lead(x, words) for x in inputs])
    words = max(found, key=found.get)
    return Baseline("first_sentence", _texts([lead(x, words) for x in test]), settings={"words": words}, seconds=time.perf_counter() - started)  # fmt: skip


def lead(text: str, words: int = 0) -> str:
    """The first sentence of a text, cut after `words` words (0: whole); a Chinese character is a word."""
    sentence = SENTENCE.match(text.strip())[0].strip()
    ends = [word.end() for word in TOKEN.finditer(sentence)] if words else []
    return sentence[: ends[words - 1]] if 0 < words <= len(ends) else sentence


def translation_memory(
    train: tuple[Sequence[str], Sequence[str]],
    validation: tuple[Sequence[str], Sequence[str]],
    test: Sequence[str],
    *,
    score: Score = chrf_by_row,
    seed: int = 0,
) -> Baseline:
    """The answer to the nearest training input.

    Nearest by TF-IDF of character or word n-grams, or, of the 20 that are nearest so, the one with the fewest words put in or left out (as
    translators' memories rank): `settings` say which was best on (at most 1,000) validation rows. `settings["similarity"]` is the mean cosine on the test rows.
    """
    started = time.perf_counter()
    sources, targets = list(train[0]), _texts(train[1])
    chosen = np.sort(np.random.default_rng(seed).permutation(len(validation[0]))[:MOST_VALIDATION])
    inputs, truth = [validation[0][i] for i in chosen], [validation[1][i] for i in chosen]
    best: tuple[float, Any, bool] = (-1.0, None, False)
    kinds = ["words"] if sum(map(len, sources)) > LONG * len(sources) else ["characters", "words"]
    for likeness in kinds if inputs else kinds[:1]:
        index = _Index(sources, likeness)
        near, _ = index.nearest(inputs)
        for rerank in (False, True) if inputs else (False,):
            answers = targets[index.fewest_edits(inputs, near) if rerank else near[:, 0]]
            reached = _mean(score, truth, answers)
            if reached > best[0]:
                best = (reached, index, rerank)
    _, index, rerank = best
    near, cosine = index.nearest(test)
    answers = targets[index.fewest_edits(test, near) if rerank else near[:, 0]]
    settings = {"likeness": index.likeness, "rerank": rerank, "similarity": float(cosine.mean()) if len(test) else 0.0}
    return Baseline("translation_memory", answers, settings=settings, seconds=time.perf_counter() - started)


def nearest_row(
    features: Sequence[Any], train: Sequence[str], validation: Sequence[str], *, score: Score = chrf_by_row
) -> Baseline:
    """The answer to the training row whose features are nearest, for inputs that are no single text, such as pictures.

    features: (N, F) of the training, validation and test rows (None of an empty part), sparse. `settings["likeness"]`: cosine or distance,
    whichever is better on validation rows. Where there are few features each is taken from its mean first.
    """
    started = time.perf_counter()
    known, asked, test = (_dense(f) for f in features)
    answers, best = _texts(train), (-1.0, "cosine")
    for likeness in ("cosine", "distance") if asked is not None else ():
        best = max(best, (_mean(score, validation, answers[_nearest(known, asked, likeness)]), likeness))
    found = answers[_nearest(known, test, best[1])]
    return Baseline("nearest_row", found, settings={"likeness": best[1]}, seconds=time.perf_counter() - started)


def _dense(features: Any) -> Any:
    return features.toarray() if features is not None and features.shape[1] <= FEW else features


def _nearest(known: Any, asked: Any, likeness: str) -> np.ndarray:
    """Numbers of the nearest rows of `known` (M, F) for each of `asked` (N, F), (N,); ties by the smallest."""
    if isinstance(known, np.ndarray):
        known, asked = known - known.mean(0), asked - known.mean(0)
    squared = np.asarray((known**2 if isinstance(known, np.ndarray) else known.power(2)).sum(1)).ravel()
    near = np.zeros(asked.shape[0], np.int64)
    for start in range(0, len(near), BLOCK):
        like = asked[start : start + BLOCK] @ known.T
        like = like if isinstance(like, np.ndarray) else like.toarray()
        like = like / np.sqrt(np.maximum(squared, 1e-12)) if likeness == "cosine" else 2 * like - squared
        near[start : start + BLOCK] = like.argmax(1)
    return near


class _Index:
    """Training texts that can be asked for what is nearest."""

    def __init__(self, texts: list[str], likeness: str):
        from sklearn.feature_extraction.text import TfidfVectorizer

        analyzer, lengths = LIKENESS[likeness]
        more = {"token_pattern": WORD} if analyzer == "word" else {}
        self.texts, self.likeness = texts, likeness
        self.features = TfidfVectorizer(
            analyzer=analyzer, ngram_range=lengths, sublinear_tf=True, dtype=np.float32, **more
        )
        self.matrix = self.features.fit_transform(texts).T.tocsr()

    def nearest(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the nearest training texts (N, 20), the nearest first, and the cosine (N,) of the first; ties by the smallest number."""
        k = min(CANDIDATES, len(self.texts))
        rows, cosine = np.zeros((len(texts), k), np.int64), np.zeros(len(texts))
        for start in range(0, len(texts), BLOCK):
            like = (self.features.transform(texts[start : start + BLOCK]) @ self.matrix).toarray()  # (B, N)
            some = np.sort(np.argpartition(-like, k - 1, axis=1)[:, :k], axis=1)
            order = np.argsort(-np.take_along_axis(like, some, 1), axis=1, kind="stable")
            rows[start : start + BLOCK] = np.take_along_axis(some, order, 1)
            cosine[start : start + BLOCK] = like.max(axis=1)
        return rows, cosine

    def fewest_edits(self, texts: Sequence[str], near: np.ndarray) -> np.ndarray:
        """Of the candidates (N, K) the one that shares most words with each text in the same order, for their lengths, (N,)."""
        cut = re.compile(WORD).findall

        def fewest(text: str, row: np.ndarray) -> int:
            words = cut(text)
            return min(row, key=lambda j: _distance(words, cut(self.texts[j])))

        return np.array([fewest(text, row) for text, row in zip(texts, near)], np.int64)


def _distance(a: list[str], b: list[str]) -> float:
    """Share of the words that have to be put in or left out."""
    return 1 - 2 * longest_common(a, b) / max(len(a) + len(b), 1)


def _mean(score: Score, truth: Sequence[str], answers: Sequence[str]) -> float:
    return float(np.mean(score(truth, answers))) if len(truth) else 0.0


def _texts(texts: Sequence[str]) -> np.ndarray:
    found = np.empty(len(texts), object)
    found[:] = list(texts)
    return found
