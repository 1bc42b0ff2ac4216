"""Files that were made to harm: refused in a sentence, before ONNX Runtime sees them, and nothing else is opened."""

import contextlib
import json

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

from luban.engines import LONGEST, OnnxEngine, opened  # noqa: E402
from luban.errors import BundleError  # noqa: E402
from tests import compact  # noqa: E402

COLUMNS = compact.bundle({"age": "number"}, {"kind": "category"}, compact.rows(40)).columns
ABOUT = {
    "luban.format": "1",
    "luban.recipe": "luban: 1",
    "luban.columns": json.dumps([c.to_json() for c in COLUMNS.values()]),
    "luban.feeds": json.dumps({"inputs": [["age", "age", "age.mask"]], "outputs": ["kind"]}),
}


def good(**about):
    """A tiny model by hand: kind = age * w."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1, 3], [1.0, 2.0, 3.0])
    inputs = [
        helper.make_tensor_value_info("age", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("age.mask", TensorProto.BOOL, ["batch"]),
    ]
    shape = helper.make_tensor("s", TensorProto.INT64, [2], [-1, 1])
    nodes = [helper.make_node("Reshape", ["age", "s"], ["x"]), helper.make_node("MatMul", ["x", "w"], ["kind"])]
    output = helper.make_tensor_value_info("kind", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "g", inputs, [output], [weight, shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {k: v for k, v in (ABOUT | about).items() if v is not None})
    return model


def external(tensor, location):
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        tensor.external_data.add(key=key, value=value)


def in_initializer(location):
    model = good()
    external(model.graph.initializer[0], location)
    return model


def in_attribute(location):
    model = good()
    tensor = helper.make_tensor("c", TensorProto.FLOAT, [1, 3], [1.0, 2.0, 3.0])
    node = helper.make_node("Constant", [], ["w2"], value=tensor)
    external(node.attribute[0].t, location)
    model.graph.node.insert(0, node)
    return model


def in_branch(location):
    model = good()
    inner = helper.make_graph([], "inner", [], [], [helper.make_tensor("v", TensorProto.FLOAT, [1, 3], [0.0] * 3)])
    external(inner.initializer[0], location)
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
    return model


def in_sparse(location):
    model = good()
    sparse = model.graph.sparse_initializer.add()
    sparse.dims.extend([3])
    sparse.values.CopyFrom(helper.make_tensor("v", TensorProto.FLOAT, [1], [0.0]))
    external(sparse.values, location)
    return model


def in_function(location):
    model = good()
    tensor = helper.make_tensor("c", TensorProto.FLOAT, [1, 3], [1.0, 2.0, 3.0])
    node = helper.make_node("Constant", [], ["w2"], value=tensor)
    external(node.attribute[0].t, location)
    model.functions.append(helper.make_function("d", "f", [], ["w2"], [node], [helper.make_opsetid("", 20)]))
    return model


def in_training(location):
    model = good()
    step = model.training_info.add()
    step.initialization.CopyFrom(in_initializer(location).graph)
    return model


def keys_without_location():
    model = good()
    model.graph.initializer[0].external_data.add(key="location", value="x")
    return model


def location_without_keys():
    model = good()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    return model


def field(number, content):
    """One protobuf field of bytes."""
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def deep(levels):
    graph = b""
    for _ in range(levels):
        graph = field(1, field(5, field(6, graph)))  # graph > node > attribute > graph
    return field(7, graph)


def feeds(**changed):
    return json.dumps({"inputs": [["age", "age", "age.mask"]], "outputs": ["kind"]} | changed)


OUTSIDE = [
    (make, location)
    for make in (in_initializer, in_attribute, in_branch, in_sparse, in_function, in_training)
    for location in ("weights.bin", "../weights.bin", "/etc/passwd", "a/../../b", "", "C:\\x", "file:///etc/passwd")
]
BYTES = {
    "empty": b"",
    "text": b"not an onnx file at all, only words",
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00",
    "zip": b"PK\x03\x04" + b"\0" * 40,
    "zeros": b"\0" * 4096,
    "ones": b"\xff" * 4096,
    "long number": b"\x80" * 100,
    "half": good().SerializeToString()[:-40],
    "tail": good().SerializeToString() + b"\x3a\xff\xff\xff\x7f",
}
SAYING = {
    "nothing": dict.fromkeys(ABOUT),
    "no format": {"luban.format": None},
    "other format": {"luban.format": "2"},
    "no columns": {"luban.columns": None},
    "columns no list": {"luban.columns": "{}"},
    "columns no JSON": {"luban.columns": "[{"},
    "deep JSON": {"luban.columns": "[" * 100_000},
    "column no dict": {"luban.columns": "[3]"},
    "column without state": {"luban.columns": '[{"name": "age", "type": "number", "settings": {}}]'},
    "state no dict": {"luban.columns": '[{"name": "a", "type": "number", "settings": {}, "state": 3}]'},
    "foreign settings": {"luban.columns": '[{"name": "a", "type": "number", "settings": 3, "state": {}}]'},
    "feeds no dict": {"luban.feeds": "[]"},
    "feeds short": {"luban.feeds": feeds(inputs=[["age"]])},
    "feeds other input": {"luban.feeds": feeds(inputs=[["age", "x", "age.mask"]])},
    "feeds other output": {"luban.feeds": feeds(outputs=["spent"])},
    "feeds unknown column": {"luban.feeds": feeds(inputs=[["years", "age", "age.mask"]])},
    "feeds nothing": {"luban.feeds": feeds(inputs=[], outputs=[])},
    "too long": {"luban.recipe": "x" * (LONGEST + 1)},
}


def refuse(path, data):
    path.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        OnnxEngine(path)
    assert path.name in str(caught.value)
    return caught.value.id


def test_the_good_file_is_read(tmp_path):
    from luban.columns.answering import answer

    path = tmp_path / "m.onnx"
    path.write_bytes(good().SerializeToString())
    assert answer(OnnxEngine(path), [{"age": 50.0}])[0].answers["kind"].value == "c"


@pytest.mark.parametrize("make, location", OUTSIDE)
def test_weights_outside_the_file_are_refused(make, location, tmp_path, monkeypatch):
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: pytest.fail("the file reached the runtime"))
    assert refuse(tmp_path / "m.onnx", make(location).SerializeToString()) == "onnx.external_data"


@pytest.mark.parametrize("make", [keys_without_location, location_without_keys])
def test_half_a_hint_of_another_file_is_enough(make, tmp_path):
    assert refuse(tmp_path / "m.onnx", make().SerializeToString()) == "onnx.external_data"


def test_control_the_runtime_itself_would_have_read_the_other_file(tmp_path):
    (tmp_path / "weights.bin").write_bytes(np.array([1, 2, 3], np.float32).tobytes())
    (tmp_path / "m.onnx").write_bytes(in_initializer("weights.bin").SerializeToString())
    assert ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", BYTES)
def test_what_is_no_onnx_file_is_refused(name, tmp_path):
    refuse(tmp_path / "m.onnx", BYTES[name])


@pytest.mark.parametrize("name", SAYING)
def test_a_bad_description_is_refused(name, tmp_path):
    refuse(tmp_path / "m.onnx", good(**SAYING[name]).SerializeToString())


@pytest.mark.parametrize("levels", [40, 2000])
def test_graphs_within_graphs_end_somewhere(levels, tmp_path):
    assert refuse(tmp_path / "m.onnx", good().SerializeToString() + deep(levels)) == "onnx.unreadable"


def test_a_folder_and_nothing_at_all_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(BundleError):
            OnnxEngine(path)


@pytest.mark.parametrize("seed", range(40))
def test_every_damaged_copy_is_read_or_refused_and_nothing_else(seed, tmp_path):
    """Random bytes changed anywhere: either it is still a model, or a BundleError; never another error."""
    rng = np.random.default_rng(seed)
    data = bytearray(good().SerializeToString())
    for at in rng.integers(0, len(data), rng.integers(1, 6)):
        data[at] = rng.integers(256)
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes(data))
    with contextlib.suppress(BundleError):
        OnnxEngine(path)


def test_what_was_looked_at_is_what_is_run(tmp_path):
    """The bytes are read once: a file swapped after the look cannot slip in."""
    path = tmp_path / "m.onnx"
    path.write_bytes(good().SerializeToString())
    data, about = opened(path)
    path.write_bytes(b"")
    assert data == good().SerializeToString() and about["luban.format"] == "1"
