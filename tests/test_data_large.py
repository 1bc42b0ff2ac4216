"""Large files block by block: the same rows, ledger, splits and examples as the whole, whatever the size of a block."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from luban.columns.category import Category
from luban.columns.examples import encode
from luban.columns.fitting import fit_columns
from luban.columns.infer import infer
from luban.data import blocks, same, splits, streams
from luban.data.blocks import Spill, pieces, taken
from luban.data.prepare import prepare
from luban.data.quality import check
from luban.data.sources import read
from luban.errors import DataError
from luban.recipe import Recipe

CLEAN = "".join(f'{i},{i * 0.5},"text, number {i}",{"ab"[i % 2]}\n' for i in range(400))
FILES = {
    "clean": "id,x,note,y\n" + CLEAN,
    "ragged": "id,x,note,y\n" + CLEAN + "1,2\n" + CLEAN + "1,2,3,4,5\n" + CLEAN,
    "several lines": "id,x,note,y\n" + CLEAN + '7,1,"over\nseveral\n\nlines",a\n' * 30 + CLEAN,
    "blank lines": "id,x,note,y\n" + CLEAN + "\n\n" + CLEAN,
    "stray quotes": "id,x,note,y\n" + CLEAN + '3,1,5" disk,b\n' + CLEAN,
    "crlf, no end": ("id,x,note,y\n" + CLEAN).replace("\n", "\r\n").removesuffix("\r\n"),
    "semicolons": ("id,x,y\n" + "".join(f"{i},{i},{'ab'[i % 2]}\n" for i in range(900))).replace(",", ";"),
    "unicode": "\ufeffid,x,note,y\n" + CLEAN + "1,2,名字,a\n" * 50,
    "header twice": "id,x,note,y\n" + CLEAN + "id,x,note,y\n" + CLEAN,
    "header of two lines": '"id\n2",x,note,y\n' + CLEAN,
}


@pytest.fixture
def blockwise(monkeypatch, tmp_path):
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(streams, "LONG", 100)
    monkeypatch.setattr(streams, "TEXT_BLOCK", 3000)
    monkeypatch.setattr(blocks, "LARGE", 100)
    monkeypatch.setattr(blocks, "rows_in_block", lambda table: 64)


def ledger(rows):
    return [(q.line, q.reason_id, q.values, q.raw) for q in rows.quarantine]


@pytest.mark.parametrize("name", FILES)
def test_a_csv_read_by_blocks_is_the_csv_read_whole(tmp_path, name, monkeypatch, request):
    path = tmp_path / "rows.csv"
    path.write_bytes(FILES[name].encode())
    whole = read(path)
    request.getfixturevalue("blockwise")
    stream = read(path)
    assert stream.table["y" if "y" in stream.columns else "x"].num_chunks > 1
    assert stream.table.equals(whole.table) and stream.lines.tolist() == whole.lines.tolist()
    assert ledger(stream) == ledger(whole) and stream.rows_in == whole.rows_in
    assert {(n.id, n.values.get("count")) for n in stream.notes} == {(n.id, n.values.get("count")) for n in whole.notes}
    assert stream.fingerprint() == whole.fingerprint()


OBJECTS = "".join(f'{{"id": {i}, "x": {i * 0.5}, "note": "text\\n{i}", "y": "{"ab"[i % 2]}"}}\n' for i in range(300))
LINES = {
    "clean": OBJECTS,
    "keys that come late": OBJECTS + '{"id": 1, "late": 2}\n' * 20 + OBJECTS,
    "whole numbers and fractions": '{"x": 1}\n' * 200 + '{"x": 1.5}\n' * 200,
    "mixed kinds": '{"x": 1}\n' * 200 + '{"x": "one"}\n' * 200 + '{"x": [1, 2]}\n',
    "only missing at first": '{"x": null, "y": 1}\n' * 200 + '{"x": "late", "y": 2}\n' * 200,
    "lists": '{"x": [], "y": 1}\n' * 200 + '{"x": ["a", "b"], "y": 1}\n' * 200,
    "numbers too large": '{"x": 1}\n' * 300 + '{"x": 18446744073709551616}\n',
    "talks": '{"m": [{"role": "user", "content": "hi"}]}\n' * 100 + '{"m": [{"role": "user", "content": "ho", "name": "n"}]}\n' * 90,
    "faults": OBJECTS + "\n\n" + '{"id": 1, "id": 2}\n[1]\n{"id": "\\u0000"}\n' + OBJECTS + '{"id": 3, "x": ',
    "blank and crlf": OBJECTS.replace("\n", "\r\n") + "\n" + OBJECTS,
    "names": '{" id ": 1, "": "a"}\n' * 300,
    "missing words": '{"x": "NA", "y": 1}\n' * 100 + '{"x": "b", "y": 2}\n' * 200,
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_json_lines_read_by_blocks_are_those_read_whole(tmp_path, name, monkeypatch, request):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES[name].encode())
    whole = read(path, missing=("", "NA"))
    request.getfixturevalue("blockwise")
    monkeypatch.setattr(streams, "TEXT_BLOCK", 900)
    stream = read(path, missing=("", "NA"))
    assert stream.table.num_columns and stream.table.column(0).num_chunks > 1
    assert stream.table.equals(whole.table) and stream.lines.tolist() == whole.lines.tolist()
    assert ledger(stream) == ledger(whole) and stream.rows_in == whole.rows_in
    assert {(n.id, n.values.get("count")) for n in stream.notes} == {(n.id, n.values.get("count")) for n in whole.notes}
    assert read(path, columns=stream.columns[:1]).columns == stream.columns[:1]


@pytest.mark.parametrize("text", ["[1]\n" * 300, "\n" * 600])
def test_json_lines_without_an_object_are_one_sentence(tmp_path, text, request):
    path = tmp_path / "rows.jsonl"
    path.write_text("7\n" + text)
    said = []
    for _ in range(2):
        with pytest.raises(DataError) as e:
            read(path)
        said.append(str(e.value))
        if len(said) == 1:
            request.getfixturevalue("blockwise")
    assert said[0] == said[1] and len(said[0].splitlines()) == 1


def test_control_a_block_without_its_shift_is_seen(tmp_path, blockwise, monkeypatch):
    path = tmp_path / "rows.csv"
    path.write_bytes(FILES["ragged"].encode())
    right = read(path).lines.tolist()
    monkeypatch.setattr(streams, "_shifted", lambda rows, by, first: rows)
    assert read(path).lines.tolist() != right


def test_parquet_by_batches_is_parquet_whole(tmp_path, request):
    table = pa.table({"x": np.arange(500.0), "s": [None if i % 7 == 0 else str(i) for i in range(500)]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    whole = read(tmp_path / "rows.parquet")
    request.getfixturevalue("blockwise")
    stream = read(tmp_path / "rows.parquet", columns=["s"])
    assert stream.table.equals(whole.table.select(["s"]))
    assert not list((blocks.home() / "spill").iterdir())  # no name is left, so no crash leaves a file


def people(count: int = 900) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "age": [None if a > 80 else str(a) for a in rng.integers(18, 90, count)],
            "note": [" ".join(rng.choice(["red", "green", "blue"], 6)) for _ in range(count)],
            "city": rng.choice(["north", "south", None], count),
            "who": rng.choice([f"p{i}" for i in range(60)], count),
            "y": rng.choice(["yes", "no"], count),
        }
    )


RECIPE = {
    "luban": 1,
    "inputs": {"age": "number", "note": "text", "city": "category"},
    "outputs": {"y": "category"},
}


def test_prepared_fitted_and_encoded_by_blocks_is_the_same(request, monkeypatch):
    recipe = Recipe.of(RECIPE).resolved()
    whole = prepare(recipe, read(people()))
    request.getfixturevalue("blockwise")
    stream = prepare(recipe, read(people()))
    assert stream.table.equals(whole.table) and stream.table["age"].num_chunks > 1
    stream = type(stream)(stream.rows, whole.splits, recipe)  # the parts themselves are drawn differently, see below
    columns = fit_columns(recipe, whole)
    assert {n: c.to_json() for n, c in columns.items()} == {
        n: c.to_json() for n, c in fit_columns(recipe, stream).items()
    }
    ones, others = (
        encode(columns, list(RECIPE["inputs"]), ["y"], d.framed("train", recipe.frame)) for d in (whole, stream)
    )
    for a, b in zip(ones.blocks, others.blocks):
        assert np.array_equal(a[1], b[1]) and np.array_equal(a[2], b[2])
    assert np.array_equal(ones.inputs["note"].flat, others.inputs["note"].flat)


def test_equal_rows_and_groups_stay_together_without_being_compared(blockwise):
    rows = read(pa.concat_tables([people(300)] * 3))
    found = splits.split(rows, validation=0.2, test=0.2, seed=1)
    part = np.zeros(900, int)
    part[found.validation], part[found.test] = 1, 2
    assert (part[:300] == part[300:600]).all() and (part[:300] == part[600:]).all()
    assert sorted(np.concatenate(list(found.parts().values())).tolist()) == list(range(900))
    grouped = splits.split(rows, by="who", validation=0.2, test=0.2, seed=1)
    who = np.array(rows.table["who"].to_pylist())
    assert not set(who[grouped.train]) & set(who[grouped.test])
    other = splits.split(rows, validation=0.2, test=0.2, seed=2)
    assert other.test.tolist() != found.test.tolist()


def test_many_rows_get_the_shares_that_were_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path))
    monkeypatch.setattr(blocks, "LARGE", 1000)
    rows = read(pa.table({"x": np.arange(200_000)}))
    found = splits.split(rows, validation=0.1, test=0.25, seed=3)
    assert abs(len(found.validation) - 20_000) < 500 and abs(len(found.test) - 50_000) < 700


def test_keys_of_blocks_meet_where_cells_are_equal(blockwise):
    column = pa.chunked_array([pa.array(["a", None, "b"]), pa.array(["b", "", None])])
    assert len(set(same.hashes(column).tolist())) == 4 and same.hashes(column)[1] == same.hashes(column)[5]
    for values in ([0.0, -0.0, None, float("nan")], [1, 1, None, None], [True, True, None, None]):
        keys = same.hashes(pa.chunked_array([values]))
        assert keys[0] == keys[1] != keys[2] == keys[3]


def test_pieces_and_taken_give_the_rows_that_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path))
    table = people(1000)
    with Spill(table.schema) as spill:
        for part in pieces(table, size=99):
            spill.add(part)
    mapped = spill.table()
    rng = np.random.default_rng(0)
    for index in (
        np.sort(rng.permutation(1000)[:300]),
        rng.permutation(1000)[:300],
        np.arange(200, 500),
        np.array([7, 7, 3]),
    ):
        want = table.take(pa.array(index))
        assert taken(mapped, index).equals(want)
        found = list(pieces(mapped, index, 64))
        assert pa.concat_tables(found).equals(want) and max(map(len, found)) <= 64
    assert list(pieces(mapped, np.zeros(0, np.int64))) == []
    blocks.rest()
    assert mapped.equals(table)  # the pages come again


def test_a_check_of_many_rows_says_how_many_it_looked_at(monkeypatch):
    from luban.data import quality

    monkeypatch.setattr(quality, "LOOKED", 200)
    table = people(900).append_column("copy", people(900)["y"])
    rows = read(table)
    found = check(rows, {"copy": "category", "y": "category"}, "y", splits.split(rows, seed=0))
    assert {"sampled", "gives_away"} <= {f.id for f in found}
    assert "200 of 900" in str(next(f for f in found if f.id == "sampled")).replace(",", "")


def test_types_are_told_by_some_of_many_rows(monkeypatch, capsys):
    from luban.columns import infer as module

    monkeypatch.setattr(module, "LOOKED", 100)
    assert {n: i.type for n, i in infer(read(people()), target="y").items()}["note"] == "text"
    assert "100 of 900" in capsys.readouterr().err


def test_text_learns_from_evenly_spaced_rows_of_many(monkeypatch, capsys):
    from luban.columns.text import Text

    monkeypatch.setattr(Text, "sampled", 50)
    recipe = Recipe.of(RECIPE).resolved()
    columns = fit_columns(recipe, prepare(recipe, read(people())))
    assert columns["note"].size == 5 and "learns from 50 of" in capsys.readouterr().err


def test_a_model_says_from_how_many_rows_a_column_learned(monkeypatch):
    import luban
    from luban.card import card
    from luban.columns.text import Text
    from luban.pages import full_report

    monkeypatch.setattr(Text, "sampled", 50)
    changes = ["data.split.test=0", "train.steps=1"]
    model = luban.train(people(), "y", inputs=["note"], types={"note": "text"}, size="nano", set=changes)
    trained = next(h for h in model.history if h["stage"] == "train")
    assert trained["learned_from"] == {"note": 50}
    said = f"learns from 50 of {trained['rows']['train']}"
    assert said in full_report(model).to_text() and said in card(model)


def test_wide_rows_count_by_their_bytes_where_some_stand_for_all(monkeypatch):
    from luban.data import quality

    table = pa.table({"note": [f"{i} " + "long " * 1000 for i in range(3000)], "y": ["a", "b"] * 1500})
    assert blocks.some(table, 200_000) == 3000
    monkeypatch.setattr(blocks, "SOME_BYTES", table.nbytes // 2)
    assert blocks.some(table, 200_000) == 1500 and blocks.some(table, 100) == 100
    rows = read(table)
    found = check(rows, {"note": "text", "y": "category"}, "y", splits.split(rows, seed=0))
    assert next(f.problem.values["count"] for f in found if f.id == "sampled") == 1500
    pixels = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((3000, 100, 100), np.uint8))
    assert quality.some(pa.table({"x": pixels}), 200_000) == 3000  # looked at block by block


def test_categories_counted_by_arrow_are_those_counted_one_by_one():
    values = ["b", "a", None, "", "b", "c", "1", "c"]
    one, two = Category("c").fit(values), Category("c").fit(pa.chunked_array([values[:3], values[3:]]))
    assert one.state == two.state


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    """Heap of Python, NumPy and Arrow at its highest while a file is read, typed and split: some numbers a row, no cells."""
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(streams, "LONG", 1000)
    monkeypatch.setattr(streams, "TEXT_BLOCK", 1 << 18)
    monkeypatch.setattr(blocks, "LARGE", 1000)

    def peak(count: int) -> int:
        path = tmp_path / f"{count}.csv"
        path.write_text("x,y\n" + "".join(f"{i}.25,{'ab'[i % 2]}\n" for i in range(count)))
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        recipe = Recipe.of({"luban": 1, "inputs": {"x": "number"}, "outputs": {"y": "category"}}).resolved()
        data = prepare(recipe, read(path))
        most = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before
        tracemalloc.stop()
        assert len(data.rows) == count
        return most

    assert (peak(100_000) - peak(25_000)) / 75_000 < 48  # bytes a row; one cell of text alone takes more in Python
