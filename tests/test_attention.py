"""Where a network looks: the weights are those that made its states, nobody looks ahead or at padding, and the page says what they are."""

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from luban.bundle import Bundle
from luban.cli import main
from luban.errors import Unsupported
from luban.huggingface import imported
from luban.nn import looking as room
from luban.nn.looking import looking
from luban.nn.tokens import Batch
from tests import checkpoints, tiny, writing
from tests.explaining import Rows, bundle, mixed
from tests.test_pretrained_writing import translator

WORDS = ["the cat sat", "a dog", "the mat and the hat", "cats"] * 6
SOURCES = {"en": ["cats and dogs sat on the mat", "a dog"]}


class Calls(TorchFunctionMode):
    """Every call of the fused attention: its arguments and what came out."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is F.scaled_dot_product_attention:
            self.made.append((args, kwargs or {}, out))
        return out


def rebuilt(looks, calls):
    """The largest difference between what the weights make of the values and what the network made."""
    assert looks and len(looks) == len(calls)
    gaps = []
    for look, (args, _, out) in zip(looks, calls):
        v = args[2].repeat_interleave(look.weights.shape[1] // args[2].shape[1], 1)
        gaps.append(float((look.weights @ v - out).abs().max()))
        assert (look.weights.sum(-1) - 1).abs().max() < 1e-5
    return max(gaps)


@torch.no_grad()
def watched(net, batch):
    with Calls() as calls, looking(net) as looks:
        net(batch)
    return looks, calls.made


NETWORKS = {
    "decoder": lambda: writing.network("gpt"),
    "grouped": lambda: writing.network("llama", kv_heads=2),
    "both": lambda: writing.network("transformer", ("en",)),
    "prefix": lambda: writing.network("llama", ("en",), before=True),
}


def batch_of(net):
    return writing.batch(net, ["the cat sat on the mat", "a"], SOURCES if net.groups else None)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_weights_are_what_the_values_were_multiplied_with(name, monkeypatch):
    net = NETWORKS[name]()
    batch = batch_of(net)
    looks, calls = watched(net, batch)
    assert rebuilt(looks, calls) < 1e-5
    own = [look for look in looks if look.part == ("text",) and look.kind == "self"]
    assert len(own) == 2 and all(not look.weights.triu(1).any() for look in own)  # nobody looks ahead
    # planted fault: weights that forget the mask
    true = room.weights
    monkeypatch.setattr(room, "weights", lambda q, k, v, *_, **more: true(q, k, v, **(more | {"is_causal": False})))
    assert rebuilt(*watched(net, batch)) > 1e-2


def test_padding_is_not_looked_at_and_both_halves_are_told_apart():
    net = writing.network("transformer", ("en",))
    looks, _ = watched(net, batch_of(net))
    kinds = {(look.part, look.kind, look.queries, look.keys) for look in looks}
    assert kinds == {
        (("en",), "self", ("en",), ("en",)), (("text",), "self", ("text",), ("text",)), (("text",), "memory", ("text",), ("en",)),
    }  # fmt: skip
    real = batch_of(net).inputs["en"][1]
    for look in looks:
        if look.keys == ("en",):
            assert not (look.weights * ~real[:, None, None]).any() and look.weights[1][..., real[1]].sum() > 0


def test_watching_changes_nothing_and_leaves_nothing_behind():
    net = writing.network("llama", ("en",))
    batch = batch_of(net)
    with torch.no_grad():
        before = net(batch)["text"]
        with looking(net):
            assert torch.equal(net(batch)["text"], before)
        assert torch.equal(net(batch)["text"], before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@torch.no_grad()
def test_an_lstm_that_looks_back():
    net = writing.network("lstm", ("en",))
    batch = batch_of(net)
    with looking(net) as looks:
        o = net(batch)["text"]
    (look,) = [x for x in looks if x.kind == "memory"]
    head, memory = net.writer, net.remembered(batch)
    state = head.start(memory, 2)
    h = head._states(state, head.embedding(head.shifted(batch.targets["text"][0])))[0]
    own = lambda w: F.linear(torch.tanh(head.merge(torch.cat([h, w @ memory.x], -1))), head.embedding.weight, head.bias)  # noqa: E731
    assert (own(look.weights[:, 0]) - o).abs().max() < 1e-5
    assert (own(look.weights[:, 0].roll(1, -1)) - o).abs().max() > 1e-3  # planted fault
    assert look.keys == ("en",) and not (look.weights[1, 0] * ~memory.mask[1]).any()


@pytest.mark.parametrize("family", checkpoints.FOREIGN)
@torch.no_grad()
def test_a_network_of_the_library_tells_what_it_would_have_used(family):
    found = imported(checkpoints.decoder(family))
    net, column = found.network, found.columns["text"]
    x, mask = map(torch.as_tensor, column.collate([column.encode("the film was bad"), column.encode("one")]))
    batch = Batch({}, {"text": (x, mask)}, 2)
    with Calls() as calls:
        plain = net(batch)["text"]
    with looking(net) as looks:
        assert (net(batch)["text"] - plain).abs().max() < 1e-4
    assert {look.queries for look in looks} == {("text",)} and all(not x.weights.triu(1).any() for x in looks)
    assert len(looks) == len(calls.made) and net.writer.model.config._attn_implementation == "sdpa"
    for look, (args, more, _) in zip(looks, calls.made):
        assert (look.weights - room.weights(*args, **more)).abs().max() < 1e-5
    with Calls() as calls:
        net(batch)
    assert calls.made  # as fast as before


def test_a_pretrained_encoder_tells_too():
    name = checkpoints.folder("bert")
    data = pa.table({"said": WORDS, "grade": ["a", "b", "c"] * 8})
    made = bundle(
        data, {"said": "text"}, {"grade": "category"}, model={"said": {"pretrained": {"name": name}}}, wide=1.0
    )
    report = made.explain([{"said": "the cat sat"}], rows=1, attention=True, steps=8)
    (look,) = [x for x in report.numbers["rows"][0]["attention"] if x["kind"] == "self"]
    assert look["rows"] == look["columns"] and look["rows"][0] == "[CLS]" and look["rows"][-1] == "[SEP]"


@pytest.mark.parametrize("family", ["t5", "marian"])
def test_both_halves_of_one_of_the_library(family):
    report = translator(family).explain([{"said": "one two 3"}], rows=1, attention=True, method="lime", samples=16)
    kinds = {(x["part"], x["kind"]): x for x in report.numbers["rows"][0]["attention"]}
    assert set(kinds) == {("said", "self"), ("answer", "self"), ("answer", "memory")}
    assert kinds["answer", "memory"]["columns"] == kinds["said", "self"]["rows"]
    whole = [x for x in kinds.values() if x["of"][1] == len(x["columns"])]
    assert len(whole) > 1 and all(abs(np.sum(x["layers"][0][0], -1) - 1).max() < 1e-3 for x in whole)


# -- the stage ---------------------------------------------------------------------------------------------------------


def classifier(encoder, words=WORDS, **more):
    data = pa.table({"said": words, "grade": (["a", "b", "c"] * len(words))[: len(words)]})
    return bundle(data, {"said": {"text": {"least": 1}}}, {"grade": "category"}, model={"said": encoder}, **more), Rows(
        data
    )


def test_rows_and_columns_are_the_tokens():
    made, _ = classifier({"bert": {"width": 16, "layers": 2, "heads": 2}})
    report = made.explain([{"said": "the cat sat"}, {"said": "cats"}], rows=2, attention=True, steps=8)
    first, second = (r["attention"][0] for r in report.numbers["rows"])
    assert first["rows"] == first["columns"] == ["the", "cat", "sat"] and first["part"] == "said"
    assert np.shape(first["layers"]) == (2, 2, 3, 3) and second["rows"] == ["cats"]
    assert "not why it answered" in report.to_html() and report.to_html().count("<figcaption>head ") == 8
    plain = made.explain([{"said": "the cat sat"}], rows=1, steps=8)
    assert "attention" not in plain.numbers["rows"][0]
    assert np.allclose(plain.numbers["rows"][0]["weights"]["said"], report.numbers["rows"][0]["weights"]["said"])


def test_a_pooling_and_a_single_layer_are_shown(tmp_path):
    for encoder in (
        {"attention": {"kind": "additive"}},
        {"attention": {"kind": "self"}},
        {"bilstm": {"pooling": "attention"}},
    ):
        made, _ = classifier(encoder)
        (look,) = made.explain([{"said": "the cat sat"}], rows=1, attention=True, steps=8).numbers["rows"][0][
            "attention"
        ]
        assert look["columns"] == ["the", "cat", "sat"] and abs(np.sum(look["layers"][0][0][0]) - 1) < 1e-4


def test_a_text_that_is_written_and_its_source():
    net = writing.network("transformer", ("en",))
    made = Bundle(writing.recipe("transformer", ("en",)), writing.columns(("en",)), net)
    report = made.explain([{"en": "a dog and a cat"}], rows=1, attention=True, steps=8)
    kinds = {(x["part"], x["kind"]): x for x in report.numbers["rows"][0]["attention"]}
    assert set(kinds) == {("en", "self"), ("text", "self"), ("text", "memory")}
    memory, own = kinds["text", "memory"], kinds["text", "self"]
    assert memory["columns"] == kinds["en", "self"]["rows"] and memory["rows"] == own["rows"] == own["columns"]
    tokens = report.numbers["rows"][0]["by_token"]["tokens"]
    assert own["rows"][1:] == made.columns["text"].positions(np.array(_ids(made, own["rows"])))[1:] or len(tokens) == 1


def _ids(made, names):
    known = made.columns["text"]
    every = known.positions(np.arange(known.size))
    return [every.index(n) for n in names]


def test_a_prompt_and_what_follows(tmp_path):
    import luban

    made = luban.load(tiny.writer(tmp_path))
    (look,) = made.explain([{"review": "good bad odd"}], rows=1, tokens=4, attention=True, steps=8).numbers["rows"][0][
        "attention"
    ]
    assert [t.strip() for t in look["rows"][1:4]] == ["good", "bad", "odd"] and 6 <= len(look["rows"]) <= 8
    assert not np.triu(np.array(look["layers"]), 1).any()


def test_what_is_long_is_cut_and_said():
    made, _ = classifier(
        {"transformer": {"width": 16, "layers": 1, "heads": 2}}, [" ".join(["cat", "dog", "mat"] * 30)] * 6
    )
    report = made.explain([{"said": " ".join(["cat", "dog"] * 40)}], rows=1, attention=True, steps=4)
    look = report.numbers["rows"][0]["attention"][0]
    assert len(look["rows"]) == 48 and look["of"] == [80, 80] and "The first 48 of 80" in report.to_markdown()


def test_many_rows_and_many_heads_are_bounded(monkeypatch):
    from luban.stages.explain import attention

    monkeypatch.setattr(attention, "MOST", 5)
    made, _ = classifier({"transformer": {"width": 16, "layers": 4, "heads": 2}})
    report = made.explain([{"said": "the cat sat"}] * 5, rows=5, attention=True, steps=4)
    looks = [r.get("attention") for r in report.numbers["rows"]]
    assert [x is not None for x in looks] == [True] * 3 + [False] * 2
    assert looks[0][0]["layers_left_out"] == 2 and "2 of 4 layers" in report.to_markdown()


def test_without_attention_it_is_refused():
    made, _ = mixed()
    with pytest.raises(Unsupported) as e:
        made.explain([{"n0": 1.0, "n1": 2.0, "n2": 3.0, "kind": "red"}], rows=1, attention=True)
    assert e.value.id == "explain.no_attention"


def test_on_the_command_line(tmp_path, capsys):
    folder = tiny.writer(tmp_path)
    (tmp_path / "r.csv").write_text("review\ngood bad odd\n")
    args = ["explain", str(folder), str(tmp_path / "r.csv"), "--rows", "1", "--attention", "--out", str(tmp_path / "w")]
    assert main(args) == 0
    assert "Where the network looked" in (tmp_path / "w" / "explain.html").read_text()
