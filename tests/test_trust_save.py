"""A save that is killed at any moment leaves the old or the new, whole, and never loses what lies beside.

Power loss is played back from a recording: `Disk` notes every operation that changes the disk; for each prefix of them,
what was not yet synced may be there, lost, empty or torn.
"""

import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from luban import files
from luban.bundle import Bundle
from luban.errors import BundleError, RequestError
from luban.training import checkpoints
from tests import tiny


class Killed(BaseException):
    """The process is gone at this operation; nothing of ours runs afterwards."""


class Disk:
    """Every change of the disk, as it is asked for: `on(operation, *paths)` is called before it is done."""

    def __init__(self, monkeypatch, on):
        for name in ("replace", "mkdir", "unlink", "rmdir", "fsync"):
            monkeypatch.setattr(os, name, self.told(name, getattr(os, name), on))
        real = shutil.rmtree
        monkeypatch.setattr(shutil, "rmtree", lambda path, **k: (on("rmtree", path), real(path, **k)))
        whole = io.open
        monkeypatch.setattr(
            "builtins.open",
            lambda f, mode="r", *a, **k: (mode[0] in "wax" and on("open", f), whole(f, mode, *a, **k))[1],
        )
        monkeypatch.setattr(
            io, "open", lambda f, mode="r", *a, **k: (mode[0] in "wax" and on("open", f), whole(f, mode, *a, **k))[1]
        )

    @staticmethod
    def told(name, real, on):
        def call(*args, **keywords):
            on(name, *args)
            return real(*args, **keywords)

        return call


def killed_after(count: int, work, monkeypatch) -> bool:
    """Do the work up to the disk's operation `count`; True when it came to its end before."""
    seen = itertools.count(1)
    dead = []

    def on(*_):
        if dead or next(seen) > count:  # a dead process cleans nothing up either
            dead.append(1)
            raise Killed

    with monkeypatch.context() as m:
        Disk(m, on)
        try:
            work()
        except Killed:
            pass
        finally:
            files._held.clear()
    return not dead


# -- Bundles -----------------------------------------------------------------------------------------------------------

KEPT = {"checkpoints/step-1/x": "weights", "run.log": "log", ".stages/1/x": "stage", "quarantine.csv": "rows"}


def version(number: int) -> Bundle:
    """A Bundle that says everywhere which it is: in its weights, its history and its edits of one table."""
    bundle = tiny.model().with_history("mark", number=number)
    bundle.network = bundle.copy_network()
    with torch.no_grad():
        for p in bundle.network.parameters():
            p.fill_(number)
    return bundle


def told(folder: Path) -> int:
    """Which version lies there; it must be one and the same everywhere."""
    loaded = Bundle.load(folder)
    weights = {v for p in loaded.network.parameters() for v in p.detach().unique().tolist()}
    number = loaded.history[-1]["number"]
    assert weights == {float(number)}, "mixed"
    return number


def begun(place: Path) -> Path:
    folder = version(1).save(place / "shop")
    for name, text in KEPT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def kept(folder: Path) -> dict[str, str]:
    return {n: (folder / n).read_text() for n in KEPT if (folder / n).is_file()}


def everywhere(place: Path) -> list[str]:
    return sorted(p.name for p in place.iterdir())


def enumerate_kills(place: Path, save, monkeypatch) -> list[int]:
    """What each kill point left, by version."""
    found, ended = [], False
    new = version(2)
    for count in range(400):
        here = place / str(count)
        here.mkdir()
        folder = begun(here)
        ended = killed_after(count, lambda f=folder: save(new, f), monkeypatch)
        found.append(told(folder))
        assert kept(folder) == KEPT, f"lost at operation {count}"
        version(3).save(folder)
        assert told(folder) == 3 and kept(folder) == KEPT and everywhere(here) == ["shop"]
        shutil.rmtree(here)
        if ended:
            return found
    raise AssertionError("never ended")


def test_a_save_killed_at_every_operation_leaves_old_or_new(tmp_path, monkeypatch):
    found = enumerate_kills(tmp_path, lambda b, f: b.save(f), monkeypatch)
    assert len(found) > 20 and found == sorted(found), "once new, always new"
    assert found[0] == 1 and found[-1] == 2


def in_place(bundle: Bundle, folder: Path) -> None:
    bundle._write(folder, False)
    files.seal(folder, "bundle", [n for n in os.listdir(folder) if (folder / n).is_file() and n != "run.log"])


def test_control_a_writer_in_place_is_caught(tmp_path, monkeypatch):
    with pytest.raises((AssertionError, BundleError)):
        enumerate_kills(tmp_path, in_place, monkeypatch)


def moved_before(bundle: Bundle, folder: Path) -> None:
    """As it was once done: what lies beside moves into the new folder before that has the name."""
    new = folder.with_name(".new.1.tmp")
    new.mkdir()
    bundle._write(new, False)
    files.seal(new, "bundle")
    for name in {n.split("/")[0] for n in KEPT}:
        os.replace(folder / name, new / name)
    files.replace_folder(new, folder)


def test_control_moving_what_lies_beside_first_loses_it(tmp_path, monkeypatch):
    with pytest.raises(AssertionError):
        enumerate_kills(tmp_path, moved_before, monkeypatch)


# -- power loss ----------------------------------------------------------------------------------------------------------


class Recorder:
    """The operations of one save, with a copy of what each file held when it was synced."""

    def __init__(self, root: Path):
        self.root, self.log = root, []
        self.known = {}

    def __call__(self, operation, *paths):
        if operation == "fsync":
            path = Path(os.readlink(f"/proc/self/fd/{paths[0]}"))
            self.log.append(("sync", path))
        elif operation in ("replace", "rmtree"):
            self.log.append((operation, *(Path(p) for p in paths[: 2 if operation == "replace" else 1])))


def replayed(log, first: Path, final_files: dict[str, bytes], upto: int, harm: str, place: Path) -> Path:
    """The disk after `upto` operations of the log: a file whose sync has not come yet is `harm`ed.

    A file is safe when it and the folder that holds its name were synced. Renames keep their order, as journaling
    file systems do.
    """
    root = place / "disk"
    shutil.copytree(first, root)
    new = next(o[1] for o in log if o[0] == "replace" and o[2].name == "shop")
    synced = set()
    for operation, *paths in log[:upto]:
        if operation == "sync":
            synced.add(paths[0])
        elif operation == "replace" and paths[0] in synced:
            synced.add(paths[1])
    target = root / new.name
    target.mkdir()
    for name, data in final_files.items():
        path = target / name
        whole = new / name in synced and (new / name).parent in synced  # the name is the folder's
        if not whole and harm == "lost":
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if whole or harm == "full" else b"" if harm == "empty" else data[: len(data) // 2])
    for operation, *paths in log[:upto]:
        inside = [root / p.relative_to(log_root(log)) for p in paths if p.is_relative_to(log_root(log))]
        if operation == "replace" and paths[0].parent != new and inside[0].exists():
            os.replace(*inside)
        elif operation == "rmtree" and inside:
            shutil.rmtree(inside[0], ignore_errors=True)
    return root / "shop"


def log_root(log) -> Path:
    return next(o[2] for o in log if o[0] == "replace" and o[2].name == "shop").parent


def recorded(place: Path, monkeypatch, save) -> tuple[list, Path, dict[str, bytes]]:
    folder = begun(place / "work")
    shutil.copytree(place / "work", place / "first")
    recorder = Recorder(place / "work")
    with monkeypatch.context() as m:
        Disk(m, recorder)
        save(version(2), folder)
    named = [*json.loads((folder / files.MANIFEST).read_text())["files"], files.MANIFEST]
    return recorder.log, place / "first", {n: (folder / n).read_bytes() for n in named}


def losses(place: Path, monkeypatch, save) -> list[str]:
    """Every state that a power loss can leave and that does not load as the old or the new."""
    log, first, written = recorded(place, monkeypatch, save)
    bad = []
    for upto in range(len(log) + 1):
        for harm in ("full", "lost", "empty", "torn"):
            folder = replayed(log, first, written, upto, harm, place)
            try:
                assert told(folder) in (1, 2) and kept(folder) == KEPT
            except (AssertionError, BundleError) as e:
                bad.append(f"{upto} {harm} {e}")
            shutil.rmtree(place / "disk")
    return bad


def test_power_lost_at_every_operation_leaves_old_or_new(tmp_path, monkeypatch):
    assert not losses(tmp_path, monkeypatch, lambda b, f: b.save(f))


def test_control_a_save_without_syncs_does_not_survive_a_power_loss(tmp_path, monkeypatch):
    def careless(bundle, folder):
        monkeypatch.setattr(files, "sync", lambda path: None)
        bundle.save(folder)

    assert losses(tmp_path, monkeypatch, careless)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def put(folder: Path, step: int, number: float) -> None:
    checkpoints.save(folder, step, {"model": {"w": torch.full((4,), number)}}, {"number": number})


@pytest.mark.parametrize("step", [2, 3])
def test_a_checkpoint_killed_at_every_operation_leaves_old_or_new(tmp_path, monkeypatch, step):
    """Step 2 takes the place of a step 2, step 3 is a new one."""
    found, ended = [], False
    for count in itertools.count():
        folder = tmp_path / str(count)
        put(folder, 1, 1.0)
        put(folder, 2, 2.0)
        ended = killed_after(count, lambda f=folder: put(f, step, 3.0), monkeypatch)
        tensors, state = checkpoints.newest(folder)
        assert set(tensors["model"]["w"].tolist()) == {state["number"]}, "mixed"
        found.append(state["number"])
        put(folder, 9, 9.0)
        assert checkpoints.newest(folder)[1]["number"] == 9.0
        assert len(everywhere(folder)) == 2, "nothing stale, two kept"
        if ended:
            break
    assert len(found) > 10 and found == sorted(found) and set(found) == {2.0, 3.0}


def test_checkpoints_of_another_run_do_not_outlive_the_first_of_this_one(tmp_path):
    put(tmp_path, 500, 5.0)
    put(tmp_path, 10, 1.0)
    assert checkpoints.newest(tmp_path)[1]["number"] == 1.0


# -- real kills --------------------------------------------------------------------------------------------------------

LOOP = """
import sys, itertools
from pathlib import Path
from tests.test_trust_save import version
folder = Path(sys.argv[1])
one, two = version(1), version(2)
print("ready", flush=True)
for i in itertools.count():
    (two if i % 2 else one).save(folder)
"""


def killed_for_real(folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    begun(folder.parent)
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP, str(folder)], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
        )
        process.stdout.readline()
        time.sleep(rng.uniform(0.005, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert told(folder) in (1, 2)
        assert kept(folder) == KEPT
    version(3).save(folder)
    assert told(folder) == 3 and everywhere(folder.parent) == ["shop"]


def test_killed_while_saving(tmp_path):
    killed_for_real(tmp_path / "shop", 2, seed=0)


@pytest.mark.slow
def test_killed_forty_times_while_saving(tmp_path):
    killed_for_real(tmp_path / "shop", 40, seed=1)


# -- who may write -----------------------------------------------------------------------------------------------------


def test_nobodys_files_are_overwritten(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "README.md").write_text("mine")
    with pytest.raises(RequestError, match=r"README\.md"):
        version(1).save(tmp_path / "docs")
    assert (tmp_path / "docs" / "README.md").read_text() == "mine" and everywhere(tmp_path) == ["docs"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    begun(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "shop")
    version(2).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and told(tmp_path / "shop") == told(tmp_path / "link") == 2


def test_a_folder_is_one_processes_at_a_time(tmp_path):
    import fcntl

    folder = begun(tmp_path)
    with open(files.near(folder, "lock"), "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RequestError, match="another"):
            version(2).save(folder)
        assert told(folder) == 1
    version(2).save(folder)
    assert told(folder) == 2


def test_a_read_only_place_is_read_where_the_old_folder_is(tmp_path, monkeypatch):
    folder = begun(tmp_path)
    folder.rename(files.near(folder, "old"))

    def denied(*_, **__):
        raise PermissionError(13, "read-only")

    with monkeypatch.context() as m:
        m.setattr(os, "open", denied)
        assert told(folder) == 1
    assert told(folder) == 1 and everywhere(tmp_path) == ["shop"]
