"""What `auto` means for epochs, batch, patience and the layers of a fusion; what was chosen stands in the recipe."""

import numpy as np
import pyarrow as pa
import pytest

import luban
from luban.columns.number import Number
from luban.columns.text import Text
from luban.nn.encoders.cnn import CNN
from luban.nn.encoders.mlp import MLP
from luban.nn.fusion import Concat
from luban.training.batches import batch_for, epochs_for, patience_for


@pytest.mark.parametrize(("rows", "size", "epochs"), [(100, "small", 40), (4000, "small", 40), (16_000, "small", 10)])
def test_a_large_set_needs_fewer_epochs(rows, size, epochs):
    assert epochs_for(rows, size) == epochs
    assert epochs_for(10**7, size) == 10 and epochs_for(rows, "nano") <= epochs <= epochs_for(rows, "base")


def test_runs_of_tokens_are_soon_known_by_heart():
    column = Text("t", tokens="words").fit(["one two three"] * 2)
    eager, plain = (CNN([column], grams=g) for g in (3, 1))
    assert epochs_for(14_000, "small", eager) == 4 < epochs_for(14_000, "small", plain)
    assert epochs_for(500, "small", eager) == epochs_for(500, "small", plain) == 40


def test_batches_and_patience():
    assert [batch_for(n) for n in (1, 256, 1258, 60_000)] == [16, 16, 64, 128]
    assert [patience_for(n) for n in (3, 40)] == [3, 6]


def test_layers_follow_what_they_stand_behind():
    text = CNN([Text("t", tokens="words").fit(["one two three"] * 2)])
    number = MLP([Number("n").fit([1.0, 2.0])], width=4)
    assert Concat([text]).size == text.size
    assert Concat([number], width=10).size == Concat([text, number], width=10).size == 5
    assert Concat([text], layers=[7]).size == 7


def test_the_choices_are_written_into_the_recipe():
    rng = np.random.default_rng(0)
    x = rng.normal(size=80)
    table = pa.table({"x": x, "y": np.where(x > 0, "a", "b")})
    bundle = luban.train(table, "y", size="nano", evaluate=False)
    chosen = bundle.recipe.stage("train").settings
    assert (chosen["epochs"], chosen["batch"], chosen["patience"]) == (20, 16, 3)
    assert bundle.recipe.fusion.settings["layers"] == "auto"
