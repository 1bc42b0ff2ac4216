"""Shapley values against enumeration, closed forms and their own standard errors."""

import numpy as np
import pytest
import torch
from torch import nn

from luban.stages.explain.shapley import allocate, design, exact_shapley, kernel_shap


def mlp(features, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(features, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 1)).double()


def game_of(f, x, background):
    """x (R, F), background (F,), f: (B, F) -> (B,)."""

    def game(keep):
        masked = np.where(keep, x[:, None], background)  # (R, n, F)
        return f(masked.reshape(-1, x.shape[1])).reshape(len(x), len(keep))

    return game


def network_game(features, rows=3, seed=0):
    rng, network = np.random.default_rng(seed), mlp(features, seed)
    f = lambda z: network(torch.as_tensor(z)).detach().numpy()[:, 0]  # noqa: E731
    return game_of(f, rng.normal(size=(rows, features)), rng.normal(size=features))


def by_orders(game, players):
    """The definition in words: the mean over all orders of what a player adds when it arrives."""
    from itertools import permutations

    total = 0
    for order in permutations(range(players)):
        keep = np.zeros((players + 1, players), bool)
        for k, p in enumerate(order):
            keep[k + 1 :, p] = True
        scores = game(keep)
        total = total + np.diff(scores, axis=1)[:, np.argsort(order)]
    return total / np.prod(range(1, players + 1))


def test_enumeration_is_the_mean_over_orders():
    game = network_game(5)
    assert np.allclose(exact_shapley(game, 5), by_orders(game, 5), atol=1e-12)


@pytest.mark.parametrize("features", range(1, 13))
def test_all_coalitions_give_the_exact_values(features):
    game = network_game(features, seed=features)
    found, truth = kernel_shap(game, features, samples=2**features), exact_shapley(game, features)
    assert found.exact and np.abs(found.weights - truth).max() <= 1e-10
    assert np.abs(found.weights.sum(1) - (found.full - found.empty)).max() <= 1e-10
    assert not found.error.any()


def test_axioms_dummy_copies_and_a_linear_model():
    rng = np.random.default_rng(0)
    w, b, x = rng.normal(size=8), rng.normal(size=8), rng.normal(size=(4, 8))
    linear = kernel_shap(game_of(lambda z: z @ w, x, b), 8, samples=40)
    assert not linear.exact and np.allclose(linear.weights, w * (x - b), atol=1e-10)
    x[:, 1] = x[:, 0]
    b[1] = b[0]
    f = lambda z: np.tanh(z[:, 0] + z[:, 1]) * z[:, 2] + z[:, 3] ** 2  # noqa: E731
    found = kernel_shap(game_of(f, x, b), 8, samples=256).weights
    assert np.allclose(found[:, 0], found[:, 1], atol=1e-12)  # copied features share equally
    assert np.abs(found[:, 4:]).max() <= 1e-12  # features without influence get nothing
    product = kernel_shap(game_of(lambda z: z[:, 0] * z[:, 1], np.ones((1, 3)), np.zeros(3)), 3).weights
    assert np.allclose(product, [[0.5, 0.5, 0]])  # an interaction is halved


def test_sampled_values_lie_within_three_standard_errors_and_the_error_is_told_right():
    ratios = []
    for seed in range(6):
        game = network_game(12, rows=4, seed=seed)
        truth = exact_shapley(game, 12)
        for draw in range(4):
            found = kernel_shap(game, 12, samples=256, seed=draw)
            assert np.allclose(found.weights.sum(1), found.full - found.empty, atol=1e-10)
            ratios.append((found.weights - truth) / found.error)
    ratios = np.concatenate(ratios).ravel()
    assert (np.abs(ratios) <= 3).mean() >= 0.98
    assert 0.7 <= np.sqrt((ratios**2).mean()) <= 1.3  # neither boast nor alarm
    assert abs(ratios.mean()) <= 0.2  # no bias


def test_error_falls_at_least_with_the_root_of_the_samples():
    game = network_game(14, rows=6, seed=3)
    truth = exact_shapley(game, 14)
    sizes = [64, 256, 1024]
    errors = [
        np.mean([np.linalg.norm(kernel_shap(game, 14, samples=n, seed=s).weights - truth) for s in range(8)])
        for n in sizes
    ]
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -1.2 <= slope <= -0.45, (slope, errors)


def test_many_players_are_drawn_without_repetition_in_pairs():
    plan = design(150, 1200, 0)
    half = len(plan.keep) // 2
    assert (plan.keep[:half] == ~plan.keep[half:]).all()
    assert len(np.unique(plan.keep, axis=0)) == len(plan.keep) <= 1200
    w = np.random.default_rng(0).normal(size=150)
    assert np.allclose(kernel_shap(lambda keep: (keep @ w)[None], 150, samples=1200).weights, w, atol=1e-8)


def test_allocation_takes_all_of_a_size_where_it_can():
    there = [12, 66, 220, 495, 792, 462]
    drawn = allocate(there, np.array([2.0, 1.1, 0.8, 0.7, 0.6, 0.3]), 256)
    assert drawn[0] == 12 and sum(drawn) <= 256 and all(1 <= d <= t for d, t in zip(drawn, there))


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError):
        kernel_shap(network_game(12), 12, samples=20)


def test_same_seed_same_values_other_seed_other_draw():
    game = network_game(13)
    first, again, other = (kernel_shap(game, 13, samples=128, seed=s).weights for s in (0, 0, 1))
    assert (first == again).all() and (first != other).any()


def test_control_a_wrong_kernel_is_seen():
    """Ordinary least squares instead of Shapley's kernel does not give Shapley values."""
    game, keep = network_game(6), (np.arange(64)[:, None] >> np.arange(6)) & 1
    plain = np.linalg.lstsq(np.c_[np.ones(64), keep], game(keep == 1).T, rcond=None)[0][1:].T
    assert np.abs(plain - exact_shapley(game, 6)).max() > 1e-3


def test_not_worse_than_the_shap_package():
    shap = pytest.importorskip("shap")
    rng, mine, theirs = np.random.default_rng(0), [], []
    for seed in range(3):
        network, x, b = mlp(12, seed), rng.normal(size=(3, 12)), rng.normal(size=12)
        f = lambda z, network=network: network(torch.as_tensor(z)).detach().numpy()[:, 0]  # noqa: E731
        truth = exact_shapley(game_of(f, x, b), 12)
        mine += [np.linalg.norm(kernel_shap(game_of(f, x, b), 12, seed=s).weights - truth) for s in range(3)]
        for s in range(3):
            np.random.seed(s)  # the package draws from the numbers that all share
            theirs.append(
                np.linalg.norm(
                    shap.KernelExplainer(f, b[None]).shap_values(x, nsamples=512, l1_reg=False, silent=True) - truth
                )
            )
    assert np.mean(mine) <= np.mean(theirs)
