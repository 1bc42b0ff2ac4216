"""Metrics of answers that are text, each with an interval over rows; formulas in `docs/metrics.md`.

Each row contributes a few counts, so that a corpus metric of all bootstrap draws is one product. chrF (Popović 2015) and BLEU (Papineni et al.
2002) are corpus metrics from 0 to 100 and equal sacrebleu's at its defaults (tests). BLEU depends on how text is cut into words, for which
sacrebleu is the authority: it takes sacrebleu's tokenizers, in the extra `text`. All others need nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from luban.errors import need
from luban.evaluation.intervals import Metric, bootstrap, mean, percentile

__all__ = ["bits_per_byte", "bleu", "chrf", "exact_match", "perplexity", "rouge_l", "word_error_rate"]

NAN = math.nan
CHARACTERS, BETA = (
    6,
    2,
)  # n-grams of characters up to this length; recall counts BETA squared times as much as precision
WORDS = 4
HAN = r"\u2e80-\u2fff\u3040-\u30ff\u31a0-\u31bf\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
TOKEN = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")


def chrf(truth: Sequence[str], answers: Sequence[str], *, seed: int = 0, resamples: int = 500) -> Metric:
    """chrF2 of a corpus, 0 to 100: the F score of character n-grams up to 6, spaces left out. Raises ValueError for unequal lengths."""
    _same(truth, answers)
    rows = np.array([_character_counts(t, a) for t, a in zip(truth, answers)], float)
    return _corpus(rows, _chrf_of, seed, resamples)


def chrf_by_row(truth: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """chrF2 of every row by itself, (N,)."""
    _same(truth, answers)
    rows = np.array([_character_counts(t, a) for t, a in zip(truth, answers)], float)
    return _chrf_of(rows) if len(rows) else np.zeros(0)


def _character_counts(truth: str, answer: str) -> list[int]:
    """For each n: n-grams of the answer (0 where the truth has none), of the truth, and in both."""
    truth, answer = "".join(truth.split()), "".join(answer.split())
    found = []
    for n in range(1, CHARACTERS + 1):
        true, said = _ngrams(truth, n), _ngrams(answer, n)
        found += [said.total() if true else 0, true.total(), _common(true, said)]
    return found


def _ngrams(items: Sequence[Any], n: int) -> Counter:
    return Counter(items[i : i + n] for i in range(len(items) - n + 1))


def _common(a: Counter, b: Counter) -> int:
    return sum(min(count, a[gram]) for gram, count in b.items() if gram in a)


def _chrf_of(counts: np.ndarray) -> np.ndarray:
    """Counts (R, 18) -> chrF2 (R,): precision and recall averaged over the n that occur on both sides, then their F score."""
    said, true, common = counts.reshape(len(counts), CHARACTERS, 3).transpose(2, 0, 1)
    occurs = (said > 0) & (true > 0)
    orders = occurs.sum(axis=1).clip(1)
    precision = (np.divide(common, said, out=np.zeros_like(common), where=occurs)).sum(axis=1) / orders
    recall = (np.divide(common, true, out=np.zeros_like(common), where=occurs)).sum(axis=1) / orders
    return 100 * _f(precision, recall, BETA)


def _f(precision: np.ndarray, recall: np.ndarray, beta: float = 1) -> np.ndarray:
    below = beta**2 * precision + recall
    return np.divide((1 + beta**2) * precision * recall, below, out=np.zeros_like(below), where=below > 0)


def bleu(
    truth: Sequence[str], answers: Sequence[str], *, language: str = "", seed: int = 0, resamples: int = 500
) -> Metric:
    """BLEU of a corpus, 0 to 100: n-grams up to 4, one truth a row, exponential smoothing.

    `language` chooses sacrebleu's tokenizer: `zh`, `ja-mecab`, `ko-mecab`, else `13a`; see `bleu_signature`. Raises MissingExtra without
    sacrebleu, ValueError for unequal lengths.
    """
    _same(truth, answers)
    cut = _tokenizer(language)
    rows = np.array(
        [_word_counts(cut(t.rstrip()).split(), cut(a.rstrip()).split()) for t, a in zip(truth, answers)], float
    )
    return _corpus(rows, _bleu_of, seed, resamples)


def bleu_signature(language: str = "") -> str:
    """How `bleu` counts, in sacrebleu's notation (Post 2018)."""
    version = need("sacrebleu", "text").__version__
    return f"nrefs:1|case:mixed|eff:no|tok:{TOKENIZERS.get(language, '13a')}|smooth:exp|version:{version}"


TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}


def _tokenizer(language: str) -> Callable[[str], str]:
    metrics = need("sacrebleu.metrics", "text")
    return metrics.BLEU(tokenize=TOKENIZERS.get(language, "13a")).tokenizer


def _word_counts(truth: list[str], answer: list[str]) -> list[int]:
    """Words of the answer and of the truth; for each n, n-grams in both and in the answer."""
    truth, answer = tuple(truth), tuple(answer)
    said = [_ngrams(answer, n) for n in range(1, WORDS + 1)]
    common = [_common(_ngrams(truth, n), s) for n, s in enumerate(said, 1)]
    return [len(answer), len(truth), *common, *(s.total() for s in said)]


def _bleu_of(counts: np.ndarray) -> np.ndarray:
    """Counts (R, 10) -> BLEU (R,). An n without a match counts as half, a quarter, ... of one (NIST's smoothing)."""
    said, true = counts[:, 0], counts[:, 1]
    common, total = counts[:, 2 : 2 + WORDS], counts[:, 2 + WORDS :]
    misses = np.cumsum((common == 0) & (total > 0), axis=1)
    share = np.where(common > 0, common, 0.5**misses) / total.clip(1e-9)
    brevity = np.exp(np.minimum(0, 1 - true / said.clip(1e-9)))
    found = 100 * brevity * np.exp(np.log(share).mean(axis=1))
    return np.where((total > 0).all(axis=1) & (common > 0).any(axis=1), found, 0.0)


def rouge_l(truth: Sequence[str], answers: Sequence[str], *, seed: int = 0, resamples: int = 500) -> Metric:
    """Mean over rows of ROUGE-L's F score, 0 to 1 (Lin 2004): the longest common subsequence of words, in any case of letters.

    Equal to the package rouge-score without stemming where texts are of letters a to z and digits; other letters count too, and each Chinese
    character or Japanese kana is a word.
    """
    return mean(rouge_l_by_row(truth, answers), seed=seed, resamples=resamples)


def rouge_l_by_row(truth: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """ROUGE-L's F score of every row, (N,)."""
    _same(truth, answers)
    found = np.zeros(len(truth))
    for i, (t, a) in enumerate(zip(truth, answers)):
        t, a = TOKEN.findall(t.lower()), TOKEN.findall(a.lower())
        common = longest_common(t, a)
        found[i] = 2 * common / (len(t) + len(a)) if common else 0.0
    return found


def longest_common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, a row of the table as the bits of one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    whole = row = (1 << len(a)) - 1
    for word in b:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & whole
    return len(a) - row.bit_count()


def exact_match(truth: Sequence[str], answers: Sequence[str]) -> Metric:
    """Share of answers that are the truth, spaces at the ends and runs of spaces apart."""
    _same(truth, answers)
    return mean([float(t.split() == a.split()) for t, a in zip(truth, answers)])


def word_error_rate(
    truth: Sequence[str | Sequence[str]], answers: Sequence[str], *, seed: int = 0, resamples: int = 500
) -> Metric:
    """Words to insert, leave out or replace, over the words of the truth. May exceed 1.

    A row's truth may be several texts that are all right: the one that is fewest edits away counts.
    """
    _same(truth, answers)
    counts = []
    for options, answer in zip(truth, answers):
        options = [o.split() for o in ([options] if isinstance(options, str) else options)]
        counts.append(min((edits(o, answer.split()), len(o)) for o in options))
    return ratio(*np.array(counts, float).reshape(-1, 2).T, seed=seed, resamples=resamples)


def edits(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Levenshtein's distance of two sequences."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def bits_per_byte(nll: Any, size: Any, *, seed: int = 0, resamples: int = 500) -> Metric:
    """Bits per byte of UTF-8: `nll` (N,) sums of negative log-likelihood in nats of each document, `size` (N,) its bytes.

    Does not depend on how a model cuts text into tokens, so that models of words, pieces and bytes can be compared.
    """
    return ratio(np.asarray(nll, float) / math.log(2), size, seed=seed, resamples=resamples)


def perplexity(nll: Any, tokens: Any, *, seed: int = 0, resamples: int = 500) -> Metric:
    """exp(nats per token); `nll` and `tokens` (N,) are sums over each row. Only comparable where the tokens are the same."""
    found = ratio(nll, tokens, seed=seed, resamples=resamples)
    return Metric(*(None if v is None else _exp(v) for v in (found.value, found.low, found.high)), note=found.note)


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)


def ratio(above: Any, below: Any, *, seed: int = 0, resamples: int = 500) -> Metric:
    """Sum of `above` (N,) over sum of `below` (N,), with its bootstrap interval over rows; NaN where there is nothing below."""
    rows = np.column_stack([np.asarray(above, float).ravel(), np.asarray(below, float).ravel()])
    if len(rows) and not np.isfinite(rows).all():
        return Metric(NAN, note="metric.not_finite")
    return _corpus(rows, _ratio_of, seed, resamples)


def _ratio_of(sums: np.ndarray) -> np.ndarray:
    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), NAN), where=sums[:, 1] > 0)


def _corpus(rows: np.ndarray, score: Callable[[np.ndarray], np.ndarray], seed: int, resamples: int) -> Metric:
    """A metric of the sums of what rows (N, K) contribute; `score` maps sums (R, K) to values (R,)."""
    value = float(score(rows.sum(axis=0)[None])[0]) if len(rows) else NAN
    if math.isnan(value):
        return Metric(NAN, note="metric.no_rows")
    if len(rows) == 1:
        return Metric(value)
    draws = bootstrap(lambda block: score(block @ rows)[:, None], len(rows), resamples=resamples, seed=seed)
    return Metric(value, *percentile(draws[:, 0]))


def _same(truth: Sequence[Any], answers: Sequence[Any]) -> None:
    if len(truth) != len(answers):
        raise ValueError((len(truth), len(answers)))
