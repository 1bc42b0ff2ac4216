"""OpenVINO's files: they answer as the model does, know their columns, and a wrong one is refused."""

import numpy as np
import pytest

from luban.columns import answering
from luban.errors import BundleError, ExportMismatch
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
    with pytest.raises(BundleError):
        OpenVinoEngine(tmp_path / "m.xml")
    with pytest.raises(BundleError):
        OpenVinoEngine(tmp_path / "nothing.xml")
    monkeypatch.setattr(to_openvino, "passes", lambda *_: np.zeros(0).item())
    with pytest.raises(ValueError):
        model.export("openvino", out=tmp_path / "new" / "m.xml", data=TABLE)
    assert not list((tmp_path / "new").iterdir())
