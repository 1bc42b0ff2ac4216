"""`luban curve`: nested rows, the same validation rows, and verdicts that are wrong no more often than they say."""

from itertools import pairwise

import numpy as np
import pytest

import luban
from luban import cli, pipeline
from luban.data.prepare import prepare
from luban.errors import RequestError
from luban.evaluation.intervals import Z
from luban.recipe import Recipe
from luban.tuning import curve, jobs, verdicts, workers
from luban.tuning.curve import Curve, Point
from luban.tuning.goals import Goal
from tests.test_tune import Killed, kill, recipe, table

SETTINGS = {"rows": [0.25, 1.0], "sizes": ["nano"], "repeats": 2}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return table(tmp_path_factory.mktemp("rows") / "rows.csv")


def asked(rows):
    plain = recipe(rows)
    del plain["tune"]
    return plain


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    return luban.curve(asked(rows), out=tmp_path_factory.mktemp("whole") / "m", **SETTINGS)


def points(bundle):
    return [{k: v for k, v in p.items() if k != "seconds"} for p in bundle.reports["curve"].numbers["points"]]


# -- the rows ---------------------------------------------------------------------------------------------------------------


def data_of(rows):
    return prepare(Recipe.of(asked(rows)).resolved())


def test_the_smaller_set_is_a_part_of_the_larger(rows):
    data = data_of(rows)
    sets = curve.nested(data, [10, 25, 60, 100], 0)
    assert [len(s) for s in sets] == [10, 25, 60, 100]
    for small, large in pairwise(sets):
        assert set(small) < set(large)
    assert list(sets[-1]) == list(data.part("train"))
    share = np.mean([v == "yes" for v in data.table["y"].take(data.part("train")).to_pylist()])
    assert abs(np.mean([v == "yes" for v in data.table["y"].take(sets[0]).to_pylist()]) - share) <= 0.1
    fewer = jobs.fewer(data, 10, 0)
    assert list(fewer.part("validation")) == list(data.part("validation"))
    assert list(curve.nested(data, [10], 1)[0]) != list(sets[0])  # another seed draws others


def test_another_process_draws_the_same_rows(rows, tmp_path):
    data = data_of(rows)
    jobs.save_rows(data, tmp_path)
    back = jobs.load_rows(tmp_path, data.recipe)
    drawn = [d.table.take(jobs.fewer(d, 25, 0).part("train"))["a"].to_pylist() for d in (data, back)]
    assert drawn[0] == drawn[1]


def test_rows_with_an_order_keep_it(tmp_path):
    lines = ["a,t,y", *(f"{i % 7},2024-01-{1 + i // 4:02d},{'yes' if i % 2 else 'no'}" for i in range(100))]
    (tmp_path / "r.csv").write_text("\n".join(lines) + "\n")
    plain = {"luban": 1, "data": {"rows": str(tmp_path / "r.csv"), "split": {"time": "t"}}, "inputs": {"a": "number"},
             "outputs": {"y": "category"}}  # fmt: skip
    data = prepare(Recipe.of(plain).resolved())
    train = data.part("train")
    assert (
        list(jobs.fewer(data, 10, 0).part("train"))
        == sorted(train, key=lambda i: data.table["t"][int(i)].as_py())[-10:]
    )


# -- the whole --------------------------------------------------------------------------------------------------------------


def test_the_end_is_the_recipe_on_all_rows(whole, rows):
    assert [h["stage"] for h in whole.history] == ["curve", "train", "evaluate"]
    assert whole.fingerprint() == luban.train(asked(rows), evaluate=False).fingerprint()
    assert [(p["rows"], p["size"]) for p in points(whole)] == [(25, "nano"), (100, "nano")]
    assert all(p["low"] <= p["value"] <= p["high"] and len(p["scores"]) == 2 for p in points(whole))
    numbers = whole.reports["curve"].numbers
    assert numbers["larger_network"] is None and numbers["more_rows"]["before"] == {"rows": 25, "size": "nano"}
    page = pipeline.full_report(whole).to_html()
    assert "ore data would" in page and page.count("<svg") >= 3


def test_no_test_row_is_looked_at(whole, tmp_path):
    flipped = luban.curve(asked(table(tmp_path / "f.csv", flip_test=True)), out=tmp_path / "m", **SETTINGS)
    assert points(flipped) == points(whole)
    assert flipped.reports["curve"].numbers["more_rows"] == whole.reports["curve"].numbers["more_rows"]


def test_a_killed_curve_goes_on(rows, whole, tmp_path, monkeypatch):
    made, real = [], jobs.work

    def dies(job, data, heard):
        if len(made) == 2:
            made.append("died")
            return real(job, data, lambda numbers: kill())
        made.append(job["folder"])
        return real(job, data, heard)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "work", dies)
        with pytest.raises(Killed):
            luban.curve(asked(rows), out=tmp_path / "m", **SETTINGS)
    again = []
    monkeypatch.setattr(workers, "work", lambda job, *rest: again.append(job["folder"]) or real(job, *rest))
    done = pipeline.resume(tmp_path / "m")
    assert len(again) == 2 and not set(again) & set(made)
    assert points(done) == points(whole) and done.fingerprint() == whole.fingerprint()


def test_a_metric_that_rows_cannot_be_paired_by(rows, tmp_path):
    with pytest.raises(RequestError) as e:
        luban.curve(asked(rows), metric="loss", out=tmp_path / "m")
    assert "accuracy" in str(e.value)


def test_a_set_that_is_too_small(rows, tmp_path):
    with pytest.raises(RequestError) as e:
        luban.curve(asked(rows), rows=[0.01, 1.0], out=tmp_path / "m")
    assert e.value.id == "curve.too_few"


def test_on_the_command_line(rows, tmp_path, capsys):
    words = ["curve", str(rows), "--target", "y", "--inputs", "a,b", "--size", "nano", "--sizes", "nano", "--rows", "0.5,1",
             "--repeats", "1", "--set", "train.epochs=1", "--out", str(tmp_path / "m")]  # fmt: skip
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "ore data would" in said and "Points of the curve" in said and (tmp_path / "m" / "report.html").is_file()


# -- verdicts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low, high, said", [(0.02, 0.05, "helps"), (-0.01, 0.05, "cannot_tell"), (-0.02, 0.005, "no"), (0.002, 0.008, "no")]
)
def test_what_an_interval_says(low, high, said):
    assert verdicts.said(low, high, 0.01) == said


def test_which_steps_are_looked_at():
    every = [Point(n, s) for s in ("nano", "small", "base") for n in (50, 100)]
    made = lambda size, kept=every: Curve(kept, Goal("accuracy", "y", True), size, None, 2, 0.01)  # noqa: E731
    assert verdicts.more_rows(made("small")) == (Point(50, "small"), Point(100, "small"))
    assert verdicts.larger_network(made("small")) == (Point(100, "small"), Point(100, "base"))
    assert verdicts.larger_network(made("base")) == (Point(100, "small"), Point(100, "base"))
    assert verdicts.larger_network(made("nano", [Point(50, "nano"), Point(100, "nano")])) is None


def simulated(rng, gain, seed_noise, row_noise, repeats=3):
    """A curve of six points whose scores have a seed's luck, and two neighbours that share the luck of their rows."""
    shared = rng.normal(0, row_noise)

    def score(extra):
        return {"value": 0.8 + extra + rng.normal(0, seed_noise)}

    made = [Point(2**i, "nano", tuple(score(0) for _ in range(repeats))) for i in range(5)]
    made.append(Point(64, "nano", tuple(score(gain + shared) for _ in range(repeats))))
    return Curve(made, Goal("accuracy", "y", True), "nano", None, repeats, 0.0)


def verdict_of(made, row_noise):
    before, after = made.points[-2:]

    def compare(a, b, r):
        value = b.results[r]["value"] - a.results[r]["value"]
        return {"value": value, "low": value - Z * row_noise, "high": value + Z * row_noise}

    return verdicts.step(made, before, after, compare).verdict


def helped(gain, seed_noise=0.02, row_noise=0.01, draws=600):
    rng = np.random.default_rng(0)
    return np.mean(
        [verdict_of(simulated(rng, gain, seed_noise, row_noise), row_noise) == "helps" for _ in range(draws)]
    )


def test_nothing_gained_is_called_help_no_more_often_than_said():
    """One side of a 95 % interval: 2.5 % of 600, and three standard errors of that."""
    assert helped(0.0) <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / 600)
    assert helped(0.1) > 0.95


def test_control_without_the_luck_of_the_seeds_it_would_be(monkeypatch):
    monkeypatch.setattr(verdicts, "seed_variance", lambda points: (0.0, 0))
    assert helped(0.0) > 0.1


def test_the_interval_of_a_point_is_no_wider_than_its_metric():
    point = Point(10, "nano", ({"value": 0.99, "low": 0.95, "high": 1.0}, {"value": 0.97, "low": 0.93, "high": 0.99}))
    value, low, high = verdicts.interval(point, [point], 1.0)
    assert value == pytest.approx(0.98) and high == 1.0 and low < 0.93


def test_shares_become_counts():
    from luban.tuning.asked import counts_for

    assert counts_for(100, [0.25, 0.5]) == [25, 50, 100]
    assert [(p.rows, p.size) for p in curve.points_for([50, 100], ["nano", "base"], "small", False)] == [
        (100, "nano"), (50, "small"), (100, "small"), (100, "base"),
    ]  # fmt: skip
    assert len(curve.points_for([50, 100], ["nano", "base"], "small", True)) == 6
