"""The tiny whole life: a mixed recipe through every stage, each look at the same model agreeing with the others."""

import json
import warnings

import numpy as np
import pytest

import luban
from luban import pipeline
from tests import mixed

OUTPUTS = ("returned", "refund")
METHODS = ("integrated-gradients", "lime", "kernel-shap")


@pytest.fixture(scope="module")
def model():
    return luban.train(
        mixed.rows(360), OUTPUTS, size="nano", epochs=14, rate=5e-3, types={"review": "text", "photo": "image"}, seed=1
    )


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return model.save(tmp_path_factory.mktemp("life") / "model")


def test_it_learned(model):
    found = model.reports["evaluate"].numbers["outputs"]
    assert found["returned"]["metrics"]["accuracy"]["value"] > 0.7
    assert found["refund"]["metrics"]["r2"]["value"] > 0.8
    assert {p.type for p in model.recipe.inputs.values()} == {"text", "number", "category", "image"}
    assert set(found["returned"]["baselines"]) >= {"majority", "linear"}
    assert found["refund"]["metrics"]["r2"]["low"] < found["refund"]["metrics"]["r2"]["value"]


def test_saved_and_loaded_it_answers_the_same(model, folder):
    some = mixed.rows(9, seed=5)
    assert luban.load(folder).predict(some) == model.predict(some)


def test_alone_or_in_company_it_answers_the_same(model):
    some = mixed.rows(12, seed=6)
    together = model.predict(some)
    for row, answer in zip(some, together):
        alone = model.predict([row])[0]
        assert alone["returned"] == answer["returned"]
        assert alone["refund"] == pytest.approx(answer["refund"], abs=1e-3)
        assert alone["returned.probability"] == pytest.approx(answer["returned.probability"], abs=1e-5)


def test_a_bad_row_has_an_error_and_no_gap(model):
    some = mixed.rows(3, seed=7)
    some[1] = {**some[1], "price": "cheap"}
    answers = model.predict(some)
    assert "error" in answers[1] and "price" in answers[1]["error"]
    assert "error" not in answers[0] and "error" not in answers[2]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_explains_every_input(model, method):
    report = model.explain(mixed.rows(3, seed=8), method=method, rows=2)
    text = json.dumps(report.to_json())
    assert all(name in text for name in ("review", "price", "shop", "photo"))


def test_compressed_it_is_smaller_and_still_right(model, tmp_path):
    small = model.compress(mixed.rows(80, seed=9), quantize="int8")
    assert small.bytes() < 0.5 * model.bytes()
    some = mixed.rows(40, seed=10)
    same = [a["returned"] == b["returned"] for a, b in zip(model.predict(some), small.predict(some))]
    assert np.mean(same) > 0.9
    assert luban.load(small.save(tmp_path / "small")).predict(some) == small.predict(some)
    assert small.explain(some[:2], rows=1).kind == "explain"


def test_audited_by_group(model):
    result = model.audit(mixed.rows(120, seed=11), sensitive="shop")
    report = getattr(result, "reports", {}).get("audit", result)
    assert {"north", "south", "west"} <= set(json.dumps(report.to_json()["numbers"]).replace('"', " ").split())


def test_exported_it_answers_the_same(model, tmp_path):
    pytest.importorskip("onnxruntime")
    from luban.columns.answering import answer
    from luban.engines import OnnxEngine

    some = mixed.rows(7, seed=12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = model.export("onnx", out=tmp_path / "model.onnx", data=mixed.rows(40, seed=13))
    engine = OnnxEngine(path)
    for mine, theirs in zip(model.predict(some), answer(engine, some)):
        plain = theirs.plain()
        assert plain["returned"] == mine["returned"]
        assert plain["refund"] == pytest.approx(mine["refund"], rel=1e-4, abs=1e-3)


def test_one_page_tells_it_all(model, tmp_path):
    page = pipeline.write_report(model, tmp_path).read_text(encoding="utf-8")
    assert "returned" in page and "refund" in page and "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
