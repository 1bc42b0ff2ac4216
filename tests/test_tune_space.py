"""What a search may draw from: every mistake is told with its place before anything starts; drawn settings find their place."""

import re

import numpy as np
import pytest

from luban.errors import RecipeError
from luban.evaluation import metrics
from luban.part import Part
from luban.recipe import Recipe
from luban.space import HIGHER, Dimension, Space, default_search, flat, is_range, value_at, with_values
from luban.yaml_file import dump, parse

HEAD = """luban: 1
inputs: {review: text, stars: number, shop: category}
outputs: {good: category}
model: {review: bilstm}
"""


def told(tune: str, head: str = HEAD) -> list[str]:
    plain, lines = parse(head + tune, "r.yaml")
    try:
        Recipe.of(plain, lines)
    except RecipeError as e:
        return [str(p) for p in e.problems]
    return []


def recipe(search: str = "", head: str = HEAD) -> Recipe:
    plain, _ = parse(head + (f"tune: {{search: {search}}}\n" if search else ""))
    return Recipe.of(plain)


GOOD = """tune:
  trials: 20
  minutes: 10
  metric: f1_macro
  search:
    train.rate: [1e-4, 1e-2, log]
    train.weight_decay: [0, 0.1, linear]
    train.batch: [16, 64, log]
    train.optimizer: [adamw, sgd]
    size: [nano, small]
    model.review: [cnn, {bilstm: {layers: 2}}]
    model.review.hidden: [32, [64, 64], 128]
    model.text.dropout: [0.0, 0.5, linear]
    model.good.label_smoothing: [0.0, 0.1]
    model: {stars: {width: [8, 16]}}
    inputs.review.length: [64, 128]
    fusion: [concat, join]
"""


def test_a_good_space():
    assert told(GOOD) == []
    found = {d.path: d for d in Space(parse(HEAD + GOOD)[0]).dimensions()}
    assert found["train.rate"] == Dimension("train.rate", (), 1e-4, 1e-2, "log", within=("train",))
    assert found["train.batch"].whole and not found["train.weight_decay"].whole
    assert found["model.stars.width"].choices == (8, 16)
    assert found["model.review.hidden"].part == "model.review" and found["model.review.hidden"].within == ("bilstm",)


@pytest.mark.parametrize(
    "line, words",
    [
        ("trails: 5", "r.yaml:6 tune.trails: .*trials"),
        ("trials: 0", "r.yaml:6 tune.trials: 0 .*integer >= 1"),
        ("metric: acuracy", "r.yaml:6 tune.metric: .*Did you mean 'accuracy'"),
        ("search: {train.rte: [1, 2]}", "r.yaml:6 tune.search.train.rte: .*Did you mean 'train.rate'"),
        ("search: {model.review.hiden: [1]}", "Did you mean 'model.review.hidden'"),
        ("search: {model.reviews: [cnn]}", "Did you mean 'model.review'"),
        ("search: {model.review: [bilstn]}", "Did you mean 'bilstm'"),
        ("search: {model.review: [bilstm, {cnn: {kernels: 3}}]}", "Did you mean 'kernel'"),
        ("search: {size: [nano, smal]}", "Did you mean 'small'"),
        ("search: {sise: [nano]}", "Did you mean 'size'"),
        ("search: {seed: [1, 2]}", "'seed' is no setting that can be searched"),
        ("search: {data.split.test: [0.1]}", "no setting that can be searched"),
        ("search: {train.out: [a]}", "no setting that can be searched"),
        ("search: {train.optimizer: [adamw, sgdd]}", "Did you mean 'sgd'"),
        ("search: {train.optimizer: [1, 2, log]}", "not a number: list choices"),
        ("search: {train.rate: [-1, 1, linear]}", "number > 0"),
        ("search: {train.rate: [0.1, 0.01, log]}", "below the second"),
        ("search: {train.weight_decay: [0, 0.1, log]}", "above 0 where the scale is log"),
        ("search: {train.batch: [16.5, 32, linear]}", "integer >= 1"),
        ("search: {train.epochs: 5}", "must be a list of choices"),
        ("search: {train.epochs: []}", "must be a list of choices"),
        ("search: [train.rate]", "tune.search"),
        ("search: {inputs.review.lenght: [64]}", "Did you mean 'inputs.review.length'"),
    ],
)
def test_a_mistake_is_told_with_its_place(line, words):
    (said,) = told(f"tune:\n  {line}\n")
    assert re.search(words, said) and said.startswith("r.yaml:6 tune"), said


def test_all_mistakes_at_once():
    assert len(told("tune:\n  metric: acc\n  search: {train.rte: [1], size: [smal], model.x: [cnn]}\n")) == 4


def test_columns_that_are_not_known_yet_are_checked_when_they_are():
    head = "luban: 1\n"
    assert told("tune: {search: {model.review.hiden: [1]}}\n", head) == []
    assert told("tune: {search: {train.rte: [1]}}\n", head)


def test_names_of_metrics_are_those_that_are_measured():
    p = np.array([[0.6, 0.4], [0.3, 0.7], [0.5, 0.5]])
    two = metrics.classification([0, 1, 1], p, ["a", "b"], resamples=20)
    assert set(two) == set(HIGHER["category"])
    assert set(metrics.regression([1.0, 2.0], [1.0, 3.0], resamples=20)) == set(HIGHER["number"])


def test_drawn_settings_stand_in_the_recipe():
    values = {
        "size": "nano", "train.rate": 0.005, "model.review": {"bilstm": {"layers": 2}}, "model.review.hidden": 32,
        "model.good.dropout": 0.3, "inputs.review.length": 64, "model.number.width": 4, "fusion": "join",
    }  # fmt: skip
    found = with_values(recipe(), values)
    assert found.model["review"] == Part("bilstm", {"layers": 2, "hidden": 32})
    full = found.resolved()
    assert full.size == "nano" and full.stage("train").settings["rate"] == 0.005 and full.fusion.type == "join"
    assert full.model["stars"].settings["width"] == 4 and full.model["good"].settings["dropout"] == 0.3
    assert {p: value_at(found, p) for p in ("size", "train.rate", "model.review.hidden", "inputs.review.length")} == {
        "size": "nano", "train.rate": 0.005, "model.review.hidden": 32, "inputs.review.length": 64,
    }  # fmt: skip
    assert Recipe.of(found.plain()) == found


def test_a_rate_that_is_not_drawn_follows_the_drawn_size():
    small, nano = (with_values(recipe(), {"size": s}).with_stage_default("train").resolved() for s in ("small", "nano"))
    assert small.stage("train").settings["rate"] < nano.stage("train").settings["rate"]


def test_a_column_whose_name_has_dots():
    head = "luban: 1\ninputs: {a.b: text, a: number}\noutputs: {y: number}\n"
    assert told("tune: {search: {model.a.b.dropout: [0.1]}}\n", head) == []
    found = with_values(recipe(head=head), {"model.a.b.dropout": 0.4})
    assert found.resolved().model["a.b"].settings["dropout"] == 0.4


def test_the_space_where_none_is_given():
    asked = recipe()
    space = default_search(asked)
    assert set(space) == {"train.rate", "train.weight_decay", "size", "model.review.dropout"}
    assert Recipe.of({**asked.plain(), "tune": {"search": space}})
    assert space["train.rate"][0] < value_at(asked, "train.rate") < space["train.rate"][1]
    plain_text = recipe(head="luban: 1\ninputs: {a: text, b: text}\noutputs: {y: number}\nsize: nano\n")
    assert "model.text.dropout" in default_search(plain_text)
    assert default_search(plain_text)["size"] == ["nano", "small"]
    finding = Recipe.of({**asked.plain(), "stages": [{"train": {"rate": "find"}}]})
    assert default_search(finding)["train.rate"] == space["train.rate"]


@pytest.mark.parametrize("stages", [[], ["train"]])
def test_a_search_begins_at_what_training_takes(stages):
    """Networks that write learn by muon at a rate of its own where nothing is said: the first trial is that very run."""
    asked = Recipe.of({"luban": 1, "inputs": {}, "outputs": {"b": "text"}, "size": "nano", "stages": stages})
    taken = asked.with_stage(Part("train")).resolved().stage("train").settings
    assert list(taken["optimizer"]) == ["muon"] and taken["rate"] == 0.01
    assert [value_at(asked, f"train.{k}") for k in ("optimizer", "rate")] == [taken["optimizer"], 0.01]
    space = default_search(asked)
    assert space["train.rate"] == [0.001, 0.1, "log"]
    first = with_values(asked, {path: value_at(asked, path) for path in space})
    assert first.with_stage_default("train").resolved().stage("train").settings == {
        **taken, "weight_decay": value_at(asked, "train.weight_decay")
    }  # fmt: skip
    drawn = with_values(asked, {"train.rate": 0.03, "train.optimizer": "adamw"}).resolved().stage("train").settings
    assert (list(drawn["optimizer"]), drawn["rate"]) == (["adamw"], 0.03), "what is drawn comes first"
    other = with_values(asked, {"train.optimizer": "adamw"}).with_stage_default("train").resolved().stage("train")
    assert other.settings["rate"] < 0.01, "another optimiser has another rate"


def test_ranges_and_choices():
    assert is_range([1, 2, "log"]) and not is_range([1, 2, 3]) and not is_range(["a", "b", "log"])
    assert {p: v for p, v, _ in flat({"a": {"b": [1], "c": {"d": [2]}}, "e.f": [3]})} == {
        "a.b": [1],
        "a.c.d": [2],
        "e.f": [3],
    }
    choice = Dimension("x", ([32, 64], "auto"))
    assert choice.value(choice.labels()[0]) == [32, 64] and choice.holds("auto") and not choice.holds(32)
    assert Dimension("x", (), 1, 5, "log", True).holds(3) and not Dimension("x", (), 1, 5, "log", True).holds(2.5)


@pytest.mark.parametrize("number", [1e-05, 1e38, 2e16, 1.5e-07, 0.1, -3e-09, 5.0])
def test_a_number_is_written_so_that_it_can_be_read_again(number):
    """A learning rate of 1e-05 once made a recipe that its own reader refused."""
    text = dump({"rate": number, "range": [number, 1.0, "log"]})
    assert parse(text)[0] == {"rate": number, "range": [number, 1.0, "log"]} and "!!" not in text
