"""The textbook's small networks: exact parameter counts, the example from scratch, recipes that check."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from luban.columns.category import Category
from luban.columns.image import Image
from luban.columns.number import Number
from luban.columns.text import Text
from luban.nn.network import Composed
from luban.recipe import Recipe

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes" / "textbook").glob("*.yaml"))


def example():
    spec = importlib.util.spec_from_file_location("mlp_from_scratch", ROOT / "examples" / "mlp_from_scratch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def autograd(layers, x, truth, activation):
    network = nn.Sequential()
    for i, (w, b) in enumerate(layers):
        linear = nn.Linear(w.shape[1], w.shape[0]).double()
        linear.weight.data, linear.bias.data = torch.tensor(w), torch.tensor(b)
        network.append(linear)
        if i < len(layers) - 1:
            network.append(activation())
    nn.functional.cross_entropy(network(torch.tensor(x)), torch.tensor(truth)).backward()
    return [(m.weight.grad.numpy(), m.bias.grad.numpy()) for m in network if isinstance(m, nn.Linear)]


def gap(ours, theirs):
    return max(np.abs(a - b).max() for pair, other in zip(ours, theirs) for a, b in zip(pair, other))


@pytest.mark.parametrize(("name", "kind"), [("RELU", nn.ReLU), ("SIGMOID", nn.Sigmoid)])
def test_gradients_by_hand_equal_autograd(name, kind):
    m, random = example(), np.random.default_rng(1)
    x, truth = random.poisson(0.3, (20, 30)).astype(float), random.integers(0, 2, 20)
    layers, activation = m.initial((30, 64, 64, 2)), getattr(m, name)
    zs, answers = m.forward(layers, x, activation)
    _, delta = m.loss(answers[-1], truth)
    theirs = autograd(layers, x, truth, kind)
    assert gap(m.backward(layers, zs, answers, delta, activation), theirs) < 1e-6
    other = getattr(m, "SIGMOID" if name == "RELU" else "RELU")
    assert gap(m.backward(layers, zs, answers, delta, other), theirs) > 1e-4  # the wrong slope is seen


def test_the_example_learns():
    m = example()
    x, truth = np.eye(6), np.array([0, 1, 0, 1, 1, 0])
    before = m.initial((6, 64, 64, 2))
    after = m.descend(before, x, truth, steps=100)
    assert m.loss(m.forward(after, x)[1][-1], truth)[0] < 0.1 < m.loss(m.forward(before, x)[1][-1], truth)[0]


# -- the recipes ---------------------------------------------------------------------------------------------------------
TEXT = ["a b c d e f g h i j"] * 3


def built(name):
    """The network of a recipe, its columns fitted on a few made-up values of the right kind and shape."""
    recipe = Recipe.load(ROOT / "recipes" / "textbook" / f"{name}.yaml").resolved()
    random = np.random.default_rng(0)
    side = (24, 24, 3) if name == "cnn-24" else (28, 28)
    made = {
        "text": lambda n, s: Text(n, **s).fit(TEXT),
        "image": lambda n, s: Image(n, **s).fit(random.integers(0, 256, (3, *side), np.uint8)),
        "number": lambda n, s: Number(n, **s).fit([1.0, 2.0, 4.0]),
        "category": lambda n, s: Category(n, **s).fit(
            [str(i) for i in range(10)] if name.startswith("cnn") else ["no", "yes"]
        ),
    }
    parts = {**recipe.inputs, **recipe.outputs}
    columns = {
        n: made[p.type](n, {k: tuple(v) if isinstance(v, list) else v for k, v in p.settings.items() if v is not None})
        for n, p in parts.items()
    }
    return recipe, Composed(recipe, columns), columns


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_all_are_there():
    assert [p.stem for p in RECIPES] == [
        "bert-translate",
        "bilstm-text",
        "cnn-24",
        "cnn-28",
        "lstm-2x256",
        "lstm-attention",
        "lstm-self-attention",
        "lstm-stacked",
        "mlp-10-10-1",
        "mlp-2x64",
    ]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_checks_and_its_head_tells_what_it_promises(path):
    recipe = Recipe.load(path)
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert recipe.stage("train") and recipe.stage("evaluate") and len(head) >= 3


@pytest.mark.parametrize(("name", "parameters"), [("cnn-24", 315_722), ("cnn-28", 121_930)])
def test_the_convolutional_networks_have_their_size(name, parameters):
    assert count(built(name)[1]) == parameters


def test_the_recurrent_networks_have_their_size():
    lstm = lambda i, h: 4 * h * (i + h + 2)  # noqa: E731
    for name, size in (
        ("lstm-2x256", lstm(100, 256) + lstm(256, 256) + 256 + 1),
        ("lstm-attention", lstm(100, 256) + lstm(256, 256) + 256 * 257 + 256 + 256 + 1),
        ("lstm-self-attention", lstm(100, 256) + lstm(256, 256) + 4 * 256 * 257 + 256 + 1),
        ("lstm-stacked", lstm(100, 64) + lstm(64, 64) + 2 * 64 + 2),
        ("bilstm-text", 2 * lstm(100, 64) + 128 + 1),
    ):
        _, network, columns = built(name)
        assert count(network) == size + 100 * next(iter(columns.values())).size, name


def test_the_dense_networks_have_their_size():
    recipe, network, _ = built("mlp-10-10-1")
    assert len(recipe.inputs) == 10 and count(network) == 10 * 10 + 10 + 10 + 1
    _, network, columns = built("mlp-2x64")
    words = columns["sentence"].size
    assert count(network) == words * 64 + 64 + 64 * 64 + 64 + 64 * 2 + 2


@pytest.mark.slow
@pytest.mark.timeout(1800)  # data are fetched, and baselines of 70,000 pictures fitted
@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem != "bert-translate"], ids=lambda p: p.stem)
def test_every_recipe_runs_on_its_data(path, tmp_path):
    """A few updates of each, beside its baselines; `python -m benchmarks.textbook` measures the figures."""
    from luban import pipeline

    model = pipeline.run(path, tmp_path / "out", set=["train.steps=12"])
    ((_, numbers),) = model.reports["evaluate"].numbers["outputs"].items()
    assert "linear" in numbers["baselines"] and (tmp_path / "out" / "report.html").is_file()
