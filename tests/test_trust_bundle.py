"""Damage of a saved model is found and named, whatever it is and wherever it is."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import luban
from luban import files
from luban.errors import BundleError
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


def test_150_damages_are_refused_by_name(tmp_path):
    assert not many(tmp_path, 150, seed=1)


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


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path):
    import torch

    from luban.training import checkpoints

    for step in (1, 2):
        checkpoints.save(tmp_path / "c", step, {"model": {"w": torch.full((3,), float(step))}}, {"step": step})
    rng = np.random.default_rng(6)
    for damage in DAMAGES * 3:
        shutil.copytree(tmp_path / "c", tmp_path / "d")
        damage(tmp_path / "d" / "step-2" / str(rng.choice(["model.safetensors", "state.json"])), rng)
        assert checkpoints.newest(tmp_path / "d")[1]["step"] == 1
        shutil.rmtree(tmp_path / "d")
    assert checkpoints.newest(tmp_path / "c")[1]["step"] == 2
