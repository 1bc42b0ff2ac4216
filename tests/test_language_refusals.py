"""What cannot be asked of a model of texts is one sentence before work starts; what is left unread is told."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

import luban
from luban.bundle import Bundle, build_network
from luban.cli import main
from luban.columns import infer, word_vectors
from luban.columns.base import make
from luban.data.prepare import data_of
from luban.data.quality import check
from luban.data.sources import read
from luban.errors import DataError, RecipeError, RequestError, Unsupported
from luban.evaluation.pairs import difference
from luban.predictions import predict_file
from luban.searching import embedded
from tests import tiny

TEXTS = ["the cat sat on the mat", "a dog and a cat", "dogs sat on mats", "the cat and the dog"] * 4
SMALL = {"llama": {"width": 16, "layers": 1, "heads": 2}}


def made(inputs, outputs, rows, **more):
    """An untrained Bundle whose columns are fitted on the rows."""
    recipe = luban.Recipe.of({"luban": 1, "inputs": inputs, "outputs": outputs, "size": "nano", **more}).resolved()
    parts = {**recipe.inputs, **recipe.outputs}
    columns = {n: make(n, p.type, dict(p.settings)).fit(rows[n]) for n, p in parts.items()}
    torch.manual_seed(0)
    return Bundle(recipe, columns, build_network(recipe, columns).eval())


def raw(kind):
    encoder = {"bag": {"embedding": 8}} if kind == "skip_gram" else {"bert": {"width": 16, "layers": 1, "heads": 2}}
    text = {"text": {"tokens": "words", "least": 1}}
    return made({"text": text}, {}, {"text": TEXTS}, fusion=kind, model={"text": encoder})


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    return tiny.writer(tmp_path_factory.mktemp("refusals"))


@pytest.fixture(scope="module")
def answerer():
    """A text in, a text out."""
    text = {"text": {"vocabulary": 280, "length": 8, "least": 1}}
    rows = {"said": TEXTS, "echo": TEXTS}
    encoder = {"transformer": {"width": 16, "layers": 1, "heads": 2}}
    return made({"said": text}, {"echo": text}, rows, model={"said": encoder, "echo": SMALL})


# -- models that answer nothing --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["masked", "skip_gram"])
def test_a_model_of_raw_text_says_what_it_is_for(kind, tmp_path):
    bundle = raw(kind)
    with pytest.raises(Unsupported, match="start"):
        bundle.predict([{"text": "a cat"}])
    with pytest.raises(Unsupported, match="answers nothing"):
        bundle.export("onnx", out=tmp_path / "m.onnx", data=[{"text": "a cat"}])
    with pytest.raises(Unsupported, match="word2vec" if kind == "skip_gram" else "match"):
        bundle.embed(["a cat"])


def test_word_vectors_as_integers_are_still_judged():
    small = raw("skip_gram").compress([{"text": t} for t in TEXTS], quantize="int8", resamples=10)
    assert small.reports["compress"].numbers["outputs"]["text"]["accuracy"]["difference"].value == pytest.approx(
        0, abs=0.1
    )


def test_a_model_without_vectors_says_so(writer, tmp_path):
    bundle = Bundle.load(writer)
    for values in (["good"], []):
        with pytest.raises(Unsupported, match="not vectors"):
            bundle.embed(values)
    place = tmp_path / "e.npy"
    with pytest.raises(Unsupported, match="not vectors"):
        embedded(bundle, str(tiny.csv(tmp_path / "rows.csv")), None, place)
    matching = made({"en": "text"}, {}, {"en": TEXTS}, fusion="match")
    assert matching.embed(["a cat"]).shape[0] == 1
    with pytest.raises(DataError, match="no rows"):
        matching.embed([])
    for query in ("", " \n"):
        with pytest.raises(RequestError, match="empty"):
            matching.index([{"en": t} for t in TEXTS]).search(query)


# -- a column that is not there --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("verb", ["evaluate", "audit", "compress"])
def test_a_column_that_is_absent_is_named(writer, verb):
    with pytest.raises(DataError, match=r"review.*other"):
        getattr(Bundle.load(writer), verb)([{"other": "a"}] * 4)


# -- two models side by side -----------------------------------------------------------------------------------------------
def test_two_models_that_write_are_compared_row_by_row(writer, answerer):
    bundle = Bundle.load(writer)
    rows = [{"review": "good bad odd"}, {"review": "odd odd"}, {"review": "bad"}] * 3
    same = difference(bundle, bundle, data_of(rows, bundle.columns), "review")
    assert (same["metric"], same["value"], same["verdict"]) == ("bits_per_byte", 0.0, "cannot_tell")
    worse = Bundle.load(writer)
    with torch.no_grad():
        for p in worse.network.parameters():
            p.mul_(30)
    assert difference(bundle, worse, data_of(rows, bundle.columns), "review")["verdict"] == "worse"
    rows = [{"said": t, "echo": t} for t in TEXTS[:4]]
    assert difference(answerer, answerer, data_of(rows, answerer.columns), "echo")["metric"] == "chrf"


@pytest.mark.parametrize("kind", ["masked", "skip_gram"])
def test_two_models_of_raw_text_are_compared(kind):
    bundle = raw(kind)
    found = difference(bundle, bundle, data_of([{"text": t} for t in TEXTS], bundle.columns), "text")
    assert (found["metric"], found["value"], found["verdict"]) == ("accuracy", 0.0, "cannot_tell")


def test_two_models_of_labels_are_compared_row_by_row():
    rows = {"text": TEXTS, "about": [["cat"], ["cat", "dog"], [], ["dog"]] * 4}
    bundle = made({"text": "text"}, {"about": "labels"}, rows)
    plain = [dict(zip(rows, cells)) for cells in zip(*rows.values())]
    found = difference(bundle, bundle, data_of(plain, bundle.columns), "about")
    assert (found["metric"], found["value"], found["rows"]) == ("f1_micro", 0.0, len(TEXTS))


# -- how much is written ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 10**40}, "seed"),
        ({"n": 0}, "n"),
        ({"tokens": -1}, "tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": "word"}, "stop"),
    ],
    ids=str,
)
def test_what_cannot_be_written_is_refused(writer, asked, place):
    with pytest.raises(RequestError) as e:
        Bundle.load(writer).generate("good", **{"tokens": 2, **asked})
    assert e.value.problems[0].place == place


def test_a_seed_that_is_none_is_refused_before_the_model_is_loaded(writer, capsys, monkeypatch):
    monkeypatch.setattr("luban.cli._load", lambda *_: pytest.fail("loaded"))
    assert main(["generate", str(writer), "--prompt", "x", "--tokens", "4", "--seed", "-1"]) == 2
    assert "seed" in capsys.readouterr().err


# -- what is not read ------------------------------------------------------------------------------------------------------
def test_rows_that_are_cut_are_counted_once(answerer, tmp_path, capsys):
    rows = [{"said": "cat"}, {"said": "the cat " * 50}, {"said": None}, {"said": "a dog " * 50}]
    predict_file(answerer, rows, tmp_path / "out.jsonl", chunk=2)
    said = capsys.readouterr().err
    assert said.count("2 of 4 rows") == 1
    predict_file(answerer, rows[:1], tmp_path / "out.jsonl")
    assert "rows hold more" not in capsys.readouterr().err


def test_an_input_that_is_cut_is_told(answerer):
    from luban.generation.asking import generate

    (cut,), (whole,) = generate(answerer, ["the cat " * 50, "cat"], tokens=2)
    assert cut.lost > 0 and whole.lost == 0


def test_rows_that_cannot_be_read_are_not_no_rows():
    bundle = made({"text": "text"}, {"kind": "category"}, {"text": TEXTS, "kind": ["a", "b"] * 8})
    with pytest.raises(DataError, match="can be read"):
        bundle.explain({"text": "\x00 good"})


# -- lists of labels -------------------------------------------------------------------------------------------------------
def test_lists_that_are_no_tags_are_labels(tmp_path):
    rows = [
        {"t": "blue cat sun", "y": ["sun"]},
        {"t": "green cat", "y": []},
        {"t": "red dog", "y": ["red", "dog", "b"]},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(r) for r in rows * 12))
    found = read(tmp_path / "rows.jsonl")
    assert infer.infer(found, target="y")["y"].type == "labels"
    assert isinstance(check(found, {"t": "text", "y": "labels"}, target="y"), list)
    asked = ["--target", "y", "--set", "train.steps=1", "--out", str(tmp_path / "m")]
    assert main(["train", str(tmp_path / "rows.jsonl"), *asked]) == 0
    assert Bundle.load(tmp_path / "m").recipe.outputs["y"].type == "labels"
    with pytest.raises(DataError, match="not a category"):
        make("y", "category", {}).fit(found.table["y"])
    tagged = pa.table({"t": ["blue cat", "red dog sun"] * 4, "y": [["O", "B"], ["O", "B", "O"]] * 4})
    assert infer.infer(read(tagged), target="y")["y"].type == "tags"


def test_tags_of_nothing_say_that_they_need_a_text():
    for inputs, count in (({"a": "number"}, 0), ({"a": "text", "b": "text"}, 2)):
        with pytest.raises(RecipeError, match=f"has {count} that would do"):
            luban.Recipe.of({"luban": 1, "inputs": inputs, "outputs": {"y": "tags"}})


# -- files of word vectors -------------------------------------------------------------------------------------------------
def test_rows_of_word_vectors_that_are_too_short_are_said(tmp_path, capsys):
    file = tmp_path / "v.txt"
    for text, place in (("good 1 2 3\nbad 1 2\n", ":2"), ("2 300\ngood 1 2\n", ":2"), ("good\n", ":1")):
        file.write_text(text)
        with pytest.raises(DataError, match=f"{file}{place}"):
            word_vectors.read(str(file), ["", "?", "good", "bad"], "text")
    file.write_text("5 2\ngood 1 2\na b 3 4\n\n")
    table, hits = word_vectors.read(str(file), ["", "?", "good", "a b"], "text")
    assert hits == 2 and np.array_equal(table[3], [3, 4])
    assert "5 vectors" in capsys.readouterr().err


# -- explanations of what is not all read ------------------------------------------------------------------------------------
def test_an_explanation_says_what_it_leaves_out(tmp_path, capsys):
    place, rows = (
        tmp_path / "rows.jsonl",
        [{"said": "the cat sat on the mat " * 4}, {"said": "half \ud800"}, {"said": "a dog"}],
    )
    place.write_text("".join(json.dumps(r) + "\n" for r in rows))
    made(
        {"said": {"text": {"length": 8, "least": 1}}}, {"size": "number"}, {"said": TEXTS, "size": [1.0, 2.0] * 8}
    ).save(tmp_path / "m")
    assert main(["explain", str(tmp_path / "m"), str(place), "--method", "lime", "--out", str(tmp_path / "e")]) == 0
    told = capsys.readouterr().err
    assert "left out: 1. The first, line 2: Half of a Unicode surrogate pair." in told
    assert "'said': 1 of 2 rows hold more than the 8 tokens that are read at once" in told
    assert "answer to their beginning" in (tmp_path / "e" / "explain.html").read_text()
