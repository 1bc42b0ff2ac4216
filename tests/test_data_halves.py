"""Half of a Unicode surrogate pair in a Python object is what it is in a file: a row of the quarantine, in the same words."""

import numpy as np
import pandas as pd
import pytest

import luban
from luban.data.halves import broken
from luban.data.sources import read
from luban.errors import DataError
from tests import tiny

HALF = "\ud800 good"
WORDS = "Half of a Unicode surrogate pair."


@pytest.mark.parametrize(
    "source",
    [
        [{"a": "x", "b": 1}, {"a": HALF, "b": 2}, {"a": "z", "b": 3}],
        {"a": ["x", HALF, "z"], "b": np.array([1, 2, 3])},
        pd.DataFrame({"a": pd.Series(["x", HALF, "z"], dtype=object), "b": [1, 2, 3]}),
        np.array([["x", "1"], [HALF, "2"], ["z", "3"]], dtype=object),
        [{"a": ["x"], "b": 1}, {"a": ["y", HALF], "b": 2}, {"a": ["z"], "b": 3}],
    ],
    ids=["rows", "columns", "pandas", "numpy", "lists"],
)
def test_the_row_goes_to_the_quarantine(source):
    rows = read(source)
    assert len(rows) == 2 and rows.lines.tolist() == [1, 3]
    (gone,) = rows.quarantine
    assert gone.line == 2 and gone.reason == WORDS
    last = rows.table[rows.columns[1]].to_pylist()
    assert last in ([1, 3], ["1", "3"])


def test_nothing_is_left_or_a_name_is_broken():
    with pytest.raises(DataError, match="surrogate"):
        read([{"a": HALF}])
    with pytest.raises(DataError, match="surrogate"):
        read([{HALF: "x"}])


def test_whole_pairs_and_other_things_are_not_broken():
    assert not any(map(broken, ["😀", None, 3.0, b"\xd8", ["é", {"a": "中"}], np.zeros(3)]))
    assert all(map(broken, [HALF, ["x", HALF], [{"content": HALF}], {HALF: 1}]))


def test_a_model_says_the_same_everywhere(tmp_path):
    rows = [{"review": f"{'good' if i % 2 else 'bad'} {i}", "y": "p" if i % 2 else "n"} for i in range(40)]
    model = luban.train(
        [*rows, {"review": HALF, "y": "p"}], "y", types={"review": "text"}, size="nano", evaluate=False, epochs=1
    )
    good, bad = model.predict([{"review": "good"}, {"review": HALF}])
    assert "error" not in good and WORDS in bad["error"]
    for ask in (model.explain, model.evaluate):
        with pytest.raises(DataError, match="surrogate"):
            ask([{"review": HALF, "y": "p"}])


def test_nothing_is_written_on_from_it(tmp_path):
    with pytest.raises(DataError, match="surrogate"):
        luban.load(tiny.writer(tmp_path)).generate(HALF)
