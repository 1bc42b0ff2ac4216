"""Smaller networks that write: a student trains as its recipe trains, reads and answers as its teacher, and lives as any other."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import luban
from luban.cli import main
from luban.columns.examples import encode
from luban.data.prepare import prepare
from luban.errors import RequestError, Unsupported
from luban.nn.heads import text as head
from luban.nn.tokens import Batch
from luban.recipe import Recipe
from luban.stages.compress import methods
from luban.training.objectives import Distillation
from tests import writing

LINES = [f"the {a} sees the {b}" for a in ("cat", "dog", "fox") for b in ("moon", "sun", "house")] * 4
WIDE = {"width": 256, "layers": 4, "heads": 8, "kv_heads": 2, "hidden": 96}
THIN = {"width": 16, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("language")
    (place / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in LINES))
    return place


def recipe(place, shape=WIDE, column=None, **train):
    return {
        "luban": 1,
        "data": {"rows": str(place / "rows.jsonl")},
        "outputs": {"text": {"text": {"vocabulary": 300, "least": 1, "length": 16} | (column or {})}},
        "frame": {"pack": {"length": 16}},
        "model": {"text": {"llama": shape}},
        "stages": [{"train": {"steps": 3, "batch": 4, "compile": "off"} | train}],
    }


@pytest.fixture(scope="module")
def teacher(place):
    return luban.train(recipe(place), out=place / "teacher", evaluate=False)


def thin(place, **more):
    path = place / f"thin{len(more)}.yaml"
    path.write_text(json.dumps(recipe(place, THIN, **more)))
    return str(path)


def plan(teacher, place, target, epochs=0):
    """How a student would train, and its network."""
    own = methods.student_recipe(teacher.recipe, target)
    data = prepare(teacher.recipe)
    rows = encode(teacher.columns, (), teacher.outputs, data.framed("train", teacher.recipe.frame))
    network = methods.build_network(own, teacher.columns)
    return methods.course_of(own, rows, epochs, network, Distillation(teacher.copy_network())), network


# -- what a student learns ---------------------------------------------------------------------------------------------
def answers():
    """Two networks' answers to texts of different lengths, the first token of the second one given."""
    texts = writing.TEXTS[:3]
    batch = writing.batch(writing.network(), texts)
    x, mask = batch.targets["text"]
    x = x.clone()
    x[1, 0] = ~x[1, 0]
    batch = Batch({}, {"text": (x, mask)}, len(texts))
    with torch.no_grad():
        mine, theirs = (writing.network(seed=s)(batch) for s in (0, 1))
    return batch, mine, theirs, mask & (x >= 0)


def test_padding_and_what_is_given_teach_nothing():
    batch, mine, theirs, counts = answers()
    assert not counts.all(), "control: something is padded"
    found = writing.network().divergence(mine, theirs, 2.0, batch)["text"]
    p, q = ((z["text"] / 2).log_softmax(-1) for z in (theirs, mine))
    each = (p.exp() * (p - q)).sum(-1) * 4
    assert torch.allclose(found, torch.stack([e[c].mean() for e, c in zip(each, counts)]), atol=1e-4)
    for side in (mine, theirs):  # whatever stands there
        side["text"][~counts] = torch.randn_like(side["text"][~counts])
    assert torch.allclose(writing.network().divergence(mine, theirs, 2.0, batch)["text"], found, atol=1e-4)


def test_planted_fault_a_mean_over_all_positions_is_seen(monkeypatch):
    batch, mine, theirs, _ = answers()
    whole = head.Written.divergence
    right = writing.network().divergence(mine, theirs, 2.0, batch)["text"]
    monkeypatch.setattr(head.Written, "divergence", lambda self, o, t, temperature=1.0, target=None: whole(self, o, t, temperature))  # fmt: skip
    assert not torch.allclose(writing.network().divergence(mine, theirs, 2.0, batch)["text"], right, atol=1e-2)


# -- how it trains -----------------------------------------------------------------------------------------------------
def test_a_student_of_a_size_trains_for_as_many_updates_by_the_same_rule(teacher, place):
    own = teacher.recipe.stage("train").settings
    found, network = plan(teacher, place, "nano")
    assert (found.steps, found.batch, found.rate) == (3, 4, own["rate"]) and "muon" in str(found.optimizer)
    shape = network.writer.layers.shape
    assert (shape.width, shape.heads, shape.layers) == (128, 4, 4), "the inner sizes of another width are not kept"
    assert network.writer.layers.layers[0].attention.kv == 4
    assert plan(teacher, place, "nano", epochs=2)[0].steps == 0, "epochs that are asked for come first"


def test_a_student_of_a_recipe_trains_as_the_recipe_says(teacher, place):
    train = {"steps": 5, "optimizer": "adamw", "rate": 0.003, "schedule": "linear", "warmup": 0.3, "keep": "last", "accumulate": 2}  # fmt: skip
    found, network = plan(teacher, place, thin(place, **train))
    assert (found.steps, found.rate, found.warmup, found.keep) == (5, 0.003, 0.3, "last")
    assert "linear" in str(found.schedule) and (found.batch, found.accumulate) == (8, 2)
    assert network.writer.layers.shape.width == 16 and network.window == teacher.network.window


def test_parts_that_a_student_has_not_are_named(teacher, place):
    with pytest.raises(RequestError, match="sentence"):
        plan(teacher, place, thin(place, rates={"sentence": 0.1}, ema=0.5))


def test_what_is_the_teachers_own_is_said(teacher, place, capsys):
    methods.student_recipe(teacher.recipe, thin(place, column={"vocabulary": 280, "length": 8}))
    said = capsys.readouterr().err
    assert "text.vocabulary: 280" in said and "text.length: 8" in said
    methods.student_recipe(teacher.recipe, thin(place))
    assert "vocabulary" not in capsys.readouterr().err, "control: the same recipe but for the network"


def test_a_student_that_is_no_smaller_is_told_before_it_learns(teacher, monkeypatch, capsys):
    monkeypatch.setattr(methods, "fit", lambda *a, **k: pytest.fail("it has begun"))
    for size, told in (("base", True), ("nano", False)):
        with pytest.raises(pytest.fail.Exception):
            teacher.compress(prepare(teacher.recipe), distill=size)
        assert ("no smaller than the model" in capsys.readouterr().err) == told


def test_preferences_are_not_distilled(teacher):
    plain = teacher.recipe.plain() | {"outputs": {"text": "preference"}, "frame": "row"}
    asks = replace(teacher, recipe=Recipe.of(plain).resolved())
    with pytest.raises(Unsupported, match="preferences"):
        asks.compress(None, distill="nano")


# -- and lives on ------------------------------------------------------------------------------------------------------
WAYS = {
    "int8": ["--quantize", "int8"],
    "int4": ["--quantize", "int4"],
    "student": ["--distill", "THIN", "--quantize", "int4"],
}


@pytest.mark.parametrize("way", WAYS)
def test_what_was_made_smaller_is_judged_writes_and_is_shown(way, teacher, place, capsys):
    small, rows = str(place / way), str(place / "rows.jsonl")
    flags = [thin(place) if w == "THIN" else w for w in WAYS[way]]
    assert main(["compress", str(place / "teacher"), *flags, "--out", small]) == 0
    assert main(["evaluate", small, rows, "--json", str(place / "found.json")]) == 0
    found = json.loads((place / "found.json").read_text())["outputs"]["text"]["metrics"]
    assert 0 < found["bits_per_byte"]["value"] < 20
    capsys.readouterr()
    assert main(["generate", small, "--prompt", "the cat", "--tokens", "3", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.strip("\n") == luban.load(small).generate("the cat", tokens=3, temperature=0)
    assert main(["show", small]) == 0 and "compress" in capsys.readouterr().out
    bundle = luban.load(small)
    assert bundle.bytes() < (0.5 if way == "int8" else 0.3) * teacher.bytes()
    assert bundle.columns["text"].to_json() == teacher.columns["text"].to_json()
    numbers = bundle.reports["compress"].numbers["outputs"]["text"]["bits_per_byte"]
    assert np.isfinite(numbers["difference"]["value"])
