"""Over-fitting is diagnosed from the losses, and the next remedy named."""

import pytest
import torch

import luban
from luban.messages import known
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


def test_fewer_validation_rows_change_what_is_known_and_nothing_else():
    settings = {"size": "nano", "epochs": 2, "keep": "last", "patience": 0, "evaluate": False}
    whole, few = (luban.train(tiny.rows(80), "back", types={"review": "text"}, validate=n, **settings) for n in (0, 3))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.network.state_dict().values(), few.network.state_dict().values())
    )
    losses = [[e["validation_loss"] for e in m.metrics] for m in (whole, few)]
    assert losses[0] != losses[1] and len(losses[1]) == 2
    assert few.recipe.stage("train").settings["validate"] == 3
