"""Slices: the planted weak group comes first and is called worse, chance is not, small groups get no verdict."""

import json

import numpy as np
import pytest

from luban.evaluation.slices import slices


def world(seed: int = 0, n: int = 2000, weak: float = 0.6):
    rng = np.random.default_rng(seed)
    city = rng.choice(["north", "south", "east"], n, p=[0.6, 0.3, 0.1])
    right = rng.random(n) < np.where(city == "east", weak, 0.9)
    return {"city": city.tolist(), "age": rng.normal(40, 10, n).tolist()}, right.astype(float)


def test_the_planted_weak_group_comes_first():
    columns, right = world()
    found = slices(columns, right)
    assert (found[0].column, found[0].value, found[0].verdict) == ("city", "east", "worse")
    assert found[0].count == columns["city"].count("east")
    assert found[0].score == pytest.approx(right[np.array(columns["city"]) == "east"].mean())
    assert found[0].metric.low < found[0].score < found[0].metric.high
    assert found == sorted(found, key=lambda s: s.score)


def test_without_a_weak_group_nothing_is_called_worse():
    alarms = sum(
        s.verdict in ("worse", "better")
        for seed in range(30)
        for s in slices(world(seed, weak=0.9)[0], world(seed, weak=0.9)[1])
    )
    assert alarms <= 4  # 0.05 a table at most, 30 tables


def test_without_the_correction_chance_would_be_called_worse(monkeypatch):
    class Plain:
        def inv_cdf(self, _):
            return 1.96

    monkeypatch.setattr("luban.evaluation.slices.NormalDist", Plain)
    alarms = sum(
        s.verdict in ("worse", "better")
        for seed in range(30)
        for s in slices(world(seed, weak=0.9)[0], world(seed, weak=0.9)[1])
    )
    assert alarms > 4


def test_small_groups_cannot_be_told():
    columns = {"c": ["a"] * 100 + ["b"] * 10}
    found = {s.value: s for s in slices(columns, [1.0] * 100 + [0.0] * 10)}
    assert found["b"].cannot_tell and found["a"].cannot_tell  # the other side is too small as well
    assert not slices({"c": ["a"] * 100 + ["b"] * 40}, [1.0] * 100 + [0.0] * 40)[0].cannot_tell


def test_numbers_are_cut_at_quantiles_and_few_values_are_kept():
    values = list(range(100))
    found = slices({"x": values, "stars": [i % 5 for i in values]}, np.ones(100))
    assert sorted(s.count for s in found if s.column == "x") == [25, 25, 25, 25]
    assert sorted(s.value for s in found if s.column == "stars") == ["0", "1", "2", "3", "4"]


def test_every_row_is_in_one_slice_of_each_column_missing_and_rare_ones_too():
    rng = np.random.default_rng(0)
    columns = {
        "number": [None if i % 7 == 0 else float("nan") if i % 11 == 0 else float(rng.normal()) for i in range(300)],
        "category": [None if i % 9 == 0 else f"v{i % 50}" for i in range(300)],
        "text": [f"sentence {i} " + "x" * (i % 40) for i in range(300)],
        "flag": [i % 2 == 0 for i in range(300)],
        "constant": [1.5] * 300,
        "empty": [None] * 300,
    }
    scores = rng.normal(size=300)
    scores[:30] = np.nan
    found = slices(columns, scores, most=5)
    names = {s.column for s in found}
    assert len(names) == len(columns)
    for name in names:
        assert sum(s.count for s in found if s.column == name) == 270, name
    assert {"(missing)", "(all others)"} <= {s.value for s in found if s.column == "category"}
    assert "characters in text" in names
    json.dumps([s.to_json() for s in found], allow_nan=False)


def test_ties_at_a_quantile_stay_together():
    values = [0.0] * 60 + [float(i) for i in range(1, 41)]
    found = slices({"x": values}, np.ones(100))
    assert sum(s.count for s in found) == 100 and max(s.count for s in found) >= 60


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError):
        slices({"a": [1]}, [1.0, 2.0])


def test_no_rows_and_no_columns():
    assert slices({"a": [1, 2]}, [np.nan, np.nan]) == [] == slices({}, [1.0])
