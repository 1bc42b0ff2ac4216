"""Vectors that are searched: contrastive training, an index in the Bundle, recall beside searches without a network."""

import json
import random

import numpy as np
import pytest
import torch

import luban
from luban.cli import main
from luban.columns import searching
from luban.errors import BundleError, RecipeError, RequestError, Unsupported
from luban.evaluation import retrieval
from luban.nn.tokens import Batch
from luban.recipe import Recipe
from tests import checkpoints, tiny

PAIRS = {"feline": "cat", "canine": "dog", "equine": "horse", "bovine": "cow", "avian": "hen", "aquatic": "fish"}
KINDS = ["small", "large", "old", "young", "quick", "slow", "white", "black", "grey"]
SHARED = {"question": {"bag": {"embedding": 24}}, "answer": {"share": "question"}}


def rows(count=500):
    """Question and answer share no word, so that no search by words can find one by the other."""
    chosen, found = random.Random(0), []
    other = {k: k[::-1] for k in KINDS}
    for _ in range(count):
        kind, more, animal = chosen.choice(KINDS), chosen.choice(KINDS), chosen.choice([*PAIRS])
        found.append((f"{kind} {more} {animal}", f"{other[kind]} {other[more]} {PAIRS[animal]}"))
    return found


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("match") / "rows.csv"
    path.write_text("question,answer\n" + "".join(f"{q},{a}\n" for q, a in rows()))
    return str(path)


def trained(csv, model=SHARED, **settings):
    recipe = {"luban": 1, "data": {"rows": csv}, "inputs": {"question": "text", "answer": "text"}, "size": "nano"}
    asked = {"epochs": 20, "rate": 0.01, "patience": 0, "evaluate": False} | settings
    return luban.train(recipe | {"model": model, "fusion": asked.pop("fusion", "match")}, **asked)


@pytest.fixture(scope="module")
def model(csv):
    return trained(csv)


@pytest.fixture(scope="module")
def indexed(model, csv):
    return model.index(csv)


# -- learning ------------------------------------------------------------------------------------------------------------
def test_what_belongs_together_is_found_where_no_word_is_the_same(model, csv):
    from luban.data.prepare import prepare

    found = model.evaluate(prepare(model.recipe)).numbers["outputs"]["match"]
    assert (
        found["metrics"]["recall_5"]["value"] > 0.8
        and found["metrics"]["mrr"]["low"] < found["metrics"]["mrr"]["value"]
    )
    assert set(found["baselines"]) == {"tfidf", "bm25"}
    assert max(b["mrr"]["value"] for b in found["baselines"].values()) < 0.1  # control: words alone find nothing


def test_the_loss_is_the_cross_entropy_of_the_own_partner():
    class Two(torch.nn.Module):
        temperature = 0.5

    from luban.nn.networks.matching import Matching

    network = Matching.__new__(Matching)
    torch.nn.Module.__init__(network)
    network.fusion = Two()
    u, v = (torch.nn.functional.normalize(torch.randn(4, 3), dim=1) for _ in range(2))
    ids = torch.arange(8).view(2, 4, 1)
    batch = Batch({"q": (ids[0], ids[0] >= 0), "a": (ids[1], ids[1] >= 0)}, {}, 4)
    each, weight = network.loss({"q": u, "a": v}, batch)["match"]
    logits = (u @ v.T / 0.5).double()
    want = [-(logits.log_softmax(1)[i, i] + logits.log_softmax(0)[i, i]) / 2 for i in range(4)]
    assert torch.allclose(each.double(), torch.stack(want), atol=1e-6) and weight.sum() == 4
    twice = Batch({"q": (ids[0], ids[0] >= 0), "a": (ids[1] * 0, ids[1] >= 0)}, {}, 4)
    assert network.loss({"q": u, "a": v}, twice)["match"][0].max() < 1e-6  # the same answer is no wrong one


def test_rows_of_a_batch_tell_each_other_apart(model):
    assert model.network.separable is False


# -- searching -----------------------------------------------------------------------------------------------------------
def test_vectors_have_length_one_and_do_not_depend_on_the_company(model):
    found = model.embed([q for q, _ in rows(7)], "question")
    assert found.shape == (7, 24) and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.abs(model.embed(rows(7)[3][0]) - found[3]).max() < 1e-6


def test_search_gives_the_nearest_rows(indexed, tmp_path):
    question, answer = rows()[0]
    found = indexed.search(question, top=3)
    assert answer in [r["answer"] for r in found] and [r["score"] for r in found] == sorted(
        (r["score"] for r in found), reverse=True
    )
    table = indexed.tables["index"]
    assert len(table) == len({a for _, a in rows()}) and len(indexed.search(question, top=10**6)) == len(table)
    brute = searching.matrix(table) @ indexed.embed(question)[0]
    assert np.isclose(found[0]["score"], brute.max())
    indexed.save(tmp_path / "m")
    again = luban.load(tmp_path / "m")
    assert again.search(question, top=3) == found
    indexed.save(tmp_path / "shared", share=True)
    with pytest.raises(RequestError, match="no index"):  # rows of people stay at home
        luban.load(tmp_path / "shared").search(question)


def test_an_index_of_other_weights_is_refused(indexed, csv):
    other = trained(csv, epochs=1)
    other.tables["index"] = indexed.tables["index"]
    with pytest.raises(RequestError, match="other weights"):
        other.search("old cat")


def test_a_hostile_index_is_refused(indexed, tmp_path):
    import pyarrow as pa

    place = indexed.save(tmp_path / "m")
    bad = luban.load(place)
    bad.tables["index"] = pa.table({"answer": ["x"]}).replace_schema_metadata(indexed.tables["index"].schema.metadata)
    with pytest.raises(BundleError):
        bad.search("old cat")


def test_the_verbs(csv, indexed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    indexed.save("m")
    assert (
        main(["index", "m", csv, "--out", "i"]) == 0
        and main(["search", "i", rows()[0][0], "--top", "2", "--json"]) == 0
    )
    said = capsys.readouterr().out
    assert len(json.loads(said[said.index("\n[") :])) == 2
    assert main(["embed", "m", csv, "--out", "v.npy"]) == 0
    assert np.load("v.npy").shape == (500, 24)
    assert main(["embed", "m", csv, "--input", "answer", "--out", "v.parquet"]) == 0
    assert main(["embed", "m", csv, "--out", "v.txt"]) == 2 and main(["search", "i", "x", "--top", "0"]) == 2
    assert main(["embed", "m", csv, "--input", "anser", "--out", "w.npy"]) == 2
    assert main(["predict", "m", csv, "--out", "p.csv"]) == 2 and main(["audit", "m", csv, "--out", "x"]) == 2
    assert "answer" in capsys.readouterr().err
    assert main(["explain", "m", csv, "--out", "x"]) == 0


def test_a_checkpoint_is_searched_with_as_it_is(csv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = checkpoints.folder("bert")
    assert main(["index", name, csv, "--input", "answer", "--out", "i"]) == 0
    assert len(luban.load("i").search("the film", top=4)) == 4
    assert main(["index", name, csv, "--out", "j"]) == 2 and "--input" in capsys.readouterr().err


def test_a_pretrained_encoder_learns_to_match(csv):
    name = checkpoints.folder("bert")
    found = trained(
        csv, SHARED | {"question": {"pretrained": {"name": name}}}, epochs=1, fusion={"match": {"width": 8}}
    )
    assert found.embed(["old cat"]).shape == (1, 8) and found.recipe.task() == "feature-extraction"


# -- the stages of a model that answers ------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["integrated-gradients", "lime", "kernel-shap"])
def test_the_words_of_both_texts_that_make_them_close(model, csv, method):
    asked = [dict(zip(("question", "answer"), r)) for r in rows(4)]
    found = model.explain(asked, method=method, rows=4).numbers
    assert set(found["columns"]) == {"question", "answer"}
    for row, pair in zip(found["rows"], asked):
        u, v = (model.embed(pair[n], n)[0] for n in pair)
        assert row["score"] == pytest.approx(float(u @ v), abs=1e-5)
        if method != "lime":
            assert sum(sum(w) for w in row["weights"].values()) == pytest.approx(
                row["score"] - row["baseline"], abs=0.02
            )
            wrong = sum(sum(w) for w in row["weights"].values()) - (row["baseline"] - row["score"])
            assert abs(wrong) > 0.02  # planted fault: the difference with its sign turned
    (other,) = model.explain([asked[0] | {"answer": asked[1]["answer"]}], method=method, rows=1).numbers["rows"]
    assert other["score"] < found["rows"][0]["score"]


def test_compressed_it_finds_the_same(model, csv, tmp_path):
    small = model.compress(csv, quantize="int8", explain=8)
    assert small.bytes() < 0.6 * model.bytes()
    numbers = small.reports["compress"].numbers
    assert abs(numbers["outputs"]["match"]["mrr"]["difference"].value) < 0.05
    assert (
        numbers["agreement"]["match"]["correlation"] > 0.99 and numbers["explanations"]["match"]["cosine"].value > 0.95
    )
    again = luban.load(small.save(tmp_path / "small"))
    assert np.array_equal(again.embed(["old cat"]), small.embed(["old cat"]))
    student = model.compress(csv, distill="nano", epochs=2, explain=4)
    assert student.reports["compress"].numbers["outputs"]["match"]["mrr"]["after"].value > 0.05


def test_exported_it_makes_the_same_vectors(model, csv, tmp_path):
    pytest.importorskip("onnxruntime")
    from luban.engines import OnnxEngine
    from luban.errors import ExportMismatch
    from luban.stages.export import gate, real_rows

    engine = OnnxEngine(model.export("onnx", out=tmp_path / "m.onnx", data=csv))
    for name, texts in (("question", ["old small feline", "", "quick"]), ("answer", ["dlo llams tac", "xyz"])):
        found = searching.vectors(engine, name, texts)  # one input alone: the other need not be there
        assert np.allclose(found, model.embed(texts, name), atol=1e-5) and found.dtype == np.float32
    with pytest.raises(Unsupported, match="embeds"):
        engine.run(None)
    other = trained(csv, epochs=1)
    from luban.data.prepare import prepare

    with pytest.raises(ExportMismatch):  # planted fault: the file of another model
        gate.passes(other, tmp_path / "m.onnx", real_rows(other, prepare(other.recipe), 8))


# -- what is refused -----------------------------------------------------------------------------------------------------
def test_what_makes_no_sense_is_refused(model, csv, tmp_path):
    with pytest.raises(RecipeError, match="no outputs"):
        Recipe.of(
            {"luban": 1, "inputs": {"a": "text"}, "outputs": {"b": "category"}, "fusion": {"match": {"width": 4}}}
        )
    with pytest.raises(Unsupported, match="sizes"):
        trained(csv, {"question": {"bag": {"embedding": 8}}, "answer": {"bag": {"embedding": 9}}}, epochs=1)
    with pytest.raises(Unsupported, match="vectors"):
        model.audit(csv)
    with pytest.raises(Unsupported, match="embeds"):
        model.predict([{"question": "a", "answer": "b"}])
    with pytest.raises(Unsupported):
        tiny.model().embed(["a quiet film"], "review")


# -- the measures --------------------------------------------------------------------------------------------------------
def test_ranks_count_from_one_and_ties_are_shared():
    queries, candidates = np.eye(3), np.array([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]])
    assert retrieval.ranks(queries, candidates, np.array([0, 1, 2])).tolist() == [1.5, 2, 1]
    found = retrieval.metrics(np.array([1, 2, 20.0, 4]))
    assert found["recall_1"].value == 0.25 and found["recall_10"].value == 0.75
    assert np.isclose(found["mrr"].value, (1 + 0.5 + 0.05 + 0.25) / 4)


def test_bm25_is_the_formula():
    from scipy.sparse import csr_matrix

    counts = np.array([[2, 1, 0], [0, 1, 3], [0, 0, 1.0]])
    k1, b, length = 1.2, 0.75, counts.sum(1).mean()
    got = retrieval.bm25(csr_matrix(counts), k1, b).toarray()
    for d, w in np.ndindex(counts.shape):
        n, f = (counts[:, w] > 0).sum(), counts[d, w]
        idf = np.log(1 + (3 - n + 0.5) / (n + 0.5))
        want = idf * f * (k1 + 1) / (f + k1 * (1 - b + b * counts[d].sum() / length))
        assert np.isclose(got[d, w], want)
