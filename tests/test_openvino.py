"""OpenVINO's files: they answer as the model does, know their columns, and a wrong one is refused."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import luban
from luban.cli import main
from luban.columns import answering
from luban.columns.examples import encode_values
from luban.errors import BundleError, ExportMismatch, Unsupported
from tests import scenes
from tests.serving import serving
from tests.test_static import QUICK, TABLE, examples_of, model_of

pytest.importorskip("openvino")

from luban.openvino_engine import OpenVinoEngine
from luban.stages.export import to_openvino
from luban.stages.export.gate import passes


@pytest.fixture(scope="module")
def model():
    return model_of("resnet", epochs=2)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    return model.export("openvino", out=tmp_path_factory.mktemp("ov") / "m.xml", data=TABLE)


def records(count: int):
    photos = TABLE["photo"].combine_chunks().to_numpy_ndarray()
    return [{"photo": p} for p in photos[:count]]


def test_it_answers_as_the_model_does(model, file):
    assert {p.name for p in file.parent.iterdir()} == {"m.xml", "m.bin"}
    engine = OpenVinoEngine(file, threads=1)
    found = [r.plain() for r in answering.answer(engine, records(7))]
    for a, b in zip(found, model.predict(records(7))):
        assert a["y"] == b["y"] and a["y.probability"] == pytest.approx(b["y.probability"], abs=1e-4)
    assert engine.weights == model.fingerprint()


@pytest.mark.parametrize("threads, streams", [(1, 0), (2, 1)])
def test_one_thread_is_the_callers_own(file, threads, streams):
    """To hand one picture to a stream and wait for it takes as long as a small network."""
    engine = OpenVinoEngine(file, threads=threads)
    assert int(engine.compiled.get_property("NUM_STREAMS")) == streams


def test_what_is_fed_is_read_where_it_lies_and_left_as_it_was(model, file):
    """Also where it may not be written to, or lies in steps; an answer stays what it is while the next is made."""
    engine = OpenVinoEngine(file, threads=1)
    examples, _ = encode_values(engine.columns, engine.inputs, records(4))
    arrays = examples.arrays(np.arange(4))
    x, mask = arrays.inputs["photo"]
    before, want = x.copy(), engine.run(arrays)["y"]
    kept, copy = want, want.copy()
    x.flags.writeable = False
    arrays.inputs["photo"] = (x, mask)
    assert np.array_equal(engine.run(arrays)["y"], want) and np.array_equal(x, before)
    arrays.inputs["photo"] = (np.repeat(before, 2, 0)[::2], mask)
    assert np.array_equal(engine.run(arrays)["y"], want)
    engine.run(examples.arrays(np.array([3, 2, 1, 0])))
    assert np.array_equal(kept, copy)


def test_a_single_example_has_a_graph_of_its_own_that_answers_alike(model, file, monkeypatch):
    examples, _ = encode_values(model.columns, model.inputs, records(5))
    engine, all_of_them = OpenVinoEngine(file, threads=1), examples.arrays(np.arange(5))
    many = engine.run(all_of_them)["y"]
    assert "of_one" not in engine.__dict__, "made when it is asked for"
    for i in range(5):
        assert np.allclose(engine.run(examples.arrays(np.array([i])))["y"][0], many[i], atol=1e-5)
    assert "of_one" in engine.__dict__ and np.array_equal(engine.run(all_of_them)["y"], many)
    monkeypatch.setattr("luban.openvino_engine.TWICE", 0)  # weights too large to lie in memory twice
    assert OpenVinoEngine(file, threads=1).model is None
    assert np.allclose(OpenVinoEngine(file, threads=1).run(examples.arrays(np.array([2])))["y"][0], many[2], atol=1e-5)


def test_several_threads_ask_at_once(file):
    engine = OpenVinoEngine(file, threads=1)
    examples, _ = encode_values(engine.columns, engine.inputs, records(8))
    alone = [engine.run(examples.arrays(np.array([i])))["y"] for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda i: engine.run(examples.arrays(np.array([i % 8])))["y"], range(64))]
    assert all(np.array_equal(found[i], alone[i % 8]) for i in range(64))


@pytest.fixture(scope="module", params=["fcos", "faster_rcnn"])
def detector(request, tmp_path_factory):
    """A detector that has hardly learned, and its exported file."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = scenes.recipe(folder / "rows.jsonl", request.param, count=20, side=32, width=4, epochs=1, steps=1)
    sure = {"objects": {"boxes": {"score": 0.0, "most": 5}}}  # its surest boxes are told all the same
    bundle = luban.train(recipe | {"outputs": sure}, evaluate=False)
    return bundle, bundle.export("openvino", out=folder / "d.xml", data=scenes.rows(6, side=32))


@pytest.mark.slow
def test_a_detectors_boxes_are_the_same(detector):
    bundle, path = detector
    engine = OpenVinoEngine(path, threads=1)
    examples, _ = encode_values(bundle.columns, bundle.inputs, scenes.rows(5, seed=8, side=32))
    arrays = examples.arrays(np.arange(5))
    ours, theirs = bundle.engine.run(arrays)["objects"], engine.run(arrays)["objects"]
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-3
    column = bundle.columns["objects"]
    decoded = [*zip(column.decode_all(ours), column.decode_all(theirs))]
    assert any(a.value for a, _ in decoded)
    for a, b in decoded:
        assert [v["label"] for v in a.value] == [v["label"] for v in b.value]
        assert np.allclose([v["box"] for v in a.value], [v["box"] for v in b.value], atol=0.02)


@pytest.mark.slow
def test_the_same_verbs_as_for_an_onnx_file(detector, tmp_path, capsys):
    bundle, path = detector
    rows = scenes.rows(4, seed=3, side=32)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"image": r["image"]}) + "\n" for r in rows))
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(path), str(tmp_path / "rows.jsonl"), "--out", str(out)]) == 0, capsys.readouterr().err
    found = [json.loads(line)["objects"] for line in out.read_text().splitlines()]
    with serving(str(path), workers=3, batch=1) as (server, client), ThreadPoolExecutor(4) as pool:
        assert server.service.engine.name == "openvino"
        replies = [*pool.map(lambda r: client.post("/predict", json={"image": r["image"]}), rows)]
    for want, row, reply in zip(bundle.predict(rows), found, replies):
        served = reply.json()["rows"][0]["answers"]["objects"]["value"]
        for boxes in (row, served):
            assert [b["label"] for b in boxes] == [b["label"] for b in want["objects"]]
            assert np.allclose([b["box"] for b in boxes], [b["box"] for b in want["objects"]], atol=0.02)
    with pytest.raises(Unsupported, match="onnx engine"):
        luban.registry.find("stages", "serve")(str(path), engine="onnx")


def test_integers_go_in_too(model, tmp_path):
    small = model.compress(TABLE, quantize="int8", calibrate=32, **QUICK)
    path = small.export("openvino", out=tmp_path, data=TABLE)
    assert path.name == "model.xml"
    assert path.with_suffix(".bin").stat().st_size < 0.4 * model.bytes()


def test_control_other_weights_are_refused(model, file, tmp_path):
    """Planted fault: one byte of each hundredth of the weights is another."""
    weights = bytearray(file.with_suffix(".bin").read_bytes())
    weights[2 :: len(weights) // 100] = bytes(255 - b for b in weights[2 :: len(weights) // 100])
    (tmp_path / "m.bin").write_bytes(bytes(weights))
    (tmp_path / "m.xml").write_bytes(file.read_bytes())
    with pytest.raises(ExportMismatch):
        passes(model, OpenVinoEngine(tmp_path / "m.xml"), examples_of(model))


def test_files_of_others_are_refused(model, file, tmp_path, monkeypatch):
    (tmp_path / "m.xml").write_text('<?xml version="1.0"?><net name="x" version="11"><layers/><edges/></net>')
    (tmp_path / "m.bin").write_bytes(b"")
    for name, id in (("m", "onnx.not_ours"), ("nothing", "onnx.no_file")):
        with pytest.raises(BundleError) as e:
            OpenVinoEngine(tmp_path / f"{name}.xml")
        assert e.value.id == id
    (tmp_path / "alone.xml").write_bytes(file.read_bytes())
    with pytest.raises(BundleError) as e:
        OpenVinoEngine(tmp_path / "alone.xml")
    assert e.value.id == "openvino.no_weights"
    (tmp_path / "alone.bin").write_bytes(file.with_suffix(".bin").read_bytes()[:1000])
    with pytest.raises(BundleError):
        OpenVinoEngine(tmp_path / "alone.xml")
    monkeypatch.setattr(to_openvino, "passes", lambda *_: np.zeros(0).item())
    with pytest.raises(ValueError):
        model.export("openvino", out=tmp_path / "new" / "m.xml", data=TABLE)
    assert not list((tmp_path / "new").iterdir())
