"""Both detectors through their life: trained from a recipe, saved, resumed, explained, compressed, exported."""

import signal
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch

import luban
from luban.columns.base import make, together
from luban.columns.examples import encode_values
from luban.engines import OnnxEngine
from luban.errors import RecipeError, RequestError, Unsupported
from luban.nn.tokens import Batch
from luban.recipe import Recipe
from luban.stages import explain as explaining
from luban.stages.explain.grad_cam import grad_cam
from luban.training.objectives import mixed
from tests import scenes
from tests.test_trust_resume import broken_at, same

heads = pytest.mark.parametrize("head", ["fcos", "faster_rcnn"])


TINY = {"count": 40, "side": 32, "width": 4}


@cache
def trained(head):
    """A model that has hardly learned, for what does not depend on that."""
    folder = Path(mkdtemp(prefix="luban-scenes-"))
    recipe = scenes.recipe(folder / "rows.jsonl", head, **TINY, epochs=1)
    return luban.train(recipe, out=folder / "model", evaluate=False)


def answers(model, count=6, seed=5):
    return model.predict(scenes.rows(count, seed, side=32))


@heads
def test_a_saved_detector_answers_bit_for_bit(head):
    model = trained(head)
    assert answers(luban.load(model.path)) == answers(model)
    weights = luban.load(model.path).network.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in model.network.state_dict().items())


def test_that_turns_are_left_out_is_said(tmp_path, capsys):
    recipe = scenes.recipe(tmp_path / "rows.jsonl", "fcos", **TINY, epochs=1, steps=1)
    recipe["inputs"]["image"]["image"]["randaugment"] = 0.3
    luban.train(recipe, evaluate=False)
    assert "'image' is not turned or sheared in training" in capsys.readouterr().err
    luban.train(scenes.recipe(tmp_path / "rows.jsonl", "fcos", **TINY, epochs=1, steps=1), evaluate=False)
    assert "turned" not in capsys.readouterr().err


@heads
def test_a_run_that_stopped_goes_on_bit_for_bit(head, tmp_path, monkeypatch):
    recipe = scenes.recipe(tmp_path / "rows.jsonl", head, **TINY, epochs=2)
    whole = luban.train(recipe, out=tmp_path / "whole", evaluate=False)
    with monkeypatch.context() as patch:
        broken_at(patch, 2, lambda: signal.raise_signal(signal.SIGTERM))
        stopped = luban.train(recipe, out=tmp_path / "part", evaluate=False)
    assert stopped.history[-1]["stopped"] == "signal"
    assert same(luban.train(recipe, out=tmp_path / "part", evaluate=False, resume=True), whole)


@heads
def test_what_is_exported_answers_alike_on_other_images(head, tmp_path):
    """The gate itself compares batches of every size, and images that are missing."""
    model = trained(head)
    path = model.export("onnx", out=tmp_path / "d.onnx", data=scenes.rows(6, side=32))
    engine = OnnxEngine(path, threads=1)
    examples, _ = encode_values(model.columns, model.inputs, scenes.rows(5, seed=8, side=32))
    arrays = examples.arrays(np.arange(5))
    ours, theirs = model.engine.run(arrays)["objects"], engine.run(arrays)["objects"]
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-3
    column = model.columns["objects"]
    for a, b in zip(column.decode_all(ours), column.decode_all(theirs)):
        assert [v["label"] for v in a.value] == [v["label"] for v in b.value]
        assert np.allclose([v["box"] for v in a.value], [v["box"] for v in b.value], atol=0.02)


@heads
def test_a_chosen_box_is_explained_by_a_map(head):
    report = trained(head).explain(scenes.rows(2, 5, side=32), method="grad-cam", rows=2)
    assert all(np.isfinite(r["weights"]["image"]).all() for r in report.numbers["rows"])
    assert all(r["explained"]["score"] == r["probability"] for r in report.numbers["rows"])
    assert report.to_html().count("<rect") == 2 * 2 and "[{" not in report.to_text()
    row = report.numbers["rows"][1]
    kind = trained(head).columns["objects"].labels[-1]
    count = sum(v["label"] == kind for v in row["answer"])
    with pytest.raises(
        RequestError, match=f"row 1: '{kind}@99' is not among the answers, which hold {count} of the kind"
    ):
        trained(head).explain(scenes.rows(2, 5, side=32), method="grad-cam", rows=[1], target=f"{kind}@99")


def test_the_map_of_a_box_lies_where_the_box_was_answered():
    """A prediction of the finest level, whatever the network has learned; the mean of the slopes, the planted fault, spreads over the picture."""
    network, _ = built()
    head = dict(network._heads())["objects"]
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch({"image": (pixels, torch.ones(1, dtype=torch.bool))}, {}, 1)
    place = head.points.sub(torch.tensor([14.0, 14.0])).square().sum(1).argmin()
    answer = {"objects": place[None] * head.classes}
    score = lambda: network.eval().score(network(batch), answer)["objects"]  # noqa: E731

    def near(layer):
        found = grad_cam(score, layer, (64, 64))[0]
        return float(found[:40, :40].sum() / found.sum())

    layer = network.feature_layer("image", "objects")
    assert near(layer) > 0.95
    layer.local = False
    assert near(layer) < 0.7


def test_shares_of_a_box_add_up_to_its_logit():
    report = trained("fcos").explain(scenes.rows(2, 5, side=32), method="integrated-gradients", rows=1, steps=16)
    (row,) = report.numbers["rows"]
    assert float(np.sum(row["weights"]["image"])) == pytest.approx(row["score"] - row["baseline"], abs=0.05)


def test_regions_are_held_while_parts_of_the_picture_go(monkeypatch):
    """So the weights of two stages add up as well. The planted fault: regions are proposed anew on the way from nothing to the picture."""
    model, settings = trained("faster_rcnn"), {"method": "integrated-gradients", "rows": [0], "steps": 16}
    batch = lambda x: Batch({"image": (x, torch.ones(2, dtype=torch.bool))}, {}, 2)  # noqa: E731
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = model.copy_network().eval()
    chosen = network.choices(batch(x))
    with torch.no_grad():
        with network.holding(chosen):
            assert torch.equal(network(batch(x))["objects"], network.eval()(batch(x))["objects"])
            held = network(batch(torch.zeros_like(x)))["objects"]
        assert not torch.allclose(held, network(batch(torch.zeros_like(x)))["objects"])  # let go

    def missed():
        (row,) = model.explain(scenes.rows(2, 5, side=32), **settings).numbers["rows"]
        return abs(float(np.sum(row["weights"]["image"])) - (row["score"] - row["baseline"]))

    assert missed() < 0.02
    monkeypatch.setattr(explaining, "_choices", lambda *_: {})
    assert missed() > 0.05


@heads
def test_it_is_judged_and_made_smaller(head, tmp_path):
    model = trained(head)
    held_out = scenes.recipe(tmp_path / "rows.jsonl", count=12, side=32)["data"]["rows"]
    report = model.evaluate(held_out)
    assert 0 <= report.numbers["outputs"]["objects"]["metrics"]["map_50"]["value"] <= 1
    said = report.to_text()
    assert "Shown on the HTML page" in said.split("Worst examples")[1]
    assert "Every metric\n" in said and "beside the baselines" not in said
    audited = model.audit(held_out).to_text()
    assert "nothing else to look at" in audited and "objects" in audited
    small = model.compress(held_out, quantize="int8", explain=0)
    found = small.reports["compress"].numbers
    assert found["after"]["bytes"] < 0.5 * found["before"]["bytes"]
    assert found["agreement"]["objects"]["same"].value > 0.6  # of nine rows
    narrow = model.compress(held_out, prune=0.3, explain=0)
    assert narrow.bytes() < 0.9 * model.bytes()


def recipe_of(**changes):
    plain = {
        "luban": 1,
        "inputs": {"image": {"image": {"side": 64, "channels": 3}}},
        "outputs": {"objects": "boxes"},
        "model": {"image": {"resnet": {"width": 8}}, "objects": {"fcos": {"width": 8}}},
    } | changes
    return Recipe.of(plain).resolved()


def built(**changes):
    from luban.bundle import build_network

    recipe = recipe_of(**changes)
    parts = {**recipe.inputs, **recipe.outputs}
    columns = together({n: make(n, p.type, dict(p.settings)).supposed() for n, p in parts.items()})
    torch.manual_seed(0)
    return build_network(recipe, columns), columns


FAMILIES = ("cnn", "resnet", "vgg", "densenet", "inception", "efficientnet", "alexnet", "lenet", "vit")


@pytest.mark.parametrize("encoder", FAMILIES)
def test_every_family_can_stand_below(encoder):
    settings = {"stem": "small"} if encoder == "inception" else {}
    network, _ = built(model={"image": {encoder: settings}, "objects": {"fcos": {"width": 8, "layers": 1}}})
    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    truth = torch.tensor([[[1.0, 8, 8, 40, 40]], [[2.0, 20, 4, 60, 30]]]), torch.ones(2, 1, dtype=torch.bool)
    batch = Batch({"image": (x, torch.ones(2, dtype=torch.bool))}, {"objects": truth}, 2)
    ((each, weight),) = network.loss(network(batch), batch).values()
    each.sum().backward()
    assert each.isfinite().all() and weight.tolist() == [1, 1]
    assert any(p.grad is not None and p.grad.any() for p in network.encoder_of("image").parameters())
    assert network.separable == (encoder in ("cnn", "lenet", "alexnet", "vit"))


@pytest.mark.parametrize(
    "encoder", [pytest.param(n, marks=[pytest.mark.slow] if n == "inception" else []) for n in FAMILIES]
)
def test_two_stages_stand_on_every_family(encoder):
    """One pass with the truth and one without: regions of every family's maps, finite answers that the picture moves."""
    settings = {"stem": "small"} if encoder == "inception" else {}
    head = {"faster_rcnn": {"width": 8, "hidden": [8], "proposals": 12, "learned": 8}}
    network, _ = built(model={"image": {encoder: settings}, "objects": head})
    random = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (2, 3, 64, 64), generator=random, dtype=torch.uint8)
    truth = torch.tensor([[[1.0, 8, 8, 40, 40]], [[2.0, 20, 4, 60, 30]]]), torch.ones(2, 1, dtype=torch.bool)
    inputs = {"image": (x, torch.ones(2, dtype=torch.bool))}
    with torch.no_grad():
        batch = Batch(inputs, {"objects": truth}, 2)
        ((each, weight),) = network.loss(network(batch), batch).values()
        assert each.isfinite().all() and (each > 0).all() and weight.tolist() == [1, 1]
        found = network.eval()(Batch(inputs, {}, 2))["objects"]
        assert found.shape[:2] == (2, 12) and found.isfinite().all()
        assert not torch.allclose(found[0], found[1])
        encoder = network.encoder_of("image")
        read = encoder.read
        encoder.read = lambda *given: ([torch.zeros_like(m) for m in read(*given)[0]], read(*given)[1])  # sees nothing
        blind = network(Batch(inputs, {}, 2))["objects"]
        assert torch.allclose(blind[0], blind[1])


def test_a_category_beside_the_boxes_reads_the_same_pass():
    model = {"image": {"resnet": {"width": 8}}, "objects": {"fcos": {"width": 8}}}
    network, _ = built(outputs={"kind": "category", "objects": "boxes"}, model=model)
    seen = []
    network.encoder_of("image").net.register_forward_hook(lambda *_: seen.append(1))
    network.encoder_of("image").last.register_forward_hook(lambda *_: seen.append(1))
    x = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    o = network(Batch({"image": (x, torch.ones(3, dtype=torch.bool))}, {}, 3))
    assert len(seen) == 1 and o["kind"].shape[0] == 3 and o["objects"].ndim == 3
    assert network.feature_layer("image", "objects") is not network.feature_layer("image", "kind")


def test_what_cannot_be_is_said():
    with pytest.raises(RecipeError, match="image"):
        Recipe.of({"luban": 1, "inputs": {"a": "number"}, "outputs": {"objects": "boxes"}})
    with pytest.raises(RecipeError, match="read by nothing"):
        built(inputs={"image": {"image": {"side": 64}}, "price": "number"})
    with pytest.raises(RecipeError, match=r"feature maps.*resnet"):
        built(model={"image": "mlp", "objects": "fcos"})
    with pytest.raises(RecipeError, match="too small"):
        built(inputs={"image": {"image": {"side": 6}}}, model={"image": "lenet", "objects": {"fcos": {"finest": 8}}})
    network, columns = built()
    with pytest.raises(Unsupported, match="objects"):
        mixed(network, [columns["image"]], mixup=0.2, cutmix=0)


@pytest.mark.slow
@pytest.mark.parametrize(("head", "least"), [("fcos", 0.8), ("faster_rcnn", 0.6)])
def test_it_learns(head, least, tmp_path):
    """Of scenes that it never saw. The control: a network that learned nothing finds nothing."""
    recipe = scenes.recipe(tmp_path / "rows.jsonl", head, count=300, epochs=10, patience=0)
    model = luban.train(recipe, out=tmp_path / "model", evaluate=False)
    held_out = scenes.rows(100, seed=9)
    assert scenes.found(held_out, model.predict(held_out)) > least
    empty = luban.train(scenes.recipe(tmp_path / "few.jsonl", head, count=40, epochs=1), evaluate=False)
    assert scenes.found(held_out, empty.predict(held_out)) < 0.5
