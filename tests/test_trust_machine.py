"""Odd places and odd machines: names, locales, hash seeds, time zones, read-only homes, full disks, two at once."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luban import console, files
from luban.cli import main
from luban.columns.examples import encode
from luban.data.prepare import data_of
from luban.part import Part
from tests import tiny

ROOT = Path(__file__).parent.parent
NAMES = [
    "with space", "ünïcødé-模型", "नमूना", "quote's \"double\"", "a" * 240, "模" * 70, "emoji😀", "percent%20", "[glob]*?", "#tag",
    "trailing.", "{braces}", "a.b", "comma,=", "COM1",
]  # fmt: skip
TRAIN = ("--target", "back", "--size", "nano", "--set", "train.epochs=1", "--set", "evaluate.resamples=10")


def luban(*words: str, place: Path, **environment: str) -> subprocess.CompletedProcess:
    """The command in a process of its own. A value of "" takes a variable away."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "luban.cli", *words], cwd=place, capture_output=True, timeout=120,
        env={k: v for k, v in env.items() if v != ""},
    )  # fmt: skip


def weights(folder: Path) -> str:
    return json.loads((folder / files.MANIFEST).read_text("utf-8"))["files"]["model.safetensors"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_odd_names_of_files_and_folders(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    data = tiny.csv(Path(name) / f"{name[:60]}.csv")
    out = f"{name}/{name}"
    assert main(["train", str(data), *TRAIN, "--out", out]) == 0
    assert main(["predict", out, str(data), "--out", f"{name}/{name[:60]}.jsonl"]) == 0
    assert len(Path(f"{name}/{name[:60]}.jsonl").read_text("utf-8").splitlines()) == 40
    assert main(["evaluate", out, str(data), "--json", f"{name}/numbers.json"]) == 0
    assert main(["show", out]) == 0 and main(["report", out]) == 0
    left = sorted(p.name for p in Path(name).iterdir())
    assert left == sorted([name, f"{name[:60]}.csv", f"{name[:60]}.jsonl", "numbers.json"])


def test_a_path_that_is_too_long_is_said_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.csv(Path("rows.csv"))
    assert main(["train", "rows.csv", *TRAIN, "--out", "x" * 300]) in (1, 2)
    said = capsys.readouterr().err
    assert "xxx" in said and "Trained" not in said and len(said.splitlines()) <= 12


def test_from_another_folder_it_is_the_same_model(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    tiny.csv(tmp_path / "here" / "rows.csv")
    (tmp_path / "here" / "r.yaml").write_text(
        "luban: 1\ndata: {rows: rows.csv}\noutputs: {back: category}\nsize: nano\nstages: [{train: {epochs: 1}}]\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    assert main(["run", "r.yaml", "--out", "a"]) == 0
    monkeypatch.chdir(tmp_path / "there")
    assert main(["run", "../here/r.yaml", "--out", "b"]) == 0
    assert weights(tmp_path / "here" / "a") == weights(tmp_path / "there" / "b")
    assert main(["resume", "b"]) == 0, "the data are found again from where the run was begun"
    monkeypatch.chdir(tmp_path)
    assert main(["show", "there/b"]) == 0


MACHINES = {
    "plain": {},
    "hash": {"PYTHONHASHSEED": "1", "TZ": "Pacific/Kiritimati"},
    "turkish": {"PYTHONHASHSEED": "77", "LANG": "tr_TR.UTF-8", "LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu"},
    "chinese": {"LANG": "zh_CN.UTF-8", "LC_ALL": "zh_CN.UTF-8", "PYTHONHASHSEED": "random"},
    "bare": {"LANG": "C", "LC_ALL": "C", "HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent/cache", "TERM": "dumb"},
    "ascii": {"PYTHONIOENCODING": "ascii", "NO_COLOR": "1"},
}  # fmt: skip


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """The same command under each environment: the weights that came of it and what was printed."""
    place = tmp_path_factory.mktemp("machines")
    tiny.csv(place / "rows-größe.csv")
    found = {}
    for name, environment in MACHINES.items():
        done = luban("train", "rows-größe.csv", *TRAIN, "--out", name, place=place, **environment)
        found[name] = (done, weights(place / name) if done.returncode == 0 else "")
    return found


@pytest.mark.parametrize("name", MACHINES)
def test_locale_home_hash_seed_and_time_zone_change_no_weight(machines, name):
    done, digest = machines[name]
    assert done.returncode == 0, done.stderr[-800:]
    assert digest == machines["plain"][1]


@pytest.mark.parametrize("name", MACHINES)
def test_without_a_terminal_there_are_no_control_codes(machines, name):
    done, _ = machines[name]
    assert not [c for c in done.stdout + done.stderr if c < 32 and c != 10]


def test_control_another_seed_gives_other_weights(machines, tmp_path):
    tiny.csv(tmp_path / "rows.csv")
    assert main(["train", str(tmp_path / "rows.csv"), *TRAIN, "--seed", "1", "--out", str(tmp_path / "m")]) == 0
    assert weights(tmp_path / "m") != machines["plain"][1]


def test_the_language_follows_the_locale(machines):
    assert "Trained" in machines["turkish"][0].stderr.decode() and "Trained" in machines["bare"][0].stderr.decode()


def test_chinese_answers_reach_a_pipe_in_a_bare_locale(tmp_path):
    """Output is UTF-8 or readable, never a traceback."""
    (tmp_path / "rows.csv").write_text(
        "商店,价格,标签\n" + "".join(f"{'北南东'[i % 3]},{i % 7 / 2},{'好坏'[i % 2]}\n" for i in range(40)), "utf-8"
    )
    bare = {**MACHINES["bare"]}
    done = luban("train", "rows.csv", "--target", "标签", *TRAIN[2:], "--out", "模型", place=tmp_path, **bare)
    assert done.returncode == 0, done.stderr[-800:]
    done = luban("predict", "模型", "rows.csv", place=tmp_path, **bare)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 40, done.stderr[-800:]
    assert json.loads(done.stdout.splitlines()[0])["标签"] in "好坏"
    done = luban("predict", "模型", "rows.csv", place=tmp_path, **MACHINES["ascii"])
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[0])["标签"] in "好坏"
    done = luban("train", "rows.csv", "--target", "标笺", "--out", "o", place=tmp_path, **bare)
    assert done.returncode == 2 and b"Traceback" not in done.stderr


def test_read_only_folders_are_said_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.csv(Path("rows.csv"))

    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "mkdir", denied)
    assert main(["train", "rows.csv", *TRAIN, "--out", "m"]) in (1, 2)
    said = capsys.readouterr().err
    assert "m" in said and "Traceback" not in said and "Trained" not in said


# -- full disks ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_for_the_log_does_not_stop_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.csv(Path("rows.csv"))
    Path("m").mkdir()
    os.symlink("/dev/full", "m/run.log")
    assert main(["train", "rows.csv", *TRAIN, "--out", "m"]) == 0
    assert main(["predict", "m", "rows.csv", "--out", "a.jsonl"]) == 0
    console.log_to(None)


def test_a_full_disk_for_the_model_leaves_the_old_one(tmp_path, monkeypatch, capsys):
    """The file size limit of the process plays the full disk, in a process of its own."""
    tiny.csv(tmp_path / "rows.csv")
    assert main(["train", str(tmp_path / "rows.csv"), *TRAIN, "--out", str(tmp_path / "m")]) == 0
    before = weights(tmp_path / "m")
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import torch;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); from luban.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, "train", "rows.csv", *TRAIN, "--seed", "5", "--out", "m", "--overwrite"],
        cwd=tmp_path, capture_output=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-500:]
    assert b"Traceback" not in done.stderr and len(done.stderr.splitlines()[-1]) > 10
    assert weights(tmp_path / "m") == before and main(["show", str(tmp_path / "m")]) == 0
    assert not list(tmp_path.rglob("*.tmp"))


def test_answers_to_a_full_disk_are_a_sentence(tmp_path):
    folder = tiny.folder(tmp_path)
    tiny.csv(tmp_path / "rows.csv")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "luban.cli", "predict", str(folder), "rows.csv"], cwd=tmp_path, stdout=full,
            stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120,
        )  # fmt: skip
    assert done.returncode == 1 and b"Traceback" not in done.stderr, done.stderr[-500:]


# -- two at once ---------------------------------------------------------------------------------------------------------


def test_two_processes_into_one_folder_one_is_refused(tmp_path):
    tiny.csv(tmp_path / "rows.csv")
    words = ["train", "rows.csv", "--target", "back", "--size", "nano", "--set", "train.epochs=100000",
             "--set", "train.patience=0", "--set", "train.checkpoint_seconds=0.2", "--out", "m", "--overwrite"]  # fmt: skip
    first = subprocess.Popen(
        [sys.executable, "-m", "luban.cli", *words], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        began = time.monotonic()
        while not list(tmp_path.glob("m/checkpoints/step-*")):
            assert first.poll() is None and time.monotonic() - began < 60
            time.sleep(0.1)
        second = luban(*words, place=tmp_path)
        assert second.returncode == 2 and b"another Luban process" in second.stderr, second.stderr[-500:]
        assert first.poll() is None
    finally:
        first.terminate()
        code = first.wait(60)
    assert code == 143 and main(["show", str(tmp_path / "m")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "rows.csv"]


def test_no_clock_chooses_the_precision_of_a_small_network(monkeypatch):
    """A trial that lasts microseconds would choose differently each time, and the weights with it."""
    from luban.training import precision

    model = tiny.model()
    examples = encode(
        model.columns, model.inputs, model.outputs, data_of(tiny.rows(), model.columns).framed("test", Part("row"))
    )
    times = iter([0.001, 0.0001] * 8)
    monkeypatch.setattr(precision, "able", lambda device, name: name in ("fp32", "bf16"))
    monkeypatch.setattr(precision, "_once", lambda *_: next(times))
    assert precision.choose(model.network, examples, 8, "cpu", None).precision == "fp32"
    times = iter([0.1, 0.01] * 8)
    assert precision.choose(model.network, examples, 8, "cpu", None).precision == "bf16", (
        "control: where it is worth it"
    )
