"""The contracts are small: a fake of each fits in 40 lines and passes through everything."""

import ast
import copy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import luban
from luban import registry
from luban.bundle import Bundle, build_network
from luban.columns.examples import Examples, encode
from luban.data.frames import row
from luban.training.loop import Plan, fit
from luban.training.objectives import supervised
from tests import toys

SOURCE = Path(toys.__file__).read_text()


@pytest.mark.parametrize("name", ["DNA", "Alternating", "Private", "window", "drop_bias"])
def test_a_fake_fits_in_forty_lines(name):
    node = next(n for n in ast.parse(SOURCE).body if getattr(n, "name", "") == name)
    assert node.end_lineno - node.lineno < 40


@pytest.fixture
def dna(monkeypatch):
    monkeypatch.setitem(registry.COLUMNS, "dna", "tests.toys:DNA")


def strands(count: int, seed: int = 0) -> list[dict]:
    """A strand's kind is whether G and C outweigh A and T."""
    rng = np.random.default_rng(seed)
    rows = [
        "".join(rng.choice(list("ACGT"), rng.integers(5, 20), p=p))
        for p in [[0.35, 0.15, 0.15, 0.35], [0.15, 0.35, 0.35, 0.15]] * (count // 2)
    ]
    return [{"strand": s, "kind": "rich" if sum(c in "GC" for c in s) * 2 > len(s) else "poor"} for s in rows]


def test_a_toy_modality_lives_a_whole_life(dna, tmp_path):
    model = luban.train(strands(400), target="kind", types={"strand": "dna"}, size="nano", epochs=12)
    accuracy = model.reports["evaluate"].numbers["outputs"]["kind"]["metrics"]["accuracy"]["value"]
    assert accuracy > 0.8
    model.save(tmp_path / "m")
    again = luban.load(tmp_path / "m")
    rows = strands(20, seed=1)
    assert again.predict(rows) == model.predict(rows)
    weights = model.explain(rows[:2], method="integrated-gradients", rows=2)
    assert weights.kind == "explain"
    small = model.compress(strands(100, seed=2), quantize="int8")
    assert small.bytes() < model.bytes()


def test_a_toy_gan_learns_a_distribution(tmp_path):
    def real(rng, size):
        return torch.as_tensor(rng.normal(3.0, 0.5, size=(size, 1)), dtype=torch.float32)

    torch.manual_seed(0)
    generator = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    nothing = Examples({}, {}, {}, np.arange(64), 64)  # a batch knows its size without any input
    plan = Plan(
        epochs=600, batch=64, rate=3e-3, optimizer="adam", schedule="constant", warmup=0.0, clip=0.0, keep="last"
    )
    fit(generator, nothing, None, plan=plan, objective=None, step=toys.Alternating(real, 4), folder=tmp_path)
    made = generator(torch.randn(2000, 4)).detach()
    assert abs(float(made.mean()) - 3.0) < 0.5


def tiny(rows: int = 64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 2))
    table = pa.table({"a": x[:, 0], "b": x[:, 1], "y": np.where(x.sum(1) > 0, "p", "n")})
    recipe = luban.Recipe.of(
        {"luban": 1, "inputs": {"a": "number", "b": "number"}, "outputs": {"y": "category"}, "size": "nano"}
    ).resolved()
    from luban.columns.base import make

    columns = {
        n: make(n, p.type, dict(p.settings)).fit(table[n]) for n, p in {**recipe.inputs, **recipe.outputs}.items()
    }
    torch.manual_seed(0)
    return recipe, columns, encode(columns, ["a", "b"], ["y"], row(table, np.arange(rows)))


def test_a_toy_private_step_bounds_what_one_example_does():
    recipe, columns, examples = tiny()
    network = build_network(recipe, columns)
    plan = Plan(epochs=4, batch=16, rate=3e-3, clip=0.0, augment=False)
    history = fit(network, examples, None, plan=plan, objective=supervised, step=toys.Private(1.0, 0.3))
    assert history.step == 16 and history.epochs[-1]["loss"] < history.epochs[0]["loss"]


def test_a_toy_window_frame_counts_rows_and_examples():
    table = pa.table({"v": list(range(10))})
    framed = toys.window(table, np.arange(10), length=3, horizon=2)
    assert framed.table["v_past"].to_pylist()[0] == [0, 1, 2] and framed.table["v"].to_pylist()[0] == 4
    assert len(framed) == 6 and [int(r) for r in framed.rows[-1]] == [5, 6, 7]


def test_a_toy_edit_is_replayed(monkeypatch, tmp_path):
    monkeypatch.setitem(registry.EDITS, "drop_bias", "tests.toys:drop_bias")
    recipe, columns, examples = tiny()
    network = build_network(recipe, columns).eval()
    edit = {"edit": "drop_bias", "module": "heads.0.out"}
    edited = toys.drop_bias(copy.deepcopy(network), module="heads.0.out")
    Bundle(recipe, columns, edited, [edit]).save(tmp_path / "m")
    again = Bundle.load(tmp_path / "m")
    assert again.network.heads[0].out.bias is None
    arrays = examples.arrays(np.arange(8))
    assert np.array_equal(again.engine.run(arrays)["y"], Bundle(recipe, columns, edited).engine.run(arrays)["y"])
