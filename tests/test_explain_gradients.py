"""Integrated gradients: completeness, closed forms, kinks; the controls break the sum."""

import numpy as np
import torch
from torch import nn

from luban.evaluation.integrated_gradients import integrated_gradients
from luban.stages.explain.checks import completeness


def network(features, seed, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(features, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
    ).eval()


def path_of(f, x, baseline, target=0, **more):
    return integrated_gradients(lambda e, rows: f(e["x"])[:, target], {"x": x}, {"x": baseline}, **more)


def rows(features, seed=0, count=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, features, generator=generator), torch.randn(count, features, generator=generator)


def gap(path, target=None):
    total = list(path.weights["x"].flatten(1).numpy())
    score, baseline = (path.score, path.baseline) if target is None else target
    return np.nanmax(completeness(total, score, baseline).relative)


def test_complete_to_one_percent_at_fifty_steps():
    for features in range(4, 13):
        x, b = rows(features, features)
        path = path_of(network(features, features), x, b)
        assert gap(path) <= 0.01, features


def test_a_linear_model_gives_w_times_the_difference():
    x, b = rows(7)
    w = torch.randn(7)
    path = path_of(lambda z: (z @ w)[:, None], x, b, steps=3)
    assert torch.allclose(path.weights["x"].float(), w * (x - b), atol=1e-5)


def test_a_product_is_halved_and_a_dummy_gets_nothing():
    x, b = torch.tensor([[2.0, 3.0, 5.0]]), torch.zeros(1, 3)
    path = path_of(lambda z: (z[:, 0] * z[:, 1])[:, None], x, b)
    assert torch.allclose(path.weights["x"], torch.tensor([[3.0, 3.0, 0.0]], dtype=torch.float64), atol=1e-5)


def test_kinks_are_found_by_halving():
    """Four hundred kinks on the path: fifty nodes miss them, halving only where needed does not."""
    at = torch.linspace(0.01, 0.99, 400)
    bend = torch.randn(400, generator=torch.Generator().manual_seed(1))
    f = lambda z: (torch.relu(z - at) * bend).sum(1, keepdim=True)  # noqa: E731
    path = path_of(f, torch.ones(1, 1), torch.zeros(1, 1))
    assert gap(path) <= 0.005 and 50 < path.steps[0] <= 2000


def test_several_inputs_share_one_difference():
    x, b = rows(4)
    f = network(8, 1)
    path = integrated_gradients(
        lambda e, i: f(torch.cat([e["a"], e["b"]], 1))[:, 1], {"a": x, "b": x * 2}, {"a": b, "b": b}, batch=7
    )
    total = sum(w.sum(1) for w in path.weights.values()).numpy()
    assert np.allclose(total, path.score - path.baseline, rtol=0.01)


def test_batches_do_not_change_the_answer():
    x, b = rows(5)
    whole, pieces = path_of(network(5, 2), x, b), path_of(network(5, 2), x, b, batch=3)
    assert torch.allclose(whole.weights["x"], pieces.weights["x"], atol=1e-5)


def test_control_a_wrong_class_is_seen():
    x, b = rows(6)
    f = network(6, 3)
    path = path_of(f, x, b, target=0)
    other = f(x)[:, 1].detach().double().numpy(), f(b)[:, 1].detach().double().numpy()
    assert gap(path) <= 0.01 < gap(path, other)


def test_control_an_ignored_baseline_is_seen():
    x, b = rows(6)
    f = network(6, 3)
    path = path_of(f, x, torch.zeros_like(b))
    assert gap(path, (path.score, f(b)[:, 0].detach().double().numpy())) > 0.01


def test_control_train_mode_is_seen():
    x, b = rows(6)
    f = network(6, 3, dropout=0.5)
    assert gap(path_of(f, x, b)) <= 0.01
    f.train()
    torch.manual_seed(0)
    path = path_of(f, x, b)
    f.eval()
    truth = f(x)[:, 0].detach().double().numpy(), f(b)[:, 0].detach().double().numpy()
    assert gap(path, truth) > 0.01
