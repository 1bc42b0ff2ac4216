"""Metrics of text equal the field's own packages; each has a planted fault that must show."""

import math
import random
from itertools import product

import numpy as np
import pytest

from luban.evaluation import text_metrics as m

TEXT = "the cat sat on a mat , and The dog's 3.5 bones ( 1,000 ) were gone . O'Neil-Smith said : no ! re-use 50% ?"
ENGLISH = TEXT.split()
CHINESE = list("打开文件并保存新的文档，点击「确定」按钮。") + ["LibreOffice", "3.5", "“", "”", " "]


def sentences(words, n=200, seed=0, joiner=" "):
    """Truths, and answers that share much with them; some empty, short or equal."""
    rng = random.Random(seed)
    truth = [joiner.join(rng.choices(words, k=rng.randint(0 if i % 20 == 0 else 1, 14))) for i in range(n)]
    answers = []
    for i, text in enumerate(truth):
        parts = text.split(joiner) if joiner else list(text)
        kept = [w for w in parts if rng.random() < 0.7] + (rng.choices(words, k=2) if i % 3 else [])
        answers.append(text if i % 10 == 0 else joiner.join(kept))
    return truth, answers


SETS = {"en": sentences(ENGLISH), "zh": sentences(CHINESE, joiner="")}


@pytest.mark.parametrize("language", SETS)
def test_chrf_is_sacrebleus(language):
    sacrebleu = pytest.importorskip("sacrebleu")
    truth, answers = SETS[language]
    assert m.chrf(truth, answers).value == pytest.approx(sacrebleu.corpus_chrf(answers, [truth]).score, abs=1e-9)
    for i, value in enumerate(m.chrf_by_row(truth, answers)):
        assert value == pytest.approx(
            sacrebleu.sentence_chrf(answers[i], [truth[i]], eps_smoothing=False).score, abs=1e-9
        )


@pytest.mark.parametrize("language", SETS)
def test_bleu_is_sacrebleus(language):
    sacrebleu = pytest.importorskip("sacrebleu")
    truth, answers = SETS[language]
    theirs = sacrebleu.metrics.BLEU(tokenize=m.TOKENIZERS.get(language, "13a"))
    assert m.bleu(truth, answers, language=language).value == pytest.approx(
        theirs.corpus_score(answers, [truth]).score, abs=1e-9
    )
    assert m.bleu_signature(language) == theirs.get_signature().format(short=False)
    short, longer = ["one two three four five"] * 2, ["one two three", "six"]  # smoothing and brevity
    assert m.bleu(short, longer).value == pytest.approx(sacrebleu.corpus_bleu(longer, [short]).score, abs=1e-9)
    assert m.bleu(short, ["x y z u v"] * 2).value == 0


def test_rouge_l_is_rouge_scores():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    truth, answers = SETS["en"]
    theirs = [scorer.score(t, a)["rougeL"].fmeasure for t, a in zip(truth, answers)]
    assert m.rouge_l_by_row(truth, answers) == pytest.approx(theirs, abs=1e-12)
    assert m.rouge_l(truth, answers).value == pytest.approx(np.mean(theirs))


def test_rouge_l_counts_chinese_characters():
    assert m.rouge_l(["打开新文件"], ["打开文件"]).value == pytest.approx(2 * 4 / 9)
    assert m.rouge_l(["Größe über"], ["größe"]).value == pytest.approx(2 / 3)


def testlongest_common_subsequence_by_hand():
    for a, b in product(["", "a", "abcbdab", "bdcaba", "aaaa"], repeat=2):
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, j in product(range(len(a)), range(len(b))):
            table[i + 1][j + 1] = table[i][j] + 1 if a[i] == b[j] else max(table[i][j + 1], table[i + 1][j])
        assert m.longest_common(list(a), list(b)) == table[-1][-1]


def test_word_error_rate():
    assert m.word_error_rate(["a b c d"], ["a x c"]).value == pytest.approx(2 / 4)
    assert m.word_error_rate(["a", "b c d"], ["a", "b"]).value == pytest.approx(
        2 / 4
    )  # over all words, not the mean of rows
    assert m.word_error_rate([["A B", "C D E"]], ["C D E"]).value == 0  # any listed variant counts
    assert m.word_error_rate(["a"], ["a b c"]).value == 2
    assert m.edits("kitten", "sitting") == 3


def test_exact_match():
    found = m.exact_match(["a b", "c"], ["a  b ", "C"])
    assert found.value == 0.5 and found.low is not None


def test_bits_per_byte_and_perplexity():
    found = m.bits_per_byte([math.log(2) * 10, math.log(2) * 30], [10, 10])
    assert found.value == pytest.approx(2) and found.low == pytest.approx(1) and found.high == pytest.approx(3)
    uniform = m.perplexity([math.log(256) * 5, math.log(256) * 7], [5, 7])
    assert uniform.value == uniform.low == uniform.high == pytest.approx(256)
    assert m.perplexity([1e6], [1]).value == math.inf


NOTHING = {"chrf": m.chrf, "rouge_l": m.rouge_l, "exact_match": m.exact_match, "wer": m.word_error_rate, "bpb": m.bits_per_byte, "perplexity": m.perplexity}  # fmt: skip


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_has_no_value_and_says_why(name):
    found = NOTHING[name]([], [])
    assert math.isnan(found.value) and found.note == "metric.no_rows" and found.to_json()["reason"]


def test_not_finite_is_said():
    assert m.bits_per_byte([math.nan, 1.0], [1, 1]).note == "metric.not_finite"


def test_intervals_hold_the_value_and_shrink():
    truth, answers = SETS["en"]
    for metric in (m.chrf, m.rouge_l, m.word_error_rate):
        few, many = metric(truth[:40], answers[:40]), metric(truth * 4, answers * 4)
        assert few.low < few.value < few.high and many.low < many.value < many.high
        assert many.high - many.low < few.high - few.low
        assert metric(truth, answers) == metric(truth, answers)


def test_the_interval_of_a_corpus_metric_is_the_bootstraps():
    """Draws of whole rows, each scored anew, give the same middle 95 % as the sums do."""
    truth, answers = SETS["en"][0][:30], SETS["en"][1][:30]
    rng, found = np.random.default_rng(1), []
    for _ in range(400):
        drawn = rng.integers(0, 30, 30)
        found.append(m.chrf([truth[i] for i in drawn], [answers[i] for i in drawn], resamples=20).value)
    low, high = np.quantile(found, [0.025, 0.975])
    mine = m.chrf(truth, answers)
    assert mine.low == pytest.approx(low, abs=1.5) and mine.high == pytest.approx(high, abs=1.5)


def test_unequal_lengths_are_an_error():
    with pytest.raises(ValueError):
        m.chrf(["a"], [])


def test_control_a_wrong_metric_is_seen(monkeypatch):
    """With n-grams to 5 instead of 6 the comparison fails."""
    sacrebleu = pytest.importorskip("sacrebleu")
    truth, answers = SETS["en"]
    monkeypatch.setattr(m, "CHARACTERS", 5)
    assert m.chrf(truth, answers).value != pytest.approx(sacrebleu.corpus_chrf(answers, [truth]).score, abs=1e-3)


def test_without_sacrebleu_the_command_is_said(monkeypatch):
    import sys

    from luban.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(MissingExtra, match=r"luban\[text\]"):
        m.bleu(["a"], ["a"])
