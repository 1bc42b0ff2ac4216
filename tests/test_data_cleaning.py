"""Cleaning: learned from training rows only, every dropped row in the ledger, the same at serving."""

import json

import numpy as np
import pyarrow as pa
import pytest

from luban.data.cleaning import Cleaning, clean, learn, normalised
from luban.data.sources import read
from luban.errors import DataError

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


TRAIN = np.array([0, 1, 2, 3])


def test_filled_from_training_rows_only():
    done = clean(rows(), TYPES, ["y"], TRAIN, missing={"number": "median", "category": "most_frequent"})
    assert done.table["n"].to_pylist()[2] == 2.0 and done.table["c"].to_pylist()[1] == "a"
    shuffled = rows().take([0, 1, 2, 3, 6, 5, 4])
    wild = shuffled.having("n", pa.array([1.0, 2.0, None, 3.0, 9e9, -9e9, 0.0]))
    ask = {"missing": {"number": "mean"}, "outliers": "clip"}
    assert learn(wild, TYPES, ["y"], TRAIN, **ask) == learn(rows(), TYPES, ["y"], TRAIN, **ask)
    assert learn(wild, TYPES, ["y"], None, **ask) != learn(rows(), TYPES, ["y"], TRAIN, **ask), (
        "control: fit before split"
    )


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
    clipped = clean(data, {"n": "number"}, outliers="clip").table["n"].to_numpy()
    assert len(clipped) == 42 and clipped.max() < 4 and clipped.min() > -4
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
    done = clean(rows(), TYPES, normalise={"unicode": True, "whitespace": True})
    assert done.table["t"].to_pylist()[0] == "AB c"


def test_served_rows_are_cleaned_like_trained_ones():
    ask = {"missing": {"number": "median"}, "outliers": "clip", "normalise": {"lower": True}}
    cleaning = Cleaning.of(json.loads(json.dumps(learn(rows(), TYPES, ["y"], TRAIN, **ask).plain())))
    trained = clean(rows(), TYPES, ["y"], TRAIN, **ask)
    kept = rows().take([0, 1, 2, 3, 5, 6])
    assert cleaning.apply(kept).table.equals(trained.table)
    assert cleaning.apply(read({"n": [5000.0, None]})).table["n"].to_pylist() == [cleaning.clip["n"][1], 2.0]


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
