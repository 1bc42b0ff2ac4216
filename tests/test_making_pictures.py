"""A model that makes pictures: a GAN of digits, 8 x 8 pixels, through its whole life in seconds."""

import base64
import io
import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

import luban
from luban import pipeline
from luban.cli import main
from luban.columns.base import make
from luban.columns.examples import encode
from luban.data.prepare import prepare
from luban.engines import OnnxEngine
from luban.errors import DataError, RecipeError, RequestError, Unsupported
from luban.evaluation import judging, made_view
from luban.nn.vision.dcgan import Critic, doublings
from luban.recipe import Recipe
from luban.training import alternating
from tests import tiny


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of 200 digits as PNG files, a folder a class."""
    from PIL import Image
    from sklearn.datasets import load_digits

    place, data = tmp_path_factory.mktemp("digits"), load_digits()
    for i, (picture, label) in enumerate(zip(data.images[:200], data.target)):
        (place / str(label)).mkdir(exist_ok=True)
        Image.fromarray(np.round(picture * 255 / 16).astype(np.uint8)).save(place / str(label) / f"{i:03d}.png")
    return place


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(alternating, "VISITS", 600)
    monkeypatch.setattr(made_view, "VISITS", 600)


def recipe(digits, conditional=True, **train):
    return {
        "luban": 1,
        "data": {"rows": str(digits)},
        "inputs": {"label": "category"} if conditional else {},
        "outputs": {"image": "image"},
        "model": {"image": {"dcgan": {"width": 8, "critic": 8}}},
        "size": "nano",
        "stages": [{"train": {"epochs": 2, "batch": 32, "precision": "fp32", **train}}],
    }


@pytest.fixture(scope="module")
def model(digits, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alternating, "VISITS", 600)
        patch.setattr(made_view, "VISITS", 600)
        return luban.train(recipe(digits), out=tmp_path_factory.mktemp("gan") / "m")


# -- what it answers -----------------------------------------------------------------------------------------------------
def test_it_learns_is_judged_and_shows_what_it_made(model):
    assert model.recipe.task() == "image-generation" and model.inputs == ("label", "noise")
    assert {"generator", "critic", "frechet"} <= set(model.metrics[0])
    numbers = model.reports["evaluate"].to_json()["numbers"]["outputs"]["image"]
    assert {"frechet", "frechet_real", "recognised", "recognised_real", "nearest", "recall"} <= set(numbers["metrics"])
    assert numbers["metrics"]["frechet"]["value"] > numbers["metrics"]["frechet_real"]["value"]  # after two epochs
    assert {"frechet", "recognised"} <= set(numbers["baselines"]["gaussian"]) and "label" in numbers["judge"]
    page = model.reports["samples"].to_html()
    assert page.count("data:image/png") == 2 and "data:image/png" in model.reports["evaluate"].to_html()
    assert not any("rival" in n or "critic" in n for n in model.network.state_dict()) and not model.network.rivals


def test_the_same_seed_is_the_same_picture_and_a_prediction_can_be_read_again(model):
    rows = [{"label": "3", "noise": 5}, {"label": "3", "noise": 6}, {"label": "3"}, {"label": "7", "noise": 5}]
    found = [r["image"] for r in model.predict(rows)]
    assert len(set(found)) == 4 and found == [r["image"] for r in model.predict(rows)]
    alone = model.predict([rows[0]])[0]["image"]
    picture = model.columns["image"].encode(found[0])
    assert alone == found[0] and picture.shape == (1, 8, 8)
    assert np.array_equal(picture[0], model.generate(seed=5, set={"label": "3"}))
    assert "whole number" in model.predict([{"label": "3", "noise": "x"}])[0]["error"]


def test_pictures_are_made_in_python_and_from_the_command_line(model, tmp_path, capsys):
    several = model.generate(n=3, seed=1)
    assert [p.shape for p in several] == [(8, 8)] * 3 and np.array_equal(several[1], model.generate(n=2, seed=1)[1])
    place = str(model.path)
    assert main(["generate", place, "--n", "5", "--seed", "1", "--out", str(tmp_path / "grid.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 5
    assert main(["generate", place, "--n", "2", "--set", "label=3", "--out", str(tmp_path / "many")]) == 0
    assert sorted(p.name for p in (tmp_path / "many").iterdir()) == ["0000.png", "0001.png"]
    for words, said in (
        (["--n", "2"], "--out"),
        (["--set", "lable=3", "--out", "x.png"], "label"),
        (["--set", "label=33", "--out", "x.png"], "33"),
        (["--prompt", "a shoe", "--out", "x.png"], "--set"),
    ):
        assert main(["generate", place, *words]) == 2 and said in capsys.readouterr().err


def test_predictions_of_a_file_differ_from_row_to_row(model, tmp_path):
    (tmp_path / "rows.csv").write_text("label\n" + "3\n" * 5)
    assert main(["predict", str(model.path), str(tmp_path / "rows.csv"), "--out", str(tmp_path / "p.jsonl")]) == 0
    made = [json.loads(line)["image"] for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(set(made)) == 5 and made[2] == model.predict([{"label": "3", "noise": 2}])[0]["image"]


def test_without_classes(digits):
    model = luban.train(recipe(digits, conditional=False, epochs=1))
    assert model.recipe.task() == "unconditional-image-generation" and model.inputs == ("noise",)
    numbers = model.reports["evaluate"].to_json()["numbers"]["outputs"]["image"]
    assert "recognised" not in numbers["metrics"] and "quarter" in numbers["judge"]
    assert model.generate(seed=3).shape == (8, 8)


# -- training ------------------------------------------------------------------------------------------------------------
def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


def stopped(digits, out, at, monkeypatch):
    """A run that gets a signal in its step `at`."""
    original, seen = alternating.Alternating.__call__, []

    def step(self, state, batch, objective):
        seen.append(1)
        if len(seen) == at:
            signal.raise_signal(signal.SIGTERM)
        return original(self, state, batch, objective)

    with monkeypatch.context() as patch:
        patch.setattr(alternating.Alternating, "__call__", step)
        return luban.train(recipe(digits), out=out, evaluate=False)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(model, digits, tmp_path, monkeypatch):
    assert stopped(digits, tmp_path / "out", 8, monkeypatch).history[-1]["stopped"] == "signal"
    again = pipeline.resume(tmp_path / "out")
    assert same(again.network.state_dict(), model.network.state_dict())
    assert again.metrics == model.metrics and again.reports["samples"].numbers == model.reports["samples"].numbers


def test_control_a_resume_without_the_critic_differs(model, digits, tmp_path, monkeypatch):
    stopped(digits, tmp_path / "out", 8, monkeypatch)
    begin = alternating.Alternating.begin

    def forgets(self, state):
        begin(self, state)
        self.modules = {"judge": self.judge}

    monkeypatch.setattr(alternating.Alternating, "begin", forgets)
    assert not same(pipeline.resume(tmp_path / "out").network.state_dict(), model.network.state_dict())


@pytest.mark.parametrize(
    "how", [{"loss": "non-saturating", "r1": 1.0}, {"every": 2, "rate": 1e-3, "optimizer": "adamw"}], ids=str
)
def test_ways_to_train(digits, how):
    model = luban.train(recipe(digits, epochs=1, adversary=how), evaluate=False)
    assert np.isfinite(list(model.metrics[-1].values())).all()


def test_the_critic_tells_real_from_made_when_only_it_learns(digits):
    """A critic of 20 steps against a generator that hardly moves: its loss falls."""
    found = luban.train(recipe(digits, epochs=6, rate=1e-9, adversary={"rate": 2e-3}), evaluate=False)
    losses = [m["critic"] for m in found.metrics]
    assert losses[-1] < losses[0] - 0.3
    still = luban.train(recipe(digits, epochs=6, rate=1e-9, adversary={"rate": 1e-9}), evaluate=False)
    assert still.metrics[-1]["critic"] > losses[-1] + 0.3  # control


def test_mistakes_are_told_before_work_starts(digits):
    for settings, said in (
        ({"accumulate": 2}, "accumulate"),
        ({"rate": "find"}, "rate"),
        ({"mixup": 0.2}, "mixup"),
    ):
        with pytest.raises(Unsupported, match=said):
            luban.train(recipe(digits, **settings))
    with pytest.raises(RecipeError, match="hinge"):
        Recipe.of(recipe(digits, adversary={"loss": "hing"}))
    with pytest.raises(RecipeError, match="cannot be made"):
        luban.train(recipe(digits) | {"outputs": {"image": {"image": {"side": 9}}}})
    plain = {"luban": 1, "data": {"rows": str(digits)}, "inputs": {"image": "image"}, "outputs": {"label": "category"}}
    with pytest.raises(Unsupported, match="rival"):
        luban.train(plain | {"stages": [{"train": {"epochs": 1, "adversary": {}}}]}, adversary={"r1": 1.0})


# -- the rest of its life ------------------------------------------------------------------------------------------------
def test_a_saved_one_is_the_same_and_stages_refuse_what_it_lacks(model, digits):
    again = luban.load(model.path)
    assert np.array_equal(again.generate(seed=4), model.generate(seed=4))
    for ask, said in (
        (lambda: again.explain(digits), "score"),
        (lambda: again.audit(digits), "right answer"),
        (lambda: again.compress(digits, distill="nano"), "rival"),
        (lambda: again.compress(digits, prune=0.5), "rival"),
    ):
        with pytest.raises(Unsupported, match=said):
            ask()


def test_as_integers(model, digits, tmp_path):
    small = model.compress(digits, quantize="int8")
    assert small.bytes() < 0.45 * model.bytes()
    apart = np.abs(small.generate(seed=1).astype(float) - model.generate(seed=1)).mean()
    assert 0 < apart < 8
    small.save(tmp_path / "small")
    assert np.array_equal(luban.load(tmp_path / "small").generate(seed=1), small.generate(seed=1))


def test_the_exported_file_makes_the_same_pictures(model, digits, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    path = model.export(out=tmp_path / "m.onnx", data=digits)
    engine = OnnxEngine(path, threads=1)
    from luban.columns.answering import answer

    (row,) = answer(engine, [{"label": "3", "noise": 9}])
    made = model.columns["image"].encode(row.answers["image"].value).astype(int)
    wanted = model.generate(seed=9, set={"label": "3"}).astype(int)
    assert np.abs(made[0] - wanted).max() <= 1
    asked = ["generate", str(path), "--seed", "9", "--set", "label=3", "--out"]
    assert main([*asked, str(tmp_path / "one.png")]) == 0
    assert np.abs(np.asarray(PIL.Image.open(tmp_path / "one.png")).astype(int) - wanted).max() <= 1
    words = [*asked, str(tmp_path / "light.png")]
    code = f"import sys; from luban.cli import main; main({words!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True).returncode == 0
    for words, said in ((["--set", "lable=3"], "label"), (["--prompt", "a shoe"], "--set")):
        assert main([*asked, str(tmp_path / "two.png"), *words]) == 2 and said in capsys.readouterr().err


def test_an_exported_file_that_makes_no_pictures_says_so(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    path = tiny.model().export(out=tmp_path / "shop.onnx", data=tiny.rows())
    assert main(["generate", str(path), "--out", str(tmp_path / "x.png")]) != 0
    assert "back" in capsys.readouterr().err and not (tmp_path / "x.png").exists()
    (tmp_path / "no.onnx").write_bytes(b"no")
    assert main(["generate", str(tmp_path / "no.onnx"), "--out", str(tmp_path / "x.png")]) != 0
    assert "no.onnx" in capsys.readouterr().err


def test_a_server_answers_with_a_picture(model):
    from luban.stages.serve.engine import choose
    from luban.stages.serve.rows import check

    engine = choose(model)
    assert check({"label": "3"}, 0, engine.inputs, engine.outputs, ["noise"]) is None
    assert check({"noise": 3}, 0, engine.inputs, engine.outputs, ["noise"]) is not None
    (found,) = engine.answers([{"label": "3"}], 8)
    from PIL import Image

    assert Image.open(io.BytesIO(base64.b64decode(found["image"].value))).size == (8, 8)


def test_it_can_be_planned(digits):
    from luban.asking import Ask
    from luban.planning.subject import of_recipe

    subject = of_recipe(recipe(digits), Ask())
    assert subject.rows > 100


# -- the judge and its numbers -------------------------------------------------------------------------------------------
def test_frechet_distance_of_known_gaussians():
    random = np.random.default_rng(0)
    a = random.normal(size=(40_000, 3))
    b = a * [1, 2, 3] + [1, 0, 0]  # means 1 apart; deviations 1, 2, 3: (2-1)^2 + (3-1)^2 more
    assert judging.frechet(judging.moments(a), judging.moments(b)) == pytest.approx(6, abs=0.1)
    assert judging.frechet(judging.moments(a), judging.moments(a)) == pytest.approx(0, abs=1e-9)


def test_copies_and_collapse_are_seen():
    random = np.random.default_rng(0)
    training = random.integers(0, 256, (300, 1, 8, 8), np.uint8)
    copies, new = training[:50], random.integers(0, 256, (50, 1, 8, 8), np.uint8)
    assert made_view.nearest(copies, training).max() == 0 < made_view.nearest(new, training).min()
    real = random.normal(size=(300, 4))
    assert made_view.inside(real, real[:100]).value == 1 and made_view.inside(real, real + 99).value == 0
    collapsed = np.repeat(real[:1], 100, 0) + random.normal(size=(100, 4)) * 0.01
    assert made_view.inside(collapsed, real).value < 0.1 < 0.9 < made_view.inside(real, collapsed).value


def test_a_judge_is_the_same_each_time_and_leaves_randomness_alone(digits):
    data = prepare(Recipe.of(recipe(digits)))
    bundle = luban.train(recipe(digits, epochs=1), evaluate=False)
    examples = encode(bundle.columns, bundle.inputs, bundle.outputs, data.framed("train", bundle.recipe.frame))
    judges = []
    for _ in range(2):
        torch.manual_seed(3)
        judge = judging.Learned(bundle.columns["image"], "label", bundle.columns["label"].size)
        judge.learn(examples, "image", 4000)
        judges.append(judge)
        after = torch.rand(1)
        torch.manual_seed(3)
        assert torch.equal(after, torch.rand(1))
    assert same(judges[0].state_dict(), judges[1].state_dict())
    right = judges[0].classes(examples.targets["image"]) == examples.inputs["label"]
    assert right.mean() > 0.9


def test_a_saved_classifier_can_be_the_judge(model, digits, tmp_path):
    plain = {"luban": 1, "data": {"rows": str(digits)}, "inputs": {"image": "image"}, "outputs": {"label": "category"}}
    judge = luban.train(plain, size="nano", epochs=15, out=tmp_path / "judge", evaluate=False)
    report = model.evaluate(prepare(model.recipe), judge=str(tmp_path / "judge"))
    numbers = report.to_json()["numbers"]["outputs"]["image"]
    assert "judge" in numbers["judge"] and numbers["metrics"]["recognised_real"]["value"] > 0.5
    with pytest.raises(RequestError):
        model.evaluate(prepare(model.recipe), judge=str(model.path))
    with pytest.raises(Unsupported):
        judge.evaluate(digits, judge=str(tmp_path / "judge"))
    lost = replace(model, recipe=replace(model.recipe, data={**model.recipe.data, "rows": "nowhere"}))
    with pytest.raises(DataError, match="nowhere"):
        lost.evaluate(digits)


# -- the modules ---------------------------------------------------------------------------------------------------------
def test_sides_that_can_be_made():
    assert [doublings("x", (s, s)) for s in (8, 28, 32, 64)] == [(1, (4, 4)), (2, (7, 7)), (3, (4, 4)), (4, (4, 4))]
    for side in ((9, 9), (7, 7), (8, 64)):
        with pytest.raises(RecipeError):
            doublings("x", side)


@pytest.mark.parametrize("condition", ["projection", "embedding"])
def test_the_critic_hears_what_was_asked_for(condition):
    torch.manual_seed(0)
    critic = Critic(1, (8, 8), 3, width=4, condition=condition, spectral=True).eval()
    x, asked = torch.randn(5, 1, 8, 8), torch.randn(5, 3)
    assert critic(x, asked).shape == (5,) and not torch.allclose(critic(x, asked), critic(x, -asked))


def test_noise_is_a_function_of_its_seed():
    column = make("noise", "noise", {"dimensions": 5}).fit([])
    x, mask = column.collate(column.encode_all([3, None, 4, 3]))
    assert x.shape == (4, 1, 5) and np.array_equal(x[0], x[3]) and not np.array_equal(x[0], x[2])
    assert mask[:, 0].tolist() == [True, False, True, True] and not x[1].any()
    fresh, _ = column.augment(x, mask, np.random.default_rng(0))
    assert not np.array_equal(fresh, x)
    for wrong in (-1, 1.5, "a", True, 2**63):
        with pytest.raises(DataError):
            column.encode(wrong)
