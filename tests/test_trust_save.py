"""A save that is killed at any moment leaves the old or the new, whole, and never loses what lies beside.

Power loss is played back from a recording of every operation that changes the disk, see `tests/disk.py`: after each
prefix of them what was not yet synced may be there, lost, empty or torn, and names kept or lost.
"""

import itertools
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
from tests.disk import Disk, Recorder, crashes, killed_after, laid_out, tree

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
    weights = {float(v) for p in loaded.network.parameters() for v in p.detach().aminmax()}
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


def enumerate_kills(place: Path, save, monkeypatch, stride: int = 1) -> list[int]:
    """What each kill point left, by version."""
    found, ended = [], False
    new = version(2)
    for count in range(0, 600, stride):
        here = place / str(count)
        here.mkdir()
        folder = begun(here)
        ended = killed_after(count, lambda f=folder: save(new, f), monkeypatch)
        found.append(told(folder))
        assert kept(folder) == KEPT, f"lost at operation {count}"
        version(3).save(folder)
        assert kept(folder) == KEPT and everywhere(here) == ["shop"]
        shutil.rmtree(here)
        if ended:
            return found
    raise AssertionError("never ended")


def killed_at_every(stride: int, place: Path, monkeypatch) -> None:
    found = enumerate_kills(place, lambda b, f: b.save(f), monkeypatch, stride)
    assert len(found) > 60 / stride and found == sorted(found), "once new, always new"
    assert found[0] == 1 and found[-1] == 2


def test_a_save_killed_at_every_fifth_operation_leaves_old_or_new(tmp_path, monkeypatch):
    killed_at_every(5, tmp_path, monkeypatch)


@pytest.mark.slow
def test_a_save_killed_at_every_operation_leaves_old_or_new(tmp_path, monkeypatch):
    killed_at_every(1, tmp_path, monkeypatch)


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


def states_of(place: Path, monkeypatch, first, work, unseen=lambda name: False):
    """Every state that a power loss during `work(folder)` can leave; `first(folder)` made what stood there before."""
    root = place / "work"
    root.mkdir(exist_ok=True)
    first(root)
    before, recorder = tree(root), Recorder(root)
    with monkeypatch.context() as m:
        Disk(m, recorder)
        work(root)
    return crashes(recorder.log, before, unseen)


def judged(place: Path, states, load) -> dict[str, int]:
    """How many states load as what: the old, the new, mixed, unloadable."""
    found = {"old": 0, "new": 0, "mixed": 0, "unloadable": 0}
    for number, state in enumerate(states):
        here = place / f"crash-{number}"
        here.mkdir()
        laid_out(state, here)
        found[load(here)] += 1
        shutil.rmtree(here)
    return found


def bundle_found(root: Path) -> str:
    try:
        number = told(root / "shop")
        return {1: "old", 2: "new"}[number] if kept(root / "shop") == KEPT else "mixed"
    except BundleError:
        return "unloadable"
    except AssertionError:
        return "mixed"


def unnamed(name: str) -> bool:
    """In the folder of a Bundle that has no name yet: the test below holds that nobody reads it."""
    return name.startswith(".shop.") and ".tmp" in name


def test_power_lost_at_any_moment_leaves_the_old_bundle_or_the_new(tmp_path, monkeypatch):
    states = states_of(tmp_path, monkeypatch, begun, lambda root: version(2).save(root / "shop"), unnamed)
    found = judged(tmp_path, states, bundle_found)
    assert found["mixed"] == found["unloadable"] == 0 and found["old"] and found["new"] and sum(found.values()) >= 8


def test_control_a_save_without_syncs_does_not_survive_a_power_loss(tmp_path, monkeypatch):
    def careless(root):
        monkeypatch.setattr(files, "sync", lambda path: None)
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        version(2).save(root / "shop")

    states = states_of(tmp_path, monkeypatch, begun, careless, unnamed)
    assert judged(tmp_path, itertools.islice(states, 60), bundle_found)["unloadable"]


def test_a_bundle_that_has_no_name_yet_is_not_read(tmp_path):
    folder = begun(tmp_path)
    (files.near(folder, "77.tmp")).mkdir()
    (files.near(folder, "77.tmp") / "model.safetensors").write_text("half")
    assert told(folder) == 1


# -- checkpoints -------------------------------------------------------------------------------------------------------


def put(folder: Path, step: int, number: float) -> None:
    tensors = {name: {"w": torch.full((4,), number)} for name in ("model", "optimizer")}
    checkpoints.save(folder, step, tensors, {"number": number})


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


def checkpoint_found(root: Path) -> str:
    try:
        tensors, state = checkpoints.newest(root)
        return (
            {1.0: "old", 2.0: "old", 3.0: "new"}[state["number"]]
            if {v for name in ("model", "optimizer") for v in tensors[name]["w"].tolist()} == {state["number"]}
            else "mixed"
        )
    except TypeError:
        return "unloadable"


@pytest.mark.parametrize("step", [2, 3])
def test_power_lost_at_any_moment_leaves_the_old_checkpoint_or_the_new(tmp_path, monkeypatch, step):
    def two(root):
        put(root, 1, 1.0)
        put(root, 2, 2.0)

    found = judged(tmp_path, states_of(tmp_path, monkeypatch, two, lambda r: put(r, step, 3.0)), checkpoint_found)
    assert found["mixed"] == found["unloadable"] == 0 and found["old"] and found["new"] and sum(found.values()) >= 20


def two_renames(root: Path, number: float) -> None:
    """As many a trainer saves: each file by itself, whole by a rename, nothing that holds them together."""
    import safetensors.torch

    for name in ("model", "optimizer"):
        data = safetensors.torch.save({"w": torch.full((4,), number)})
        (root / f"{name}.tmp").write_bytes(data)
        os.replace(root / f"{name}.tmp", root / f"{name}.safetensors")


def two_found(root: Path) -> str:
    import safetensors.torch

    try:
        read = [safetensors.torch.load((root / f"{n}.safetensors").read_bytes())["w"] for n in ("model", "optimizer")]
        numbers = {v for w in read for v in w.tolist()}
        return {frozenset({1.0}): "old", frozenset({3.0}): "new"}.get(frozenset(numbers), "mixed")
    except (OSError, safetensors.SafetensorError):
        return "unloadable"


def test_control_a_writer_with_two_renames_is_caught(tmp_path, monkeypatch):
    states = states_of(tmp_path, monkeypatch, lambda r: two_renames(r, 1.0), lambda r: two_renames(r, 3.0))
    found = judged(tmp_path, states, two_found)
    assert found["mixed"] >= 1 and found["unloadable"] >= 5, found


def test_a_checkpoint_that_looks_bad_does_not_drive_out_the_last_good_one(tmp_path):
    put(tmp_path, 1, 1.0)
    for step in (2, 3, 4):
        checkpoints.save(tmp_path, step, {"model": {"w": torch.zeros(4)}}, {"number": step}, good=False)
    assert (
        checkpoints.newest(tmp_path)[1]["number"] == 4 and checkpoints.newest(tmp_path, good=True)[1]["number"] == 1.0
    )
    assert everywhere(tmp_path) == ["step-1", "step-3", "step-4"]


def test_what_is_written_is_safetensors(tmp_path):
    """Held against the library: every type, no dimension, no element, views, odd names."""
    import safetensors.torch

    given = {
        "view": torch.arange(12.0).reshape(3, 4).t(), "none": torch.zeros(0, 3), "one": torch.tensor(3), "ü\"": torch.ones(1),
        **{str(d): torch.ones(3).to(d) for d in checkpoints.DTYPES},
    }  # fmt: skip
    files.put(tmp_path / "x.safetensors", checkpoints.pieces(given))
    read = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert read.keys() == given.keys()
    assert all(torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in given.items())


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
