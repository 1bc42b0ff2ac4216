"""A picture told in words, and asked about: the same encoders, the same writer, the whole life."""

import csv
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import luban
from luban.data.prepare import prepare
from luban.nn.fusion import Memory
from luban.nn.places import waves
from luban.nn.tokens import Span, Tokens

COLOURS = {"red": (210, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 210)}
SIDE = 16


def picture(rng: np.random.Generator) -> dict:
    """A square or a bar in one of four corners, on noise; what it is, where, and a question about it."""
    colour, shape = rng.choice(list(COLOURS)), rng.choice(["square", "bar"])
    left, top = rng.integers(0, 2, 2)
    image = rng.integers(90, 150, (SIDE, SIDE, 3), dtype=np.uint8)
    height, width = (5, 5) if shape == "square" else (2, 7)
    y, x = 1 + 8 * top, 1 + 8 * left
    image[y : y + height, x : x + width] = COLOURS[colour]
    asked = rng.choice(["what colour is it", "what shape is it"])
    place = f"{'top' if top == 0 else 'bottom'} {'left' if left == 0 else 'right'}"
    return {
        "image": image,
        "caption": f"A {colour} {shape}, {place}.",
        "question": asked,
        "answer": str(colour if "colour" in asked else shape),
        "place": (int(top), int(left)),
    }


def rows(count: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [picture(rng) for _ in range(count)]


def table(folder: Path, names: list[str], count: int = 600) -> str:
    """A file of rows, and the pictures as files beside it."""
    folder.mkdir(exist_ok=True)
    with open(folder / "rows.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *names])
        for i, row in enumerate(rows(count)):
            Image.fromarray(row["image"]).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", *(row[n] for n in names)])
    return str(folder / "rows.csv")


SPLIT = {"split": {"validation": 0.1, "test": 0.1}}
SEEN = {"image": {"image": {"shift": 0, "flip": False}}}


@cache
def captioning() -> Path:
    folder = Path(mkdtemp(prefix="luban-captions-"))
    recipe = {
        "luban": 1,
        "data": {"rows": table(folder, ["caption"])} | SPLIT,
        "inputs": SEEN,
        "outputs": {"caption": {"text": {"vocabulary": 60}}},
        "model": {
            "image": {"cnn": {"channels": [16, 32], "dense": [], "dropout": 0}},
            "caption": {"llama": {"width": 32, "layers": 1, "heads": 2, "dropout": 0}},
        },
        "stages": [{"train": {"epochs": 20, "batch": 32, "optimizer": "muon", "rate": 0.02}}],
    }
    luban.train(recipe, out=folder / "model", evaluate=False)
    return folder / "model"


def test_it_is_told_what_is_there():
    model, fresh = luban.load(captioning()), rows(40, seed=1)
    answers = model.predict([{"image": r["image"]} for r in fresh])
    assert np.mean([a["caption"] == r["caption"] for a, r in zip(answers, fresh)]) > 0.8


def test_a_reader_is_told_the_places_of_a_grid():
    """Two pictures with the same states in other places are not the same; control: without it they are."""
    encoders = [SimpleNamespace(size=8, placeless=known, length=12) for known in (True, False)]
    states, span = torch.randn(1, 12, 8), Span("image", 0, 12, (3, 4))
    given = Tokens(states, torch.ones(1, 12, dtype=torch.bool), (span,))
    moved = given._replace(x=states.flip(1))
    for encoder, same in zip(encoders, (False, True)):
        memory = Memory([encoder])
        assert torch.allclose(memory([given]).x, memory([moved]).x.flip(1)) == same
    there = waves(3, 4, 8, states.device, states.dtype)
    assert len({tuple(row.tolist()) for row in there}) == 12 and there.abs().max() <= 1
    assert torch.equal(there[:4, 2:4], there[:1, 2:4].expand(4, -1)), (
        "a row's sine and cosine are those of all its columns"
    )


def test_the_nearest_picture_stands_beside_it():
    """Not what a file's name has in common with its caption."""
    model = luban.load(captioning())
    report = model.evaluate(prepare(model.recipe))
    found = report.numbers["outputs"]["caption"]
    assert list(found["baselines"]) == ["nearest_row"] and found["metrics"]["chrf"]["value"] > 80


def test_each_word_shows_where_it_was_read_off(tmp_path):
    model, fresh = luban.load(captioning()), rows(4, seed=2)
    given = [{k: r[k] for k in ("image", "caption")} for r in fresh]
    report = model.explain(given, method="grad-cam", rows=4, out=str(tmp_path))
    for row, found in zip(fresh, report.numbers["rows"]):
        words = found["by_token"]["tokens"]
        assert words[:2] == ["A", row["caption"].split()[1]] and any(w in ("square", "bar") for w in words)
        assert found["by_token"]["weights"].shape[0] == len(words)
    page = (tmp_path / "explain.html").read_text("utf-8")
    assert page.count('class="strip"') == 4


@pytest.mark.parametrize("method", ["integrated-gradients", "lime"])
def test_other_methods_explain_captions_too(method):
    given = [{k: r[k] for k in ("image", "caption")} for r in rows(2, seed=2)]
    report = luban.load(captioning()).explain(given, method=method, rows=2, samples=100, steps=8)
    assert len(report.numbers["rows"]) == 2


def test_a_question_about_a_picture(tmp_path):
    """The answer stands in neither alone: the question says what is asked, the picture what it is."""
    recipe = {
        "luban": 1,
        "data": {"rows": table(tmp_path, ["question", "answer"])} | SPLIT,
        "inputs": SEEN | {"question": "text"},
        "outputs": {"answer": "category"},
        "model": {"image": {"cnn": {"channels": [16, 32]}}, "question": "bag"},
        "stages": [{"train": {"epochs": 12, "batch": 32, "rate": 0.004}}],
    }
    model, fresh = luban.train(recipe, evaluate=False), rows(60, seed=1)
    answers = [a["answer"] for a in model.predict([{k: r[k] for k in ("image", "question")} for r in fresh])]
    assert np.mean([a == r["answer"] for a, r in zip(answers, fresh)]) > 0.85
