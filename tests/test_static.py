"""Integers on both sides: folding, scales, what an engine computes, what is refused, training with rounding."""

import numpy as np
import pytest
import torch
from torch import nn

import luban
from luban.bundle import Bundle
from luban.columns.examples import encode
from luban.data.frames import row
from luban.engines import OnnxEngine
from luban.errors import ExportMismatch, RequestError, Unsupported
from luban.evaluation.latency import Timing
from luban.nn import static
from luban.nn.calibration import calibrated, scale_of
from luban.nn.tokens import Batch
from luban.stages.compress import compare
from luban.stages.export.gate import passes
from tests.test_training_growing import rows

FAMILIES = {
    "resnet": {"resnet": {"width": 8}},
    "resnet50": {"resnet": {"width": 4, "depth": 50}},
    "efficientnet": "efficientnet",
    "vgg": {"vgg": {"width": 4}},
    "cnn": {"cnn": {"width": 8}},
    "densenet": {"densenet": {"growth": 4}},
    "inception": {"inception": {"width": 8}},
}
TABLE = rows(80, side=32)
QUICK = {"resamples": 20, "explain": 4, "accept": 1.0}


def model_of(family: str, **settings) -> Bundle:
    settings = {"epochs": 1, "batch": 16, "device": "cpu", "precision": "fp32", "augment": False} | settings
    return luban.train(TABLE, "y", model={"photo": FAMILIES[family]}, size="nano", evaluate=False, **settings)


def examples_of(model: Bundle, count: int = 24):
    return encode(model.columns, model.inputs, model.outputs, row(TABLE, np.arange(count)))


def batch_of(model: Bundle, count: int = 24) -> Batch:
    return Batch.of(examples_of(model, count).arrays(np.arange(count)))


@pytest.fixture(scope="module")
def resnet():
    return model_of("resnet", epochs=6)


@pytest.fixture(scope="module")
def small(resnet):
    return resnet.compress(TABLE, quantize="int8", calibrate=48, **QUICK)


def test_the_scale_of_values_keeps_zero_and_cuts_off_what_is_rare():
    values = np.random.default_rng(0).normal(0, 1, 20_000)
    width, zero = scale_of(values)
    assert 0.02 < width < 0.04 and 90 < zero < 165
    rounded = (np.clip(np.round(values / width) + zero, 0, 255) - zero) * width
    assert np.abs(rounded - values)[np.abs(values) < 2].max() <= width / 2 + 1e-9
    assert scale_of(np.maximum(values, 0))[1] == 0
    wide, _ = scale_of(np.append(values, 8.0))
    assert wide < 2 * 8.0 / 255  # one value far out does not make every level wide
    assert scale_of(np.zeros(5)) == [1.0, 0]


def test_folding_a_batch_norm_changes_no_answer():
    torch.manual_seed(0)
    conv, norm, x = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), torch.randn(4, 3, 8, 8)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.copy_(torch.rand(5) + 0.5)
    before = norm.eval()(conv(x))
    static.fold(conv, norm)
    assert torch.allclose(conv(x), before, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_rounded_once_at_every_place(family):
    model = model_of(family)
    found = calibrated(model.network, [batch_of(model)])
    layers = [n for n, m in model.network.named_modules() if static.fits(m)]
    assert set(found["layers"]) == set(layers)
    norms = [m for m in model.network.modules() if isinstance(m, nn.BatchNorm2d)]
    network = static.quantize_static(model.copy_network().eval(), **found)
    left = sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert left == 0 or (family == "densenet" and left < len(norms))  # there a norm stands before its layer
    with torch.no_grad():
        first, second = (n.eval()(batch_of(model))["y"] for n in (model.network, network))
    assert (first - second).abs().max() < 0.2 * max(1.0, float(first.abs().max()))
    again = [before for before, _ in found["layers"].values() if before]
    if family in ("resnet", "resnet50", "efficientnet", "vgg"):  # only the pixels and what the head reads
        assert len(again) == 2


def test_it_computes_with_integers_and_the_gate_holds_it_against_the_network(resnet, small, tmp_path):
    import onnx

    path = small.export(out=tmp_path / "m.onnx", data=TABLE)
    kinds = [n.op_type for n in onnx.load(str(path)).graph.node]
    assert kinds.count("Conv") == 20 and "BatchNormalization" not in kinds
    session = OnnxEngine(path, threads=1)
    arrays = examples_of(small).arrays(np.arange(24))
    with torch.no_grad():
        exact = resnet.network(Batch.of(arrays))["y"].numpy()
    assert np.abs(session.run(arrays)["y"] - small.engine.run(arrays)["y"]).max() < 0.05 * np.abs(exact).max()
    assert path.stat().st_size < 0.4 * resnet.export(out=tmp_path / "whole.onnx", data=TABLE).stat().st_size
    assert integer_nodes(path, tmp_path) >= 20
    numbers, said = small.reports["compress"].numbers, " ".join(small.reports["compress"].to_text().split())
    for batch in ("1", "32"):  # beside PyTorch, which is what was, and beside the file that could be had without
        faster = numbers["speedup_as_files"][batch]["faster"]
        assert (f"own ONNX file, too, faster in batches of {batch}:" in said) == faster
        assert (f"own ONNX file not called faster in batches of {batch}:" in said) == (not faster)
    assert "\\n" not in said


def integer_nodes(path, folder) -> int:
    """Integer convolutions in the graph as ONNX Runtime runs it."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "run.onnx"), 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return sum(n.op_type == "QLinearConv" for n in onnx.load(str(folder / "run.onnx")).graph.node)


def test_control_a_file_with_a_wrong_scale_is_refused(small, tmp_path):
    """Planted fault: one tensor is rounded by another scale than the model's."""
    import onnx
    from onnx import numpy_helper

    path = small.export(out=tmp_path / "m.onnx", data=TABLE)
    model = onnx.load(str(path))
    node = [n for n in model.graph.node if n.op_type == "QuantizeLinear"][3]
    scales = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    scales |= {n.output[0]: np.float32(n.attribute[0].f) for n in model.graph.node if n.op_type == "Constant"}
    model.graph.initializer.append(
        numpy_helper.from_array(np.asarray(scales[node.input[1]] * np.float32(1.5)), "wrong")
    )
    node.input[1] = "wrong"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportMismatch):
        passes(small, path, examples_of(small))


def test_it_is_saved_explained_and_answers_again(small, tmp_path):
    small.save(tmp_path / "m")
    again = Bundle.load(tmp_path / "m")
    records = TABLE.slice(0, 5).to_pylist()
    for r, photo in zip(records, TABLE["photo"].combine_chunks().to_numpy_ndarray()):
        r["photo"] = photo
    assert again.predict(records) == small.predict(records)
    numbers = small.reports["compress"].numbers
    assert numbers["after"]["bytes"] < 0.4 * numbers["before"]["bytes"]
    assert numbers["explanations"]["y"]["cosine"].value > 0.5
    assert {"file_milliseconds_1", "file_milliseconds_32"} <= numbers["after"].keys() & numbers["before"].keys()
    assert small.history[-1]["settings"]["calibrate"] == 48


def test_training_with_rounding_ends_in_the_answers_it_had(resnet):
    """What was trained, and what is stored, answer alike."""
    found = calibrated(resnet.network, [batch_of(resnet)])
    learning = static.prepared(resnet.copy_network(), **found)
    batch = batch_of(resnet)
    optimizer = torch.optim.SGD(learning.parameters(), 0.01)
    for _ in range(3):
        loss = learning.loss(learning.train()(batch), batch)["y"][0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        before = learning.eval()(batch)["y"]
        after = static.settled(learning, found["layers"]).eval()(batch)["y"]
    assert torch.allclose(before, after, atol=1e-4)
    aware = resnet.compress(TABLE, quantize="int8", calibrate=32, aware=1, **QUICK)
    assert aware.history[-1]["settings"]["aware"] == 1


def test_what_is_worse_or_slower_is_refused(resnet, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(compare, "timings", lambda engines, arrays: [Timing(np.ones(9), 1), Timing(np.full(9, 1.2), 1)])
        with pytest.raises(Unsupported, match=r"0\.83 times as fast"):
            resnet.compress(TABLE, calibrate=32, **QUICK)
    from luban.nn import calibration

    monkeypatch.setattr(calibration, "scale_of", lambda values: [50.0, 0])
    with pytest.raises(Unsupported, match="loses 0"):
        resnet.compress(TABLE, calibrate=32, **QUICK | {"accept": 0.001})
    with pytest.raises(RequestError, match="int4"):
        resnet.compress(TABLE, calibrate=32, quantize="int4")
