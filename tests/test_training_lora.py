"""LoRA: only thin layers learn; merged, the model answers the same; from a Bundle to new rows; refused in words elsewhere."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from torch import nn

import luban
from luban.errors import RecipeError, RequestError, Unsupported
from luban.nn.edits import replay
from luban.nn.lora import LORA, LoraRecurrent, layers_in
from tests import compact
from tests.test_contract_edits import CASES, batch_of, learn, model_of

WORDS = ["good", "great", "fine", "bad", "dull", "slow", "film", "plot"]


def answers(network, batch):
    with torch.no_grad():
        return network.eval()(batch)


def thin(network, **settings):
    given = {"layers": layers_in(network, [network]), "rank": 3, "alpha": 6.0} | settings
    return replay(network, [{"edit": "lora", **given}])


# -- the layers ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES)
def test_nothing_changes_before_it_has_learned(case):
    model = model_of(case)
    batch = batch_of(model)
    before, after = answers(model.network, batch), answers(thin(model.copy_network()), batch)
    assert all(torch.allclose(before[n], after[n], atol=1e-6) for n in before)


@pytest.mark.parametrize("case", CASES)
def test_merged_it_answers_as_it_did(case):
    model = model_of(case)
    network, batch = thin(model.copy_network(), dropout=0.5), batch_of(model)
    learn(network)
    apart = answers(network, batch)
    merged = answers(replay(network, [{"edit": "merge_lora"}]), batch)
    assert all(torch.allclose(apart[n], merged[n], atol=1e-4) for n in apart)
    assert not all(torch.allclose(apart[n], o, atol=1e-2) for n, o in answers(model.network, batch).items())
    assert {n: p.shape for n, p in network.named_parameters()} == {
        n: p.shape for n, p in model.network.named_parameters()
    }
    assert not any(isinstance(m, LORA) for m in network.modules())


def test_control_a_wrong_scale_is_seen_when_merging():
    model = model_of("cnn-ids")
    network, batch = thin(model.copy_network()), batch_of(model)
    learn(network)
    apart = answers(network, batch)
    for module in network.modules():
        if isinstance(module, LORA):
            module.scale *= 1.5
    merged = answers(replay(network, [{"edit": "merge_lora"}]), batch)
    assert not all(torch.allclose(apart[n], merged[n], atol=1e-4) for n in apart)


class Deep(nn.Module):
    """A network of one's own with what the built-in ones lack: groups, several dimensions, stacked recurrence both ways."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv1d(4, 6, 3, groups=2, padding="same", padding_mode="circular")
        self.two = nn.Conv2d(1, 4, 3, stride=2, bias=False)
        self.deep = nn.Conv2d(4, 4, 3, groups=4)
        self.states = nn.GRU(6, 5, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x):  # (B, 4, T)
        h = self.states(self.one(x).transpose(1, 2))[0]
        return self.deep(self.two(h[:, None])).flatten(1)


def test_every_kind_of_layer():
    torch.manual_seed(0)
    deep, x = Deep(), torch.randn(3, 4, 12)
    before = deep(x)
    network = thin(deep)
    assert len([m for m in network.modules() if isinstance(m, LORA)]) == 4
    torch.testing.assert_close(network(x), before)
    learn(network)
    apart = network(x)
    assert not torch.allclose(apart, before, atol=1e-2)
    network = replay(network, [{"edit": "merge_lora"}])
    torch.testing.assert_close(network(x), apart, atol=1e-4, rtol=1e-3)


def test_only_the_thin_layers_have_gradients_and_the_rank_never_exceeds_a_side():
    model = model_of("bilstm")
    network = thin(model.copy_network(), rank=1000)
    learning = {n for n, p in network.named_parameters() if p.requires_grad}
    assert learning and all(".a." in n or ".b." in n for n in learning)
    recurrent = next(m for m in network.modules() if isinstance(m, LoraRecurrent))
    assert all(len(a) == min(getattr(recurrent.base, n).shape) for n, a in recurrent.a.items())


def test_recurrent_dropout_leaves_out_inputs_and_only_while_training():
    layer = LoraRecurrent(nn.LSTM(50, 4, batch_first=True), 2, 2.0, 0.5)
    nn.init.ones_(layer.b["weight_ih_l0"])
    nn.init.ones_(layer.a["weight_ih_l0"])
    change = layer.train().weights()["weight_ih_l0"] - layer.base.weight_ih_l0
    assert 10 < int((change[0].abs() < 1e-6).sum()) < 40
    assert torch.equal(layer.eval().weights()["weight_ih_l0"], layer.weight_ih_l0)


# -- fine-tuning -----------------------------------------------------------------------------------------------------
def table(count, seed, flip=False, label="y"):
    rng = np.random.default_rng(seed)
    text = [" ".join(rng.choice(WORDS, 6)) for _ in range(count)]
    score = [sum(w in WORDS[:3] for w in t.split()) - sum(w in WORDS[3:6] for w in t.split()) for t in text]
    a = rng.normal(size=count)
    return pa.table({"text": text, "a": a, label: np.where((np.array(score) + a > 0) != flip, "yes", "no")})


ASK = {"types": {"text": "text"}, "evaluate": False}


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    asked = {"model": {"text": {"bilstm": {"hidden": 16}}}, "size": "nano", "epochs": 6, "rate": 0.01}
    luban.train(table(500, 0), "y", out=folder, **ASK, **asked)
    return folder


def weights(bundle):
    return dict(bundle.network.state_dict())


def test_the_base_stays_and_the_answers_change(before, capsys):
    earlier = luban.load(before)
    tuned = luban.train(
        table(300, 1, flip=True), "y", start=before, epochs=6, rate=0.02, lora={"rank": 4, "merge": False}, **ASK
    )
    said = capsys.readouterr().err
    assert "LoRA: " in said and "weights learn" in said
    kept = {n.replace(".base.", "."): w for n, w in weights(tuned).items() if ".a." not in n and ".b." not in n}
    assert kept.keys() == weights(earlier).keys()
    assert all(torch.equal(w, weights(earlier)[n]) for n, w in kept.items())
    assert tuned.metrics[-1]["loss"] < 0.5 * tuned.metrics[0]["loss"]
    entry = tuned.history[-1]
    assert entry["trained_parameters"] < 0.5 * entry["parameters"]
    assert [e["edit"] for e in tuned.edits] == ["lora"]


def test_settings_of_the_stage_do_not_make_it_another_network(before, capsys):
    luban.train(table(40, 1), "y", start=before, set=["train.lora.rank=2", "train.epochs=1"], **ASK)
    assert "anew" not in capsys.readouterr().err


def test_merged_it_is_an_ordinary_model(before, tmp_path):
    ask = {"start": before, "epochs": 2, "rate": 0.02, **ASK}
    rows = table(120, 1, flip=True)
    apart = luban.train(rows, "y", lora={"rank": 4, "merge": False}, **ask)
    merged = luban.train(rows, "y", lora={"rank": 4}, **ask)
    assert merged.edits == [] and weights(merged).keys() == weights(luban.load(before)).keys()
    asked = rows.drop(["y"]).to_pylist()[:20]
    a, b = (m.predict(asked) for m in (apart, merged))
    assert all(abs(x["y.probability.yes"] - y["y.probability.yes"]) < 1e-5 for x, y in zip(a, b))
    merged.save(tmp_path / "m")
    assert luban.load(tmp_path / "m").predict(asked) == b
    assert all(p.requires_grad for p in merged.network.parameters())
    small = apart.compress(quantize="int8")
    assert [e["edit"] for e in small.edits] == ["lora", "merge_lora", "quantize_linear"]
    small.save(tmp_path / "small")
    assert luban.load(tmp_path / "small").predict(asked) == small.predict(asked)
    again = luban.train(rows, "y", start=apart, epochs=1, rate=1e-9, **ASK)  # what it learned is taken over, too
    assert all(torch.allclose(w, weights(merged)[n], atol=1e-4) for n, w in weights(again).items())


def test_a_new_answer_learns_whole(before, capsys):
    tuned = luban.train(
        table(120, 2, label="other"), "other", start=before, epochs=1, lora={"targets": ["text"], "merge": False}, **ASK
    )
    assert "learning whole: " in capsys.readouterr().err
    learning = {n.split(".")[0] for n, p in tuned.network.named_parameters() if p.requires_grad}
    assert learning == {"encoders", "heads"}
    assert all(n.startswith("encoders.") for n in tuned.edits[0]["layers"])


def test_resumed_bit_for_bit(before, tmp_path):
    rows = tmp_path / "rows.csv"

    pyarrow.csv.write_csv(table(40, 4), rows)
    ask = {"start": before, "epochs": 2, "lora": {"rank": 2, "dropout": 0.2, "merge": False}, "checkpoint_seconds": 0}
    whole = luban.train(str(rows), "y", out=tmp_path / "m", **ask, **ASK)
    assert "rank: 2" in (tmp_path / "m" / "checkpoints" / "recipe.yaml").read_text()
    again = luban.train(str(rows), "y", out=tmp_path / "m", resume=True, **ask, **ASK)
    assert again.edits == whole.edits and all(torch.equal(w, weights(whole)[n]) for n, w in weights(again).items())


# -- refused ---------------------------------------------------------------------------------------------------------
def test_refused_in_words(before):
    rows = table(40, 5)
    with pytest.raises(RequestError, match="--from"):
        luban.train(rows, "y", lora={"rank": 2}, epochs=1, **ASK)
    with pytest.raises(RequestError, match="Did you mean 'text'"):
        luban.train(rows, "y", start=before, lora={"targets": ["txt"]}, epochs=1, **ASK)
    with pytest.raises(Unsupported, match="layers"):
        luban.train(rows, "y", start=before, lora={"targets": ["a"]}, epochs=1, **ASK)
    with pytest.raises(RequestError, match="same size and model"):
        luban.train(rows, "y", start=before, model={"text": "bag"}, size="base", lora={"rank": 2}, epochs=1, **ASK)
    for wrong, word in (({"rnk": 2}, "rank"), ({"rank": 0}, ">= 1"), ({"dropout": 1.5}, "dropout"), (8, "object")):
        with pytest.raises((RecipeError, RequestError), match=word):
            luban.train(rows, "y", start=before, lora=wrong, epochs=1, **ASK)


def test_an_unknown_setting_of_the_stage_is_not_dropped():
    with pytest.raises(RequestError, match="Did you mean 'epochs'"):
        luban.train(table(40, 5), "y", epocs=1, **ASK)


def test_a_module_of_ones_own():
    module = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    kept = {n: w.clone() for n, w in module.state_dict().items()}
    rows = compact.rows(80).select(["age", "income", "buys"])
    tuned = luban.train(rows, "buys", model=module, lora={"rank": 1, "merge": False}, epochs=1, evaluate=False)
    assert torch.equal(tuned.network.module[0].base.weight, kept["0.weight"])
