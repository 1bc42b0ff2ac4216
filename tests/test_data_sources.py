"""Sources: every kind of data gives the same rows; what is none is refused."""

import gzip
import io
import struct
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from luban.data.rows import Rows
from luban.data.same import tensor
from luban.data.sources import read, typed
from luban.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5), np.uint8)


def idx(path, array, packed=False):
    data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if packed else data)


def picture(path, size=(8, 8), **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).save(path, **more)


@pytest.fixture
def expected():
    return [{"x": 1, "w": "a"}, {"x": 2, "w": None}]


@pytest.mark.parametrize("library", ["pandas", "polars", "datasets"])
def test_frames_of_other_libraries(library, expected):
    module = pytest.importorskip(library)
    columns = {"x": [1, 2], "w": ["a", None]}
    source = module.Dataset.from_dict(columns) if library == "datasets" else module.DataFrame(columns)
    assert read(source).table.to_pylist() == expected


def test_python_objects(expected):
    table = pa.table({"x": [1, 2], "w": ["a", None]})
    structured = np.array([(1, "a"), (2, "")], [("x", int), ("w", "U1")])
    for source in (table, table.to_batches()[0], expected, {"x": [1, 2], "w": ["a", ""]}, structured, read(table)):
        assert read(source).table.to_pylist() == expected
    assert read(np.eye(2)).columns == ["c0", "c1"]
    assert read([{"a": 1}, {"b": 2}]).notes[0].id == "data.key_lacks"


def test_what_pandas_would_hide():
    pd = pytest.importorskip("pandas")
    rows = read(pd.DataFrame({"x": [1, "a", None]}, index=[5, 6, 7]))
    assert rows.table["x"].to_pylist() == ["1", "a", None]
    assert {n.id for n in rows.notes} == {"data.index_dropped", "data.mixed_kinds"}
    doubled = read(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    assert doubled.columns == ["a", "a_2"] and doubled.notes


@pytest.mark.parametrize(
    "source", [3, object(), [1, 2], {"a": [1], "b": [1, 2]}, [], np.zeros((2, 2, 2, 2, 2)), pa.table({})]
)
def test_refused_objects(source):
    with pytest.raises(DataError):
        read(source)


def test_names_that_are_not_there(tmp_path):
    (tmp_path / "adult.csv").write_text("a\n1\n")
    with pytest.raises(DataError) as e:
        read(str(tmp_path / "adlt.csv"))
    assert e.value.problems[0].nearest == "adult.csv"
    with pytest.raises(DataError, match=r"'b'\. Allowed: a"):
        read(str(tmp_path / "adult.csv"), columns=["b"])
    with pytest.raises(DataError, match="csv"):
        read(str(tmp_path / "adult.csv"), format="cvs")


@pytest.mark.parametrize("data", [b"x,w\n1,a\n2,\n", b'{"x": 1, "w": "a"}\n{"x": 2, "w": null}\n'])
def test_stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    rows = typed(read("-"), {"x": "number"})
    assert rows.table.to_pylist() == [{"x": 1.0, "w": "a"}, {"x": 2.0, "w": None}]


def test_folder_of_images(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    picture(tmp_path / "dog" / "deep" / "2.jpg")
    picture(tmp_path / "dog" / "wrong ending.jpg", format="PNG")
    (tmp_path / "dog" / "empty.png").write_bytes(b"")
    (tmp_path / "dog" / "text.png").write_text("no picture")
    whole = (tmp_path / "cat" / "1.png").read_bytes()
    (tmp_path / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dog" / "flipped.png").write_bytes(whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "cat" / "link.png").symlink_to("/etc/hostname")
    rows = read(str(tmp_path))
    cells = [("cat/1.png", "cat"), ("dog/deep/2.jpg", "dog"), ("dog/wrong ending.jpg", "dog")]
    assert [tuple(r.values()) for r in rows.table.to_pylist()] == cells
    assert rows.root == tmp_path and rows.rows_in == 7
    found = {q.raw.split("/")[1]: q.reason_id for q in rows.quarantine}
    assert found == {
        "cut.png": "data.image_truncated",
        "empty.png": "data.image_empty",
        "flipped.png": "data.image_damaged",
        "text.png": "data.image_unknown",
    }
    assert {n.id for n in rows.notes} == {"data.not_images", "data.links_skipped"}


def test_a_bomb_is_not_opened(tmp_path, monkeypatch):
    picture(tmp_path / "a" / "1.png", (30, 30))
    picture(tmp_path / "a" / "2.png", (10, 10))
    monkeypatch.setattr("luban.data.images.LARGEST", 500)
    assert [q.reason_id for q in read(str(tmp_path)).quarantine] == ["data.image_too_large"]


def test_folder_without_images(tmp_path):
    with pytest.raises(DataError, match="png"):
        read(str(tmp_path))


@pytest.mark.parametrize("packed", [False, True])
def test_idx_folder_and_pair(tmp_path, packed):
    end = ".gz" if packed else ""
    for name, part in (("train", PIXELS[:4]), ("t10k", PIXELS[4:])):
        idx(tmp_path / f"{name}-images-idx3-ubyte{end}", part, packed)
        idx(tmp_path / f"{name}-labels-idx1-ubyte{end}", np.arange(len(part), dtype=np.uint8), packed)
    rows = read(str(tmp_path))
    assert (tensor(rows.table["image"]) == PIXELS).all()
    assert rows.table["split"].to_pylist() == ["train"] * 4 + ["test"] * 2
    one = read(str(tmp_path / f"train-images-idx3-ubyte{end}"))
    assert one.columns == ["image", "label"] and one.table["label"].to_pylist() == ["0", "1", "2", "3"]


def test_pixels_are_not_copied(tmp_path):
    idx(tmp_path / "a-images-idx3-ubyte", PIXELS)
    idx(tmp_path / "a-labels-idx1-ubyte", np.zeros(6, np.uint8))
    column = read(str(tmp_path)).table["image"]
    assert np.shares_memory(tensor(column), tensor(column))


@pytest.mark.parametrize("spoil", ["short", "long", "magic", "pair", "gzip"])
def test_damaged_idx(tmp_path, spoil):
    path = tmp_path / ("a-images-idx3-ubyte" + (".gz" if spoil == "gzip" else ""))
    idx(path, PIXELS, packed=spoil == "gzip")
    idx(tmp_path / "a-labels-idx1-ubyte", np.zeros(5 if spoil == "pair" else 6, np.uint8))
    data = path.read_bytes()
    path.write_bytes(
        {"short": data[:-1], "long": data + b"x", "magic": b"XXXX" + data[4:], "gzip": data[:-9]}.get(spoil, data)
    )
    with pytest.raises(DataError):
        read(str(tmp_path))


def test_cifar(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    records = np.concatenate([np.array([[2], [0], [1]], np.uint8), pixels.reshape(3, -1)], axis=1)
    (tmp_path / "data_batch_1.bin").write_bytes(records.tobytes())
    (tmp_path / "batches.meta.txt").write_text("plane\ncar\nbird\n\n")
    rows = read(str(tmp_path))
    assert rows.table["label"].to_pylist() == ["bird", "plane", "car"]
    assert (tensor(rows.table["image"]) == pixels.transpose(0, 2, 3, 1)).all()


def test_cifar_pickles_are_refused_naming_the_binary_ones(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02}q\x00.")
    for source in (tmp_path, tmp_path / "data_batch_1"):
        with pytest.raises(DataError, match="data_batch_1.bin" if source == tmp_path else "pickle"):
            read(str(source))


def test_fingerprint_and_hashes_ignore_chunks_and_see_every_cell():
    whole = read({"a": ["x", None, "", "y"], "b": [1.0, 2.0, None, 4.0]}, missing=())
    halves = Rows(pa.concat_tables([whole.table[:1], whole.table[1:]]), whole.lines, "x", rows_in=4)
    assert whole.fingerprint() == halves.fingerprint() == whole.take([0, 1, 2, 3]).fingerprint()
    others = [
        whole.take([1, 0, 2, 3]),
        whole.select(["a"]),
        read({"a": ["x", "", None, "y"], "b": [1.0, 2.0, None, 4.0]}, missing=()),
    ]
    assert len({r.fingerprint() for r in [whole, *others]}) == 4
    assert whole.row_hashes(b"one") != whole.row_hashes(b"two")
    assert whole.row_hashes(b"k") == whole.select(["b", "a"]).row_hashes(b"k")
    assert len(set(whole.row_hashes(b"k"))) == 4
    shifted = read([{"a": "xy", "b": "z"}, {"a": "x", "b": "yz"}])
    assert len(set(shifted.row_hashes(b"k"))) == 2, "cells must not run together"


def test_rows_must_add_up():
    with pytest.raises(AssertionError):
        Rows(pa.table({"a": [1, 2]}), np.array([1, 2]), "x", rows_in=3)


def test_dropped_rows_go_to_the_ledger_in_order():
    rows = read({"a": [10, 11, 12, 13]}).drop([3], "data.nul").drop(np.array([True, False, False]), "data.bad_bytes")
    assert rows.table["a"].to_pylist() == [11, 12] and rows.lines.tolist() == [2, 3]
    assert [(q.line, q.raw) for q in rows.quarantine] == [(1, "10"), (4, "13")]
    assert rows.rows_in == 4 and rows.take([1]).rows_in == 1
