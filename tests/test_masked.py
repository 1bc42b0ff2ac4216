"""Hidden words: what is hidden, that it stays hidden, and that what was learned of it can be taken over."""

import pytest
import torch

import luban
from luban.bundle import build_network
from luban.columns.number import Number
from luban.columns.text import Text
from luban.data.sources import read
from luban.errors import Unsupported
from luban.nn.tokens import Batch
from luban.recipe import Recipe
from tests import tiny

TEXTS = ["the cat sat on the mat unbelievably", "a dog and a cat", "unbelievable dogs sat"] * 5


def masked(**settings):
    torch.manual_seed(0)
    column = Text("text", tokens="bpe", vocabulary=270, least=1).fit(TEXTS)
    plain = {
        "luban": 1,
        "inputs": {"text": "text"},
        "fusion": {"masked": settings},
        "model": {"text": {"bert": {"width": 16, "layers": 1}}},
    }
    return build_network(Recipe.of(plain).resolved(), {"text": column}), column


def batch(column, texts=TEXTS):
    x, mask = column.collate(column.encode_all(texts))
    return Batch({"text": (torch.as_tensor(x), torch.as_tensor(mask))}, {}, len(texts))


def test_the_share_that_is_hidden():
    net, column = masked(share=0.3)
    b = batch(column, TEXTS * 20)
    x, mask = b.inputs["text"]
    for mode in (True, False):
        hidden, shown = net.train(mode).fusion[0].hide(x, mask)
        assert not hidden[~mask].any() and torch.equal(shown[~hidden], x[~hidden])
        if mode:
            assert abs(float(hidden.sum() / mask.sum()) - 0.3) < 0.03
            what = shown[hidden]
            assert abs(float((what == 1).float().mean()) - 0.8) < 0.05
            assert 0.05 < float((what == x[hidden]).float().mean()) < 0.16


def test_compress_refuses_before_it_works():
    from luban.bundle import Bundle

    net, column = masked()
    plain = {"luban": 1, "inputs": {"text": "text"}, "fusion": "masked", "data": {"rows": "nowhere.csv"}}
    with pytest.raises(Unsupported, match="start"):
        Bundle(Recipe.of(plain).resolved(), {"text": column}, net).compress()


def test_whole_words_are_hidden_whole():
    net, column = masked(share=0.5, whole_words=True)
    b = batch(column)
    x, mask = b.inputs["text"]
    hidden, _ = net.train().fusion[0].hide(x, mask)
    begins = torch.tensor(column.begins())[x]
    inside = ~begins & mask
    inside[:, 0] = False
    before = torch.cat([hidden[:, :1], hidden[:, :-1]], 1)
    assert inside.any() and hidden.any() and torch.equal(hidden[inside], before[inside])
    apart, _ = masked(share=0.5)[0].train().fusion[0].hide(x, mask)
    assert not torch.equal(apart[inside], torch.cat([apart[:, :1], apart[:, :-1]], 1)[inside]), (
        "control: pieces by themselves"
    )


def gap(net, column):
    """How far the loss moves when the tokens that are hidden (all of them replaced) were others: no state may tell."""
    net.eval()
    x, mask = batch(column).inputs["text"]
    hidden, _ = net.fusion[0].hide(x, mask)
    encoder = net.encoders[0]
    other = torch.where(hidden, (x + 3) % column.size, x)
    a, b = (
        encoder(encoder.embed(torch.where(hidden, torch.ones_like(i) if net.sound else i, i), mask), mask).x
        for i in (x, other)
    )
    return float((a - b).abs().max())


def test_what_is_hidden_cannot_be_read():
    net, column = masked(share=0.3)
    with torch.no_grad():
        net.sound = True
        assert gap(net, column) == 0
        net.sound = False
        assert gap(net, column) > 1e-3, "control: shown as they are"


def test_the_same_question_each_time_when_judged():
    net, column = masked()
    net.eval()
    b = batch(column)
    with torch.no_grad():
        assert torch.equal(net(b)["text"], net(b)["text"])
        net.train()
        assert not torch.equal(net(b)["text"], net(b)["text"])


def test_a_model_begins_with_what_was_read(tmp_path):
    rows = tiny.csv(tmp_path / "rows.csv", 80)
    reading = {
        "luban": 1, "data": {"rows": str(rows)}, "inputs": {"review": "text"}, "fusion": "masked", "frame": {"pack": {"length": 16}},
        "model": {"review": {"bert": {"width": 16, "layers": 1}}}, "size": "nano", "stages": [{"train": {"epochs": 1}}],
    }  # fmt: skip
    before = luban.train(reading, out=tmp_path / "reader")
    assert before.recipe.task() == "fill-mask"
    judged = before.reports["evaluate"].numbers["outputs"]["review"]
    assert judged["kind"] == "hidden" and judged["baselines"]["unigram"]["perplexity"]["value"] > 1
    answering = {
        "luban": 1, "data": {"rows": str(rows)}, "inputs": {"text": "text"}, "outputs": {"back": "category"},
        "model": {"text": {"bert": {"width": 16, "layers": 1}}}, "size": "nano",
        "stages": [{"start": {"source": str(tmp_path / "reader"), "names": {"text": "review"}}}, {"train": {"epochs": 1, "rate": 1e-9}}],
    }  # fmt: skip
    table = read(str(rows)).table.rename_columns(["shop", "price", "text", "back"])
    answering["data"] = {}
    after = luban.train(answering | {"data": {"rows": _csv(tmp_path, table)}})
    assert after.columns["text"].state["tokenizer"] == before.columns["review"].state["tokenizer"]
    mine, theirs = after.network.encoders[0].state_dict(), before.network.encoders[0].state_dict()
    assert all(torch.allclose(mine[k], theirs[k], atol=1e-5) for k in theirs)


def _csv(folder, table):
    import pyarrow.csv

    pyarrow.csv.write_csv(table, folder / "renamed.csv")
    return str(folder / "renamed.csv")


def test_only_texts():
    plain = {"luban": 1, "inputs": {"n": "number"}, "fusion": "masked"}
    with pytest.raises(Unsupported):
        build_network(Recipe.of(plain).resolved(), {"n": Number("n").fit([1, 2])})
