"""Pretrained encoders: the same answers as `transformers`, plain text stays plain, a Bundle that needs nobody, the whole life."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import luban
from luban.columns.base import from_json
from luban.columns.text import Text
from luban.errors import BundleError, DataError, LubanError, RecipeError, RequestError, Unsupported
from luban.nn.encoders.pretrained import Pretrained, built
from luban.nn.parts import parts
from luban.recipe import Recipe
from luban.training.shares import shares, usual
from tests import checkpoints

SAID = [
    "one two three four five six seven eight nine ten",
    "the film was good",
    "",
    "bad",
    "the film was bad, not good",
]


def rows(count=120):
    chosen = random.Random(0)
    words = [
        (chosen.choice(["good", "bad", "not good"]), chosen.choice(["three", "four five", "six"])) for _ in range(count)
    ]
    return [
        {"text": f"the film was {a} {b} {i}", "kind": "pos" if a == "good" else "neg"} for i, (a, b) in enumerate(words)
    ]


def trained(name, **settings):
    asked = {"size": "nano", "epochs": 1, "seed": 0, "evaluate": False} | settings
    model = asked.pop("model", {"text": {"pretrained": {"name": name}}})
    return luban.train(rows(), "kind", types={"text": "text"}, model=model, **asked)


@pytest.fixture(scope="module")
def model():
    return trained(checkpoints.folder("bert"))


def encoded(folder, texts=SAID):
    column = Text("t", tokens_of=folder).fit(checkpoints.TEXTS)
    x, mask = column.collate([column.encode(t) for t in texts])
    return column, torch.as_tensor(x), torch.as_tensor(mask)


# -- the same as transformers --------------------------------------------------------------------------------------------
def gap(folder, fault=False):
    """The largest difference between Luban's encoder on a padded batch and `transformers` on each text alone."""
    import transformers

    column, x, mask = encoded(folder)
    mine = Pretrained([column], name=folder).eval()
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    theirs = theirs.get_encoder() if theirs.config.is_encoder_decoder else theirs
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
    worst = 0.0
    with torch.no_grad():
        seen = torch.ones_like(mask) if fault else mask
        out = mine(mine.embed(x, mask), seen).x
        for i, text in enumerate(SAID):
            ids = torch.tensor([tokenizer(text, truncation=False)["input_ids"]])
            assert ids[0].tolist() == x[i][mask[i]].tolist()
            expected = theirs(input_ids=ids)[0][0]
            worst = max(worst, float((out[i, : len(expected)] - expected).abs().max()))
    return worst


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_answers_are_those_of_transformers_whatever_the_padding(family):
    assert gap(checkpoints.folder(family)) <= 1e-4
    assert gap(checkpoints.folder(family), fault=True) > 1e-2  # control: padding that is attended to shows


@pytest.mark.slow
def test_real_weights_answer_as_in_transformers():
    from luban.data.models import found

    folder = str(found("all-MiniLM-L6-v2"))
    assert gap(folder) <= 1e-4 < gap(folder, fault=True)


# -- what a user types is plain text ----------------------------------------------------------------------------------------
TYPED = {"bert": "good [SEP] bad [MASK] [PAD]", "roberta": "good </s> bad <mask><pad>", "t5": "good </s> bad <pad>"}


@pytest.mark.parametrize("family", TYPED)
def test_control_tokens_that_a_user_types_are_plain_text(family):
    folder = checkpoints.folder(family)
    column, _, _ = encoded(folder)
    plain = json.loads(Path(f"{folder}/tokenizer.json").read_text())
    control = {t["id"] for t in plain["added_tokens"] if "unk" not in t["content"].lower()}
    around = [*column.state["before"], *column.state["after"]]
    inside = [i for i in column.encode(TYPED[family]).tolist() if i in control]
    assert inside == around
    from tokenizers import Tokenizer

    usual_way = Tokenizer.from_file(f"{folder}/tokenizer.json")
    usual_way.no_truncation()
    assert sum(i in control for i in usual_way.encode(TYPED[family]).ids) > len(
        around
    )  # control: usually they are taken


def test_a_long_text_keeps_its_control_tokens_and_is_cut_aloud(capsys):
    folder = checkpoints.folder("bert")
    long = " ".join(["one two three"] * 100)
    _, x, mask = encoded(folder, [long])
    assert mask.sum() == 104 and x[0, 0] == 2 and x[0, -1] == 3
    ends = Text("t", tokens_of=folder, keep="end", length=8).fit([long]).encode(long).tolist()
    assert len(ends) == 8 and [ends[0], ends[-1]] == [2, 3] and ends[1:-1] == x[0, -7:-1].tolist()
    luban.train(
        [{"text": f"{i} {long}", "kind": "ab"[i % 2]} for i in range(60)], "kind", types={"text": "text"}, size="nano", epochs=1,
        model={"text": {"pretrained": {"name": folder}}}, evaluate=False,
    )  # fmt: skip
    assert "102 positions" in capsys.readouterr().err


def test_segments_are_words_and_control_tokens_belong_to_none():
    column, _, _ = encoded(checkpoints.folder("bert"))
    x, found = column.encode("the film was good"), column.segments("the film was good")
    assert found.names == ["the", "film", "was", "good"] and len(found.index) == len(x)
    assert found.index[0] == found.index[-1] == -1
    empty = column.ablate(x, found.index, np.zeros(4, bool))
    assert empty[0] == 2 and empty[-1] == 3 and set(empty[1:-1].tolist()) == {column.state["hide"]} == {4}


def test_hiding_words_while_training_spares_control_tokens():
    column, x, mask = encoded(checkpoints.folder("bert"))
    column = from_json(column.to_json() | {"settings": column.settings() | {"drop": 1.0}})
    hidden, _ = column.augment(x.numpy(), mask.numpy(), np.random.default_rng(0))
    assert set(hidden[mask.numpy()].tolist()) == {2, 3, 4}


# -- a Bundle needs nobody -----------------------------------------------------------------------------------------------
def test_a_saved_model_needs_neither_checkpoint_nor_hub(tmp_path):
    folder = checkpoints.make("distilbert", tmp_path / "given")
    model = trained(str(folder), out=tmp_path / "model")
    before = model.predict(rows(8))
    shutil.rmtree(folder)
    again = luban.load(tmp_path / "model")
    assert again.predict(rows(8)) == before
    entry = json.loads((tmp_path / "model/columns.json").read_text())[0]["state"]
    assert entry["config"]["model_type"] == "distilbert" and entry["tokenizer"] == {"file": "tokenizer.json"}


def test_training_begins_with_the_weights_of_the_checkpoint():
    folder = checkpoints.folder("bert")
    column, _, _ = encoded(folder)
    fresh = Pretrained([column], name=folder)
    from safetensors.torch import load_file

    known = load_file(f"{folder}/model.safetensors")["bert.encoder.layer.1.output.dense.weight"]
    assert torch.equal(fresh.model.encoder.layer[1].output.dense.weight, known) and fresh.learned
    saved = Pretrained([from_json(column.to_json())], name=folder)
    assert not torch.equal(saved.model.encoder.layer[1].output.dense.weight, known) and not saved.learned


def test_resuming_ends_where_an_unbroken_training_does(tmp_path):
    from luban.pipeline import resume

    lines = [f"{r['text']},{r['kind']}\n" for r in rows()]
    (tmp_path / "rows.csv").write_text("text,kind\n" + "".join(lines))
    asked = {
        "types": {"text": "text"},
        "model": {"text": {"pretrained": {"name": checkpoints.folder("bert")}}},
        "size": "nano",
    }
    asked |= {"epochs": 2, "evaluate": False}
    whole = luban.train(tmp_path / "rows.csv", "kind", **asked)
    luban.train(tmp_path / "rows.csv", "kind", **asked, out=tmp_path / "m", checkpoint_seconds=0.0)
    for late in sorted((tmp_path / "m/checkpoints").glob("step-*"))[-1:]:
        shutil.rmtree(late)
    again = resume(tmp_path / "m")
    for a, b in zip(whole.network.state_dict().values(), again.network.state_dict().values()):
        assert torch.equal(a, b)


# -- what is refused -----------------------------------------------------------------------------------------------------
def spoiled(tmp_path, change):
    folder = checkpoints.make("bert", tmp_path / "spoiled")
    change(folder)
    with pytest.raises(LubanError) as e:
        trained(str(folder))
    assert isinstance(e.value, RequestError) and len(str(e.value).splitlines()) <= 3
    return str(e.value)


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(folder, name):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if name not in k}, folder / "model.safetensors", {"format": "pt"})


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n")


def code(folder):
    (folder / "theirs.py").write_text("open('ran', 'w')\nclass C: pass\n")
    rewrite(folder / "config.json", model_type="theirs", auto_map={"AutoConfig": "theirs.C", "AutoModel": "theirs.C"})


REFUSED = {
    "pickle": (pickled, ["pytorch_model.bin", "save_pretrained"]),
    "missing weights": (lambda f: without(f, "layer.1.output.dense.weight"), ["encoder.layer.1.output.dense.weight"]),
    "other shapes": (lambda f: rewrite(f / "config.json", intermediate_size=28), ["intermediate.dense.weight"]),
    "tokenizer too large": (lambda f: rewrite(f / "config.json", vocab_size=20), ["20", "tokens"]),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ["tokenizer.json", "AutoTokenizer"]),
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json"]),
    "half a config": (lambda f: (f / "config.json").write_text('{"model_type"'), ["config.json"]),
    "own code": (code, ["theirs"]),
    "no text": (lambda f: rewrite(f / "config.json", model_type="vit"), ["vit"]),
    "damaged weights": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 50), ["spoiled"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_checkpoint_that_does_not_fit_is_refused_in_a_sentence(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, words = REFUSED[what]
    said = spoiled(tmp_path, change)
    assert all(w in said for w in words), said
    assert not (tmp_path / "ran").exists()


def test_weights_of_no_part_are_told(capsys):
    trained(checkpoints.folder("bert"))
    assert "cls.predictions.bias" in capsys.readouterr().err


def test_a_name_that_is_nowhere_is_told_before_anything_is_read(tmp_path):
    wrong = {"model": {"text": {"pretrained": {"name": str(tmp_path / "all-MiniLM")}}}}
    plain = {"luban": 1, "data": {"rows": "none.csv"}, "inputs": {"text": "text"}, "outputs": {"kind": "category"}}
    with pytest.raises(RecipeError, match=r"model.text.pretrained.name.*all-MiniLM"):
        luban.train(plain | wrong)
    with pytest.raises(RecipeError, match="name"):
        Recipe.of(plain | {"model": {"text": "pretrained"}})
    with pytest.raises(DataError, match="never/heard"):  # HF_HUB_OFFLINE
        trained("never/heard")


def test_another_tokenizer_than_the_encoders_own_is_refused():
    with pytest.raises(RequestError, match="one checkpoint"):
        Pretrained([encoded(checkpoints.folder("bert"))[0]], name=checkpoints.folder("roberta"))
    with pytest.raises(DataError, match="vectors"):
        Text("t", tokens_of=checkpoints.folder("bert"), vectors="v.txt").fit(["a"])


def test_a_config_out_of_a_file_names_no_code(monkeypatch):
    config = encoded(checkpoints.folder("bert"))[0].state["config"]
    hostile = {
        "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel",
        "dtype": "float64",
        "use_kernels": True,
    }
    network = built(config | hostile | {"auto_map": {"AutoModel": "evil.X"}}, "x")
    assert network.config._attn_implementation == "sdpa" and network.dtype == torch.float32
    for wrong in (
        {"hidden_size": "x"},
        {"hidden_act": "os.system"},
        {"model_type": ["bert"]},
        {"num_hidden_layers": -1.5},
    ):
        with pytest.raises((BundleError, Unsupported, KeyError, TypeError, ValueError)):
            built(config | wrong, "x")


# -- how it learns ---------------------------------------------------------------------------------------------------------
def test_its_weights_learn_more_slowly_and_the_recipe_says_so(model):
    assert model.recipe.stage("train").settings["rates"] == {"text": Pretrained.share}
    assert usual(model.network, {"text": 0.5}) == {"text": 0.5}


def test_lower_layers_learn_more_slowly_with_layer_decay(model):
    factors = shares(model.network, {}, 0.5)
    layers = parts(model.network)["text"].model.encoder.layer
    low, high = (factors[id(layer.output.dense.weight)] for layer in layers)
    word = factors[id(parts(model.network)["text"].model.embeddings.word_embeddings.weight)]
    assert high == 1.0 and low == 0.5 and word < low


@pytest.mark.parametrize(("freeze", "learning"), [(1, {"encoder.layer.1"}), ("all", set())])
def test_frozen_layers_stay_as_they_are(freeze, learning):
    name = checkpoints.folder("bert")
    model = trained(name, model={"text": {"pretrained": {"name": name, "freeze": freeze}}})
    before = Pretrained([encoded(name)[0]], name=name).model.state_dict()
    after = parts(model.network)["text"].model.state_dict()
    changed = {".".join(k.split(".")[:3]) for k in before if not torch.equal(before[k], after[k])}
    assert changed == learning


def test_thin_layers_stand_beside_a_checkpoint_at_once():
    model = trained(checkpoints.folder("bert"), lora={"rank": 2, "merge": False})
    thin = [n for n, p in model.network.named_parameters() if n.endswith(("a.weight", "b.weight"))]
    assert len(thin) == 2 * 2 * 6 and model.history[-1]["trained_parameters"] < 0.5 * model.parameters()
    with pytest.raises(RequestError):
        trained("", model={"text": "cnn"}, lora={"rank": 2})  # control: nothing is known there


# -- the whole life ------------------------------------------------------------------------------------------------------
def test_explanations_add_up(model):
    report = model.explain(rows(3)[:2], method="integrated-gradients")
    assert all(r["gap_relative"] < 0.05 for r in report.numbers["rows"])


def test_int8_answers_alike_and_comes_back(model, tmp_path):
    small = model.compress(quantize="int8")
    small.save(tmp_path / "small")
    again = luban.load(tmp_path / "small")
    assert small.bytes() < 0.4 * model.bytes() and again.predict(rows(4)) == small.predict(rows(4))
    for a, b in zip(small.predict(rows(20)), model.predict(rows(20))):
        assert abs(a["kind.probability.pos"] - b["kind.probability.pos"]) < 0.05


def test_it_is_distilled_into_a_small_network_of_its_own(model, tmp_path):
    small = model.compress(rows(), distill="nano", epochs=1)
    assert small.recipe.model["text"].type == "transformer" and "rates" not in small.recipe.stage("train").settings
    small.save(tmp_path / "small")
    assert luban.load(tmp_path / "small").predict(rows(2)) == small.predict(rows(2))


def test_another_model_may_start_from_it(model):
    other = trained(checkpoints.folder("bert"), start=model)
    assert {"text", "kind"} <= set(other.history[0]["weights"])


@pytest.mark.slow
@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_the_exported_file_answers_without_torch_and_transformers(family, tmp_path):
    model = trained(checkpoints.folder(family))
    model.export(out=tmp_path / "m.onnx", data=rows(40))  # the export's own gate compares lengths and paddings
    ask = (
        "import sys, json; from luban.engines import OnnxEngine; from luban.columns.answering import answer\n"
        f"e = OnnxEngine({str(tmp_path / 'm.onnx')!r}); found = answer(e, [dict(text='the film was good')])\n"
        "print(json.dumps([found[0].plain(), 'torch' in sys.modules or 'transformers' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    plain, heavy = json.loads(done.stdout)
    want = model.predict([{"text": "the film was good"}])[0]
    assert not heavy and abs(plain["kind.probability.pos"] - want["kind.probability.pos"]) < 1e-4
