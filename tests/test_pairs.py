"""Pairs of texts: one encoder for both, features of a pair, the whole life."""

import random

import pytest
import torch

import luban
from luban.columns.fitting import fit_columns
from luban.data.prepare import prepare
from luban.errors import RecipeError, Unsupported
from luban.nn.parts import parts
from luban.recipe import Recipe
from luban.training.shares import shares
from tests import checkpoints

ANIMALS, SEEN = ["cat", "dog", "horse", "cow", "hen"], ["sleeps", "runs", "eats", "waits", "hides"]
MODEL = {"premise": {"bag": {"embedding": 16}}, "hypothesis": {"share": "premise"}}


def rows(count=600, seed=0):
    """Do both sentences name the same animal?"""
    chosen = random.Random(seed)
    found = []
    for i in range(count):
        a = chosen.choice(ANIMALS)
        b = a if i % 2 else chosen.choice([x for x in ANIMALS if x != a])
        found.append(
            {
                "premise": f"a {a} {chosen.choice(SEEN)}",
                "hypothesis": f"one {b} {i % 7}",
                "same": "yes" if a == b else "no",
            }
        )
    return found


def trained(fusion="pair", model=MODEL, **settings):
    asked = {"size": "nano", "epochs": 25, "seed": 0, "rate": 0.01, "patience": 0, "evaluate": False} | settings
    recipe = {"luban": 1, "inputs": {"premise": "text", "hypothesis": "text"}, "outputs": {"same": "category"}}
    recipe |= {"model": model, "fusion": fusion, "size": asked.pop("size"), "seed": asked.pop("seed")}
    recipe |= {"data": {"rows": asked.pop("rows")}}
    return luban.train(recipe, **asked)


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    lines = [",".join(r.values()) for r in rows()]
    path.write_text("premise,hypothesis,same\n" + "\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def model(csv):
    return trained(rows=csv)


def right(model, count=100):
    asked = rows(count, seed=1)
    return sum(a["same"] == r["same"] for a, r in zip(model.predict(asked), asked)) / count


def test_two_texts_are_compared(model, csv):
    assert right(model) > 0.9
    assert right(trained("concat", rows=csv, epochs=1)) < 0.9  # control: not every network tells


def test_one_encoder_one_vocabulary(model, csv):
    encoders = parts(model.network)
    assert encoders["premise"] is encoders["hypothesis"]
    premise, hypothesis = model.columns["premise"], model.columns["hypothesis"]
    assert premise.state == hypothesis.state and hypothesis.name == "hypothesis"
    assert 1 not in premise.encode("one cow 6").tolist()  # words that only the other one has
    recipe = Recipe.of(model.recipe.plain() | {"model": {"premise": "bag", "hypothesis": "bag"}})
    apart = fit_columns(recipe, prepare(recipe))
    assert apart["premise"].state != apart["hypothesis"].state  # control


def test_it_is_saved_once_and_comes_back(model, tmp_path):
    model.save(tmp_path / "m")
    again = luban.load(tmp_path / "m")
    assert again.predict(rows(5)) == model.predict(rows(5))
    assert again.parameters() == model.parameters() and again.bytes() < 5 * model.parameters()
    assert parts(again.network)["premise"] is parts(again.network)["hypothesis"]
    assert "hypothesis: {share: premise}" in again.recipe.yaml()


def test_a_symmetric_pair_answers_alike_whichever_comes_first(model, csv):
    even = trained({"pair": {"symmetric": True}}, rows=csv, epochs=3)

    def turned(model):
        asked = rows(20, seed=2)
        swapped = [r | {"premise": r["hypothesis"], "hypothesis": r["premise"]} for r in asked]
        pairs = zip(model.predict(asked), model.predict(swapped))
        return max(abs(a["same.probability.yes"] - b["same.probability.yes"]) for a, b in pairs)

    assert turned(even) < 1e-6 < turned(model)


def test_the_rate_of_a_shared_encoder_goes_by_the_name_that_is_given(model):
    weight = next(parts(model.network)["premise"].parameters())
    assert shares(model.network, {"premise": 0.1}, 1.0)[id(weight)] == 0.1
    assert shares(model.network, {"hypothesis": 0.2}, 1.0)[id(weight)] == 0.2


def test_both_texts_are_explained_and_the_edits_reach_both(model, tmp_path):
    found = model.explain(rows(4)[:2], method="integrated-gradients").numbers
    assert {"premise", "hypothesis"} == set(found["columns"]) and min(found["columns"].values()) > 0
    assert all(r["gap_relative"] < 0.05 for r in found["rows"])
    small = model.compress(quantize="int8")
    small.save(tmp_path / "s")
    assert parts(small.network)["premise"] is parts(small.network)["hypothesis"]
    assert luban.load(tmp_path / "s").predict(rows(5)) == small.predict(rows(5)) and right(small) > 0.85


@pytest.mark.slow
def test_an_exported_pair_answers_alike(model, tmp_path):
    model.export(out=tmp_path / "m.onnx", data=rows(40))


def test_a_pretrained_encoder_reads_both(csv):
    name = checkpoints.folder("bert")
    found = trained(rows=csv, epochs=1, model=MODEL | {"premise": {"pretrained": {"name": name}}})
    assert found.columns["hypothesis"].tokens_of == name
    assert found.recipe.stage("train").settings["rates"] == {"premise": 0.015, "hypothesis": 0.015}
    assert parts(found.network)["premise"] is parts(found.network)["hypothesis"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"hypothesis": {"share": "premis"}}, ["premis", "premise", "model.hypothesis.share"]),
        ({"hypothesis": {"share": "hypothesis"}}, ["hypothesis"]),
        ({"hypothesis": {"share": "stars"}}, ["stars"]),
        ({"hypothesis": {"share": "premise"}, "premise": {"share": "hypothesis"}}, ["premise"]),
    ],
)
def test_what_cannot_be_shared_is_refused(model, words):
    inputs = {"premise": "text", "hypothesis": "text", "stars": "number"}
    with pytest.raises(RecipeError) as e:
        Recipe.of({"luban": 1, "inputs": inputs, "outputs": {"same": "category"}, "model": model})
    assert all(w in str(e.value) for w in words)


def test_a_pair_is_two_of_one_size(csv):
    with pytest.raises(Unsupported, match="two"):
        trained(
            rows=csv, epochs=1, model={"premise": {"bag": {"embedding": 16}}, "hypothesis": {"bag": {"embedding": 8}}}
        )
    torch.manual_seed(0)
