"""Inputs of any kind in front of the text that a network writes (`fusion: prefix`), and a language model that begins it."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import luban
from luban.data.prepare import prepare
from luban.errors import RecipeError, Unsupported
from luban.nn.heads import text as heads
from luban.nn.prefix import Prefix, cells, coarser
from luban.nn.tokens import Batch, Encoder, Span, Tokens
from luban.recipe import Recipe
from tests import checkpoints
from tests.test_captions import SEEN, SPLIT, rows, table
from tests.test_writing import SOURCE, leak, padding_gap, stepwise_gap
from tests.writing import TEXTS, batch, network

HEADS = [("llama", {}), ("llama", {"kv_heads": 2}), ("gpt", {}), ("transformer", {"order": "pre"})]
every = pytest.mark.parametrize(("head", "settings"), HEADS, ids=str)


def made(head="llama", settings=None, inputs=("source",)):
    return network(head, inputs, fusion="prefix", **(settings or {}))


# -- the arithmetic ------------------------------------------------------------------------------------------------------
def test_it_is_one_sequence():
    """The same logits as of a language model that is given what is projected, then [begin, text]."""
    net = made()
    b = batch(net, TEXTS[:1], {"source": TEXTS[1:2]})
    y, mask = b.targets["text"]
    h = torch.cat([net.remembered(b).x, net.writer.embedding(net.writer.shifted(y))], 1)
    alone = net.writer.continued(h, torch.ones(h.shape[:2], dtype=torch.bool))
    assert torch.allclose(net(b)["text"], alone[:, -y.shape[1] :], atol=1e-5) and bool(mask.all())


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


def test_what_is_read_says_what_is_written():
    net = made()
    one, other = (net(batch(net, TEXTS[:1], {"source": [t]}))["text"] for t in TEXTS[:2])
    assert float((one - other).detach().abs().max()) > 1e-2


@pytest.mark.parametrize("fault", ["future", "places", "prefix"])
def test_control(fault, monkeypatch):
    net = made()
    if fault == "future":  # a text may look ahead where something stands before it
        for layer in net.writer.layers.layers:
            layer.causal = False
        assert leak(net, SOURCE) > 1e-3
    elif fault == "places":  # the text is looked for where the longest input ends
        real = heads.behind
        wrong = lambda t, h, m: (*real(t, h, m)[:2], t.x.shape[1] + torch.arange(h.shape[1]).expand(len(h), -1))  # noqa: E731
        monkeypatch.setattr(heads, "behind", wrong)
        assert padding_gap(net) > 1e-3
    else:  # nothing was read before writing begins
        monkeypatch.setattr(heads, "closed_up", lambda x, mask: (x, torch.zeros_like(mask)))
        assert stepwise_gap(net, SOURCE) > 1e-3


def states(count=1, height=6, width=6, summary=0, size=4):
    span = Span("image", summary, summary + height * width, (height, width))
    x = torch.randn(count, span.stop, size)
    return Tokens(x, torch.ones(x.shape[:2], dtype=torch.bool), (span,))


@pytest.mark.parametrize(("height", "width", "grid"), [(6, 6, 3), (7, 5, 3), (7, 2, 3), (4, 4, 1)])
def test_places_are_averaged_into_cells(height, width, grid):
    t = states(2, height, width)
    found = coarser(t, grid)
    whole = t.x.transpose(1, 2).unflatten(2, (height, width))
    down, across = min(height, grid), min(width, grid)
    wanted = F.adaptive_avg_pool2d(whole, (down, across)).flatten(2).transpose(1, 2)
    assert torch.allclose(found.x, wanted, atol=1e-6) and found.spans[0].grid == (down, across)
    assert torch.allclose(cells(height, grid, t.x).sum(1), torch.ones(down))


def test_what_is_no_place_stays():
    t = states(summary=1)
    found = coarser(t, 2)
    assert found.x.shape[1] == found.mask.shape[1] == 5 and torch.equal(found.x[:, 0], t.x[:, 0])
    assert found.spans[0][1:] == (1, 5, (2, 2))
    text = t._replace(spans=(Span("text", 0, 37, (37,)),))
    assert coarser(text, 2) is text and coarser(t, 6) is t


def test_an_image_that_is_missing_is_no_position():
    t = states()._replace(mask=torch.zeros(1, 36, dtype=torch.bool))
    assert not coarser(t, 3).mask.any()


def test_what_stands_in_the_writers_embedding_is_not_projected():
    asked = Encoder()
    asked.size, asked.bare = 8, True
    seen = Encoder()
    seen.size = 5
    fusion = Prefix([seen, asked], 8)
    words = Tokens(torch.randn(1, 3, 8), torch.ones(1, 3, dtype=torch.bool), (Span("text", 0, 3, (3,)),))
    found = fusion([states(height=1, width=2, size=5), words])
    assert torch.equal(found.x[:, 2:], words.x) and found.x.shape == (1, 5, 8)
    assert [(s.start, s.stop) for s in found.spans] == [(0, 2), (2, 5)]


# -- a language model begins it ------------------------------------------------------------------------------------------
LIGHT = {"image": {"cnn": {"channels": [8, 16], "dense": [], "dropout": 0}}}


def begun(folder, *stages, **changes):
    """A recipe of captions whose writer is a small Llama in the layout of `transformers`."""
    start = {"start": {"source": checkpoints.decoder("llama-groups"), "names": {"caption": "text"}}}
    return {
        "luban": 1,
        "data": {"rows": table(folder, ["caption"], 60)} | SPLIT,
        "inputs": SEEN,
        "outputs": {"caption": {"text": {"length": 30}}},
        "fusion": {"prefix": {"grid": 2}},
        "model": LIGHT,
        "stages": [start, *stages],
    } | changes


@torch.no_grad()
def gap(model, folder):
    """The largest difference of the logits of two captions of different lengths from those that `transformers` gives for the same embeddings."""
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    net, fresh = model.network.eval(), rows(2, seed=3)
    fresh[1]["caption"] = "one two"
    pairs = {n: c.collate([c.encode(r[n]) for r in fresh]) for n, c in model.columns.items()}
    pairs = {n: tuple(map(torch.as_tensor, pair)) for n, pair in pairs.items()}
    b = Batch({"image": pairs["image"]}, {"caption": pairs["caption"]}, 2)
    mine, read, (x, mask) = net(b)["caption"], net.remembered(b), pairs["caption"]
    worst = 0.0
    for i, row in enumerate(mask):
        count = int(row.sum())
        ids = net.writer.shifted(x[i : i + 1, :count])
        h = torch.cat([read.x[i : i + 1], theirs.get_input_embeddings()(ids)], 1)
        expected = theirs(inputs_embeds=h).logits[0, -count:]
        worst = max(worst, float((mine[i, :count] - expected).abs().max()))
    assert mine.abs().max() > 0.5  # there is something to get wrong
    return worst


@pytest.mark.parametrize("fault", [False, True])
def test_a_checkpoint_reads_a_picture_as_transformers_does(tmp_path, fault, monkeypatch):
    """With the planted fault the writer's weights are those of nobody: `start` passes them over."""
    pytest.importorskip("transformers")
    if fault:
        monkeypatch.setattr("luban.nn.transfer._copied", lambda new, old: False)
    model = started(tmp_path)
    assert (gap(model, checkpoints.decoder("llama-groups")) < 1e-4) != fault
    assert ("caption" in model.history[0]["weights"]) != fault and "fusion" not in model.history[0]["weights"]


def started(folder):
    from luban.bundle import Bundle
    from luban.stages.start import start

    recipe = Recipe.of(begun(folder)).resolved()
    return start(Bundle(recipe), prepare(recipe), **recipe.stage("start").settings)


def test_beside_lora_what_is_new_learns_whole(tmp_path, capsys):
    train = {
        "train": {"epochs": 1, "batch": 16, "rate": 0.01, "lora": {"rank": 2, "merge": False}, "freeze": ["image"]}
    }
    model = luban.run(begun(tmp_path, train), out=tmp_path / "out")
    before = started(tmp_path)
    now, then = model.network.state_dict(), before.network.state_dict()
    assert not torch.equal(now["fusion.projections.0.2.weight"], then["fusion.projections.0.2.weight"])
    assert any("heads.0" in n and n.endswith(".a.weight") for n in now)
    assert torch.equal(now["heads.0.embedding.weight"], then["heads.0.embedding.weight"])
    assert "lora" in [e["edit"] for e in model.edits]
    again = luban.load(model.save(tmp_path / "m"))
    asked = [{"image": r["image"]} for r in rows(3, seed=4)]
    assert again.predict(asked) == model.predict(asked)


def test_a_writer_that_has_read_pictures_begins_another(tmp_path):
    first = luban.run(begun(tmp_path, {"train": {"epochs": 1, "rate": 0.001}}), out=tmp_path / "first")
    recipe = begun(tmp_path) | {
        "stages": [{"start": {"source": str(tmp_path / "first")}}, {"train": {"epochs": 1, "rate": 1e-9}}]
    }
    second = luban.run(recipe, out=tmp_path / "second")
    assert {"image", "fusion", "caption"} <= set(second.history[0]["weights"])
    a, b = first.network.state_dict(), second.network.state_dict()
    assert all(torch.allclose(a[k], b[k], atol=1e-3) for k in a if a[k].is_floating_point())


# -- the whole life ------------------------------------------------------------------------------------------------------
@cache
def asked() -> Path:
    """A model that answers questions about a picture in words: both stand before the answer."""
    folder = Path(mkdtemp(prefix="luban-prefix-"))
    recipe = {
        "luban": 1,
        "data": {"rows": table(folder, ["question", "answer"])} | SPLIT,
        "inputs": SEEN | {"question": "text"},
        "outputs": {"answer": {"text": {"vocabulary": 60}}},
        "fusion": {"prefix": {"grid": 2}},
        "model": {
            "image": {"cnn": {"channels": [16, 32], "dense": [], "dropout": 0}},
            "question": {"joint": "answer"},
            "answer": {"llama": {"width": 32, "layers": 2, "heads": 2, "dropout": 0}},
        },
        "stages": [{"train": {"epochs": 8, "batch": 32, "optimizer": "muon", "rate": 0.02}}],
    }
    luban.train(recipe, out=folder / "model", evaluate=False)
    return folder / "model"


def right(model):
    fresh = rows(60, seed=1)
    answers = model.predict([{k: r[k] for k in ("image", "question")} for r in fresh])
    return np.mean([a["answer"] == r["answer"] for a, r in zip(answers, fresh)])


def test_a_picture_and_a_question_are_read_before_the_answer():
    model = luban.load(asked())
    assert right(model) > 0.9 and model.recipe.task() == "image-text-to-text"
    assert model.columns["question"].state["tokenizer"] == model.columns["answer"].state["tokenizer"]


def test_explained_and_compressed(tmp_path):
    model, given = luban.load(asked()), rows(2, seed=2)
    given = [{k: r[k] for k in ("image", "question", "answer")} for r in given]
    found = model.explain(given, method="integrated-gradients", steps=8, attention=True, out=str(tmp_path)).numbers
    assert set(found["columns"]) == {"image", "question"} and min(found["columns"].values()) > 0
    assert right(model.compress(quantize="int8")) > 0.85


def test_each_word_shows_where_it_was_read_off(tmp_path):
    given = [{k: r[k] for k in ("image", "question", "answer")} for r in rows(2, seed=2)]
    report = luban.load(asked()).explain(given, method="grad-cam", rows=2, out=str(tmp_path))
    assert len(report.numbers["rows"]) == 2 and 'class="strip"' in (tmp_path / "explain.html").read_text("utf-8")


def test_it_does_not_leave_as_a_language_model(tmp_path):
    with pytest.raises(Unsupported):
        luban.load(asked()).export("huggingface", out=tmp_path / "hf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outputs": {"caption": "category"}}, ["prefix", "text"]),
        ({"inputs": {}, "model": {}}, ["prefix", "input"]),
        ({"model": LIGHT | {"caption": "lstm"}}, ["lstm", "prefix", "llama"]),
        ({"fusion": {"prefix": {"grd": 3}}}, ["grd", "grid"]),
        ({"fusion": {"prefix": {"grid": -1}}}, ["grid", "-1"]),
        (
            {"fusion": "memory", "inputs": SEEN | {"more": "text"}, "model": {"more": {"joint": "caption"}}},
            ["image", "fusion: prefix"],
        ),
    ],
)
def test_what_cannot_be_is_refused(changes, words, tmp_path):
    with pytest.raises(RecipeError) as e:
        Recipe.of(begun(tmp_path) | changes)
    assert all(w in str(e.value) for w in words)
