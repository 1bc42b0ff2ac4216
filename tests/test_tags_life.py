"""Token classification through a whole life: recipe to served file, each look at the same model agreeing with the others."""

import json
import warnings

import pytest

import luban
from luban.columns.answering import answer
from luban.columns.examples import records
from luban.data.prepare import prepare
from luban.errors import LubanError, RecipeError
from luban.recipe import Recipe
from tests import tagging

METHODS = ("integrated-gradients", "lime", "kernel-shap")
NEW = {"sentence": "then mr de la cruz sat in new delhi"}


@pytest.fixture(scope="module", params=["softmax", "crf"])
def model(request):
    head = {"tags": {"crf": request.param == "crf"}}
    encoder = {"softmax": "cnn", "crf": "bilstm"}[request.param]
    rows = tagging.rows(160, lists=request.param == "crf")
    return luban.train(rows, "ner", size="nano", epochs=14, rate=0.01, model={"sentence": encoder, "ner": head}, seed=1)


def test_it_learned_beside_simple_taggers(model):
    assert model.recipe.task() == "token-classification"
    found = model.reports["evaluate"].numbers["outputs"]["ner"]
    assert found["metrics"]["f1"]["value"] > 0.9 and set(found["types"]) == {"PER", "LOC"}
    assert set(found["baselines"]) == {"most_frequent_tag", "known_names"}
    page = model.reports["evaluate"].to_html()
    assert "known_names" in page and "<svg" in page


def test_the_worst_rows_show_what_was_marked(model):
    rows = [{**r, "ner": r["ner"].replace("LOC", "PER")} for r in tagging.rows(20, seed=8)]
    page = model.evaluate(rows).to_html()
    assert "hsla(" in page and "<small>LOC</small>" in page and "<small>PER</small>" in page


def test_answers_are_tags_and_entities_with_their_place(model):
    (row,) = model.predict([NEW])
    assert row["ner"] == ["O", "O", "B-PER", "I-PER", "I-PER", "O", "O", "B-LOC", "I-LOC"]
    first = row["ner.entities"][0]
    assert NEW["sentence"][first["start"] : first["end"]] == first["text"] == "de la cruz" and first["label"] == "PER"
    assert 0 < row["ner.probability"] <= min(e["probability"] for e in row["ner.entities"]) <= 1
    assert model.predict([{"sentence": NEW["sentence"].split()}]) == [row]
    assert model.predict([{"sentence": ""}])[0]["ner"] == [] and "error" in model.predict([{"sentence": [1]}])[0]


def test_alone_in_company_saved_and_loaded_it_says_the_same(model, tmp_path):
    some = tagging.rows(9, seed=5)
    together = luban.load(model.save(tmp_path / "m")).predict(some)
    for row, want in zip(some, together):
        (alone,) = model.predict([row])
        assert alone["ner"] == want["ner"] and alone["ner.probability"] == pytest.approx(
            want["ner.probability"], abs=1e-5
        )


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_predicted_files(model, tmp_path, kind):
    from luban.data.sources import read
    from luban.predictions import predict_file

    count, bad = predict_file(model, [NEW, *tagging.rows(3, seed=2)], tmp_path / f"out.{kind}")
    assert (count, bad) == (4, 0)
    if kind == "jsonl":
        row = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
        assert row["ner"][2] == "B-PER" and row["ner.entities"][0]["text"] == "de la cruz"
    else:
        row = records(read(tmp_path / f"out.{kind}").table)[0]
        assert row["ner"].split()[2] == "B-PER" and json.loads(row["ner.entities"])[0]["text"] == "de la cruz"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_explains_an_entity(model, method):
    report = model.explain([NEW], method=method, rows=1, target="LOC")
    (row,) = report.numbers["rows"]
    assert row["explained"] == "LOC: new delhi"
    names, weights = row["segments"]["sentence"], row["weights"]["sentence"]
    assert weights[names.index("new")] > 0 and len(names) == len(weights)
    if method != "lime":
        assert row["gap"] < 0.02 * abs(row["score"] - row["baseline"]) + 1e-3


def test_what_is_explained_can_be_chosen(model):
    asked = {"PER@10": "PER: de la cruz", "B-LOC@9": "B-LOC: de", "B-PER": "B-PER: de", None: "PER: de la cruz"}
    for target, want in asked.items():
        row = model.explain([NEW], method="lime", rows=1, target=target).numbers["rows"][0]
        assert row["explained"] == want
    (none,) = model.explain([{"sentence": "the old man said"}], method="lime", rows=1).numbers["rows"]
    assert none["explained"] == "all tags"
    with pytest.raises(LubanError, match="'LOK'"):
        model.explain([NEW], rows=1, target="LOK")


def test_compressed_it_is_smaller_and_agrees(model, tmp_path):
    small = model.compress(tagging.rows(40, seed=9), quantize="int8")
    assert small.bytes() < 0.6 * model.bytes()
    numbers = small.reports["compress"].numbers
    assert numbers["agreement"]["ner"]["same"].value > 0.9 and numbers["explanations"]["ner"]["cosine"].value > 0.9
    assert abs(numbers["outputs"]["ner"]["f1"]["difference"].value) < 0.1
    some = tagging.rows(5, seed=2)
    assert luban.load(small.save(tmp_path / "small")).predict(some) == small.predict(some)


def test_distilled(model):
    student = model.compress(tagging.rows(120, seed=3), distill="nano", epochs=14)
    assert student.reports["compress"].numbers["outputs"]["ner"]["f1"]["after"].value > 0.4


def test_audited_by_group(model):
    rows = [{**r, "paper": "ab"[i % 2]} for i, r in enumerate(tagging.rows(60, seed=4))]
    result = model.audit(rows, sensitive="paper")
    found = getattr(result, "reports", {}).get("audit", result).numbers["outputs"]["ner"]["groups"]
    assert set(found) == {"a", "b"} and found["a"]["f1"].value > 0.8


def test_sliced(model):
    rows = [{**r, "paper": "ab"[i % 2]} for i, r in enumerate(tagging.rows(60, seed=4))]
    assert "paper = a" in model.evaluate(rows, slices=["paper"]).to_html()


def test_exported_it_answers_the_same(model, tmp_path):
    pytest.importorskip("onnxruntime")
    from luban.engines import OnnxEngine

    some = [NEW, *tagging.rows(7, seed=12), {"sentence": ""}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = model.export("onnx", out=tmp_path / "model.onnx", data=tagging.rows(40, seed=13))
    for mine, theirs in zip(model.predict(some), answer(OnnxEngine(path), some)):
        plain = theirs.plain()
        assert plain["ner"] == mine["ner"]
        assert [e["text"] for e in plain["ner.entities"]] == [e["text"] for e in mine["ner.entities"]]
        assert plain["ner.probability"] == pytest.approx(mine["ner.probability"], abs=1e-4)


def test_served(model):
    pytest.importorskip("fastapi")
    from tests.serving import serving

    with serving(model) as (_, client):
        found = client.post("/predict", json={"rows": [NEW, {"sentence": NEW["sentence"].split()}]})
        told = client.post("/explain", json={"rows": [NEW], "target": "LOC", "method": "lime"})
    assert found.status_code == 200 and told.json()["rows"][0]["explained"] == "LOC: new delhi"
    for row in found.json()["rows"]:
        assert row["answers"]["ner"]["value"][2] == "B-PER"
        assert row["answers"]["ner"]["entities"][0]["text"] == "de la cruz"


# -- how it composes -------------------------------------------------------------------------------------------------------
def trained(**changes):
    from luban.applying import apply
    from luban.bundle import Bundle
    from luban.data.sources import read

    rows = [{**r, "kind": "long" if len(r["sentence"]) > 30 else "short"} for r in tagging.rows(60)]
    recipe = Recipe.of(tagging.recipe(stages=[{"train": {"epochs": 2}}, "evaluate"], **changes)).resolved()
    data, bundle = prepare(recipe, read(rows)), Bundle(recipe)
    for stage in recipe.stages:
        bundle = apply(bundle, data, stage)
    return bundle


@pytest.mark.parametrize("encoder", ["cnn", "gru", "bilstm", "transformer", {"attention": {"kind": "self"}}], ids=str)
def test_any_encoder_that_keeps_positions(encoder):
    bundle = trained(model={"sentence": encoder})
    (row,) = bundle.predict([NEW])
    assert len(row["ner"]) == 9


@pytest.mark.parametrize("fusion", ["concat", "join"])
def test_beside_other_inputs_and_outputs(fusion):
    both = trained(
        inputs={"sentence": "text", "kind": "category"}, outputs={"ner": {"tags": {"of": "sentence"}}}, fusion=fusion
    )
    some = [{**r, "kind": "short"} for r in tagging.rows(4, seed=3)]
    assert [len(r["ner"]) for r in both.predict(some)] == [len(r["sentence"].split()) for r in some]
    two = trained(outputs={"ner": "tags", "kind": "category"}, fusion=fusion, model={"sentence": "bilstm"})
    (row,) = two.predict([NEW])
    assert row["kind"] in ("long", "short") and len(row["ner"]) == 9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"sentence": "bag"}}, "one vector of the whole text"),
        ({"outputs": {"ner": {"tags": {"of": "sentense"}}}}, "sentence"),
        ({"inputs": {"sentence": "text", "y": "tags"}}, "output only"),
        ({"inputs": {"a": "text", "b": "text"}}, "of:"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_read(changes, said):
    with pytest.raises(RecipeError, match=said):
        Recipe.of(tagging.recipe(**changes))


def test_attention_that_sums_up_is_refused_before_training():
    with pytest.raises(RecipeError, match="one vector"):
        trained(model={"sentence": "attention"})


def test_words_beyond_the_window_count_as_outside_and_against_the_model():
    from luban.evaluation.table import table

    short = trained(inputs={"sentence": {"text": {"length": 4}}})
    rows = [{"sentence": "the old man said mr lee", "ner": "O O O O O B-PER"}]
    from luban.data.prepare import data_of

    judged = table(short, data_of(rows, short.columns)).outputs["ner"]
    assert judged.truth == [["O"] * 5 + ["B-PER"]] and judged.answers[0].value[4:] == ["O", "O"]


def test_parts_of_speech_need_no_prefixes():
    words = {"DT": ["the", "a", "some"], "NN": ["dog", "man", "cat", "car"], "VB": ["ran", "sat", "left", "came"]}
    rows = [{"t": f"{d} {n} {v}", "pos": "DT NN VB"} for d in words["DT"] for n in words["NN"] for v in words["VB"]]
    rows += [{"t": f"{n} {v}", "pos": "NN VB"} for n in words["NN"] for v in words["VB"]]
    bundle = luban.train(rows, "pos", types={"t": "text", "pos": "tags"}, size="nano", epochs=8, rate=0.01)
    (row,) = bundle.predict([{"t": "the dog ran"}])
    assert row["pos"] == ["DT", "NN", "VB"] and "pos.entities" not in row
    assert bundle.reports["evaluate"].numbers["outputs"]["pos"]["metrics"]["accuracy"]["value"] > 0.9
    assert bundle.explain([{"t": "the dog ran"}], rows=1, target="NN").numbers["rows"][0]["explained"] == "NN: dog"


def test_planned_without_data():
    assert luban.plan(Recipe.of(tagging.recipe()), gpus="1xH100").numbers
