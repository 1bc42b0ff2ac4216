"""Over-fitting is diagnosed from the losses, and the next remedy named."""

import pytest
import torch

import luban
from luban.bundle import build_network
from luban.columns.base import make, together
from luban.messages import known, say
from luban.recipe import Recipe
from luban.stages.train import _drops as drops
from luban.stages.train import diagnosis
from luban.training.loop import History
from tests import tiny

CURVES = {  # (training losses, validation losses) -> remedy
    "longer": ([0.70, 0.65, 0.60, 0.56, 0.53, 0.51], [0.71, 0.67, 0.63, 0.60, 0.588, 0.585]),
    "smaller": ([0.70, 0.40, 0.20, 0.10, 0.05, 0.02], [0.65, 0.50, 0.48, 0.60, 0.80, 1.10]),
    "dropout": ([0.70, 0.50, 0.40, 0.33, 0.30, 0.28], [0.65, 0.55, 0.50, 0.49, 0.49, 0.49]),
    "none": ([0.70, 0.50, 0.45, 0.44, 0.44, 0.44], [0.65, 0.52, 0.47, 0.46, 0.46, 0.46]),
}


@pytest.mark.parametrize("remedy", CURVES)
def test_losses_tell_the_remedy(remedy):
    training, validation = CURVES[remedy]
    history = History()
    history.epochs = [{"loss": a, "validation_loss": b} for a, b in zip(training, validation)]
    history.best, history.stopped = validation.index(min(validation)), "done"
    found = diagnosis(history)
    assert found["remedy"] == f"train.remedy.{remedy}" and known(found["remedy"])
    assert found["gap"] == pytest.approx(validation[-1] - training[-1])


def test_more_dropout_is_advised_where_there_is_some():
    training, validation = CURVES["dropout"]
    history = History()
    history.epochs = [{"loss": a, "validation_loss": b} for a, b in zip(training, validation)]
    history.best, history.stopped = validation.index(min(validation)), "done"
    advice = say(diagnosis(history, drops=False)["remedy"])
    assert "more rows" in advice and "dropout" not in advice and "dropout" in say(diagnosis(history)["remedy"])


def built(inputs, outputs, **more):
    recipe = Recipe.of({"luban": 1, "size": "nano", "inputs": inputs, "outputs": outputs} | more).resolved()
    parts = {**recipe.inputs, **recipe.outputs}
    columns = together({n: make(n, p.type, dict(p.settings)).supposed() for n, p in parts.items()})
    return build_network(recipe, columns)


def test_which_networks_drop_between_encoders_and_heads():
    assert drops(built({"image": "image"}, {"label": "category"}))
    assert drops(built({"image": "image"}, {"objects": "boxes", "label": "category"}))  # for the label
    assert drops(built({"a": "text", "b": "number"}, {"parts": {"tags": {"of": "a"}}}))
    assert not drops(built({"image": "image"}, {"objects": "boxes"}))
    assert not drops(built({"image": "image"}, {"mask": {"mask": {"of": "image", "labels": ["a", "b"]}}}))
    assert not drops(built({"words": "text"}, {"parts": {"tags": {"of": "words"}}}))
    assert not drops(built({"a": "text", "b": "text"}, {"label": "category"}, fusion="join"))


def test_fewer_validation_rows_change_what_is_known_and_nothing_else():
    settings = {"size": "nano", "epochs": 2, "keep": "last", "patience": 0, "evaluate": False}
    whole, few = (luban.train(tiny.rows(80), "back", types={"review": "text"}, validate=n, **settings) for n in (0, 3))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.network.state_dict().values(), few.network.state_dict().values())
    )
    losses = [[e["validation_loss"] for e in m.metrics] for m in (whole, few)]
    assert losses[0] != losses[1] and len(losses[1]) == 2
    assert few.recipe.stage("train").settings["validate"] == 3
