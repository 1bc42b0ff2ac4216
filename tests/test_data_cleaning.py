"""Cleaning: every dropped row in the ledger; cells are changed by the columns, in training and serving alike."""

import json

import numpy as np
import pyarrow as pa
import pytest

from luban.columns.base import from_json, make
from luban.data.cleaning import clean, normalised
from luban.data.sources import read
from luban.errors import DataError
from luban.recipe import Recipe

TYPES = {"n": "number", "c": "category", "t": "text", "y": "number"}


def rows():
    return read(
        {
            "n": [1.0, 2.0, None, 3.0, 100.0, 2.0, 2.0],
            "c": ["a", None, "b", "a", "a", "b", "b"],
            "t": ["ＡＢ  c", "x", "y", None, "z", "w", "w"],
            "y": [1.0, 2.0, 3.0, 4.0, None, 6.0, 6.0],
        }
    )


def column(kind, values, **settings):
    """Fitted, saved and loaded."""
    return from_json(json.loads(json.dumps(make("c", kind, settings).fit(values).to_json())))


@pytest.mark.parametrize("way, filled", [("median", 1.5), ("mean", 26.0), ("zero", 0.0)])
@pytest.mark.parametrize("scale", ["standard", "none"])
def test_a_missing_number_is_what_the_recipe_says(way, filled, scale):
    numbers = column("number", [1.0, 2.0, None, 1.0, 100.0], missing=way, scale=scale)
    x, mask = numbers.collate(numbers.encode_all(pa.chunked_array([[None, 2.0]], pa.float64())))
    assert numbers.decode(x[0]).value == pytest.approx(filled, abs=1e-4) and mask.tolist() == [
        False,
        True,
    ]
    assert column("number", [1.0, None, 100.0, 1.0, 2.0], missing=way, scale=scale) == numbers, "the order says nothing"


def test_a_missing_category_is_the_commonest():
    words = column("category", ["b", "a", None, "c", "b", "a"], missing="most_frequent")
    assert [int(words.encode(v)) for v in (None, "", "a", "zebra")] == [1, 1, 1, 0]
    assert words.encode_all(pa.chunked_array([["b", None, "", "zebra"]])).tolist() == [2, 1, 1, 0]
    assert int(column("category", ["b", "a"]).encode(None)) == 0


@pytest.mark.parametrize("ask", [{"outliers": "clip"}, {"outliers": "clip", "missing": "mean"}, {}])
def test_one_by_one_and_all_together(ask):
    x = [*np.linspace(0, 1, 40).tolist(), 50.0, -50.0, None]
    numbers = column("number", x, **ask)
    served = [np.float32(numbers.encode(v)) for v in (*x, 1e9, -1e9)]
    np.testing.assert_array_equal(numbers.encode_all([*x, 1e9, -1e9]), served)
    far = numbers.decode(numbers.encode(1e9)).value
    assert far == pytest.approx(numbers.state["fences"][1]) if ask else far == pytest.approx(1e9)


def test_fences_come_from_the_values_fitted_on():
    calm, wild = [*np.linspace(0, 1, 40)], [*np.linspace(0, 1, 30), *np.linspace(50, 90, 30)]
    assert column("number", calm, outliers="clip").state["fences"][1] < 4
    assert column("number", calm + wild, outliers="clip").state["fences"][1] > 4, "control: fitted on all rows"


CLEAN = {"missing": {"number": "mean", "category": "most_frequent", "text": "drop"}, "outliers": "clip"}


def test_the_resolved_recipe_shows_what_changes_cells():
    recipe = Recipe.of(
        {
            "luban": 1,
            "data": {"clean": CLEAN | {"normalise": {"unicode": False, "lower": False, "whitespace": True}}},
            "inputs": {
                "n": "number",
                "m": {"number": {"missing": "zero", "outliers": "keep"}},
                "c": "category",
                "t": "text",
            },
            "outputs": {"y": "number"},
        }
    ).resolved()
    settings = {n: p.settings for n, p in {**recipe.inputs, **recipe.outputs}.items()}
    assert (settings["n"]["missing"], settings["n"]["outliers"]) == ("mean", "clip")
    assert (settings["m"]["missing"], settings["m"]["outliers"]) == ("zero", "keep"), "the column's own word counts"
    assert settings["c"]["missing"] == "most_frequent" and (settings["y"]["missing"], settings["y"]["outliers"]) == (
        "median",
        "keep",
    )
    assert [settings["t"][k] for k in ("normalise", "lower", "whitespace")] == [False, False, True]
    assert Recipe.of(recipe.plain()).resolved() == recipe


def test_served_rows_are_cleaned_like_trained_ones(tmp_path):
    import luban

    rng = np.random.default_rng(0)
    n = rng.normal(size=200)
    n[:5] = [1e6, -1e6, np.nan, np.nan, 1e6]
    table = {
        "n": n.tolist(),
        "c": [None, *rng.choice(["a", "b", "b"], 199).tolist()],
        "y": (n > 0).astype(int).astype(str).tolist(),
    }
    recipe = {
        "luban": 1, "inputs": {"n": "number", "c": "category"}, "outputs": {"y": "category"}, "size": "nano",
        "data": {"clean": CLEAN, "rows": str(tmp_path / "rows.csv")}, "stages": [{"train": {"epochs": 1}}],
    }  # fmt: skip
    lines = [",".join("" if v is None or v != v else str(v) for v in row) for row in zip(*table.values())]
    (tmp_path / "rows.csv").write_text("n,c,y\n" + "\n".join(lines))
    bundle = luban.train(recipe, out=tmp_path / "out", evaluate=False)
    loaded = luban.load(tmp_path / "out")
    assert bundle.columns["n"].state["fences"][1] < 10
    answers = loaded.predict(
        [{"n": v, "c": w} for v, w in [(1e9, None), (bundle.columns["n"].state["fences"][1], "b")]]
    )
    assert answers[0] == answers[1]
    plain = luban.train(recipe | {"data": {"rows": str(tmp_path / "rows.csv")}}, evaluate=False)
    answers = plain.predict([{"n": v, "c": w} for v, w in [(1e9, None), (3.0, "b")]])
    assert answers[0] != answers[1], "control: without cleaning the two rows differ"


def test_rows_without_target_are_dropped_and_targets_never_filled():
    done = clean(rows(), TYPES, ["y"], missing={"number": "zero"})
    assert [q.reason_id for q in done.quarantine] == ["data.gone_target"] and done.quarantine[0].line == 5
    assert done.rows_in == 7 and None not in done.table["y"].to_pylist()


def test_dropped_rows_say_why():
    done = clean(rows(), TYPES, ["y"], missing={"number": "drop", "text": "drop"}, duplicates="drop")
    assert {q.line: q.reason_id for q in done.quarantine} == {
        3: "data.gone_missing",
        4: "data.gone_missing",
        5: "data.gone_target",
        7: "data.gone_duplicate",
    }
    assert done.rows_in == len(done) + len(done.quarantine) == 7


def test_outliers():
    x = [*np.linspace(0, 1, 40).tolist(), 50.0, -50.0]
    data = read({"n": x})
    assert clean(data, {"n": "number"}, outliers="clip") is data, "cells are the columns' business"
    dropped = clean(data, {"n": "number"}, (), np.arange(41), outliers="drop")
    assert [q.line for q in dropped.quarantine] == [41], "rows that do not train are left as they are"
    flat = read({"n": [0.0] * 40 + [1.0, 99.0]})
    assert len(clean(flat, {"n": "number"}, outliers="drop")) == 42


def test_conflicting_rows_go_together():
    data = read({"t": ["a", "a", "b", "b", "c"], "y": ["1", "2", "1", "1", "2"]})
    done = clean(data, {"t": "text", "y": "category"}, ["y"], conflicting="drop", duplicates="drop")
    assert done.table["t"].to_pylist() == ["b", "c"]
    folded = read({"t": ["A", "a"], "y": ["1", "2"]})
    with pytest.raises(DataError):
        clean(folded, {"t": "text", "y": "category"}, ["y"], conflicting="drop", normalise={"lower": True})


def test_text_is_normalised_as_asked():
    assert normalised("ＡＢ \n c") == "ab c" and normalised("ＡＢ", ["lower"]) == "ａｂ" and normalised(None) is None
    texts = [f"ＡＢ \n c{i % 3}" for i in range(9)]
    asked = {"tokens": "bpe", "normalise": True, "lower": True}
    same = lambda c: c.encode("ＡＢ \n c1").tolist() == c.encode("ab c1").tolist()  # noqa: E731
    assert same(column("text", texts, whitespace=True, **asked)) and not same(column("text", texts, **asked))


@pytest.mark.parametrize(
    "ask", [{"missing": {"number": "meen"}}, {"missing": {"numbr": "drop"}}, {"normalise": {"low": True}}]
)
def test_mistakes_are_named(ask):
    with pytest.raises(DataError) as e:
        clean(rows(), TYPES, **ask)
    assert e.value.problems[0].nearest


def test_nothing_left_is_an_error():
    with pytest.raises(DataError):
        clean(
            read({"n": [None, None], "c": ["a", "b"]}).having("n", pa.array([None, None], pa.float64())),
            {"n": "number"},
            missing={"number": "drop"},
        )
