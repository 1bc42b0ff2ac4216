"""Frozen parts, factors on the rate, less for lower layers, the average of the weights."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import luban
from luban.errors import RequestError, Unsupported
from luban.training.average import Average
from luban.training.optimizers import Optimizer
from luban.training.plan import Plan
from luban.training.shares import shares
from luban.training.state import State
from tests import tiny

ASK = {"types": {"review": "text"}, "size": "nano", "evaluate": False, "precision": "fp32"}


def weights(part: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in part.parameters()]


def test_frozen_parts_stay_and_learn_again_later():
    first = luban.train(tiny.rows(), "back", epochs=1, **ASK)
    network = copy.deepcopy(first.network)
    plan = Plan(epochs=1, batch=8, rate=0.1, freeze=["review", "back"])
    state = State(network, plan, total=10)
    held = [*network.encoder_of("review").parameters(), *network.heads.parameters()]
    assert held and not any(p.requires_grad for p in held)
    assert sum(p.numel() for p in state.parameters) == sum(p.numel() for p in network.parameters()) - sum(
        p.numel() for p in held
    )
    state.release()
    assert all(p.requires_grad for p in network.parameters())


def test_freeze_in_a_recipe():
    whole, frozen = (luban.train(tiny.rows(), "back", epochs=2, freeze=f, **ASK) for f in ([], ["review"]))
    last = frozen.history[-1]
    assert last["trained_parameters"] < last["parameters"] == whole.history[-1]["trained_parameters"]
    fresh = luban.train(tiny.rows(), "back", steps=1, rate=1e-9, weight_decay=0, **ASK)
    mine, theirs = weights(frozen.network.encoder_of("review")), weights(fresh.network.encoder_of("review"))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mine, theirs))
    assert not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(weights(whole.network.encoder_of("review")), theirs))


@pytest.mark.parametrize("settings", [{"freeze": ["revew"]}, {"rates": {"revew": 0.1}}])
def test_an_unknown_part(settings):
    with pytest.raises(RequestError) as e:
        luban.train(tiny.rows(), "back", epochs=1, **settings, **ASK)
    assert "review" in str(e.value)


def test_nothing_left_to_learn():
    with pytest.raises(Unsupported) as e:
        luban.train(tiny.rows(), "back", epochs=1, freeze=["review", "shop", "price", "fusion", "back"], **ASK)
    assert e.value.id == "train.all_frozen"


def test_a_frozen_batch_norm_keeps_its_statistics():
    rows = tiny.rows()
    module = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    module[1].requires_grad_(False)
    before = module[1].running_mean.clone()
    luban.train(rows, "back", inputs=["price"], model=module, epochs=1, evaluate=False)
    assert torch.equal(module[1].running_mean, before) and int(module[1].num_batches_tracked) == 0


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.form, self.blocks, self.norm = (
            nn.Embedding(3, 4),
            nn.ModuleList(nn.Linear(4, 4) for _ in range(2)),
            nn.LayerNorm(4),
        )


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.fusion, self.heads = Deep(), nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 2)])
        self.groups = [["words"]]

    def encoder_of(self, name):
        return self.encoder

    def _heads(self):
        return [("kind", self.heads[0])]


def test_shares_of_the_rate():
    network = Whole()
    found = shares(network, {"words": 0.1, "fusion": 0.5}, 0.5)
    share = {n: found[id(p)] for n, p in network.named_parameters()}
    assert share["encoder.norm.weight"] == pytest.approx(0.1)
    assert share["encoder.blocks.1.weight"] == share["encoder.blocks.1.bias"] == pytest.approx(0.05)
    assert share["encoder.blocks.0.weight"] == pytest.approx(0.025) and share["encoder.form.weight"] == pytest.approx(
        0.0125
    )
    assert share["fusion.weight"] == 0.5 and share["heads.0.weight"] == 1.0
    assert shares(network, {}, 1.0) == {}


class Tables(nn.Module):
    """As BERT is: several tables and a norm before its layers."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(3, 4), nn.Embedding(5, 4), nn.LayerNorm(4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))


def test_the_tables_below_the_layers_are_one_layer():
    network = Whole()
    network.encoder = Tables()
    found = shares(network, {}, 0.5)
    share = {n: found[id(p)] for n, p in network.named_parameters() if n.startswith("encoder")}
    assert share["encoder.blocks.1.weight"] == 1 and share["encoder.blocks.0.weight"] == 0.5
    below = {share[f"encoder.{n}.weight"] for n in ("words", "places", "norm")}
    assert below == {0.25}  # each a layer of its own would have 0.0625 at the lowest


def test_a_share_is_a_rate():
    """A parameter with half the rate moves as torch's does with half the rate."""
    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    mine = Optimizer(ours, name="adamw", shares={id(p): 0.5 for p in ours[0].parameters()})
    oracle = torch.optim.AdamW(
        [{"params": theirs[0].parameters(), "lr": 0.005}, {"params": theirs[1].parameters(), "lr": 0.01}],
        weight_decay=0,
    )
    for _ in range(20):
        x = torch.randn(5, 3)
        for network in (ours, theirs):
            network.zero_grad()
            network(x).square().sum().backward()
        mine.update(0.01)
        oracle.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours.parameters(), theirs.parameters()))


# -- the average -----------------------------------------------------------------------------------------------------------


def test_the_average_by_its_formula():
    rng, w = np.random.default_rng(0), torch.zeros(3)
    average, want = Average([w], 0.9), np.zeros(3)
    for step in range(200):
        w.copy_(torch.as_tensor(rng.normal(size=3)))
        average.update(step)
        d = min(0.9, (1 + step) / (10 + step))
        want = d * want + (1 - d) * w.numpy()
    assert np.allclose(average.kept[0].numpy(), want, atol=1e-5)
    live = w.clone()
    with average.swapped():
        assert np.allclose(w.numpy(), want, atol=1e-5)
    assert torch.equal(w, live)


def test_columns_of_different_resolution_are_averaged():
    """A column of few values has fewer bins than another: the widths that it lacks are infinite, and stay what they are."""
    rows = [{"few": i % 2, "many": i / 7, "back": "ab"[i * 3 % 2]} for i in range(80)]
    ask = {"size": "nano", "evaluate": False, "precision": "fp32", "types": {"few": "number"}}
    found = luban.train(rows, "back", epochs=2, ema=0.9, **ask)
    spans = [b for n, b in found.network.named_buffers() if n.endswith("span")]
    assert spans and any(b.isinf().any() for b in spans), "or this test shows nothing"
    trained = next(h for h in found.history if h["stage"] == "train")
    assert trained["stopped"] == "done" and not trained["incidents"]


def test_what_is_judged_and_kept_is_the_average():
    """The validation loss told is that of the weights kept; without the average it is another."""
    ask = {"epochs": 3, "keep": "last", "out": None, **ASK}
    plain, averaged = (luban.train(tiny.rows(80), "back", ema=e, **ask) for e in (0.0, 0.99))
    a, b = plain.network.state_dict(), averaged.network.state_dict()
    assert any(not torch.equal(a[k], b[k]) for k in a)
    assert plain.metrics[0]["loss"] == averaged.metrics[0]["loss"], "training itself is the same"
    assert plain.metrics[-1]["validation_loss"] != averaged.metrics[-1]["validation_loss"]
