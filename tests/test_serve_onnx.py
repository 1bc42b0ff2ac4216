"""The exported file answers as the model does, in a process that never imports torch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from luban.cli import main
from luban.errors import RequestError, Unsupported
from luban.stages.serve.engine import choose, fits
from tests.serving import ROWS, serving, tiny_bundle

PLAIN = [{n: row[n] for n in ("age", "city")} for row in ROWS]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A Bundle on disk with its exported file beside it, and rows to ask about."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    bundle = tiny_bundle()
    bundle.save(folder)
    rows = [{"age": float(a), "city": c} for a, c in zip(np.linspace(0, 90, 40), ["Wien", "Graz", "Linz", "x"] * 10)]
    bundle.export("onnx", out=folder / "model.onnx", data=rows)
    return bundle, folder


WITHOUT_TORCH = """
import sys, threading, time, urllib.request
from luban.cli import main
from luban.stages.serve import prepare
folder, body, rows, out = sys.argv[1:]
for source, engine in ((folder + "/model.onnx", "auto"), (folder, "auto"), (folder, "onnx")):
    server = prepare(source, port=0, engine=engine)
    thread = threading.Thread(target=server.run); thread.start()
    while not server.started: time.sleep(0.01)
    ask = urllib.request.Request(server.url + "/predict", body.encode(), {"content-type": "application/json"})
    print(urllib.request.urlopen(ask).read().decode())
    server.stop(); thread.join()
words = ["predict", folder + "/model.onnx", rows, "--out", out]
print(main(words), main(words), "torch" in sys.modules)
"""


def test_serving_and_predicting_without_torch(saved, tmp_path):
    """The file itself, its folder by choice and its folder unasked; then a file of rows, for which it has to be new."""
    bundle, folder = saved
    (tmp_path / "rows.csv").write_text("age,city\n31.5,Wien\nold,Graz\n,Graz\n")
    words = [str(folder), json.dumps({"rows": PLAIN}), str(tmp_path / "rows.csv"), str(tmp_path / "o.jsonl")]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True, timeout=120)
    assert done.stdout and done.stdout.splitlines()[-1] == "0 2 False", done.stderr
    expected = bundle.predict(PLAIN)
    for reply in done.stdout.splitlines()[:3]:
        for row, want in zip(json.loads(reply)["rows"], expected, strict=True):
            assert row["answers"]["kind"]["value"] == want["kind"]
            assert abs(row["answers"]["kind"]["probability"] - want["kind.probability"]) < 1e-4
            assert abs(row["answers"]["price"]["value"] - want["price"]) < 1e-4
    found = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert ["error" in f for f in found] == [False, True, False]
    assert abs(found[2]["price"] - expected[1]["price"]) < 1e-4


def test_control_torch_in_the_process_is_seen():
    code = "import sys; import luban.bundle; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


def test_a_file_of_another_model_does_not_fit(saved, tmp_path):
    """The control: weights changed after the export, columns changed, file damaged. auto then takes torch."""
    import torch

    bundle, folder = saved
    assert fits(folder)
    other = tiny_bundle()
    with torch.no_grad():
        next(iter(other.network.parameters())).add_(0.1)
    column = bundle.columns["kind"].learned(temperature=2.0)
    warmer = type(bundle)(bundle.recipe, {**bundle.columns, "kind": column}, bundle.network)
    for i, model in enumerate((other, warmer)):
        model.save(tmp_path / str(i))
        shutil.copy(folder / "model.onnx", tmp_path / str(i))
        assert not fits(tmp_path / str(i)) and choose(tmp_path / str(i)).name == "torch"
        with pytest.raises(RequestError) as e:
            choose(tmp_path / str(i), "onnx")
        assert e.value.id == "serve.no_onnx"
    bundle.save(tmp_path / "same")
    (tmp_path / "same" / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:200])
    assert not fits(tmp_path / "same")


def test_the_torch_engine_cannot_run_it(saved):
    with pytest.raises(Unsupported):
        choose(saved[1] / "model.onnx", "torch")
    assert choose(saved[1], "torch").name == "torch" and choose(saved[0]).name == "torch"


def test_explanations_come_from_the_weights_beside_the_file(saved, tmp_path):
    """As the model itself gives them; after the folder holds another model, in a sentence instead of its explanations."""
    import torch

    bundle, folder = saved
    shutil.copytree(folder, tmp_path / "m")
    with serving(tmp_path / "m") as (_, client):
        reply = client.post("/explain", json={"rows": PLAIN[:2], "output": "price"})
        expected = bundle.explain(PLAIN[:2], rows=2, output="price").to_json()["numbers"]
        assert reply.status_code == 200 and reply.json() == json.loads(json.dumps(expected))
    with serving(tmp_path / "m") as (_, client):
        with torch.no_grad():
            next(iter((other := tiny_bundle()).network.parameters())).add_(0.1)
        other.save(tmp_path / "m")
        refused = client.post("/explain", json=PLAIN[0])
        assert refused.status_code == 422 and refused.json()["error"]["id"] == "serve.model_changed"
        assert client.post("/predict", json=PLAIN[0]).status_code == 200


def test_together_as_alone(saved):
    with serving(saved[1] / "model.onnx") as (_, client):
        together = client.post("/predict", json={"rows": PLAIN}).json()["rows"]
        for row, found in zip(PLAIN, together):
            alone = client.post("/predict", json=row).json()["rows"][0]
            assert abs(alone["answers"]["price"]["value"] - found["answers"]["price"]["value"]) < 1e-5
        refused = client.post("/explain", json=PLAIN[0])
    assert refused.status_code == 404 and refused.json()["error"]["id"] == "serve.cannot_explain"


def test_an_openvino_file_without_openvino_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    (tmp_path / "rows.csv").write_text("age\n1\n")
    for name in ("m.xml", "m.bin"):
        (tmp_path / name).write_bytes(b"")
    for words in (["predict", str(tmp_path / "m.xml"), str(tmp_path / "rows.csv")], ["serve", str(tmp_path / "m.xml")]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "luban[openvino]" in said and len(said.splitlines()) == 1
