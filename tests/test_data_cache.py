"""Encoded rows on disk: the same as in memory, never another's, whole or made again, by one process at a time."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pytest

import luban
from luban.columns import kept
from luban.columns.base import Ragged, make
from luban.columns.examples import encode
from luban.columns.kept import encode_kept
from luban.data import cache
from luban.data.frames import row
from luban.errors import BundleError

TYPES = {
    "price": "number",
    "size": "number",
    "shop": "category",
    "review": "text",
    "back": "category",
    "stars": "number",
}
INPUTS, OUTPUTS = ["price", "size", "shop", "review"], ["back", "stars"]


def table(count: int = 700, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    price = [None if p > 2 else float(p) for p in rng.normal(size=count)]
    words = [" ".join(rng.choice(["good", "bad", "odd", "fine"], n)) for n in rng.integers(0, 30, count)]
    return pa.table(
        {
            "price": price,
            "size": rng.normal(size=count),
            "shop": rng.choice(["north", "south", ""], count),
            "review": words,
            "back": rng.choice(["yes", "no"], count),
            "stars": rng.normal(size=count),
        }
    )


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "ABOVE", 0)


@pytest.fixture
def columns():
    rows = table()
    return {n: make(n, t, {}).fit(rows[n]) for n, t in TYPES.items()}


def examples(columns, rows, index=None, **settings):
    index = np.arange(len(rows)) if index is None else index
    return encode_kept(columns, INPUTS, OUTPUTS, row(rows, index))


def batch(found, index):
    arrays = found.arrays(index, np.random.default_rng(3))
    pairs = {("in", n): arrays.inputs[n] for n in INPUTS} | {("out", n): arrays.targets[n] for n in OUTPUTS}
    return pairs | {("rows", ""): (arrays.rows, np.zeros(0))}


def same(a, b, index) -> bool:
    one, two = batch(a, index), batch(b, index)
    return all(np.array_equal(x, y) and x.dtype == y.dtype for k in one for x, y in zip(one[k], two[k]))


def test_what_comes_from_disk_is_what_memory_gives(columns, monkeypatch):
    monkeypatch.setattr("luban.data.blocks.rows_in_block", lambda table: 64)  # several blocks
    rows, index = table(), np.random.default_rng(1).permutation(700)[:500]
    index.sort()
    memory = encode(columns, INPUTS, OUTPUTS, row(rows, index))
    disk = examples(columns, rows, index)
    assert disk.stored and not memory.stored and isinstance(disk.inputs["review"], Ragged)
    assert not disk.inputs["review"].flat.flags.owndata and disk.inputs["review"].flat.dtype == np.uint8
    assert np.array_equal(memory.lengths(), disk.lengths())
    for chosen in (np.arange(500), np.array([499, 0, 3]), np.random.default_rng(0).permutation(500)[:40]):
        assert same(memory, disk, chosen)
    again = examples(columns, rows, index)
    assert same(memory, again, np.arange(500))


def test_the_second_time_nothing_is_encoded(columns, capsys):
    examples(columns, table())
    writes = []
    before, kept._write = kept._write, lambda *a: writes.append(a)
    try:
        examples(columns, table())
    finally:
        kept._write = before
    assert not writes and "already encoded" in capsys.readouterr().err


def mixed_up(columns) -> bool:
    """Whether rows that differ in one cell, in the rows chosen or in what the columns learned are given each other's arrays."""
    base, changed = table(), table().to_pylist()
    changed[300]["size"] = 9.0
    changed = pa.Table.from_pylist(changed, base.schema)
    other = {**columns, "size": make("size", "number", {}).fit([1.0, 5.0])}
    for cols, rows, index in (
        (columns, base, np.arange(700)),
        (columns, changed, np.arange(700)),
        (columns, base, np.arange(1, 700)),
        (other, base, np.arange(700)),
    ):
        found = examples(cols, rows, index)
        if len(found.blocks[0][1]) != len(index):
            return True
        if not same(found, encode(cols, INPUTS, OUTPUTS, row(rows, index)), np.arange(len(index))):
            return True
    return False


def test_another_data_set_is_never_used(columns):
    assert not mixed_up(columns)
    assert len(list(cache.folder().iterdir())) == 4


def test_control_a_key_that_forgets_the_cells_is_seen(columns, monkeypatch):
    monkeypatch.setattr(kept, "digest", lambda *a: "")
    assert mixed_up(columns)


def test_a_folder_put_in_anothers_place_is_refused(columns, capsys):
    examples(columns, table(seed=1))
    (stranger,) = cache.folder().iterdir()
    examples(columns, table())
    (own,) = (p for p in cache.folder().iterdir() if p != stranger)
    for path in own.iterdir():
        path.unlink()
    own.rmdir()
    stranger.rename(own)
    assert same(
        examples(columns, table()), encode(columns, INPUTS, OUTPUTS, row(table(), np.arange(700))), np.arange(700)
    )
    assert "another data set" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["short", "long", "gone", "header", "manifest", "no manifest", "rubbish"])
def test_a_damaged_cache_is_told_and_made_again(columns, capsys, fault):
    examples(columns, table())
    (place,) = cache.folder().iterdir()
    victim = place / {"header": "header.json", "manifest": "MANIFEST.json", "no manifest": "MANIFEST.json"}.get(
        fault, "0.bin"
    )
    content = victim.read_bytes()
    if fault in ("gone", "no manifest"):
        victim.unlink()
    elif fault == "rubbish":
        (place / "header.json").write_bytes(b'{"key": 5}')
    else:
        victim.write_bytes(
            content[:-4] if fault == "short" else content + b" " if fault == "long" else b"[" + content[1:]
        )
    found = examples(columns, table())
    assert same(found, encode(columns, INPUTS, OUTPUTS, row(table(), np.arange(700))), np.arange(700))
    assert "damaged and made again" in capsys.readouterr().err
    assert cache.opened(place, place.name, verify=True)


def test_a_changed_byte_is_found_on_demand(columns):
    examples(columns, table())
    (place,) = cache.folder().iterdir()
    data = bytearray((place / "2.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (place / "2.bin").write_bytes(data)
    with pytest.raises(BundleError):
        cache.opened(place, place.name, verify=True)


POINTS = [(cache.Writer, "add", n) for n in (1, 2, 7, 20)]
POINTS += [(cache.files, "write_json", 1), (cache.files, "write_json", 2)]
POINTS += [(cache.files, "seal", 1), (cache.files, "replace_folder", 1)]


@pytest.mark.parametrize(("where", "name", "at"), POINTS)
def test_a_crash_at_any_write_leaves_nothing_that_counts(columns, monkeypatch, where, name, at):
    monkeypatch.setattr("luban.data.blocks.rows_in_block", lambda table: 300)
    before, calls = getattr(where, name), []

    def dies(*a, **k):
        calls.append(0)
        if len(calls) == at:
            raise KeyboardInterrupt
        return before(*a, **k)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(where, name, dies)
        examples(columns, table())
    whole = encode(columns, INPUTS, OUTPUTS, row(table(), np.arange(700)))
    assert same(examples(columns, table()), whole, np.arange(700))
    assert [p.name for p in cache.folder().iterdir() if p.name.startswith(".")] == []


def test_a_full_disk_is_said_and_the_rows_stay_in_memory(columns, monkeypatch, capsys):
    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.Writer, "add", full)
    assert not examples(columns, table()).stored
    assert "No space left on device" in capsys.readouterr().err


def test_the_longest_unused_goes_first(columns, monkeypatch):
    for seed in range(3):
        examples(columns, table(seed=seed))
        for path in cache.folder().iterdir():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 100))
    there = sorted(cache.folder().iterdir(), key=lambda p: p.stat().st_mtime)
    monkeypatch.setenv("LUBAN_CACHE_GIB", str(2.5 * cache.size(there[0]) / 2**30))
    cache.trim()
    assert sorted(p.name for p in cache.folder().iterdir()) == sorted(p.name for p in there[1:])
    monkeypatch.setenv("LUBAN_CACHE_GIB", "0")
    assert not examples(columns, table(seed=7)).stored


def test_training_from_disk_is_bit_for_bit_training_from_memory(monkeypatch):
    def weights():
        made = luban.train(table(200), "back", types={"review": "text"}, size="nano", epochs=2, evaluate=False)
        return {k: v.numpy().tobytes() for k, v in made.network.state_dict().items()}

    disk = weights()
    assert len(list(cache.folder().iterdir())) == 2
    monkeypatch.setenv("LUBAN_CACHE_GIB", "0")
    assert weights() == disk


PROCESS = """
    import os, signal, sys, time
    import numpy as np
    from luban.data import cache

    def write(writer):
        with open(sys.argv[1], "a") as log:
            log.write("w")
        for i in range(5):
            writer.add("x", np.arange(1000) + i)
            if sys.argv[2] == str(i):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(float(sys.argv[3]))

    found = cache.kept("k" * 40, {}, write)
    assert found["x"].shape == (5000,) and found["x"][-1] == 1003
"""


def start(log, kill="-1", pause="0"):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROCESS), str(log), kill, pause], stderr=subprocess.PIPE, text=True
    )


def test_two_processes_at_once_encode_once(tmp_path):
    log = tmp_path / "log"
    both = [start(log, pause="0.3") for _ in range(2)]
    errors = [p.communicate(timeout=60)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], errors
    assert log.read_text() == "w" and sum("already encoded" in e for e in errors) == 1


@pytest.mark.parametrize("at", ["0", "4"])
def test_a_killed_process_leaves_no_cache_and_no_lock(tmp_path, at):
    log = tmp_path / "log"
    killed = start(log, kill=at)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert any(p.name.endswith(".tmp") for p in cache.folder().iterdir())
    after = start(log)
    assert after.communicate(timeout=60)[1] == "" and after.returncode == 0
    assert [p.name for p in cache.folder().iterdir()] == ["k" * 40] and log.read_text() == "ww"
