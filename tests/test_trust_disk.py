"""A disk that is full or fails at any write: what was saved before loads, nothing half is left, and it is said in words."""

import errno
import json
import os
import resource
import subprocess
from contextlib import contextmanager

import pytest
import torch

from luban import console, files
from luban.errors import DiskError
from luban.training import checkpoints
from tests.disk import Disk
from tests.test_trust_save import KEPT, begun, everywhere, kept, told, version

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES)
WRITES = ("open", "write", "fsync", "replace", "mkdir")


def failing_at(count: int, error: int, work, monkeypatch, *, lasting: bool = False) -> DiskError | None:
    """Do the work while its write number `count` (from 0), and with `lasting` each one after it, fails."""
    seen = [0]

    def on(operation, *arguments):
        if operation in WRITES:
            seen[0] += 1
            if seen[0] == count + 1 or (lasting and seen[0] > count and operation in ("open", "write", "mkdir")):
                raise OSError(error, os.strerror(error), str(arguments[0]))

    with monkeypatch.context() as m:
        Disk(m, on)
        try:
            work()
        except DiskError as e:
            return e
    if seen[0] > count:
        return DiskError("disk.failed", path="", needed="", reason="silent")
    return None


def put(folder, number: float) -> None:
    tensors = {name: {"w": torch.full((100,), number)} for name in ("model", "optimizer")}
    checkpoints.save(folder, int(number), tensors, {"number": number})


def read(folder) -> float:
    tensors, state = checkpoints.newest(folder)
    assert {v for t in tensors.values() for v in t["w"].tolist()} == {state["number"]}, "mixed"
    return state["number"]


def in_words(e: DiskError, error: int) -> bool:
    """The sentence has the bytes needed, and where it is full those that are free."""
    values = e.problems[0].values
    full = e.id == "disk.full" and int(values["free"].replace(",", "")) > 0
    return (
        values["needed"] in str(e) and int(values["needed"].replace(",", "")) > 800 and (full or error != errno.ENOSPC)
    )


def checkpoint_failures(folder, save, error: int, monkeypatch, lasting: bool = False) -> int:
    """How many writes a save has; each of them failed once, and what was there before still loads."""
    for count in range(200):
        place = folder / f"{error}-{count}"
        put(place, 1.0)
        put(place, 2.0)
        told = failing_at(count, error, lambda p=place: save(p, 3.0), monkeypatch, lasting=lasting)
        assert read(place) in (2.0, 3.0)
        assert not [n for n in everywhere(place) if n.endswith(".tmp")], "nothing half is left"
        if told is None:
            return count
        assert (told.problems[0].values["reason"] == "silent" and read(place) == 3.0) or in_words(told, error)
        put(place, 4.0)
        assert read(place) == 4.0, "and the next one is saved"
    raise AssertionError("never ended")


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: errno.errorcode[e])
def test_a_checkpoint_whose_writes_fail(tmp_path, monkeypatch, error):
    assert checkpoint_failures(tmp_path, put, error, monkeypatch) >= 15


def test_a_checkpoint_on_a_disk_that_stays_full(tmp_path, monkeypatch):
    assert checkpoint_failures(tmp_path, put, errno.ENOSPC, monkeypatch, lasting=True) >= 15


def in_place(folder, number: float) -> None:
    """As one would without care: over the newest one."""
    with files.room_for(folder, 1000):
        for name in ("model", "optimizer"):
            data = {"w": torch.full((100,), number)}
            files.put(folder / "step-2" / f"{name}.safetensors", checkpoints.pieces(data))
        files.write_json(folder / "step-2" / "state.json", {"number": number})
        known = {
            n: files.digest(folder / "step-2" / n) for n in ("model.safetensors", "optimizer.safetensors", "state.json")
        }
        files.seal(folder / "step-2", "checkpoint", known, known)


def test_control_a_save_in_place_loses_what_was_there(tmp_path, monkeypatch):
    with pytest.raises(AssertionError):
        checkpoint_failures(tmp_path, in_place, errno.ENOSPC, monkeypatch)


def bundle_failures(place, monkeypatch, errors_of) -> int:
    new = version(2)
    here = place / "here"
    here.mkdir()
    folder = begun(here)
    for count in range(600):
        for error in errors_of(count):
            said = failing_at(count, error, lambda f=folder: new.save(f), monkeypatch)
            assert told(folder) in (1, 2) and kept(folder) == KEPT
            assert set(everywhere(here)) <= {"shop", ".shop.gone.tmp"}, "nothing half is left"
            if said is None:
                assert everywhere(here) == ["shop"]
                return count
            assert said.problems[0].values["reason"] == "silent" or in_words(said, error)
    raise AssertionError("never ended")


def test_a_bundle_whose_writes_fail(tmp_path, monkeypatch):
    """Every third write by one of the errors in turn."""
    turn = lambda count: ERRORS[count // 3 % 4 : count // 3 % 4 + 1] if count % 3 == 0 else ()  # noqa: E731
    assert bundle_failures(tmp_path, monkeypatch, turn) >= 40


@pytest.mark.slow
def test_a_bundle_whose_every_write_fails_by_every_error(tmp_path, monkeypatch):
    assert bundle_failures(tmp_path, monkeypatch, lambda count: ERRORS) >= 40


# -- for real ------------------------------------------------------------------------------------------------------------


@contextmanager
def no_file_above(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_limit_on_the_size_of_files(tmp_path):
    put(tmp_path, 1.0)
    big = {"model": {"w": torch.zeros(100_000)}}
    with no_file_above(4096), pytest.raises(DiskError, match=r"400,\d\d\d bytes") as e:
        checkpoints.save(tmp_path, 2, big, {"number": 2.0})
    assert e.value.id == "disk.full" and "may not write" in str(e.value)
    assert read(tmp_path) == 1.0 and everywhere(tmp_path) == ["step-1"]


@pytest.fixture
def small_disk(tmp_path):
    """6 MB, where one may mount it."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("may not mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_of_six_megabytes(small_disk):
    put(small_disk / "c", 1.0)
    with pytest.raises(DiskError, match=r"needs about 8,000,\d\d\d bytes, [\d,]+ are free"):
        checkpoints.save(small_disk / "c", 2, {"model": {"w": torch.zeros(2_000_000)}}, {"number": 2.0})
    assert read(small_disk / "c") == 1.0 and everywhere(small_disk / "c") == ["step-1"]
    (small_disk / "ballast").write_bytes(
        bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - 8192)
    )
    console.log_to(small_disk / "run.log")
    try:
        for i in range(300):
            console.record("line", number=i, text="x" * 60)
        (small_disk / "ballast").unlink()
        console.record("line", number=300)
    finally:
        console.log_to(None)
    lines = [json.loads(line) for line in (small_disk / "run.log").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(301)), "no line is lost, none is half"


def test_what_a_folder_cannot_do_is_no_failure_but_a_failing_disk_is(tmp_path, monkeypatch):
    def unable(descriptor):
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "fsync", unable)
    files.sync(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda d: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        files.sync(tmp_path)
