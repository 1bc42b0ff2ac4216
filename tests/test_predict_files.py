"""One line per input row, in order, whatever the row is like, to every kind of file."""

import csv
import io
import json
import os
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from luban.errors import DataError, RequestError
from luban.predictions import columns_of, harmless, predict_file
from tests.serving import MixedEngine, SlowEngine, tiny_bundle

GOOD = ("31.5,Wien", "44,Graz", ",Linz")


def source(tmp_path, *lines, head="age,city"):
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def bundle():
    return tiny_bundle()


def test_lines_are_what_the_model_predicts(bundle, tmp_path):
    out = tmp_path / "out.jsonl"
    assert predict_file(bundle, source(tmp_path, *GOOD), out) == (3, 0)
    rows = [{"age": 31.5, "city": "Wien"}, {"age": 44, "city": "Graz"}, {"age": None, "city": "Linz"}]
    for found, expected in zip(read_lines(out), bundle.predict(rows), strict=True):
        assert found.keys() == expected.keys()
        assert all(abs(found[k] - v) < 1e-6 if isinstance(v, float) else found[k] == v for k, v in expected.items())


@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_bad_rows_keep_their_place(bundle, tmp_path, chunk):
    """Too many cells, half a quote, and no number: three roads into the quarantine, one line each."""
    rows = ["1,Wien", "old,Wien", "2,Graz", "3,Linz,extra", "4,Graz", "1e999,Graz", "5,Wien"]
    out = tmp_path / "out.jsonl"
    assert predict_file(bundle, source(tmp_path, *rows), out, chunk=chunk) == (7, 3)
    found = read_lines(out)
    assert ["error" in r for r in found] == [False, True, False, True, False, True, False]
    assert "old" in found[1]["error"] and "kind" not in found[1]
    alone = bundle.predict([{"age": 5.0, "city": "Wien"}])[0]
    assert abs(found[6]["price"] - alone["price"]) < 1e-6


def test_control_without_the_quarantine_the_lines_would_shift(bundle, tmp_path):
    from luban.data.sources import read

    rows = read(str(source(tmp_path, "1,Wien", "3,Linz,extra", "5,Wien")))
    assert len(rows.table) == 2 and rows.rows_in == 3


def test_a_file_of_bad_rows_only(bundle, tmp_path):
    out = tmp_path / "out.csv"
    assert predict_file(bundle, source(tmp_path, "old,Wien", "older,Graz"), out) == (2, 2)
    assert all(r["error"] for r in csv.DictReader(out.read_text(encoding="utf-8").splitlines()))


def test_csv_and_parquet_hold_the_same(bundle, tmp_path):
    rows = source(tmp_path, *GOOD, "x,Wien")
    for name in ("out.csv", "out.parquet", "out.jsonl"):
        assert predict_file(bundle, rows, tmp_path / name, chunk=2) == (4, 1)
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    text = list(csv.DictReader((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()))
    plain = read_lines(tmp_path / "out.jsonl")
    assert list(table[0]) == list(text[0]) == list(columns_of(bundle.engine))
    for a, b, c in zip(table, text, plain, strict=True):
        for name in a:
            assert a[name] == (c.get(name))
            assert b[name] == ("" if a[name] is None else str(a[name]))
    assert abs(sum(table[0][f"kind.probability.{x}"] for x in "abc") - 1) < 1e-6


def test_other_columns_and_the_truth_itself_do_not_matter(bundle, tmp_path):
    plain, more = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    predict_file(bundle, source(tmp_path, *GOOD), plain)
    wide = source(tmp_path, *(f"{i},unknown,{line},n/a" for i, line in enumerate(GOOD)), head="id,kind,age,city,price")
    assert predict_file(bundle, wide, more) == (3, 0)
    assert plain.read_text() == more.read_text()


def test_missing_columns_are_refused_before_anything_is_written(bundle, tmp_path):
    out = tmp_path / "out.csv"
    with pytest.raises(DataError) as e:
        predict_file(bundle, source(tmp_path, "1", head="age"), out)
    assert e.value.id == "data.columns_absent" and not out.exists()
    with pytest.raises(RequestError) as e:
        predict_file(bundle, source(tmp_path, *GOOD), tmp_path / "out.xlsx")
    assert e.value.id == "predict.no_format"


def test_standard_input_and_output(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"age": 1, "city": "Wien"}\n{"age"\n{"age": 2, "city": "Graz"}\n'))
    )
    assert predict_file(bundle, "-") == (3, 1)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in f for f in found] == [False, True, False]


def test_a_failure_leaves_the_old_file(tmp_path):
    class Breaks(SlowEngine):
        def run(self, arrays):
            if self.batches:
                raise RuntimeError
            return super().run(arrays)

    for name in ("out.csv", "out.parquet", "out.jsonl"):
        out = tmp_path / name
        out.write_text("what was there")
        with pytest.raises(RuntimeError):
            predict_file(Breaks(0), [{"x": float(i)} for i in range(10)], out, chunk=2)
        assert out.read_text() == "what was there"
    assert sorted(os.listdir(tmp_path)) == ["out.csv", "out.jsonl", "out.parquet"]


def test_answers_that_are_no_numbers_are_errors(tmp_path):
    class Broken(SlowEngine):
        def run(self, arrays):
            x = arrays.inputs["x"][0]
            return {"y": np.where(x > 5, np.nan, x).astype(np.float32)[:, None]}

    assert predict_file(Broken(0), [{"x": 1.0}, {"x": 9.0}], tmp_path / "o.jsonl") == (2, 1)
    assert "NaN" not in (tmp_path / "o.jsonl").read_text()


def test_bad_images_among_good_ones(tmp_path):
    from PIL import Image

    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    rows = source(
        tmp_path, "1,Wien,x,a.png", "2,Wien,x,b.png", "3,Wien,x,none.png", "4,Wien,x,a.png", head="age,city,note,photo"
    )
    out = tmp_path / "o.jsonl"
    assert predict_file(MixedEngine(), rows, out) == (4, 2)
    assert ["error" in r for r in read_lines(out)] == [False, True, True, False]


class PhotoEngine(MixedEngine):
    inputs = ("image",)

    def __init__(self):
        super().__init__()
        self.columns = {**self.columns, "image": replace(self.columns["photo"], name="image")}


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_every_answer_to_a_folder_names_its_file(tmp_path, chunk):
    from PIL import Image

    folder = tmp_path / "photos"
    (folder / "x").mkdir(parents=True)
    for name in ("a.png", "c, d.png", "x/a.png"):
        Image.new("RGB", (4, 4), (9, 9, 9)).save(folder / name)
    for name in ("b.png", "c, e.png", "z.png"):
        (folder / name).write_bytes(b"no image")
    damaged = (folder / "a.png").read_bytes()
    (folder / "c.png").write_bytes(damaged[:40] + bytes(len(damaged) - 52) + damaged[-12:])  # its header alone is sound
    expected = {
        "a.png": False,
        "b.png": True,
        "c, d.png": False,
        "c, e.png": True,
        "c.png": True,
        "x/a.png": False,
        "z.png": True,
    }
    assert predict_file(PhotoEngine(), str(folder), tmp_path / "o.jsonl", chunk=chunk) == (7, 4)
    found = read_lines(tmp_path / "o.jsonl")
    assert {r["image"]: "error" in r for r in found} == expected and all(next(iter(r)) == "image" for r in found)
    for ending in ("csv", "parquet"):
        predict_file(PhotoEngine(), folder, tmp_path / f"o.{ending}", chunk=chunk)
    with open(tmp_path / "o.csv", encoding="utf-8", newline="") as file:
        assert {r["image"]: r["error"] != "" for r in csv.DictReader(file)} == expected
    assert pq.read_table(tmp_path / "o.parquet")["image"].to_pylist() == [r["image"] for r in found]


def test_no_cell_is_a_formula(tmp_path):
    assert harmless("=cmd|' /C calc'!A0") == "'=cmd|' /C calc'!A0" and harmless("@SUM(1)") == "'@SUM(1)"
    assert [harmless(c) for c in ("-1", "+5.5", "plain", -1.5, None, "")] == ["-1", "+5.5", "plain", -1.5, None, ""]
    from luban.columns.base import make

    class Evil(SlowEngine):
        outputs = ("=y",)

        def __init__(self):
            super().__init__(0)
            self.columns["=y"] = make("=y", "category", {}).fit(["=1+1", "fine"])

        def run(self, arrays):
            return {"=y": np.full((arrays.size, 1), -9.0, np.float32)}

    predict_file(Evil(), [{"x": 1.0}], tmp_path / "o.csv")
    cells = [c for row in csv.reader((tmp_path / "o.csv").read_text(encoding="utf-8").splitlines()) for c in row]
    assert not [c for c in cells if c.startswith("=")] and "'=1+1" in cells
