"""Extractive question answering through a whole life: recipe to served file, each look at the same model agreeing with the others."""

import json
import warnings

import pytest

import luban
from luban.columns.answering import answer
from luban.columns.examples import records
from luban.errors import LubanError, RecipeError, RequestError
from luban.recipe import Recipe
from tests import asking, checkpoints

NEW = {"question": "What did Bob have?", "story": "It rained. Bob sat in the old mill. Bob had his late uncle's watch."}
WATCH = "his late uncle's watch"


def saved(folder, some):
    path = folder / "asked.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in some), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    rows = saved(tmp_path_factory.mktemp("asking"), asking.rows(500, unanswerable=0.2))
    return luban.train(asking.recipe(data={"rows": rows}, seed=1))


def test_it_learned_beside_simple_rivals(model):
    assert model.recipe.task() == "question-answering"
    assert model.recipe.joined("story") == "question"  # nobody said so
    found = model.reports["evaluate"].numbers["outputs"]["answer"]
    assert found["metrics"]["f1"]["value"] > 0.9 and found["metrics"]["no_answer_accuracy"]["value"] > 0.8
    assert found["metrics"]["exact_match"]["low"] < found["metrics"]["exact_match"]["value"]
    assert set(found["baselines"]) == {"first_sentence", "nearest_sentence", "nearest_words", "no_answer"}
    page = model.reports["evaluate"].to_html()
    assert "nearest_sentence" in page and "<svg" in page and "no answer" in page


def test_answers_are_words_of_the_text_with_their_place(model):
    (row,) = model.predict([NEW])
    assert row["answer"] == WATCH and 0.5 < row["answer.probability"] <= 1
    assert NEW["story"][row["answer.start"] : row["answer.end"]] == WATCH
    assert len(row["answer.others"]) == 3 and row["answer.others"][0]["probability"] <= row["answer.probability"]
    untold = {"question": "Where did Bob sit?", "story": "Bob had a map."}
    (row,) = model.predict([untold])
    assert row["answer"] == "" and row["answer.start"] is None
    (listed,) = model.predict([{"question": NEW["question"].split(), "story": NEW["story"].split()}])
    assert listed["answer"] == WATCH
    empty = model.predict([{"question": "", "story": ""}, {"question": "x"}])
    assert empty[0]["answer"] == "" and "error" in empty[1]


def test_alone_in_company_saved_and_loaded_it_says_the_same(model, tmp_path):
    some = asking.rows(9, seed=5)
    together = luban.load(model.save(tmp_path / "m")).predict(some)
    for row, want in zip(some, together):
        (alone,) = model.predict([row])
        assert (alone["answer"], alone["answer.start"]) == (want["answer"], want["answer.start"])
        assert alone["answer.probability"] == pytest.approx(want["answer.probability"], abs=1e-5)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_predicted_files(model, tmp_path, kind):
    from luban.data.sources import read
    from luban.predictions import predict_file

    assert predict_file(model, [NEW, *asking.rows(3, seed=2)], tmp_path / f"out.{kind}") == (4, 0)
    row = records(read(tmp_path / f"out.{kind}").table)[0]
    start, end = (int(float(row[f"answer.{k}"])) for k in ("start", "end"))
    assert row["answer"] == WATCH == NEW["story"][start:end]


@pytest.mark.parametrize("method", ["integrated-gradients", "lime", "kernel-shap"])
def test_every_method_explains_an_answer(model, method):
    (row,) = model.explain([NEW], method=method, rows=1).numbers["rows"]
    assert row["explained"] == WATCH and set(row["segments"]) == {"question", "story"}
    names, weights = row["segments"]["question"], row["weights"]["question"]
    assert weights[names.index("What")] + weights[names.index("have")] > 0
    if method != "lime":
        assert row["gap"] < 0.02 * abs(row["score"] - row["baseline"]) + 1e-3


def test_what_is_explained_can_be_chosen(model):
    asked = {"the old mill": "the old mill", "Bob@11": "Bob", "": "no answer", None: WATCH}
    for target, want in asked.items():
        (row,) = model.explain([NEW], method="lime", rows=1, target=target).numbers["rows"]
        assert row["explained"] == want
    for target in ("Rome", "Rome@3"):  # silently explaining another answer would be a wrong one
        with pytest.raises(RequestError, match=r"row 0.*does not stand in 'story'"):
            model.explain([NEW], method="lime", rows=1, target=target)


def test_compressed_it_is_smaller_and_agrees(model, tmp_path):
    small = model.compress(asking.rows(40, seed=9), quantize="int8")
    assert small.bytes() < 0.6 * model.bytes()
    numbers = small.reports["compress"].numbers
    assert (
        numbers["agreement"]["answer"]["same"].value > 0.9 and numbers["explanations"]["answer"]["cosine"].value > 0.9
    )
    assert abs(numbers["outputs"]["answer"]["f1"]["difference"].value) < 0.1
    some = asking.rows(5, seed=2)
    assert luban.load(small.save(tmp_path / "small")).predict(some) == small.predict(some)


def test_distilled(model):
    student = model.compress(asking.rows(300, seed=3), distill="nano", epochs=6)
    assert student.recipe.joined("story") == "question"
    assert student.reports["compress"].numbers["outputs"]["answer"]["f1"]["after"].value > 0.3


def test_audited_and_sliced_by_group(model):
    rows = [{**r, "paper": "ab"[i % 2]} for i, r in enumerate(asking.rows(40, seed=4))]
    result = model.audit(rows, sensitive="paper")
    found = getattr(result, "reports", {}).get("audit", result).numbers["outputs"]["answer"]["groups"]
    assert set(found) == {"a", "b"} and found["a"]["f1"].value > 0.8 and found["a"]["rows"] == 20
    assert "paper = a" in model.evaluate(rows, slices=["paper"]).to_html()


def test_compared_with_itself(model):
    from luban.data.prepare import data_of
    from luban.evaluation.pairs import difference

    data = data_of(asking.rows(30, seed=6), model.columns)
    assert difference(model, model, data, "answer")["verdict"] == "cannot_tell"


def test_exported_it_answers_the_same(model, tmp_path):
    pytest.importorskip("onnxruntime")
    from luban.engines import OnnxEngine

    some = [NEW, *asking.rows(7, seed=12, unanswerable=0.3), {"question": "", "story": ""}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = model.export("onnx", out=tmp_path / "model.onnx", data=asking.rows(40, seed=13))
    for mine, theirs in zip(model.predict(some), answer(OnnxEngine(path), some)):
        plain = theirs.plain()
        assert (plain["answer"], plain["answer.start"]) == (mine["answer"], mine["answer.start"])
        assert plain["answer.probability"] == pytest.approx(mine["answer.probability"], abs=1e-4)


def test_served(model):
    pytest.importorskip("fastapi")
    from tests.serving import serving

    with serving(model) as (_, client):
        found = client.post("/predict", json={"rows": [NEW]})
        told = client.post("/explain", json={"rows": [NEW], "target": "the old mill", "method": "lime"})
    assert found.status_code == 200 and told.json()["rows"][0]["explained"] == "the old mill"
    (row,) = found.json()["rows"]
    said = row["answers"]["answer"]
    assert said["value"] == WATCH == NEW["story"][said["start"] : said["end"]]


# -- how it composes ---------------------------------------------------------------------------------------------------------
def trained(folder, count=60, **changes):
    kept = {k: changes.pop(k) for k in ("unanswerable",) if k in changes}
    stages = [{"train": {"epochs": 1}}, "evaluate"]
    rows = saved(folder, [{**r, "kind": "ab"[i % 2]} for i, r in enumerate(asking.rows(count, **kept))])
    return luban.train(asking.recipe(**{"stages": stages, "data": {"rows": rows}} | changes))


@pytest.mark.parametrize("encoder", ["bilstm", {"pretrained": {"name": "bert"}}], ids=str)
def test_other_encoders(encoder, tmp_path):
    if isinstance(encoder, dict):
        encoder = {"pretrained": {"name": checkpoints.folder("bert")}}
    bundle = trained(tmp_path, model={"question": encoder})
    (row,) = bundle.predict([NEW])
    assert row["answer"] and row["answer"] in NEW["story"]
    assert not bundle.columns["answer"].optional and bundle.network.heads[0].none is None


@pytest.mark.parametrize("fusion", ["concat", "join"])
def test_beside_other_inputs_and_outputs(fusion, tmp_path):
    inputs = {"question": "text", "story": "text", "kind": "category"}
    model = {**asking.recipe()["model"], "story": {"joint": "question"}}
    bundle = trained(tmp_path, inputs=inputs, fusion=fusion, model=model)
    (row,) = bundle.predict([NEW | {"kind": "a"}])
    assert row["answer"] in NEW["story"]
    outputs = {"answer": {"span": {"of": "story"}}, "kind": "category"}
    (row,) = trained(tmp_path, outputs=outputs, fusion=fusion, model=model).predict([NEW])
    assert row["answer"] in NEW["story"] and row["kind"] in ("a", "b")


def test_a_long_text_in_windows(tmp_path):
    model = {**asking.recipe()["model"], "story": {"joint": {"of": "question", "overlap": 4, "window": 12}}}
    bundle = trained(tmp_path, count=120, model=model)
    assert bundle.network.encoders[0].piece == 12
    long = NEW | {"story": "It rained. " * 30 + NEW["story"]}
    (row,) = bundle.predict([long])
    assert row["answer"] == long["story"][row["answer.start"] : row["answer.end"]]
    assert bundle.columns["story"].encode(long["story"]).shape[0] > 90


def test_one_text_alone_may_hold_the_answer(tmp_path):
    """Without a question: what this text says about one thing."""
    bundle = trained(tmp_path, inputs={"story": "text"}, outputs={"answer": "span"}, model={"story": "bilstm"})
    assert bundle.recipe.outputs["answer"].settings["of"] == "story"
    assert bundle.predict([{"story": "Ann had a kite."}])[0]["answer"] in "Ann had a kite."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"question": "bag"}}, "bag"),
        ({"outputs": {"answer": {"span": {"of": "storey"}}}}, "story"),
        ({"outputs": {"answer": "span"}}, "of:"),
        ({"inputs": {"question": "text", "story": "span"}}, "output only"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_read(changes, said):
    with pytest.raises(RecipeError, match=said):
        Recipe.of(asking.recipe(**changes))


def test_no_answer_cannot_be_asked_about_where_there_always_is_one(tmp_path):
    bundle = trained(tmp_path, count=40)
    with pytest.raises(LubanError, match="always"):
        bundle.explain([NEW], rows=1, target="")


def test_planned_without_data():
    assert luban.plan(Recipe.of(asking.recipe()), gpus="1xH100").numbers
