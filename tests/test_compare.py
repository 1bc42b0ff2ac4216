"""`luban compare`: runs below a folder, what differs in them, and differences on the rows that both were judged on."""

import json
import shutil

import numpy as np
import pytest

import luban
from luban import cli, comparing, energy
from luban.comparing import compare, differing, found_in, names_of, read
from luban.errors import RequestError
from luban.evaluation import pairs
from luban.recipe import Recipe
from tests import tiny

ASK = {"types": {"review": "text"}, "size": "nano", "seed": 0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs below one folder: two of the same rows, one of others; and things that are no runs."""
    place = tmp_path_factory.mktemp("runs")
    rows, others = tiny.csv(place / "rows.csv", 80), tiny.csv(place / "others.csv", 60)
    luban.train(rows, "back", **ASK, epochs=1, out=place / "first" / "model")
    luban.train(rows, "back", **ASK, epochs=6, rate=0.03, out=place / "second" / "model")
    luban.train(others, "back", **ASK, epochs=1, out=place / "third")
    (place / "empty").mkdir()
    shutil.copytree(place / "third", place / ".hidden")
    return place


def test_every_model_below_a_folder(runs):
    assert [p.relative_to(runs).as_posix() for p in found_in([runs])] == ["first/model", "second/model", "third"]
    assert found_in([runs / "third", runs / "third"]) == [runs / "third"]
    with pytest.raises(RequestError) as e:
        found_in([runs / "empty"])
    assert e.value.id == "compare.none"


def test_names_are_as_short_as_they_can_be(runs):
    assert names_of(found_in([runs])) == ["first/model", "second/model", "runs0/third"]
    assert names_of([runs / "first" / "model"]) == ["model"]


def test_what_differs(runs):
    first, second = (read(runs / n / "model", n) for n in ("first", "second"))
    found = differing([first, second])
    assert found["train.epochs"] == [1, 6] and found["train.rate"] == [0.003, 0.03]
    assert not {"train.batch", "size", "seed"} & set(found)


def test_the_difference_is_paired_where_the_rows_are_the_same(runs):
    numbers = compare([runs / "first" / "model", runs / "second" / "model", runs / "third"]).numbers
    paired, other = numbers["paired"]
    scores = [r["metrics"]["back accuracy"]["value"] for r in numbers["runs"]]
    assert paired["value"] == pytest.approx(scores[1] - scores[0]) and paired["rows"] == 8
    assert paired["low"] <= paired["value"] <= paired["high"]
    assert other["why"] == "compare.other_rows"


@pytest.mark.parametrize("held, loads", [(comparing.HELD, 2), (0, 4)])
def test_each_model_is_read_once_where_memory_holds_them(runs, monkeypatch, held, loads):
    """With no room for them they are read again to answer, and the numbers are the same."""
    real, seen = luban.Bundle.load.__func__, []
    folders = [runs / "first" / "model", runs / "second" / "model"]
    want = compare(folders).numbers
    monkeypatch.setattr(comparing, "HELD", held)
    monkeypatch.setattr(luban.Bundle, "load", classmethod(lambda cls, path: (seen.append(path), real(cls, path))[1]))
    assert compare(folders).numbers == want and len(seen) == loads


def test_rows_that_changed_are_not_taken_for_the_same(runs, tmp_path):
    shutil.copytree(runs / "first" / "model", tmp_path / "a")
    shutil.copytree(runs / "second" / "model", tmp_path / "b")
    text = (runs / "rows.csv").read_text()
    try:
        (runs / "rows.csv").write_text(text.replace(",yes\n", ",no\n", 3))
        (found,) = compare([tmp_path / "a", tmp_path / "b"]).numbers["paired"]
        assert found["why"] == "compare.no_rows"
    finally:
        (runs / "rows.csv").write_text(text)


def test_below_a_folder_the_best_comes_first(runs):
    scores = [r["metrics"]["back accuracy"]["value"] for r in compare([runs], paired=False).numbers["runs"]]
    assert scores == sorted(scores, reverse=True) and len(scores) == 3


def test_energy_and_seconds(runs, tmp_path, monkeypatch):
    zone = tmp_path / "cap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("energy_uj", "5000000"), ("max_energy_range_uj", "9000000")):
        (zone / name).write_text(text)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "cap")
    monkeypatch.setattr(energy, "nvml", list)
    luban.train(runs / "rows.csv", "back", **ASK, epochs=1, out=tmp_path / "m")
    report = compare([tmp_path / "m", runs / "third"])
    assert report.numbers["runs"][0]["joules"] == 0.0 and report.numbers["runs"][0]["seconds"] > 0
    assert "0 J" in report.to_text()
    if report.numbers["runs"][1]["joules"] is None:  # a machine that tells nothing: nothing is shown
        assert "energy" not in compare([runs / "third"]).to_text()


def test_thirty_columns_alike_are_one_line():
    part = {"mlp": {"width": 8}}
    differ = {f"model.c{i}.mlp.width": [8, 16] for i in range(30)} | {
        "model.z.mlp.width": [8, 32],
        "size": ["nano", "small"],
    }
    gathered = comparing._gathered(differ)
    assert list(gathered) == ["model.c0.mlp.width (and 29 more)", "model.z.mlp.width", "size"] and part


def test_two_models_that_know_different_labels(runs):
    """One has never seen `odd`: rows of it count as wrong answers of that model, not as no rows."""
    rows = tiny.rows(60)
    for r in rows[:20]:
        r["back"] = "odd"
    recipe = {"types": {"review": "text"}, "size": "nano", "seed": 0, "epochs": 1, "evaluate": False}
    knows, lacks = luban.train(rows, "back", **recipe), luban.train(rows[20:], "back", **recipe)
    from luban.data.prepare import data_of

    data = data_of(rows, knows.columns, knows.recipe)
    found = pairs.difference(lacks, knows, data, "back")
    right = [
        np.array([a["back"]["value"] if isinstance(a["back"], dict) else a["back"] for a in m.predict(rows)])
        == [r["back"] for r in rows]
        for m in (lacks, knows)
    ]
    assert found["rows"] == 60 and found["value"] == pytest.approx(right[1].mean() - right[0].mean())


def test_verdicts():
    assert pairs.verdict(0.01, 0.02, True) == "better" and pairs.verdict(0.01, 0.02, False) == "worse"
    assert pairs.verdict(-0.01, 0.02, True) == pairs.verdict(0.0, 0.0, False) == "cannot_tell"


def test_on_the_command_line(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    assert cli.main(["compare", "."]) == 0
    said = capsys.readouterr().out
    assert "train.epochs" in said and "first/model" in said and "worse" in said
    assert cli.main(["compare", "first/model", "third", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in numbers["runs"]] == ["model", "third"] and numbers["differ"]["data.rows"]
    assert Recipe.load(runs / "third" / "recipe.yaml").task() == numbers["runs"][1]["task"]
