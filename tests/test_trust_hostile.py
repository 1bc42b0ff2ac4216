"""Hostile files at every door: refused in a sentence that names the file, nothing executed, nothing written elsewhere."""

import ast
import contextlib
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import luban
from luban.cli import main
from luban.errors import LubanError
from tests import hostile, tiny

PACKAGE = Path(luban.__file__).parent
DOORS = {
    "evaluate": lambda f, d: ["evaluate", f, d],
    "explain": lambda f, d: ["explain", f, d, "--out", f + "-explained"],
    "export": lambda f, d: ["export", f, d, "--out", f + ".onnx"],
    "serve": lambda f, d: ["serve", f, "--port", "0", "--engine", "torch"],
    "predict": lambda f, d: ["predict", f, d],
    "compress": lambda f, d: ["compress", f, d, "--quantize", "int8", "--out", f + "-small"],
    "report": lambda f, d: ["report", f],
    "compare": lambda f, d: ["compare", f],
    "show": lambda f, d: ["show", f],
}


def contents(place: Path) -> dict[str, int]:
    return {str(p): p.lstat().st_mtime_ns for p in place.rglob("*") if p.is_file() or p.is_symlink()}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to stand in; a canary anywhere in it, or a child process, fails the test."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob("*canary*")), "executed"


def refusal(words: list[str], capsys) -> str:
    """What the command says when it refuses. A traceback fails the test by itself."""
    code = main(words)
    said = capsys.readouterr()
    assert code == 2, f"{words}: {code} {said.out[:200]} {said.err[:300]}"
    lines = said.err.strip().splitlines()
    assert 1 <= len(lines) <= 12 and all(len(line) < 1000 for line in lines)
    return said.err


def named(said: str, kind: str, folder: Path) -> bool:
    """The sentence names the folder or one of its files."""
    own = ("recipe.yaml", "columns.json", "edits.json", "safetensors", "tokenizer", "MANIFEST", str(folder), "manifest")
    return any(name in said for name in own)


def test_there_are_enough():
    assert len(hostile.folders()) >= 80 and len(hostile.RECIPES) >= 20


@pytest.mark.parametrize("kind", hostile.folders())
def test_hostile_folders_are_refused_at_every_door(kind, place, capsys):
    folder = hostile.make(kind, tiny.folder(place))
    data = str(tiny.csv(place / "rows.csv", 4))
    before = contents(place)
    with pytest.raises(LubanError) as e:
        luban.load(folder)
    assert named(str(e.value), kind, folder), str(e.value)
    for door, words in DOORS.items():
        said = refusal(words(str(folder), data), capsys)
        assert named(said, kind, folder), f"{door}: {said}"
    assert contents(place) == before


@pytest.mark.parametrize("kind", hostile.RECIPES)
def test_hostile_recipes_are_refused_at_every_door(kind, place, capsys):
    hostile.write(place, "evil.yaml", hostile.RECIPES[kind])
    for words in (["check"], ["run", "--out", "out"], ["train", "--out", "out"], ["show"]):
        if kind == "shell_rows" and words == ["show"]:
            continue  # a recipe may name any file; showing it opens none
        said = refusal([words[0], "evil.yaml", *words[1:]], capsys)
        assert "evil.yaml" in said or ("canary" in said and "shell" in kind), said


def test_an_alias_bomb_is_refused_before_anything_is_built(place):
    import resource
    import time

    began, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LubanError):
        luban.Recipe.load(_written(place, "bomb.yaml", hostile.RECIPES["alias_bomb"]))
    with pytest.raises(LubanError):
        luban.Recipe.load(_written(place, "big.yaml", hostile.RECIPES["ten_megabytes"]))
    assert time.monotonic() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50_000, "KiB"


def _written(place: Path, name: str, text: str) -> Path:
    hostile.write(place, name, text)
    return place / name


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl", ".arrow", ".pkl", ".npz", ".onnx"])
@pytest.mark.parametrize("how", ["pickled", "torch_zip", "zip_slip"])
def test_executable_data_is_refused(how, suffix, place, capsys):
    data = "evil" + suffix
    hostile.write(place, data, hostile.EXECUTABLE[how](place))
    folder = str(tiny.folder(place))
    for words in (["check", data, "--target", "x"], ["train", data, "--target", "x", "--out", "o"]):
        refusal(words, capsys)
    for words in (["predict", folder, data], ["evaluate", folder, data]):
        refusal(words, capsys)


@pytest.mark.parametrize("how", hostile.EXECUTABLE)
def test_executable_engines_are_refused(how, place, capsys):
    hostile.write(place, "evil.onnx", hostile.EXECUTABLE[how](place))
    data = str(tiny.csv(place / "rows.csv", 4))
    assert "evil.onnx" in refusal(["predict", "evil.onnx", data], capsys)
    assert "evil.onnx" in refusal(["serve", "evil.onnx", "--port", "0"], capsys)


@pytest.mark.parametrize("how", hostile.EXECUTABLE)
def test_executable_checkpoints_are_not_taken_up(how, place):
    from luban.training import checkpoints

    checkpoints.save(place / "c", 1, {"model": {"w": torch.ones(2)}}, {"step": 1})
    checkpoints.save(place / "c", 2, {"model": {"w": torch.ones(2)}}, {"step": 2})
    step = place / "c" / "step-2"
    hostile.write(step, "model.safetensors", hostile.EXECUTABLE[how](place))
    from luban import files

    files.seal(step, "checkpoint")
    assert checkpoints.newest(place / "c")[1]["step"] == 1


def _checkpoint_link(folder: Path) -> None:
    (folder / "checkpoints").rename(folder.parent / "elsewhere")
    (folder / "checkpoints").symlink_to(folder.parent / "elsewhere")


def _recipe_link(folder: Path) -> None:
    path = folder / "checkpoints" / "recipe.yaml"
    path.rename(folder.parent / "outside")
    path.symlink_to(folder.parent / "outside")


RESUMED = {
    "link": _checkpoint_link,
    "link_recipe": _recipe_link,
    "nothing": lambda f: (f / "checkpoints" / "recipe.yaml").unlink(),
    **{n: lambda f, t=t: hostile.write(f, "checkpoints/recipe.yaml", t) for n, t in hostile.RECIPES.items()},
}


@pytest.mark.parametrize("kind", RESUMED)
def test_hostile_runs_are_not_gone_on_with(kind, place, capsys):
    folder = tiny.folder(place)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "recipe.yaml").write_text((folder / "recipe.yaml").read_text())
    RESUMED[kind](folder)
    refusal(["resume", str(folder)], capsys)


def test_a_checkpoint_of_another_network_is_refused_in_a_sentence(place, capsys):
    from luban import files

    folder = place / "out"
    luban.train(
        str(tiny.csv(place / "rows.csv")),
        "back",
        size="nano",
        epochs=1,
        out=folder,
        checkpoint_seconds=0,
        evaluate=False,
    )
    step = max((folder / "checkpoints").glob("step-*"))
    from safetensors.torch import save_file

    save_file({"__class__": torch.ones(2)}, step / "model.safetensors")
    files.seal(step, "checkpoint")
    capsys.readouterr()
    assert main(["resume", str(folder)]) == 2
    assert "checkpoint" in capsys.readouterr().err.splitlines()[-1]


# -- in a process of its own --------------------------------------------------------------------------------------------

SWEEP = """
import sys, os
from pathlib import Path
place = Path(sys.argv[1])
events = []
sys.addaudithook(lambda name, args: events.append(name) if name in ("os.system", "subprocess.Popen", "os.exec", "os.fork",
    "os.posix_spawn", "pickle.find_class", "socket.connect") else None)
import luban
from luban.cli import main
from luban.errors import LubanError
import torch
events.clear()
for folder in sorted(place.iterdir()):
    try:
        luban.load(folder / "shop")
        print("LOADED", folder)
    except LubanError:
        pass
    for words in (["predict", str(folder / "shop"), "rows.csv"], ["show", str(folder / "shop")]):
        if main(words) != 2:
            print("ACCEPTED", words)
print("EVENTS", sorted(set(events)))
"""


def test_nothing_runs_connects_or_unpickles_in_a_process_of_its_own(place):
    """Python's own audit events say so, not only the canary."""
    here = place / "all"
    kinds = [k for k in hostile.folders() if "_as_" in k or "dotted" in k or "tag" in k or "added" in k or "edit" in k]
    for kind in kinds:
        (here / kind.replace("/", "-")).mkdir(parents=True)
        hostile.make(kind, tiny.folder(here / kind.replace("/", "-")))
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, str(here)], capture_output=True, text=True, cwd=place, timeout=120,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), "HOME": str(place / "home"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["EVENTS []"], done.stdout + done.stderr[-500:]
    assert "Traceback" not in done.stderr and len(kinds) > 20


# -- controls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["torch_zip", "torch_legacy"])
def test_control_a_plain_torch_load_trips_the_canary(how, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(hostile.EXECUTABLE[how](tmp_path))
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)
    assert (tmp_path / hostile.CANARY).exists()


def test_control_a_plain_unpickling_trips_the_canary(tmp_path):
    pickle.loads(hostile.pickled(tmp_path))
    assert (tmp_path / hostile.CANARY).exists()


def test_control_a_trusting_tar_leaves_the_folder(tmp_path):
    (tmp_path / "a.tar").write_bytes(hostile.tar_slip(tmp_path))
    with tarfile.open(tmp_path / "a.tar") as archive, contextlib.suppress(OSError):
        archive.extractall(tmp_path / "in", filter="fully_trusted")
    assert (tmp_path / hostile.CANARY).exists()


# -- names that want to be something else -----------------------------------------------------------------------------------

NASTY = {
    "formula": "=cmd|' /C calc'!A0",
    "script": "<script>alert(1)</script>",
    "image": '"><img src=x onerror=alert(1)>',
    "newline": 'price\n2026-01-01 {"event": "forged"}',
    "markdown": "`a` | [b](javascript:alert(1)) ![c](http://evil.test/x.png)\n# Forged",
    "escape": "a\x1b[2Jb\rc",
}


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """A model whose columns and classes bear such names, saved by the command line with its log and report."""
    place = tmp_path_factory.mktemp("nasty")
    rows = tiny.rows(48)
    labels = list(NASTY.values())[:2]
    table = [
        {
            **{n: r["price"] + i for i, n in enumerate(NASTY.values())},
            "=target<b>": labels[r["back"] == "yes"],
            "shop": c,
        }
        for r, c in zip(rows, [*NASTY.values()] * 8)
    ]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, table)))
    code = main(["train", str(place / "rows.jsonl"), "--target", "=target<b>", "--size", "nano", "--set", "train.epochs=1",
                 "--out", str(place / "out")])  # fmt: skip
    assert code == 0
    return place


def test_the_page_runs_nothing_that_a_name_says(nasty):
    page = (nasty / "out" / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert" in page
    for name in (nasty / "out" / "reports").glob("*.html"):
        page += name.read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<img src=x" not in page and 'evil.test/x.png"' not in page
    assert not re.findall(r"<[^>]+\son\w+=", page)


def test_the_card_shows_names_as_names(nasty):
    text = re.sub(r"`[^`\n]*`", "", (nasty / "out" / "README.md").read_text(encoding="utf-8"))
    assert "# Forged" not in text.splitlines() and "<script" not in text and "<img" not in text
    assert "](javascript:" not in text and "](http://evil" not in text
    assert "\x1b" not in text and "\r" not in text


def test_the_log_is_one_event_a_line(nasty):
    lines = (nasty / "out" / "run.log").read_text(encoding="utf-8").splitlines()
    assert lines and all(json.loads(line)["event"] != "forged" for line in lines)


def test_a_terminal_gets_no_control_codes(nasty, capfd):
    for words in (["check", str(nasty / "rows.jsonl"), "--target", "=target<b>"], ["report", str(nasty / "out"), "--json"],
                  ["compare", str(nasty / "out")]):  # fmt: skip
        assert main(words) in (0, 1)
        said = capfd.readouterr()
        assert "\x1b" not in said.out + said.err and "\r" not in said.out + said.err
        assert not [line for line in (said.out + said.err).splitlines() if line.startswith("2026-01-01")]


def test_tables_of_answers_hold_no_formula(nasty, place):
    assert main(["predict", str(nasty / "out"), str(nasty / "rows.jsonl"), "--out", "answers.csv"]) == 0
    import csv

    with open("answers.csv", encoding="utf-8", newline="") as file:
        cells = [c for row in csv.reader(file) for c in row]
    assert not [c for c in cells if c[:1] in "=+@\t\r" and c[:1]]
    assert any("=cmd" in c for c in cells)


@pytest.mark.parametrize(
    "name", ["$(touch canary)", "; touch canary ;", "`touch canary`", "| touch canary", "--help", "-x"]
)
def test_names_of_files_are_never_a_command(name, place):
    tiny.csv(place / (name + ".csv"))
    source = f"./{name}.csv"
    assert (
        main(["train", source, "--target", "back", "--size", "nano", "--set", "train.epochs=1", "--out", "./" + name])
        == 0
    )
    assert main(["predict", "./" + name, source, "--out", f"./{name}.jsonl"]) == 0
    assert len(Path(f"./{name}.jsonl").read_text().splitlines()) == 40
    assert not (place / "canary").exists()
    for path in place.glob("*touch*"):  # the fixture looks for a canary by name
        path.rename(path.with_name(path.name.replace("canary", "bird")))


# -- the source itself -------------------------------------------------------------------------------------------------

FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "extractall", "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve",
    "marshal", "unsafe_load", "full_load", "load_module",
}  # fmt: skip


def dangerous(source: str) -> list[str]:
    """Calls and imports that execute data, a shell, or unpack archives, by name and line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and ast.unparse(node) != "from pickle import UnpicklingError":
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            found += [f"{line} {n}" for n in names if n.split(".")[0] in FORBIDDEN]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last, keywords = name.split(".")[-1], {k.arg: ast.unparse(k.value) for k in node.keywords}
        bare = name in FORBIDDEN or (last in {"extractall", "unsafe_load", "full_load", "load_module"})
        torch_load = name == "torch.load" and keywords.get("weights_only") != "True"
        numpy = name in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False"
        if bare or torch_load or numpy or name in ("yaml.load", "os.system", "os.popen", "torch.jit.load"):
            found.append(f"{line} {name}")
        if keywords.get("shell", "False") != "False" or keywords.get("trust_remote_code", "False") != "False":
            found.append(f"{line} {name}")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_that_executes_data(path):
    assert not dangerous(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    ["import pickle", "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(f, L)", "eval(x)", "exec(x)",
     "run(x, shell=True)", "tar.extractall(p)", "np.load(f, allow_pickle=True)", "from joblib import load"],
)  # fmt: skip
def test_control_each_way_to_execute_data_is_seen(line):
    assert dangerous(line)
    assert not dangerous("torch.load(f, weights_only=True); np.load(f); model.eval(); re.compile(x)")
