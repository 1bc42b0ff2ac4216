"""Calibration: the error by hand, its floor, and a temperature that mends confidence without changing an answer."""

import math

import numpy as np
import pytest

from luban.evaluation.calibration import ece, ece_floor, fit_temperature, log_loss, reliability


def world(seed: int, n: int = 4000, k: int = 4, temperature: float = 2.5):
    """Logits that are too sharp by a known temperature."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(n, k)) * 2
    p = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    truth = (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return honest * temperature, truth, honest


def confidence(logits, truth):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p.max(axis=1), p.argmax(axis=1) == truth


def test_ece_by_hand():
    assert ece([0.9, 0.9, 0.6, 0.6], [1, 0, 1, 1], bins=10) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    assert ece([1.0, 1.0], [1, 1]) == 0 and math.isnan(ece([], []))


def test_a_bin_holds_its_upper_edge():
    assert reliability([0.5, 0.50001, 0.0, 1.0], [1, 1, 1, 1], bins=2).counts.tolist() == [2, 2]


def test_reliability_bins_and_empty_ones():
    r = reliability([0.1, 0.9, 0.8], [0, 1, 0], bins=2)
    assert r.counts.tolist() == [1, 2]
    assert r.accuracy.tolist() == [0, 0.5] and r.confidence == pytest.approx([0.1, 0.85])
    assert np.isnan(reliability([0.9], [1], bins=3).accuracy[:2]).all()


def test_the_floor_is_what_an_honest_model_shows():
    floors, seen = [], []
    for seed in range(40):
        _, truth, honest = world(seed, n=300)
        c, right = confidence(honest, truth)
        floors.append(ece_floor(c))
        seen.append(ece(c, right))
    assert np.mean(floors) == pytest.approx(np.mean(seen), rel=0.1)
    assert ece_floor(c) > 0.02


def test_the_floor_falls_with_rows_and_overconfidence_lies_above_it():
    c = np.full(10_000, 0.8)
    assert ece_floor(c) < 0.5 * ece_floor(c[:200])
    logits, truth, _ = world(0)
    sharp, right = confidence(logits, truth)
    assert ece(sharp, right) > 3 * ece_floor(sharp)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_known_temperature_is_found(temperature):
    logits, truth, _ = world(1, n=20_000, temperature=temperature)
    assert fit_temperature(logits, truth) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_temperature_keeps_every_answer_and_lowers_held_out_loss(seed):
    logits, truth, _ = world(seed)
    t = fit_temperature(logits[:2000], truth[:2000])
    assert (np.argmax(logits / t, axis=1) == np.argmax(logits, axis=1)).all()
    assert log_loss(logits[2000:], truth[2000:], t) < log_loss(logits[2000:], truth[2000:])
    before, after = confidence(logits[2000:], truth[2000:]), confidence(logits[2000:] / t, truth[2000:])
    assert ece(*after) < ece(*before)


def test_the_loss_is_lowest_there():
    logits, truth, _ = world(3)
    t = fit_temperature(logits, truth)
    best = log_loss(logits, truth, t)
    assert best <= min(log_loss(logits, truth, t * f) for f in (0.9, 0.99, 1.01, 1.1))


def test_a_temperature_for_a_single_sigmoid():
    logits, truth, _ = world(4, k=2)
    z = logits[:, 1] - logits[:, 0]
    assert fit_temperature(z, truth) == pytest.approx(fit_temperature(logits, truth), rel=1e-6)


def test_odd_data_gives_a_usable_temperature():
    assert fit_temperature(np.zeros((0, 3)), []) == 1.0
    assert fit_temperature(np.ones((3, 2)), [-1, -1, -1]) == 1.0
    assert 0.04 < fit_temperature(np.eye(3) * 9, [0, 1, 2]) < 0.06
    assert 19 < fit_temperature(np.eye(3) * 9, [1, 2, 0]) < 21
    masked = np.array([[3.0, -np.inf, 0], [1, -np.inf, 2]])
    assert math.isfinite(fit_temperature(masked, [0, 0]))
