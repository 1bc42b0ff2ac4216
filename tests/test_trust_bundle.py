"""Damage of a saved model is found and named, whatever it is and wherever it is."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import luban
from luban import files
from luban.errors import BundleError
from luban.training import checkpoints
from tests import tiny


def names(folder: Path) -> list[str]:
    return sorted(json.loads((folder / files.MANIFEST).read_text("utf-8"))["files"])


def flip(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def truncate(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])


def zero_page(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    page = 64  # of a tiny file; a disk's is 4096
    start = int(rng.integers(len(data))) // page * page
    gone = bytes(len(data[start : start + page]))
    if data[start : start + page] == gone:  # zeros already
        gone = b"\xff" * len(gone)
    data[start : start + page] = gone
    path.write_bytes(data)


DAMAGES = (flip, truncate, zero_page)


def refused(folder: Path, name: str) -> bool:
    with pytest.raises(BundleError) as e:
        luban.load(folder)
    return name in str(e.value) and str(folder) in str(e.value)


def harm(folder: Path, damage, rng: np.random.Generator) -> str:
    """Damage one file, each byte of the folder as likely as any other."""
    every = names(folder)
    sizes = np.array([(folder / n).stat().st_size for n in every], float)
    name = str(rng.choice(every, p=sizes / sizes.sum()))
    damage(folder / name, rng)
    return name


def many(place: Path, count: int, seed: int) -> list[str]:
    """Damages that were not refused with the file's name; each on a whole folder."""
    rng, passed = np.random.default_rng(seed), []
    folder = tiny.folder(place)
    for i in range(count):
        damage = DAMAGES[i % len(DAMAGES)]
        before = {n: (folder / n).read_bytes() for n in names(folder)}
        name = harm(folder, damage, rng)
        if not refused(folder, name):
            passed.append(f"{damage.__name__} {name}")
        (folder / name).write_bytes(before[name])
    assert luban.load(folder).predict(tiny.rows(2))
    return passed


def test_90_damages_are_refused_by_name(tmp_path):
    assert not many(tmp_path, 90, seed=1)


@pytest.mark.slow
def test_1500_damages_are_refused_by_name(tmp_path):
    assert not many(tmp_path, 1500, seed=2)


def test_control_without_the_manifest_most_damage_is_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_hold", lambda *_: None)
    rng, silent = np.random.default_rng(3), 0
    folder = tiny.folder(tmp_path)
    for _ in range(40):
        path = folder / "model.safetensors"
        before = path.read_bytes()
        flip(path, rng)
        try:
            luban.load(folder)
            silent += 1
        except BundleError:
            pass
        path.write_bytes(before)
    assert silent >= 20


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_is_guarded(tmp_path, damage):
    folder, rng = tiny.folder(tmp_path), np.random.default_rng(4)
    for name in [n for n in names(folder) if (folder / n).stat().st_size]:
        before = (folder / name).read_bytes()
        damage(folder / name, rng)
        assert refused(folder, name)
        (folder / name).write_bytes(before)


def test_every_missing_file_is_named(tmp_path):
    folder = tiny.folder(tmp_path)
    for name in names(folder):
        (folder / name).rename(tmp_path / "away")
        assert refused(folder, name)
        (tmp_path / "away").rename(folder / name)
    (folder / files.MANIFEST).unlink()
    assert refused(folder, files.MANIFEST)


def test_swapped_files_are_refused(tmp_path):
    folder = tiny.folder(tmp_path)
    every = names(folder)
    for a, b in itertools.pairwise(every):
        if (folder / a).read_bytes() == (folder / b).read_bytes():
            continue
        one, other = (folder / a).read_bytes(), (folder / b).read_bytes()
        (folder / a).write_bytes(other)
        (folder / b).write_bytes(one)
        assert refused(folder, a)
        (folder / a).write_bytes(one)
        (folder / b).write_bytes(other)


def test_a_damaged_manifest_is_refused(tmp_path):
    folder, rng = tiny.folder(tmp_path), np.random.default_rng(5)
    path = folder / files.MANIFEST
    before = path.read_bytes()
    for damage in DAMAGES * 8:
        damage(path, rng)
        try:
            luban.load(folder)  # a bit of Luban's version may flip: nothing hangs on it
            changed = [i for i, (a, b) in enumerate(zip(before, path.read_bytes())) if a != b]
            assert len(changed) == 1 and b'"luban"' in before[max(0, changed[0] - 20) : changed[0] + 20]
        except BundleError as e:
            assert str(folder) in str(e)
        path.write_bytes(before)


EXTRA = ("model.pkl", "reports/evil.html", "tables/more.arrow", "tokenizer-9.json", "__init__.py", "new/deep/file")
BESIDE = (
    ".DS_Store", "checkpoints/step-9/x", ".stages/1-train/x", "run.log", "quarantine.csv", "report.html", "model.onnx",
    "explain/explain.html", "reports/.DS_Store",
)  # fmt: skip


@pytest.mark.parametrize("name", EXTRA)
def test_files_that_the_manifest_does_not_name_are_refused(tmp_path, name):
    folder = tiny.folder(tmp_path)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("x")
    assert refused(folder, name)


@pytest.mark.parametrize("name", BESIDE)
def test_what_runs_and_reports_leave_may_lie_beside(tmp_path, name):
    folder = tiny.folder(tmp_path)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("x")
    assert luban.load(folder).predict(tiny.rows(1))


def test_a_linked_folder_is_an_extra_file(tmp_path):
    folder = tiny.folder(tmp_path)
    (folder / "more").symlink_to(tmp_path, target_is_directory=True)
    assert refused(folder, "more")


# -- checkpoints -------------------------------------------------------------------------------------------------------


def two_checkpoints(place: Path) -> Path:
    for step in (1, 2):
        tensors = {name: {"w": torch.full((1500,), float(step))} for name in ("model", "optimizer", "best")}
        checkpoints.save(place / "c", step, tensors, {"step": step, "history": list(range(200))})
    return place / "c" / "step-2"


def taken_up(folder: Path) -> int:
    """The step that a run would go on from; all of it must be of that step."""
    tensors, state = checkpoints.newest(folder.parent)
    assert all((t["w"] == state["step"]).all() and len(t["w"]) == 1500 for t in tensors.values())
    return state["step"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_500_damages_of_a_checkpoint_each_send_a_run_back_to_the_one_before(tmp_path, damage, capsys):
    newer, rng = two_checkpoints(tmp_path), np.random.default_rng(6)
    for _ in range(500):
        before = {n: (newer / n).read_bytes() for n in names(newer)}
        name = harm(newer, damage, rng)
        assert taken_up(newer) == 1 and name in capsys.readouterr().err
        (newer / name).write_bytes(before[name])
    assert taken_up(newer) == 2


def test_files_of_a_checkpoint_swapped_missing_or_added(tmp_path):
    newer = two_checkpoints(tmp_path)
    every = names(newer)
    for a, b in itertools.combinations(every, 2):
        if (newer / a).read_bytes() != (newer / b).read_bytes():
            one, other = (newer / a).read_bytes(), (newer / b).read_bytes()
            (newer / a).write_bytes(other)
            (newer / b).write_bytes(one)
            assert taken_up(newer) == 1
            (newer / a).write_bytes(one)
            (newer / b).write_bytes(other)
    for name in [*every, files.MANIFEST]:
        (newer / name).rename(tmp_path / "away")
        assert taken_up(newer) == 1
        shutil.copy(newer.parent / "step-1" / name, newer / name)
        assert taken_up(newer) == 1, "of another checkpoint"
        (tmp_path / "away").replace(newer / name)
    (newer / "more.safetensors").write_bytes((newer / "model.safetensors").read_bytes())
    assert taken_up(newer) == 1
    (newer / "more.safetensors").unlink()
    assert taken_up(newer) == 2


def test_control_without_the_manifest_a_run_goes_on_from_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_hold", lambda *_: None)
    newer, rng, silent = two_checkpoints(tmp_path), np.random.default_rng(7), 0
    for _ in range(60):
        before = (newer / "model.safetensors").read_bytes()
        flip(newer / "model.safetensors", rng)
        try:
            silent += taken_up(newer) == 2
        except AssertionError:
            silent += 1
        (newer / "model.safetensors").write_bytes(before)
    assert silent >= 50
