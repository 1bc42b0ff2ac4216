"""start: a model whose weights are integers is taken over with the numbers that it computes with, never from nothing."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import luban
from luban.errors import Unsupported
from luban.nn import floating, static
from luban.stages import start as stage
from luban.stages.compress import methods
from luban.stages.start import start

LINES = [f"the {a} sees the {b}" for a in ("cat", "dog", "fox") for b in ("moon", "sun", "house")] * 4
STILL = {"steps": 1, "batch": 2, "rate": 1e-12, "compile": "off", "weight_decay": 0.0}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A language model of one small layer."""
    rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": t}) + "\n" for t in LINES))
    return {
        "luban": 1,
        "data": {"rows": str(rows)},
        "outputs": {"text": {"text": {"vocabulary": 300, "least": 1, "length": 16}}},
        "frame": {"pack": {"length": 16}},
        "model": {"text": {"llama": {"width": 32, "layers": 1, "heads": 2}}},
    }


@pytest.fixture(scope="module")
def gpt(recipe, tmp_path_factory):
    stages = [{"train": {"steps": 8, "batch": 4, "rate": 0.01, "compile": "off"}}]
    return luban.run(recipe | {"stages": stages}, tmp_path_factory.mktemp("gpt"))


def same_weights(now, integers):
    kept = dict(now.named_modules())
    found = {n: m.weight for n, m in integers.named_modules() if isinstance(m, floating.Stored)}
    for name, weight in found.items():
        torch.testing.assert_close(kept[name].weight, weight.float(), atol=1e-6, rtol=0)
    return len(found)


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("lora", [{}, {"lora": {"rank": 2}}])
def test_a_language_model_of_integers_goes_on_with_its_weights(gpt, recipe, bits, lora, tmp_path, capsys):
    small = methods.quantised(gpt, bits)
    small.save(tmp_path / "small")
    capsys.readouterr()
    stages = [{"start": {"source": str(tmp_path / "small")}}, {"train": STILL | lora}]
    again = luban.run(recipe | {"stages": stages}, tmp_path / "out")
    said = capsys.readouterr().err
    assert "floating-point" in said and "weights of fusion, text" in said and "anew" not in said
    assert same_weights(again.network, small.network) >= 4 and not floating.stored_layers(again.network)
    assert again.generate("the cat", temperature=0, tokens=6) == small.generate("the cat", temperature=0, tokens=6)


def test_planted_fault_integers_that_are_taken_without_their_scales(gpt, recipe, tmp_path, monkeypatch):
    small = methods.quantised(gpt)
    monkeypatch.setattr(floating.Stored, "weight", property(lambda self: self.q.float()))
    found = floating.multiplied_out(small.network, replace(gpt).copy_network(), {})
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        same_weights(found, small.network)


@pytest.mark.parametrize("encoder", ["cnn", "lstm", "gru", "bag"])
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_what_reads_a_text_is_taken_over(encoder, bits, capsys):
    rows = [{"review": f"{'good' if i % 2 else 'bad'} film {i % 7}", "y": "p" if i % 2 else "n"} for i in range(60)]
    ask = {"types": {"review": "text"}, "evaluate": False, "epochs": 1}
    first = luban.train(rows, "y", model={"review": encoder}, size="nano", **ask)
    small = methods.quantised(first, bits)
    capsys.readouterr()
    again = luban.train(rows, "y", start=small, **ask | {"rate": 1e-12})
    said = capsys.readouterr().err
    assert "from the model that was given: columns review" in said and "anew" not in said
    want, found = ([a["y.probability.p"] for a in m.predict(rows[:4])] for m in (small, again))
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_batch_norms_that_were_folded_stand_again():
    """Integers on both sides (`calibrate`): the ordinary network answers like the one whose norms were folded."""
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    plain = copy.deepcopy(network).eval()
    network[1].running_mean.normal_(generator=torch.Generator().manual_seed(0))
    network[1].running_var.fill_(3.0)
    network.eval()
    x = torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    want = network(x)
    found = {
        "norms": {"0": "1"},
        "layers": {"0": [[0.04, 128], None], "4": [None, [0.05, 128]]},
        "points": {"2": [0.04, 0]},
    }
    integers = static.quantize_static(network, **found).eval()
    again = floating.multiplied_out(integers, plain, found["norms"])
    assert not floating.stored_layers(again) and floating.stored_layers(integers) == 2
    torch.testing.assert_close(again(x), want, atol=0.05, rtol=0)
    with pytest.raises(ValueError):  # where nobody says that they were folded
        floating.multiplied_out(integers, plain, {})


@pytest.mark.parametrize("first", ["int8", "int4"])
@pytest.mark.parametrize("second", ["int8", "int4"])
def test_integers_are_not_made_integers_again(gpt, first, second):
    small = methods.quantised(gpt, first)
    with pytest.raises(Unsupported, match="no layer left"):
        methods.quantised(small, second)


@pytest.mark.parametrize("edit", ["prune_channels", "low_rank"])
def test_a_model_that_was_made_smaller_is_refused(gpt, edit):
    with pytest.raises(Unsupported, match="made smaller"):
        start(gpt, None, source=replace(gpt, edits=[{"edit": edit}]))


def test_integers_of_another_network_of_ones_own_are_refused(gpt):
    class Owned(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.module = nn.Linear(8, width)

    small = methods.quantised(replace(gpt, network=Owned(16)))
    with pytest.raises(Unsupported, match="not the one that was given"):
        stage._floating(small, "there", None)
