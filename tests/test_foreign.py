"""luban import: weights from elsewhere, checked by name and shape; hostile files are refused and do nothing."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import luban
from luban.cli import main
from luban.errors import BundleError, RequestError
from luban.foreign import import_weights, read


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("import")
    rng = np.random.default_rng(0)
    lines = [f"{a:.3f},{c},{'yes' if a > 0 else 'no'}" for a, c in zip(rng.normal(size=90), rng.choice(["u", "v"], 90))]
    (folder / "rows.csv").write_text("\n".join(["a,c,y", *lines, ""]))
    (folder / "recipe.yaml").write_text("luban: 1\ndata: {rows: rows.csv}\noutputs: {y: category}\nsize: nano\n")
    bundle = luban.train(str(folder / "recipe.yaml"), evaluate=False, epochs=2)
    return bundle, folder


class Gadget:
    """Unpickled, it touches a file."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "nested", "wrapped", "half"])
def test_weights_come_in(trained, tmp_path, kind):
    bundle, folder = trained
    state = bundle.network.state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file({k: v.contiguous().clone() for k, v in state.items()}, path)
    elif kind == "nested":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif kind == "wrapped":
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    else:
        torch.save({k: v.half().float() if kind == "half" else v for k, v in state.items()}, path)
    found = import_weights(path, str(folder / "recipe.yaml"))
    if kind != "half":
        assert found.predict(str(folder / "rows.csv")) == bundle.predict(str(folder / "rows.csv"))
    found.save(tmp_path / "out")
    loaded = luban.load(tmp_path / "out")
    assert loaded.evaluate(str(folder / "rows.csv")).numbers["rows"] == 90
    assert not [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".pth", ".pt", ".pkl")]


def test_names_and_shapes_are_told(trained, tmp_path):
    bundle, folder = trained
    state = dict(bundle.network.state_dict())
    gone = next(iter(state))
    last = list(state)[-1]
    wrong = {**state, "conv.weight": torch.zeros(2), last: torch.zeros(7, 7)}
    del wrong[gone]
    torch.save(wrong, tmp_path / "w.pth")
    with pytest.raises(BundleError) as e:
        import_weights(tmp_path / "w.pth", str(folder / "recipe.yaml"))
    assert [p.id for p in e.value.problems] == ["import.lacking", "import.extra", "import.shape"]
    assert gone in str(e.value) and "conv.weight" in str(e.value) and "7 x 7" in str(e.value) and last in str(e.value)


def hostile(kind, path, canary):
    if kind == "plain":
        path.write_bytes(pickle.dumps({"w": Gadget(canary)}))
    elif kind == "zip":
        torch.save({"w": torch.zeros(2), "x": Gadget(canary)}, path)
    elif kind == "legacy":
        torch.save({"w": Gadget(canary)}, path, _use_new_zipfile_serialization=False)
    elif kind == "swapped":  # a good file whose pickle was exchanged
        torch.save({"w": torch.zeros(2)}, path)
        with zipfile.ZipFile(path) as z:
            inside = {n: z.read(n) for n in z.namelist()}
        with zipfile.ZipFile(path, "w") as z:
            for name, content in inside.items():
                z.writestr(name, pickle.dumps(Gadget(canary)) if name.endswith("data.pkl") else content)
    elif kind == "module":  # a whole model, as torch.save(model) writes it
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "cut":
        torch.save({"w": torch.zeros(2000)}, path)
        path.write_bytes(path.read_bytes()[:500])
    else:
        path.write_bytes({"empty": b"", "text": b"weights", "list": pickle.dumps([1, 2])}[kind])


KINDS = ["plain", "zip", "legacy", "swapped", "module", "cut", "empty", "text", "list"]


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_do_nothing(tmp_path, kind, capsys):
    path, canary = tmp_path / "w.pth", tmp_path / "canary"
    hostile(kind, path, canary)
    with pytest.raises(BundleError) as e:
        read(path)
    assert not canary.exists() and str(path) in str(e.value) and len(str(e.value).splitlines()) == 1
    if kind in ("plain", "zip", "legacy", "swapped", "module"):
        assert e.value.id == "import.hostile"


def test_control_the_gadget_works(tmp_path):
    hostile("plain", tmp_path / "w.pth", tmp_path / "canary")
    pickle.loads((tmp_path / "w.pth").read_bytes())
    assert (tmp_path / "canary").exists()


def test_damaged_safetensors_and_other_files(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(BundleError):
        read(tmp_path / "w.safetensors")
    for name, id in (("w.h5", "import.kind"), ("none.pth", "import.no_file")):
        with pytest.raises(RequestError) as e:
            read(tmp_path / name)
        assert e.value.id == id


def test_on_the_command_line(trained, tmp_path, capsys):
    bundle, folder = trained
    torch.save(bundle.network.state_dict(), tmp_path / "w.pth")
    words = [
        "import",
        str(tmp_path / "w.pth"),
        "--recipe",
        str(folder / "recipe.yaml"),
        "--data",
        str(folder / "rows.csv"),
    ]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert luban.load(tmp_path / "out").predict([{"a": 1, "c": "u"}]) == bundle.predict([{"a": 1, "c": "u"}])
    hostile("zip", tmp_path / "w.pth", tmp_path / "canary")
    assert main([*words, "--out", str(tmp_path / "out2")]) == 2 and not (tmp_path / "canary").exists()
    assert main([words[0], words[1], "--out", str(tmp_path / "out3")]) == 2
