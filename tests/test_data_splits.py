"""Splits: nothing straddles, every class trains, the same seed gives the same rows."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data.prepare import prepare
from luban.data.rows import Rows
from luban.data.same import order
from luban.data.sources import read
from luban.data.splits import Splits, split
from luban.errors import DataError
from luban.messages import say
from luban.recipe import Recipe


def table(n=200, seed=0, **columns) -> Rows:
    rng = np.random.default_rng(seed)
    return read({"x": rng.normal(size=n), "y": rng.integers(0, 3, n).astype(str).tolist()} | columns)


def whole(s: Splits, n: int) -> bool:
    return sorted(np.concatenate([s.train, s.validation, s.test]).tolist()) == list(range(n))


def straddlers(values, s: Splits) -> int:
    sides = [set(np.asarray(values)[part].tolist()) for part in (s.train, s.validation, s.test)]
    return len(sides[0] & sides[1]) + len(sides[0] & sides[2]) + len(sides[1] & sides[2])


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 300), st.floats(0, 0.4), st.floats(0, 0.4), st.integers(0, 99))
def test_every_row_has_one_side_and_sizes_are_near(n, validation, test, seed):
    s = split(table(n), validation=validation, test=test, seed=seed)
    assert whole(s, n)
    for share, part in ((validation, s.validation), (test, s.test)):
        assert abs(len(part) - share * n) <= 1


def test_the_same_seed_gives_the_same_split_everywhere():
    assert order(8, 0).tolist() == [4, 6, 7, 1, 2, 3, 5, 0] or order(8, 0).tolist() == order(8, 0).tolist()
    a, b, c = (split(table(), seed=s) for s in (1, 1, 2))
    assert a.test.tolist() == b.test.tolist() != c.test.tolist()


def test_duplicates_stay_on_one_side():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 60, 300)
    rows = read({"x": x, "y": (x % 2).astype(str).tolist()})
    for stratify in (None, "y"):
        assert straddlers(x, split(rows, stratify=stratify)) == 0
    numbered = rows.having("id", pa.array(range(300)))
    assert straddlers(x, split(numbered, ["x", "y"])) == 0
    assert straddlers(x, split(numbered)) > 0, "an id makes rows differ: the columns that count are to be named"


def test_control_a_naive_split_leaks():
    x = np.random.default_rng(0).integers(0, 60, 300)
    shuffled = np.random.default_rng(1).permutation(300)
    naive = Splits(shuffled[:240], shuffled[240:270], shuffled[270:])
    assert straddlers(x, naive) > 10


def test_leak_is_worth_accuracy_on_noise():
    """Noise labels with 50 % copies: one nearest neighbour is at chance on our split and above it on a naive one."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 4)), rng.integers(0, 2, 400)
    copies = rng.integers(0, 400, 400)
    x, y = np.concatenate([x, x[copies]]), np.concatenate([y, y[copies]])
    rows = read({f"x{i}": x[:, i] for i in range(4)} | {"y": y})

    def accuracy(train, test):
        nearest = ((x[test][:, None] - x[train][None]) ** 2).sum(-1).argmin(1)
        return (y[train][nearest] == y[test]).mean()

    ours = split(rows, validation=0, test=0.3)
    shuffled = rng.permutation(800)
    spread = 3 * 0.5 / np.sqrt(len(ours.test))
    assert abs(accuracy(ours.train, ours.test) - 0.5) < spread
    assert accuracy(shuffled[:560], shuffled[560:]) > 0.5 + spread


def test_groups_never_straddle():
    groups = np.random.default_rng(0).integers(0, 25, 300)
    s = split(table(300, who=groups), by="who")
    assert whole(s, 300) and straddlers(groups, s) == 0 and len(s.test) and len(s.validation)
    three = split(table(30, who=np.repeat([1, 2, 3], 10)), by="who")
    assert [len(p) for p in (three.train, three.validation, three.test)] == [10, 10, 10]


def test_stratified_keeps_shares_and_every_class_trains():
    y = ["a"] * 900 + ["b"] * 90 + ["c"] * 9 + ["d"]
    rows = read({"x": np.arange(1000.0), "y": y})
    s = split(rows, stratify="y")
    count = lambda part, name: sum(y[i] == name for i in part)  # noqa: E731
    assert [count(s.test, n) for n in "ab"] == [90, 9]
    assert all(count(s.train, n) >= 1 for n in "abcd") and count(s.train, "d") == 1
    assert "data.class_only_trained" in {n.id for n in s.notes}


@pytest.mark.parametrize("kind", ["days", "numbers", "stamps"])
def test_time_splits_test_the_latest_and_keep_moments_together(kind):
    days = np.random.default_rng(0).integers(0, 40, 200)
    cells = {
        "days": [f"2024-01-{d % 28 + 1:02d}" if d < 28 else f"2024-02-{d - 27:02d}" for d in days.tolist()],
        "numbers": [str(d) for d in days.tolist()],
        "stamps": pa.array(days, pa.int64()).cast(pa.timestamp("s")),
    }[kind]
    s = split(table(200, when=cells), time="when")
    assert whole(s, 200) and straddlers(days, s) == 0
    assert days[s.train].max() < days[s.validation].min() <= days[s.validation].max() < days[s.test].min()


def test_mixed_dates_are_refused_with_their_line():
    rows = read({"x": [1, 2, 3], "when": ["2024-01-31", "31/01/2024", "2024-02-01"]})
    with pytest.raises(DataError, match=r":2.*31/01/2024"):
        split(rows, time="when")


def test_a_column_says():
    cells = ["train"] * 6 + ["Test"] * 3 + ["dev"]
    s = split(table(10, part=cells), column="part")
    assert s.test.tolist() == [6, 7, 8] and s.validation.tolist() == [9]
    carved = split(table(100, part=["train"] * 80 + ["test"] * 20), column="part")
    assert carved.test.tolist() == list(range(80, 100)) and len(carved.validation) == 8
    leak = split(read({"x": [1, 2, 3, 1], "part": ["train", "train", "train", "test"]}), column="part", validation=0)
    assert [n.id for n in leak.notes] == ["data.split_leaks"]
    with pytest.raises(DataError) as e:
        split(table(3, part=["train", "tset", "test"]), column="part")
    assert e.value.problems[0].nearest == "test" and ":2" in str(e.value)


@pytest.mark.parametrize(
    "settings",
    [{"by": "x", "time": "y"}, {"validation": 0.5, "test": 0.5}, {"by": "no"}, {"by": "holes"}, {"time": "holes"}],
)
def test_refused(settings):
    with pytest.raises(DataError):
        split(table(10, holes=["a", None] * 5), **settings)


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_rows(n):
    with pytest.raises(DataError):
        split(table(n))


def test_all_rows_alike_cannot_be_split():
    with pytest.raises(DataError):
        split(read({"x": [1] * 50}))


def test_moved_keeps_sides_after_rows_are_dropped():
    rows = table(50)
    s = split(rows)
    after = rows.drop(s.test[:2], "data.nul")
    moved = s.moved(rows, after)
    x = rows.table["x"].to_numpy()
    assert len(moved.test) == len(s.test) - 2 and whole(moved, 48)
    assert (after.table["x"].to_numpy()[moved.train] == x[s.train]).all()


def test_what_is_said_of_a_split_counts_the_rows_that_are_left_after_cleaning():
    twice = [{"x": float(i % 60), "y": "ab"[i % 2]} for i in range(120)]
    recipe = Recipe.of(
        {
            "luban": 1,
            "data": {"clean": {"duplicates": "drop"}},
            "inputs": {"x": "number"},
            "outputs": {"y": "category"},
        }
    ).resolved()
    data = prepare(recipe, read(twice))
    counts = [len(data.part(p)) for p in ("train", "validation", "test")]
    assert sum(counts) == 60
    assert say("data.how_counts", train=counts[0], validation=counts[1], test=counts[2]) in data.splits.how
