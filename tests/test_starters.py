"""luban new: every starter is a good recipe, and runs as it is."""

import json
import subprocess
import sys

import pytest

import luban
from luban.cli import main
from luban.evaluation import made_view
from luban.recipe import Recipe
from luban.starters import STARTERS
from luban.training import alternating


@pytest.mark.parametrize("task", STARTERS)
def test_a_starter_runs(task, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for room in (alternating, made_view):  # what judges made pictures is hardly taught
        monkeypatch.setattr(room, "VISITS", 600)
    assert main(["new", task, "begin"]) == 0
    assert "luban run begin/recipe.yaml" in capsys.readouterr().out
    text = (tmp_path / "begin" / "recipe.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ") and "{" + "wrong" not in text
    explained = STARTERS[task].explained
    small = ["--set", "train.epochs=2", *(["--set", "explain.rows=1"] if explained else [])]
    assert main(["run", "begin/recipe.yaml", "--out", "out", *small]) == 0
    bundle = luban.load("out")
    assert bundle.recipe.task() == task and {"evaluate", *["explain"] * explained} <= set(bundle.reports)
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, metric, least",
    [
        ("tabular-classification", "accuracy", 0.92),
        ("tabular-regression", "r2", 0.3),
        ("text-classification", "accuracy", 0.85),
        ("image-classification", "accuracy", 0.92),
        ("multimodal-classification", "accuracy", 0.8),
        ("text2text-generation", "exact_match", 0.8),
        ("token-classification", "f1", 0.85),
        ("question-answering", "f1", 0.85),
        ("object-detection", "map_50", 0.5),
        ("image-segmentation", "mean_iou", 0.7),
        ("image-to-text", "exact_match", 0.8),
        ("image-generation", "recognised", 0.7),
        ("video-classification", "accuracy", 0.8),
        ("visual-question-answering", "accuracy", 0.8),
    ],
)
def test_a_starter_as_it_is_learns(task, metric, least, tmp_path):
    main(["new", task, str(tmp_path / "begin")])
    assert main(["run", str(tmp_path / "begin" / "recipe.yaml"), "--out", str(tmp_path / "out")]) == 0
    (output,) = luban.load(tmp_path / "out").reports["evaluate"].numbers["outputs"].values()
    assert output["metrics"][metric]["value"] > least
    if task == "image-generation":  # of classes, a normal distribution knows as much
        assert output["metrics"]["frechet"]["value"] < output["baselines"]["gaussian"]["frechet"]["value"]


@pytest.mark.parametrize("task", STARTERS)
def test_a_starter_is_a_resolvable_recipe(task, tmp_path, capsys):
    assert main(["new", task, str(tmp_path / "a")]) == main(["new", task, str(tmp_path / "b")]) == 0
    recipe = Recipe.load(tmp_path / "a" / "recipe.yaml")
    assert recipe.resolved().outputs and recipe.stage("train").settings["epochs"] == STARTERS[task].epochs
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files), (
        "made the same twice"
    )


def test_listed_and_misspelt(tmp_path, capsys):
    assert main(["new", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(task in listed for task in STARTERS)
    assert main(["new", "text-clasification", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert "text-classification" in said and not (tmp_path / "x").exists()
    assert main(["new", "text-classification"]) == 2 and "FOLDER" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    assert main(["new", "text-classification", str(tmp_path / "full")]) == 2


@pytest.mark.parametrize("words", [["new", "list"], ["new", "tabluar"], ["new", "text-classification"]])
def test_nothing_heavy_for_a_list_or_a_mistake(words):
    code = f"import sys, json; from luban.cli import main; main({words!r}); print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "luban.starters" in loaded and not {"torch", "numpy", "pyarrow", "sklearn", "PIL"} & set(loaded)
