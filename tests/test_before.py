"""A network that reads texts in the sequence of the one that it writes (`model: {source: {joint: text}}`)."""

import json

import numpy as np
import pytest
import torch

import luban
from luban.columns import joining
from luban.errors import ExportMismatch, RecipeError
from luban.huggingface import imported
from luban.nn import before
from luban.nn.heads import text as heads
from luban.nn.tokens import Tokens
from luban.recipe import Recipe
from tests.test_writing import SOURCE, leak, padding_gap, stepwise_gap
from tests.writing import TEXTS, batch, network

HEADS = [("llama", {}), ("llama", {"kv_heads": 2}), ("gpt", {}), ("transformer", {"order": "pre"})]
every = pytest.mark.parametrize(("head", "settings"), HEADS, ids=str)


def made(head="llama", settings=None, inputs=("source",)):
    return network(head, inputs, before=True, **(settings or {}))


# -- the arithmetic ------------------------------------------------------------------------------------------------------
def test_real_positions_close_up_in_their_order():
    random = np.random.default_rng(0)
    mask = torch.as_tensor(random.random((30, 9)) < 0.5)
    x = torch.arange(9.0).expand(30, 9)[..., None]
    found, real = before.closed_up(x, mask)
    for i in range(30):
        assert found[i, real[i], 0].tolist() == mask[i].nonzero()[:, 0].tolist()
        assert int(real[i].sum()) == int(mask[i].sum()) and not (real[i].long().diff() > 0).any()


def test_it_is_one_sequence():
    """The same logits as of a language model that is given [input, begin, text] as one text."""
    net = made()
    b = batch(net, TEXTS[:1], {"source": TEXTS[1:2]})
    (x, _), (y, mask) = b.inputs["source"], b.targets["text"]
    ids = torch.cat([x, y.new_full((1, 1), net.writer.column.begin), y[:, :-1]], 1)
    alone = net.writer.continued(net.writer.embedding(ids), torch.ones_like(ids, dtype=torch.bool))
    assert torch.allclose(net(b)["text"], alone[:, x.shape[1] :], atol=1e-5) and bool(mask.all())


@every
def test_token_by_token_as_at_once(head, settings):
    net = made(head, settings)
    assert stepwise_gap(net, SOURCE) < 2e-5
    with torch.inference_mode():  # the quick way
        assert stepwise_gap(net, SOURCE) < 2e-5


@every
def test_nothing_leaks(head, settings):
    net = made(head, settings)
    assert leak(net, SOURCE) < 1e-5
    assert padding_gap(net) < 1e-5


def test_several_inputs_one_behind_another():
    net = made(inputs=("first", "second"))
    two = {"first": [TEXTS[0], TEXTS[3]], "second": [TEXTS[3], TEXTS[2]]}
    together = net(batch(net, TEXTS[:2], two))["text"][0]
    alone = net(batch(net, TEXTS[:1], {n: t[:1] for n, t in two.items()}))["text"][0]
    assert torch.allclose(together[: len(alone)], alone, atol=1e-5)
    assert stepwise_gap(net, {"first": TEXTS[:4], "second": TEXTS[2:6]}) < 2e-5


def test_what_is_read_says_what_is_written():
    net = made()
    one, other = (net(batch(net, TEXTS[:1], {"source": [t]}))["text"] for t in TEXTS[:2])
    assert float((one - other).detach().abs().max()) > 1e-2


@pytest.mark.parametrize("fault", ["gaps", "places", "prefix"])
def test_control(fault, monkeypatch):
    net = made()
    if fault == "gaps":  # padding stays between what is read and what is written
        monkeypatch.setattr(before, "closed_up", lambda x, mask: (x, mask))
        assert padding_gap(net) > 1e-3
    elif fault == "places":  # the text is looked for where the longest input ends
        real = before.behind
        wrong = lambda t, h, m: (*real(t, h, m)[:2], t.x.shape[1] + torch.arange(h.shape[1]).expand(len(h), -1))  # noqa: E731
        monkeypatch.setattr(heads, "behind", wrong)
        assert stepwise_gap(net, SOURCE) > 1e-3
    else:  # nothing was read before writing begins
        nothing = lambda x, mask: (x, torch.zeros_like(mask))  # noqa: E731
        monkeypatch.setattr(heads, "closed_up", nothing)
        assert stepwise_gap(net, SOURCE) > 1e-3


def test_an_empty_input_is_none():
    net = made()
    b = batch(net, TEXTS[:2], {"source": ["", TEXTS[0]]})
    assert b.inputs["source"][1].sum(1)[0] == 0
    text = net.writer.embedding(b.targets["text"][0])
    tokens = Tokens(text[:, :0], b.targets["text"][1][:, :0])
    whole = net.writer.logits(tokens, b.targets["text"][0], b.targets["text"][1])
    head_alone = net.writer.continued(text, b.targets["text"][1])
    assert torch.allclose(whole, head_alone, atol=1e-5)
    assert net(b)["text"].isfinite().all()


# -- the whole life ------------------------------------------------------------------------------------------------------
WORDS = [f"w{i}" for i in range(12)]
SMALL = {"llama": {"width": 48, "layers": 2, "heads": 4}}


def rows(count, seed=0):
    """The second and the third word, the other way round."""
    random = np.random.default_rng(seed)
    found = [random.choice(WORDS, random.integers(3, 6)).tolist() for _ in range(count)]
    return [{"long": " ".join(w), "short": f"{w[2]} {w[1]}"} for w in found]


def asked(path, **changes):
    plain = {
        "luban": 1, "data": {"rows": str(path)}, "size": "nano",
        "inputs": {"long": {"text": {"length": 24}}}, "outputs": {"short": {"text": {"length": 12}}},
        "model": {"long": {"joint": "short"}, "short": SMALL},
    }  # fmt: skip
    return plain | changes


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("before") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows(1200))))
    return path


@pytest.fixture(scope="module")
def model(file):
    return luban.train(asked(file), seed=0, epochs=12, batch=32, evaluate=False)


def right(model):
    fresh = rows(40, seed=1)
    return sum(a["short"] == r["short"] for a, r in zip(model.predict(fresh), fresh)) / 40


def test_it_copies_out_of_what_it_reads(model):
    assert right(model) > 0.9
    long, short = model.columns["long"], model.columns["short"]
    assert long.state["tokenizer"] == short.state["tokenizer"] and long.length == 24 and short.length == 12
    assert not long.ends and short.ends and not list(model.network.encoders[0].parameters())
    assert model.recipe.task() == "text2text-generation"


def test_saved_explained_compressed(model, tmp_path):
    again = luban.load(model.save(tmp_path / "m"))
    assert again.predict(rows(4)) == model.predict(rows(4)) and "long: {joint: short}" in again.recipe.yaml()
    found = model.explain(rows(2), method="integrated-gradients").numbers
    assert set(found["columns"]) == {"long"} and found["columns"]["long"] > 0
    small = model.compress(quantize="int8")
    assert right(small) > 0.85 and luban.load(small.save(tmp_path / "s")).predict(rows(4)) == small.predict(rows(4))


def test_no_weight_is_there_twice(model):
    """A checkpoint holds all that `state_dict` does."""
    places = [t.data_ptr() for t in model.network.state_dict().values()]
    assert len(places) == len(set(places)) > 10


def test_evaluated_as_every_text(model, file):
    from luban.data.prepare import prepare

    found = model.evaluate(prepare(model.recipe), baselines=False).numbers["outputs"]["short"]["metrics"]
    assert found["exact_match"]["value"] > 0.9


def begun(file, tmp_path, length, head):
    """A language model, and what begins as it and hardly learns."""
    texts = tmp_path / "t.jsonl"
    texts.write_text("\n".join(json.dumps({"text": r["long"]}) for r in rows(300)))
    plain = {
        "luban": 1,
        "outputs": {"text": {"text": {"length": length}}},
        "frame": {"pack": {"length": 32}},
        "size": "nano",
    }
    reader = luban.train(plain | {"data": {"rows": str(texts)}, "model": {"text": head}}, epochs=1)
    reader.save(tmp_path / "reader")
    start = {"start": {"source": str(tmp_path / "reader"), "names": {"short": "text"}}}
    stages, model = [start, {"train": {"epochs": 1, "rate": 1e-9}}], {"long": {"joint": "short"}, "short": head}
    return reader, luban.run(asked(file, stages=stages, model=model), out=tmp_path / "out")


def test_a_language_model_begins_it(file, tmp_path):
    """Its tokens and weights are taken over, and how long the texts are is said by the recipe."""
    reader, bundle = begun(file, tmp_path, 40, SMALL)
    assert {"long", "short"} <= set(bundle.history[0]["weights"])
    mine, theirs = bundle.network.writer.state_dict(), reader.network.writer.state_dict()
    assert all(torch.allclose(mine[k], theirs[k], atol=1e-4) for k in theirs)
    assert bundle.columns["long"].length == 24 and bundle.columns["short"].length == 12
    assert bundle.columns["long"].state["tokenizer"] == reader.columns["text"].state["tokenizer"]


def test_learned_positions_that_are_more_than_needed_are_cut(file, tmp_path):
    reader, bundle = begun(file, tmp_path, 60, {"gpt": {"width": 32, "layers": 1, "heads": 2}})
    assert "short" in bundle.history[0]["weights"]
    mine = bundle.network.writer.layers.positions
    assert len(mine) == 24 + 12 + 1 < 61
    assert torch.allclose(mine, reader.network.writer.layers.positions[:37], atol=1e-4)


@pytest.mark.parametrize("fault", [False, True])
def test_it_leaves_as_a_language_model(model, tmp_path, fault, monkeypatch):
    """`transformers` writes the same answers to a text; with the planted fault the token that begins them stands before it."""
    transformers = pytest.importorskip("transformers")
    if fault:
        from luban.stages.export import to_huggingface

        real = to_huggingface._begun
        monkeypatch.setattr(to_huggingface, "_begun", lambda token, i, behind: real(token, i, False))
        with pytest.raises(ExportMismatch):
            model.export("huggingface", out=tmp_path / "hf")
        return
    folder = model.export("huggingface", out=tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for row in rows(5, seed=2):
        ids = tokenizer(row["long"], return_tensors="pt")["input_ids"]
        whole = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        text = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
        assert text == model.predict([row])[0]["short"]


@pytest.mark.parametrize("fault", [False, True])
def test_it_comes_back_as_it_left(model, tmp_path, fault):
    """Exported and imported it writes the same answers; with the planted fault what begins them is forgotten."""
    pytest.importorskip("transformers")
    again = imported(str(model.export("huggingface", out=tmp_path / "hf")))
    again = luban.load(again.save(tmp_path / "m"))
    if fault:
        again.columns["text"].state["behind"] = False
    asked = [r["long"] for r in rows(5, seed=2)]
    found = [again.generate(t, temperature=0, tokens=8) for t in asked]
    assert (found == [a["short"] for a in model.predict([{"long": t} for t in asked])]) != fault
    if not fault:
        again.export("huggingface", out=tmp_path / "more")


def test_no_text_of_a_strange_column(model):
    long = joining.before(model.columns["short"], model.columns["long"])
    assert np.array_equal(long.encode("w1 w2"), model.columns["long"].encode("w1 w2"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"long": {"joint": "shrt"}}}, ["shrt", "short", "model.long.joint"]),
        ({"model": {"long": {"joint": {"of": "short", "overlap": 4}}}}, ["overlap", "short"]),
        ({"model": {"long": {"joint": "short"}, "short": "lstm"}}, ["short", "Transformer"]),
        ({"inputs": {"long": "text", "more": "text"}}, ["more", "all inputs"]),
        ({"inputs": {"long": "image"}}, ["long", "Transformer"]),
        ({"model": {"long": {"share": "short"}}}, ["short", "model.long.share"]),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    plain = asked("rows.jsonl") | changes
    with pytest.raises(RecipeError) as e:
        Recipe.of(plain)
    assert all(w in str(e.value) for w in words)
