"""What the user asks for becomes a recipe: what is read out of the data itself, and said."""

import numpy as np
import pytest

import luban
from luban.asking import Ask, check
from luban.cli import main
from luban.errors import DataError, RecipeError, RequestError, Unsupported
from tests import tiny
from tests.test_data_sources import idx


def german(path, sign=","):
    rng = np.random.default_rng(0)
    x = rng.normal(10, 3, 200).round(2)
    lines = [f"{a};{b};{c}".replace(".", sign) for a, b, c in zip(x, rng.integers(0, 9, 200), (2 * x + 1).round(2))]
    path.write_text("preis;menge;summe\n" + "\n".join(lines), encoding="utf-8")
    return str(path)


def test_a_decimal_comma_is_found_and_said(tmp_path, capsys):
    source = german(tmp_path / "de.csv")
    recipe, _, prepared = check(source, Ask("summe"))
    assert recipe.data["decimal"] == "," and not prepared.rows.quarantine
    assert "decimal sign" in capsys.readouterr().err
    assert recipe.inputs["preis"].type == "number" and "decimal" not in recipe.inputs["preis"].settings
    plain, _, _ = check(german(tmp_path / "en.csv", "."), Ask("summe"))
    assert "decimal" not in plain.data and "decimal sign" not in capsys.readouterr().err, "control: points"


def test_the_recipes_own_sign_comes_first(tmp_path):
    with pytest.raises(DataError):
        check(german(tmp_path / "de.csv"), Ask("summe", changes=["data.decimal=."]))


def test_trained_and_used_with_decimal_commas(tmp_path):
    source = german(tmp_path / "de.csv")
    bundle = luban.train(source, "summe", size="nano", epochs=2, out=tmp_path / "out", evaluate=False)
    assert bundle.columns["preis"].state["mean"] == pytest.approx(10, abs=1)
    loaded = luban.load(tmp_path / "out")
    assert loaded.evaluate(source, baselines=False).numbers["rows"] == 200
    assert loaded.predict(source)[0] == loaded.predict(german(tmp_path / "en.csv", ","))[0]
    with pytest.raises(DataError):
        loaded.predict(german(tmp_path / "en.csv", "."))


def test_check_on_the_command_line(tmp_path, capsys):
    assert main(["check", german(tmp_path / "de.csv"), "--target", "summe"]) in (0, 1)
    assert "decimal sign" in capsys.readouterr().err


def test_data_that_come_in_parts_keep_them_unless_told_otherwise(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 6, 6), np.uint8)
    for name, part in (("train", pixels[:40]), ("t10k", pixels[40:])):
        idx(tmp_path / f"{name}-images-idx3-ubyte", part)
        idx(tmp_path / f"{name}-labels-idx1-ubyte", np.arange(len(part), dtype=np.uint8) % 2)
    recipe, _, prepared = check(str(tmp_path), Ask("label"))
    assert recipe.data["split"]["column"] == "split" and list(recipe.inputs) == ["image"]
    assert prepared.part("test").tolist() == list(range(40, 60)) and len(prepared.part("validation")) == 4
    other, _, mixed = check(str(tmp_path), Ask("label", changes=["data.split.test=0.5"]))
    assert not other.data["split"].get("column") and len(mixed.part("test")) == 30


def test_judged_on_some_rows_that_chance_draws(tmp_path):
    model, path = tiny.model(), tiny.csv(tmp_path / "rows.csv")
    found = [model.evaluate(path, baselines=False, rows=12, seed=s) for s in (0, 0, 1)]
    assert [r.numbers["rows"] for r in found] == [12] * 3 and found[0].numbers["rows_of"] == 40
    assert "12 of 40 rows" in found[0].to_markdown()
    scores = [r.numbers["outputs"]["back"]["metrics"] for r in found]
    assert scores[0] == scores[1] != scores[2]
    whole = model.evaluate(path, baselines=False, rows=40)
    assert "rows_of" not in whole.numbers and whole.numbers["rows"] == 40


def test_beams_that_would_do_nothing_are_refused(tmp_path, capsys):
    recipe = {"luban": 1, "data": {"rows": str(tiny.csv(tmp_path / "rows.csv"))}, "frame": {"pack": {"length": 16}}}
    with pytest.raises(Unsupported, match=r"outputs\.review\.text\.beams.*luban generate --beams"):
        check(recipe | {"outputs": {"review": {"text": {"beams": 4}}}})
    with pytest.raises(RecipeError, match="64"):
        check(recipe | {"outputs": {"review": {"text": {"beams": 1_000_000}}}})
    model = luban.load(tiny.writer(tmp_path))
    assert isinstance(model.generate("good", temperature=0, beams=4, tokens=4), str)
    for wrong in ({"beams": 4}, {"beams": 4, "temperature": 0, "n": 2}, {"beams": 65, "temperature": 0}):
        with pytest.raises(RequestError, match="beams"):
            model.generate("good", **wrong)
    ask = ["generate", str(tmp_path / "writer"), "--prompt", "good", "--tokens", "4", "--beams", "4"]
    capsys.readouterr()
    assert main([*ask, "--temperature", "0"]) == 0 and main(ask) != 0
    assert "likeliest" in capsys.readouterr().err
