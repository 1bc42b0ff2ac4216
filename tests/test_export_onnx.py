"""export: the file answers like the model for every batch size, length and padding, or it is not written."""

import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from luban import onnx_file, registry
from luban.columns import answering
from luban.columns.examples import encode
from luban.engines import OnnxEngine, opened
from luban.errors import DataError, ExportMismatch, RequestError
from luban.stages.export.gate import passes
from tests import compact

TABLE = compact.rows(80)
DATA = compact.data(TABLE)
INPUTS = {"age": "number", "city": "category", "review": "text"}
OUTPUTS = {"kind": "category", "buys": "category", "spent": "number"}
encoders = registry.names("encoders")
TEXT = next(n for n in ("bilstm", "gru", "cnn") if n in encoders)


@pytest.fixture(scope="module")
def model():
    made = compact.bundle(INPUTS, OUTPUTS, TABLE, model={"review": TEXT})
    state = made.columns["kind"].learned(temperature=1.7)
    made.columns["kind"] = state
    return made


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    return model.export(out=tmp_path_factory.mktemp("onnx") / "model.onnx", data=DATA)


@pytest.fixture(scope="module")
def tiny():
    return compact.bundle({"age": "number"}, {"kind": "category"}, TABLE, fusion={"concat": {"layers": [4]}})


def examples(model, count=16):
    return encode(model.columns, model.inputs, (), DATA.framed(np.arange(count), model.recipe.frame))


RECORDS = [{k: v for k, v in r.items() if k != "photo"} for r in TABLE.to_pylist()]


def same(a, b, close=1e-4):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x.keys() == y.keys()
        for key in x:
            if isinstance(x[key], float):
                assert x[key] == pytest.approx(y[key], abs=close * max(1, abs(y[key]))), key
            else:
                assert x[key] == y[key]


@pytest.mark.parametrize("batch", [1, 2, 7, 32, 256])
def test_it_answers_like_the_model(model, file, batch):
    rows = answering.answer(OnnxEngine(file), RECORDS, batch=batch)
    same([r.plain() for r in rows], model.predict(RECORDS))


def test_bad_rows_missing_values_and_odd_texts_are_answered_alike(model, file):
    odd = [
        {"age": None, "city": None, "review": None},
        {"age": 1e30, "city": "Nowhere", "review": ""},
        {"age": "old", "city": "Ulm", "review": "good"},
        {"city": "Ulm", "review": "good"},
        {"age": 3, "city": "Bonn", "review": "great " * 500},
        {"age": 3, "city": "Bonn", "review": "\U0001f600 \x00 zzz"},
    ]
    found = [r.plain() for r in answering.answer(OnnxEngine(file), odd)]
    same(found, model.predict(odd))
    assert [set(r) == {"error"} for r in found] == [False, False, True, True, False, False]


def test_axes_are_named_and_free_where_the_model_is(file):
    session = OnnxEngine(file).session
    shapes = {i.name: i.shape for i in (*session.get_inputs(), *session.get_outputs())}
    assert shapes == {
        "age": ["batch"], "age.mask": ["batch"], "city": ["batch"], "city.mask": ["batch"],
        "review": ["batch", "length"], "review.mask": ["batch", "length"],
        "kind": ["batch", 3], "buys": ["batch", 1], "spent": ["batch", 1],
    }  # fmt: skip


def test_one_file_that_says_all_and_nothing_of_this_machine(model, file):
    data, about = opened(file)
    assert about["luban.recipe"] == model.recipe.yaml() and about["luban.format"] == "1"
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    assert not [w for w in (b"site-packages", b"luban/nn", b"/home", b".py:") if w in data]
    engine = OnnxEngine(file)
    assert engine.columns["kind"].state["temperature"] == 1.7
    assert engine.inputs == tuple(INPUTS) and engine.outputs == tuple(OUTPUTS)


def test_threads_are_what_was_asked_for_and_do_not_spin(file):
    options = OnnxEngine(file, threads=1).session.get_session_options()
    assert options.intra_op_num_threads == 1 and options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_answering_needs_no_torch(file):
    code = (
        "import sys\nfrom luban.engines import OnnxEngine\nfrom luban.columns.answering import answer\n"
        f"rows = answer(OnnxEngine({str(file)!r}), [{{'age': 3, 'city': 'Ulm', 'review': 'good film'}}])\n"
        "assert rows[0].answers['kind'].value in 'abc'\n"
        "print([m for m in ('torch', 'onnx', 'onnxscript') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- planted faults: each must be refused, and nothing may stand where the file would be -----------------------------------


@pytest.mark.parametrize("positions", ["learnt", "sinusoidal", "rotary"])
def test_texts_are_no_longer_than_the_network_has_positions(positions, tmp_path):
    made = compact.bundle(
        {"review": {"text": {"length": 8}}}, {"kind": "category"}, TABLE,
        model={"review": {"transformer": {"width": 8, "layers": 1, "heads": 2, "positions": positions}}},
    )  # fmt: skip
    file = made.export(out=tmp_path / "model.onnx", data=DATA)
    long = [{"review": "good " * 40}]
    same([r.plain() for r in answering.answer(OnnxEngine(file), long)], made.predict(long))


def refused(model, folder, **settings):
    with pytest.raises(ExportMismatch) as caught:
        model.export(out=folder / "m.onnx", data=DATA, **settings)
    assert list(folder.iterdir()) == []
    return {p.id for p in caught.value.problems}


@pytest.mark.slow
def test_control_a_network_that_bakes_the_batch_size_is_refused(tiny, tmp_path):
    class Baked(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x.reshape(len(x), -1) * float(len(x) > 0)).reshape(int(x.shape[0]), -1)

    from dataclasses import replace

    network = tiny.copy_network()
    network.fusion.layers = Baked(network.fusion.layers)
    refused(replace(tiny, network=network), tmp_path)


class Unmasked(torch.nn.Module):
    """A pooling that looks at padding, too."""

    def forward(self, tokens):
        return tokens.x.mean(1)


def test_control_a_network_that_reads_padding_is_refused(tmp_path):
    if "cnn" not in encoders:
        pytest.skip("no encoder of sequences")
    wrong = compact.bundle({"review": "text"}, {"kind": "category"}, TABLE, model={"review": "cnn"})
    wrong.network.fusion.pools[0] = Unmasked()
    assert {"export.differs.batch", "export.differs.padding"} & refused(wrong, tmp_path)


def test_control_a_file_of_another_model_is_refused(model, file):
    other = compact.bundle(INPUTS, OUTPUTS, TABLE, model={"review": TEXT}, seed=1)
    with pytest.raises(ExportMismatch) as caught:
        passes(other, file, examples(other))
    assert {p.id for p in caught.value.problems} == {"export.differs.batch"}
    assert passes(model, file, examples(model))["largest_difference"] < 1e-5


def test_control_a_file_that_declares_too_little_is_refused(model, file, tmp_path):
    import onnx

    changed = onnx.load(str(file))
    changed.graph.output[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    changed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 7
    path = tmp_path / "m.onnx"
    path.write_bytes(changed.SerializeToString())
    with pytest.raises(ExportMismatch) as caught:
        passes(model, path, examples(model))
    assert "export.axes" in {p.id for p in caught.value.problems}


def test_control_a_baked_batch_size_is_refused_and_the_old_file_stays(tiny, tmp_path, monkeypatch):
    (tmp_path / "m.onnx").write_bytes(b"old")
    own = onnx_file.example
    monkeypatch.setattr(onnx_file, "example", lambda *a: (own(*a)[0], tuple({} for _ in own(*a)[1])))
    with pytest.raises(ExportMismatch) as caught:
        tiny.export(out=tmp_path / "m.onnx", data=DATA)
    assert "export.axes" in {p.id for p in caught.value.problems}
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_rows_and_a_place_are_asked_for(tiny, tmp_path):
    with pytest.raises(DataError):
        tiny.export(out=tmp_path / "m.onnx")
    with pytest.raises(RequestError):
        registry.find("stages", "export")(tiny, DATA)


def test_names_of_masks_never_collide():
    assert onnx_file.feeds(["a", "a.mask", "a.mask_"]) == [
        ["a", "a", "a.mask__"],
        ["a.mask", "a.mask", "a.mask.mask"],
        ["a.mask_", "a.mask_", "a.mask_.mask"],
    ]


# -- the whole battery: minutes ------------------------------------------------------------------------------------------


def slow_but(fast, names):
    """One in the fast suite, as nothing else there exports its kind; the others in the slow one."""
    return [n if n == fast else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("kind", ["as it is", pytest.param("int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", slow_but("vit", compact.cases()))
def test_every_encoder_exports(case, kind, tmp_path):
    made = compact.bundle(table=TABLE, **compact.cases()[case])
    if kind == "int8":
        made = made.compress(None, quantize="int8")
    path = made.export(out=tmp_path / "m.onnx", data=DATA)
    records = TABLE.to_pylist()
    for record in records:
        record["photo"] = np.array(record["photo"], np.uint8)
    same([r.plain() for r in answering.answer(OnnxEngine(path), records)], made.predict(records))


@pytest.mark.parametrize("name", slow_but("quantize_groups", registry.EDITS))
def test_every_edit_exports(name, tmp_path):
    from tests.test_contract_edits import edited

    made = edited(compact.bundle(table=TABLE, **compact.cases()["together"]), name)
    made.export(out=tmp_path / "m.onnx", data=DATA)


def test_int8_weights_stay_int8_in_the_file_and_the_exporter_is_silent(tmp_path, capfd):
    import onnx

    wide = compact.bundle({"age": "number"}, {"kind": "category"}, TABLE, fusion={"concat": {"layers": [300, 100]}})
    small = wide.compress(None, quantize="int8")
    capfd.readouterr()
    path = small.export(out=tmp_path / "m.onnx", data=DATA)
    out, err = capfd.readouterr()
    assert out == "" and "agrees" in err and len(err.splitlines()) == 1
    weights = {i.data_type: 0 for i in onnx.load(str(path)).graph.initializer}
    assert onnx.TensorProto.INT8 in weights
    assert path.stat().st_size < 0.5 * wide.bytes()
    same([r.plain() for r in answering.answer(OnnxEngine(path), RECORDS)], small.predict(RECORDS))
