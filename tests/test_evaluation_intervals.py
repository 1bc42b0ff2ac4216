"""Intervals: 95 % of them hold the truth, in the tests' own worlds where it is known; a too narrow one is caught."""

from functools import cache

import numpy as np
import pytest

from luban.evaluation import intervals
from luban.evaluation.intervals import Metric, mean, paired_difference, percentile, weights, wilson
from luban.evaluation.metrics import classification, regression

TRIALS = 200
FEWEST, MOST = 0.90, 0.99  # 0.95 with room for a bootstrap of small samples and three standard errors of 200 trials


@cache
def drawn(name: str) -> list[Metric]:
    return [WORLDS[name][0](np.random.default_rng([7, seed])) for seed in range(TRIALS)]


def coverage(name: str, narrower: float = 1.0) -> float:
    hits = 0
    for m in drawn(name):
        middle, half = (m.low + m.high) / 2, (m.high - m.low) / 2 * narrower
        hits += middle - half <= WORLDS[name][1] <= middle + half
    return hits / TRIALS


def answers(rng, n=120):
    """Two classes with scores N(0, 1) and N(1, 1): AUC = Phi(1 / sqrt 2) = 0.7602, accuracy of the threshold 1/2 = 0.6915."""
    truth = rng.integers(0, 2, n)
    p = 1 / (1 + np.exp(-(rng.normal(size=n) + truth - 0.5)))
    return classification(truth, np.column_stack([1 - p, p]), ["a", "b"], resamples=100)


def numbers(rng, n=120):
    truth = rng.normal(size=n)
    return regression(truth, truth + rng.normal(size=n), resamples=200)


WORLDS = {
    "accuracy": (lambda rng: answers(rng)["accuracy"], 0.69146),
    "roc_auc": (lambda rng: answers(rng)["roc_auc"], 0.76025),
    "f1_macro": (lambda rng: answers(rng)["f1_macro"], 0.69146),
    "mae": (lambda rng: numbers(rng)["mae"], np.sqrt(2 / np.pi)),
    "r2": (lambda rng: numbers(rng)["r2"], 0.0),
    "share near one": (lambda rng: mean(rng.random(40) < 0.97), 0.97),
    "mean of few": (lambda rng: mean(rng.exponential(size=60), resamples=200), 1.0),
    "paired": (lambda rng: paired(rng), 0.1),
}


def paired(rng, n=150):
    u = rng.random(n)
    return paired_difference(u < 0.8, u + 0.2 * (rng.random(n) < 0.5) < 0.8)


@pytest.mark.parametrize("name", WORLDS)
def test_the_interval_holds_the_truth(name):
    assert FEWEST <= coverage(name) <= MOST + 0.01 * (name == "share near one")


@pytest.mark.parametrize("name", ["accuracy", "roc_auc", "mae", "paired"])
def test_a_narrower_interval_would_be_caught(name):
    assert coverage(name, narrower=0.6) < FEWEST


def test_all_right_is_not_certainty():
    truth = np.arange(20) % 2
    perfect = classification(truth, np.eye(2)[truth], ["a", "b"], resamples=50)
    for name in ("accuracy", "f1_macro", "roc_auc", "recall", "balanced_accuracy"):
        assert perfect[name].value == 1 and perfect[name].low < 0.9 and perfect[name].high == 1, name


def test_wilson_by_hand():
    assert wilson(20, 20) == (pytest.approx(20 / (20 + intervals.Z**2)), 1.0)
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(50, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)


def test_draws_are_bounded_in_memory_and_add_up(monkeypatch):
    monkeypatch.setattr(intervals, "CHUNK", 50)
    blocks = list(weights(20, 7, seed=1))
    assert [b.shape for b in blocks] == [(2, 20), (2, 20), (2, 20), (1, 20)]
    assert all((b.sum(axis=1) == 20).all() for b in blocks)
    monkeypatch.setattr(intervals, "CHUNK", 10**6)
    assert np.array_equal(np.concatenate(blocks), next(weights(20, 7, seed=1)))


def test_draws_have_the_multinomial_spread():
    block = np.concatenate(list(weights(50, 4000, seed=2)))
    assert block.mean() == 1 and abs(block.var() - 49 / 50) < 0.02


def test_few_finite_draws_give_no_interval():
    assert percentile(np.array([np.nan] * 50 + [1.0] * 50)) == (None, None)
    assert percentile(np.array([np.nan] * 5 + [1.0] * 95)) == (1.0, 1.0)


def test_equal_models_differ_by_nothing_but_not_for_certain():
    same = paired_difference([1, 0, 1, 1], [1, 0, 1, 1])
    assert same.value == 0 and same.low < 0 < same.high


def test_a_better_model_is_seen_and_the_sign_is_a_minus_b():
    right = np.ones(200)
    assert paired_difference(right, np.arange(200) % 4 != 0).low > 0.15
    assert paired_difference(np.arange(200) % 4 != 0, right).high < -0.15
    errors = np.random.default_rng(0).normal(size=300)
    assert paired_difference(errors + 1, errors * 0.9).low > 0


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    a, b = hard < 0.70, hard < 0.66
    m = paired_difference(a, b)
    apart = np.sqrt(a.var() / 400 + b.var() / 400) * 2 * intervals.Z
    assert m.low > 0 and m.high - m.low < 0.7 * apart


def test_no_rows_and_unequal_rows():
    assert mean([]).note == paired_difference([], []).note == "metric.no_rows"
    assert mean([3.5]).low is None
    with pytest.raises(ValueError):
        paired_difference([1], [1, 0])


def test_the_normal_interval_of_many_rows_agrees_with_the_bootstrap():
    values = np.random.default_rng(0).exponential(size=5001)
    m = mean(values)
    samples = intervals.bootstrap(lambda b: b @ values[:, None] / 5001, 5001, resamples=400)
    low, high = percentile(samples[:, 0])
    assert abs(m.low - low) < 0.15 * (high - low) and abs(m.high - high) < 0.15 * (high - low)
