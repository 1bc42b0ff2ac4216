"""Mixing in pairs, balancing of outputs, stochastic depth: against their formulas, and through the stage."""

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

import luban
from luban.errors import RequestError, Unsupported
from luban.nn.heads.category import CategoryHead
from luban.nn.heads.number import NumberHead
from luban.nn.tokens import Batch
from luban.nn.transformer import StochasticDepth, rising
from luban.training.objectives import Balance, Mixed, balanced, blended, mixed, pasted, supervised
from tests import compact
from tests.test_contract_edits import CASES, batch_of, model_of


class Dice:
    """A generator whose beta, and perhaps whose permutation, is what a test says."""

    def __init__(self, share, alone=False):
        self.share, self.alone, self.rng = share, alone, np.random.default_rng(0)

    def beta(self, a, b):
        return self.share

    def permutation(self, n):
        return np.arange(n) if self.alone else self.rng.permutation(n)

    def __getattr__(self, name):
        return getattr(self.rng, name)


def total(losses):
    return sum((each.sum() / weight.sum()).item() for each, weight in losses.values())


# -- mixup -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES)
def test_an_example_mixed_with_itself_stays_as_it_is(case):
    model, draw = model_of(case), Dice(0.3, alone=True)
    batch = batch_of(model)
    plain, mix = supervised(model.network, batch, draw), Mixed(mixup=0.4)(model.network, batch, draw)
    assert all(torch.allclose(plain[n][0], mix[n][0], atol=1e-5) for n in plain)


@pytest.mark.parametrize("case", CASES)
def test_gradients_reach_every_weight_that_they_reach_without_mixing(case):
    model = model_of(case)
    batch, reached = batch_of(model), []
    for objective in (supervised, Mixed(mixup=0.4)):
        model.network.zero_grad()
        losses = objective(model.network, batch, Dice(0.6))
        sum(each.sum() for each, _ in losses.values()).backward()
        reached.append({n for n, p in model.network.named_parameters() if p.grad is not None and p.grad.abs().sum()})
    assert reached[0] - reached[1] <= {n for n in reached[0] if "missing" in n}


def test_the_losses_are_those_of_mixed_answers():
    """Of a class: cross-entropy with (s, 1 - s) as the truth (Zhang et al. 2018, eq. 1)."""
    model = model_of("mlp")
    batch, draw = batch_of(model), Dice(0.7)
    index = torch.as_tensor(np.random.default_rng(0).permutation(batch.size))
    embedded, both = blended(model.network.embed(batch), batch, index, 0.7)
    o = model.network(both, embedded)["kind"]
    x = batch.targets["kind"][0]
    truth = 0.7 * F.one_hot(x - 1, 3) + 0.3 * F.one_hot(x[index] - 1, 3)
    each, weight = Mixed(mixup=1.0)(model.network, batch, draw)["kind"]
    torch.testing.assert_close(each, F.cross_entropy(o, truth, reduction="none"))
    assert torch.equal(weight, torch.ones_like(weight))


def test_a_missing_truth_takes_its_share_of_the_weight_along():
    model = model_of("mlp")
    batch = batch_of(model)
    x, mask = batch.targets["kind"]
    batch.targets["kind"] = (x, mask & (torch.arange(len(x)) > 0))
    _, weight = Mixed(mixup=1.0)(model.network, batch, Dice(0.7))["kind"]
    assert sorted(weight.tolist())[:2] == pytest.approx([0.3, 0.7]) and float(weight.sum()) == pytest.approx(8)


def test_the_shorter_of_two_counts_as_zero_beyond_its_end():
    x, mask = torch.ones(2, 3, dtype=torch.long), torch.tensor([[True, False, False], [True, True, True]])
    batch = Batch({"t": (x, mask)}, {}, 2)
    embedded, both = blended({"t": torch.ones(2, 3, 1)}, batch, torch.tensor([1, 0]), 0.75)
    assert embedded["t"][0, :, 0].tolist() == [1.0, 0.25, 0.25] and embedded["t"][1, :, 0].tolist() == [1.0, 0.75, 0.75]
    assert both.inputs["t"][1].all() and not batch.inputs["t"][1].all()


# -- cutmix ----------------------------------------------------------------------------------------------------------
def test_a_box_of_the_partner_and_its_share():
    grid = torch.stack([torch.zeros(2, 10, 8), torch.ones(2, 10, 8)])
    for seed in range(20):
        new, share = pasted({"p": grid}, torch.tensor([1, 0]), 0.6, np.random.default_rng(seed))
        first = new["p"][0]
        assert share == pytest.approx(float((first == 0).float().mean())) and torch.equal(first[0], first[1])
        assert torch.equal(new["p"][1], 1 - first)
        rows, columns = first[0].any(1), first[0].any(0)
        assert torch.equal(first[0].bool(), rows[:, None] & columns), "no box"
    assert torch.equal(grid[0], torch.zeros(2, 10, 8))


def test_about_the_share_that_was_drawn():
    kept = [
        pasted({"p": torch.zeros(2, 1, 64, 64)}, torch.tensor([1, 0]), 0.9, np.random.default_rng(s))[1]
        for s in range(200)
    ]
    assert 0.9 <= np.mean(kept) < 0.94  # a box that is cut off at an edge leaves more


def test_cutmix_needs_pictures():
    model = model_of("cnn-grid")
    columns = [model.columns[n] for n in model.inputs]
    assert isinstance(mixed(model.network, columns, mixup=0.0, cutmix=1.0), Mixed)
    assert mixed(model.network, columns, mixup=0.0, cutmix=0.0) is supervised
    for case in ("mlp", "cnn-ids", "together"):
        other = model_of(case)
        with pytest.raises(Unsupported, match="no height and width"):
            mixed(other.network, [other.columns[n] for n in other.inputs], mixup=0.0, cutmix=1.0)


def test_control_a_share_that_is_not_that_of_the_area_is_seen():
    """What cutmix must not do: mix the losses by what was drawn, where the box was cut off at an edge."""
    _, share = pasted({"p": torch.zeros(2, 1, 64, 64)}, torch.tensor([1, 0]), 0.2, np.random.default_rng(1))
    assert abs(share - 0.2) > 0.05


# -- several outputs -------------------------------------------------------------------------------------------------
def test_the_weight_of_a_head_counts():
    number = NumberHead(compact.bundle({"age": "number"}, {"spent": "number"}, compact.rows()).columns["spent"], 1)
    for kind in (number, CategoryHead(model_of("mlp").columns["kind"], 1)):
        o, x, mask = torch.zeros(3, getattr(kind, "classes", 1)), torch.ones(3, dtype=torch.long), torch.ones(3).bool()
        kind.weight = 1.0
        each, weight = kind.loss(o, x, mask)
        kind.weight = 5.0
        five, same = kind.loss(o, x, mask)
        assert five.sum() / same.sum() == pytest.approx(5 * float(each.sum() / weight.sum()))


def test_balance_has_the_value_of_the_plain_loss_and_the_gradient_of_the_paper():
    balance = Balance(["a", "b"])
    with torch.no_grad():
        balance.log_variance.copy_(torch.tensor([0.3, -0.5]))
    each, weight = torch.tensor([1.0, 2.0], requires_grad=True), torch.ones(2)
    found = balance("b", each, weight)
    assert torch.equal(found, each)
    found.sum().backward()
    torch.testing.assert_close(each.grad, torch.full((2,), 0.5).exp())
    torch.testing.assert_close(balance.log_variance.grad, torch.tensor([0.0, float(1 - 3 * np.exp(0.5))]))


def two(count=200, seed=0):
    """One answer that follows from x, one that is noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count)
    return pa.table({"x": x, "easy": 2 * x, "noise": rng.normal(size=count)})


ASK = {"types": {"x": "number"}, "size": "nano", "evaluate": False}


def test_learnt_balancing_trusts_the_output_with_less_noise(tmp_path, capsys):
    rows = two()
    learnt = luban.train(rows, ["easy", "noise"], balance="learnt", epochs=8, rate=0.02, batch=16, **ASK)
    found = learnt.history[-1]["balance"]
    assert found["easy"] > 1.3 * found["noise"] > 0 and "came to count" in capsys.readouterr().err
    assert not any("balance" in n for n in learnt.network.state_dict())
    learnt.save(tmp_path / "m")
    assert luban.load(tmp_path / "m").predict([{"x": 0.5}]) == learnt.predict([{"x": 0.5}])


def test_learnt_balancing_resumes_bit_for_bit(tmp_path):
    path = tmp_path / "rows.csv"
    rows = two(60)
    path.write_text("x,easy,noise\n" + "".join(f"{a},{b},{c}\n" for a, b, c in zip(*rows.to_pydict().values())))
    ask = {"balance": "learnt", "mixup": 0.3, "epochs": 2, "checkpoint_seconds": 0, "out": tmp_path / "m", **ASK}
    whole = luban.train(str(path), ["easy", "noise"], **ask)
    again = luban.train(str(path), ["easy", "noise"], resume=True, **ask)
    assert again.history[-1]["balance"] == whole.history[-1]["balance"]
    assert all(
        torch.equal(a, b) for a, b in zip(whole.network.state_dict().values(), again.network.state_dict().values())
    )


def test_refused_in_words():
    with pytest.raises(RequestError, match="this recipe has one"):
        luban.train(two(), "easy", balance="learnt", epochs=1, **ASK)
    with pytest.raises(Unsupported, match="x"):
        luban.train(two(), "easy", cutmix=1.0, epochs=1, **ASK)
    network = model_of("mlp").network
    with pytest.raises(ZeroDivisionError), balanced(supervised, _with_two(network), "learnt"):
        raise ZeroDivisionError
    assert not hasattr(network, "balance")


def _with_two(network):
    network.outputs = {**network.outputs, "more": None}
    return network


# -- stochastic depth ------------------------------------------------------------------------------------------------
def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer, x = StochasticDepth(0.25).train(), torch.ones(4000, 2, 3)
    y = layer(x)
    assert sorted(y.unique().tolist()) == pytest.approx([0.0, 4 / 3])
    assert torch.equal(y.amax((1, 2)), y.amin((1, 2))) and abs(float(y.mean()) - 1) < 0.05
    assert torch.equal(layer.eval()(x), x)
    assert rising(0.3, 3) == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("model", [{"review": {"transformer": {"stochastic_depth": 0.5, "layers": 2, "dropout": 0.0}}},
                                   {"review": {"attention": {"kind": "self", "stochastic_depth": 0.5}}}])  # fmt: skip
def test_in_the_encoders_it_changes_training_alone(model):
    made = compact.bundle({"review": "text"}, {"kind": "category"}, compact.rows(), model=model)
    for module in made.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = batch_of(made)
    quiet = [made.network.eval()(batch)["kind"] for _ in range(2)]
    loud = [made.network.train()(batch)["kind"] for _ in range(2)]
    assert torch.equal(*quiet) and not torch.equal(*loud)


# -- through the stage -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("settings", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}], ids=str)
def test_a_model_learns_from_mixed_pictures(settings):
    from sklearn.datasets import load_digits

    digits = load_digits()
    photos, labels = digits.images[:500].astype(np.uint8) * 15, digits.target[:500].astype(str)
    rows = [{"photo": p, "digit": y} for p, y in zip(photos, labels)]
    bundle = luban.train(
        rows, "digit", types={"photo": "image"}, size="nano", epochs=10, rate=0.01, batch=32, evaluate=False, **settings
    )
    assert bundle.metrics[-1]["validation_accuracy"] > 0.75
    chosen = bundle.recipe.stage("train").settings
    assert all(chosen[k] == v for k, v in settings.items())
