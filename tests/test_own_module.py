"""One's own torch.nn.Module (or Keras model) goes through the whole life that a built-in network has."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import luban
from luban.errors import BundleError, RequestError, Unsupported
from tests import asking, tagging

QUICK = {"epochs": 6, "rate": 0.01, "size": "nano"}


def table(count=300, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, count))
    c = rng.choice(["u", "v"], count)
    words = [" ".join(rng.choice(["good", "bad", "film", "plot", "slow"], 4)) for _ in range(count)]
    y = np.where(a + (c == "u") - b + np.array([w.count("good") for w in words]) > 1, "yes", "no")
    return pa.table({"a": a, "b": b, "c": c, "text": words, "y": y, "z": 3 * a - b})


class Numbers(nn.Module):
    """(B, F) -> log-odds (B, 1)."""

    def __init__(self, classes=1):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, classes))

    def forward(self, x):
        return self.layers(x)


class Mixed(nn.Module):
    """Two numbers, a category and a text, with masks; a class and a number."""

    def __init__(self, size=64):
        super().__init__()
        self.category, self.words = nn.Embedding(4, 4), nn.Embedding(size, 8)
        self.hidden = nn.Linear(14, 16)
        self.y, self.z = nn.Linear(16, 2), nn.Linear(16, 1)

    def forward(self, a, b, c, text, masks):
        words = self.words(text) * masks[3][..., None]
        h = torch.cat([torch.stack([a, b], 1), self.category(c), words.sum(1)], 1)
        h = torch.relu(self.hidden(h))
        return {"z": self.z(h)[:, 0], "y": self.y(h)}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    torch.manual_seed(0)
    rows = table()
    folder = tmp_path_factory.mktemp("own")
    bundle = luban.train(
        rows, ["y", "z"], types={"text": "text", "y": "category", "z": "number"}, model=Mixed(), out=folder, **QUICK
    )
    return bundle, folder, rows


def test_trained_and_judged(mixed):
    bundle, _, _ = mixed
    found = bundle.reports["evaluate"].numbers["outputs"]
    assert found["y"]["metrics"]["accuracy"]["value"] > 0.75 and found["z"]["metrics"]["r2"]["value"] > 0.5
    assert bundle.recipe.fusion.type == "own" and not set(bundle.inputs) & set(bundle.recipe.model)
    assert bundle.network.separable


def test_saved_and_loaded_with_the_module(mixed):
    bundle, folder, rows = mixed
    with pytest.raises(BundleError) as e:
        luban.load(folder)
    assert e.value.id == "own.no_module"
    loaded = luban.load(folder, module=Mixed())
    assert loaded.predict(rows) == bundle.predict(rows)
    assert loaded.predict([{"a": 1.0, "b": None, "c": "w", "text": ""}])[0]["y"] in ("yes", "no")
    with pytest.raises(BundleError):
        luban.load(folder, module=Mixed(size=65))


@pytest.mark.parametrize("method", ["integrated-gradients", "lime", "kernel-shap"])
def test_explained(mixed, method):
    bundle, _, rows = mixed
    report = bundle.explain(rows, rows=3, method=method, samples=64)
    assert report.numbers["method"] == method


class Reader(nn.Module):
    """Ids of one text, or of a question and a text -> numbers at each position of the last."""

    def __init__(self, size, answers):
        super().__init__()
        self.words, self.ahead = nn.Embedding(200, 16), nn.Embedding(200, 16)
        self.read = nn.GRU(16, 16, batch_first=True, bidirectional=True)
        self.out = nn.Linear(32 + 16 * (size - 1), answers)

    def forward(self, *texts):
        h = self.read(self.words(texts[-1]))[0]
        if len(texts) > 1:
            h = torch.cat([h, self.ahead(texts[0]).mean(1, keepdim=True).expand(-1, h.shape[1], -1)], 2)
        return self.out(h)


class One(Reader):
    def __init__(self, answers):
        super().__init__(1, answers)

    def forward(self, text):
        return super().forward(text)


class Two(Reader):
    def __init__(self):
        super().__init__(2, 2)

    def forward(self, question, text):
        return super().forward(question, text)


def test_a_tag_for_each_word(tmp_path):
    rows, new = tagging.rows(160), {"sentence": "then mr smith sat in rome"}
    torch.manual_seed(0)
    settings = {"types": {"sentence": "text", "ner": "tags"}, "size": "nano", "epochs": 12, "rate": 0.01}
    bundle = luban.train(rows, "ner", model=One(5), out=tmp_path / "m", **settings)
    assert bundle.reports["evaluate"].numbers["outputs"]["ner"]["metrics"]["f1"]["value"] > 0.8
    (row,) = bundle.predict([new])
    assert row["ner"] == ["O", "O", "B-PER", "O", "O", "B-LOC"]
    assert luban.load(tmp_path / "m", module=One(5)).predict([new]) == [row]
    assert bundle.explain([new], rows=1, target="LOC").numbers["rows"][0]["explained"] == "LOC: rome"
    with pytest.raises(RequestError, match="each position of 'sentence'"):
        luban.train(rows, "ner", model=One(4), evaluate=False, **settings | {"epochs": 1})


def test_an_answer_that_stands_in_a_text(tmp_path):
    plain = asking.recipe()
    plain = {k: plain[k] for k in ("luban", "size", "inputs", "outputs")}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, asking.rows(300))))
    torch.manual_seed(0)
    bundle = luban.train(plain | {"data": {"rows": str(tmp_path / "rows.jsonl")}}, model=Two(), epochs=12, rate=0.01)
    assert bundle.reports["evaluate"].numbers["outputs"]["answer"]["metrics"]["f1"]["value"] > 0.4


def test_integrated_gradients_add_up(mixed):
    """Weights of numbers and of the embedded ids together are the difference in score."""
    from luban.columns.examples import encode_values, take
    from luban.stages.explain import explain_rows

    bundle, _, rows = mixed
    raw = rows.select(list(bundle.inputs)).slice(0, 4).to_pylist()
    encoded, _ = encode_values(bundle.columns, bundle.inputs, raw)
    items = {n: take(e, np.arange(4)) for n, e in encoded.inputs.items()}
    values = [{n: v[i] for n, v in items.items()} for i in range(4)]
    found = explain_rows(
        bundle.network, bundle.columns, raw, values, range(4), method="integrated-gradients", output="y", steps=200
    )
    total = [w.sum() for w in found.weights]
    np.testing.assert_allclose(
        total, found.score - found.baseline, atol=0.02 * np.abs(found.score - found.baseline).max()
    )
    assert any(np.abs(e.split(w)["text"]).max() > 0.01 for e, w in zip(found.examples, found.weights)), (
        "words speak, too"
    )


class Bare(nn.Module):
    """Looks ids up by hand, so that nothing can be hooked."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(64, 1))

    def forward(self, text):
        return self.table[text].sum((1, 2))


def test_a_module_without_an_embedding_is_explained_otherwise():
    rows = table().select(["text", "y"])
    bundle = luban.train(rows, "y", types={"text": "text"}, model=Bare(), evaluate=False, **QUICK)
    with pytest.raises(Unsupported) as e:
        bundle.explain(rows, rows=2)
    assert "lime" in str(e.value) and "kernel-shap" in str(e.value)
    bundle.explain(rows, rows=2, method="lime", samples=32)
    with pytest.raises(Unsupported):
        bundle.explain(rows, rows=2, method="grad-cam")


def test_compressed_and_exported(mixed, tmp_path):
    bundle, _, rows = mixed
    small = bundle.compress(rows, quantize="int8", explain=0)
    assert small.bytes() < bundle.bytes()
    small.save(tmp_path / "small")
    assert luban.load(tmp_path / "small", module=Mixed()).predict(rows) == small.predict(rows)
    pytest.importorskip("onnxruntime")
    path = bundle.export(out=tmp_path / "own.onnx", data=rows)
    from luban.engines import OnnxEngine
    from luban.predictions import predict_file

    assert predict_file(OnnxEngine(str(path)), rows, tmp_path / "answers.csv") == (300, 0)


@pytest.mark.parametrize("classes", [1, 2])
def test_two_classes_as_log_odds_or_as_two_logits(classes):
    """The same scores, losses and answers, whichever way a module gives them."""
    rows = table().select(["a", "b", "y"])
    torch.manual_seed(0)
    module = Numbers(classes)
    bundle = luban.train(rows, "y", model=module, **QUICK)
    assert bundle.reports["evaluate"].numbers["outputs"]["y"]["metrics"]["accuracy"]["value"] > 0.6
    batch = bundle.network
    x = torch.zeros(3, 2)
    o = batch._shaped(module(x), 3)["y"]
    assert o.shape == (3, 1)
    if classes == 2:
        torch.testing.assert_close(o[:, 0].sigmoid(), module(x).softmax(1)[:, 1])


@pytest.mark.parametrize("wrong", [nn.Linear(2, 5), nn.Identity()])
def test_wrong_outputs_are_refused(wrong):
    rows = table(60).select(["a", "b", "y"])
    if isinstance(wrong, nn.Identity):
        wrong = type("Two", (nn.Module,), {"forward": lambda self, x: (x, x)})()
        wrong.w = nn.Parameter(torch.zeros(1))
    with pytest.raises(RequestError) as e:
        luban.train(rows, "y", model=wrong, **QUICK)
    assert e.value.id in ("own.shape", "own.outputs")


def test_pixels_are_standardised_floats():
    from luban.data.sources import read

    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 10)

        def forward(self, x):
            assert x.dtype == torch.float32 and x.ndim == 4
            return self.out(torch.relu(self.conv(x)).mean((2, 3)))

    rows = read("digits").take(np.arange(300))
    bundle = luban.train(rows, "label", model=Pixels(), evaluate=False, epochs=1, size="nano")
    assert len(bundle.explain(rows, rows=1).numbers["rows"]) == 1


def test_resumed(tmp_path):
    from luban import pipeline

    lines = [",".join(map(str, r.values())) for r in table(80).select(["a", "b", "y"]).to_pylist()]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,y", *lines, ""]))
    torch.manual_seed(0)
    first = luban.train(
        str(tmp_path / "rows.csv"),
        "y",
        model=Numbers(),
        evaluate=False,
        out=tmp_path / "out",
        checkpoint_seconds=0,
        **QUICK,
    )
    again = pipeline.resume(tmp_path / "out", module=Numbers())
    assert all(
        torch.equal(a, b) for a, b in zip(first.network.state_dict().values(), again.network.state_dict().values())
    )


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # its own way with numpy 2
def test_a_keras_model(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("another backend is loaded")
    rows = table().select(["a", "b", "y"])

    def make():
        keras.utils.clear_session()  # names of its weights count up else
        keras.utils.set_random_seed(0)
        layers = keras.layers
        return keras.Sequential([layers.Input((2,)), layers.Dense(16, "relu"), layers.Dropout(0.1), layers.Dense(2)])

    bundle = luban.train(rows, "y", model=make(), out=tmp_path / "out", **QUICK)
    assert bundle.reports["evaluate"].numbers["outputs"]["y"]["metrics"]["accuracy"]["value"] > 0.6
    assert luban.load(tmp_path / "out", module=make()).predict(rows) == bundle.predict(rows)
    assert bundle.explain(rows, rows=2).numbers["rows"]


def test_audited(mixed):
    bundle, _, rows = mixed
    pytest.importorskip("fairlearn")
    found = bundle.audit(rows, sensitive="c")
    report = getattr(found, "reports", {}).get("audit", found)
    assert report.kind == "audit" and report.numbers
