"""The check before training: planted faults are found, clean data is left in peace."""

import io

import numpy as np
import pytest
from PIL import Image

from luban.data.json_lines import strict
from luban.data.quality import check
from luban.data.rows import BadRow
from luban.data.sources import read, typed
from luban.data.splits import Splits, split
from luban.errors import DataError

N = 300
RNG = np.random.default_rng(0)
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "nine",
    "grey",
    "wolves",
    "watch",
    "from",
    "their",
    "warm",
    "and",
    "quiet",
    "hill",
]


def sentence(seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, 14))


def clean_table() -> dict:
    y = ["ab"[i % 2] for i in range(N)]
    return {"x": RNG.normal(size=N), "w": [("red", "green", "blue")[RNG.integers(3)] for _ in range(N)], "y": y}


TYPES = {"x": "number", "w": "category", "y": "category"}


def ids(columns: dict, types: dict | None = None, splits: Splits | None = None, target="y") -> set[str]:
    return {f.id for f in check(read(columns), types or TYPES, target, splits)}


def test_clean_data_has_no_findings():
    rows = read(clean_table())
    assert check(rows, TYPES, "y", split(rows, stratify="y")) == []


def planted(name: str) -> tuple[dict, dict]:
    c, t = clean_table(), dict(TYPES)
    y = np.array(c["y"])
    more = {
        "missing": {"x": [None, *c["x"][1:].tolist()]},
        "constant": {"k": ["one"] * N},
        "identifier": {"k": [f"u{i}" for i in range(N)]},
        "spellings": {"w": ["cat", "cat ", "Cat", "dog"] * (N // 4)},
        "formula": {"w": ["=HYPERLINK(1)", *c["w"][1:]]},
        "personal_name": {"姓名": c["w"]},
        "personal_cells": {"k": [f"ann{i}@example.org" for i in range(N)]},
        "personal_inside": {"k": ["write to bob@example.org please", *c["w"][1:]]},
        "gives_away": {"k": (y == "a") * 1.0},
        "rare_class": {"y": ["c", *c["y"][1:]]},
        "imbalance": {"y": ["a"] * (N - 15) + ["b"] * 15},
        "uneven": {"y": ["a"] * (N // 2) + ["b"] * (N - N // 2 - 5) + ["c"] * 5},
        "duplicates": {"x": [1.0, 1.0, *c["x"][2:]], "w": ["red", "red", *c["w"][2:]]},
        "conflicting": {"x": [1.0, 1.0, *c["x"][2:]], "w": ["red", "red", *c["w"][2:]]},
    }[name]
    if "k" in more:
        t["k"] = "number" if name == "gives_away" else "category"
    return c | more, t


@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "constant",
        "identifier",
        "spellings",
        "formula",
        "personal_name",
        "personal_cells",
        "personal_inside",
        "gives_away",
        "rare_class",
        "imbalance",
        "uneven",
        "duplicates",
        "conflicting",
    ],
)
def test_planted_fault_is_found(name):
    assert name in ids(*planted(name))


def test_a_rare_class_among_several_does_not_make_accuracy_useless():
    assert "imbalance" not in ids(*planted("uneven")) and "imbalance" in ids(*planted("imbalance"))


@pytest.mark.parametrize(
    "cells",
    [
        ["11010519491231002X"] * N,
        ["13812345678"] * N,
        ["4111 1111 1111 1111"] * N,
        ["+49 171 1234567"] * N,
    ],
)
def test_personal_patterns(cells):
    assert "personal_cells" in ids(clean_table() | {"k": cells})


def test_numbers_that_only_look_like_it_are_left_alone():
    for cells in ([f"{i:018d}" for i in range(N)], ["2024-01-02 10:11:12"] * N, [str(10**9 + i) for i in range(N)]):
        assert "personal_cells" not in ids(clean_table() | {"k": cells})


@pytest.mark.parametrize("kind", ["copy", "monotone", "category"])
def test_a_column_that_gives_a_number_away(kind):
    y = RNG.normal(size=N)
    groups = np.repeat(np.arange(30), 10)
    columns = {
        "copy": ({"k": y * 3 + 1, "y": y}, "number"),
        "monotone": ({"k": np.exp(y), "y": y}, "number"),
        "category": ({"k": [f"g{g}" for g in groups], "y": groups * 1.5}, "category"),
    }[kind]
    assert "gives_away" in ids(columns[0], {"k": columns[1], "y": "number"})
    noisy = columns[0] | {"y": np.asarray(columns[0]["y"]) + RNG.normal(size=N) * 20}
    assert "gives_away" not in ids(noisy, {"k": columns[1], "y": "number"})


def halves(n: int) -> Splits:
    return Splits(np.arange(n // 2), np.zeros(0, np.int64), np.arange(n // 2, n))


def test_leaks_word_for_word_and_nearly():
    texts = [sentence(i) for i in range(200)]
    types = {"t": "text", "y": "category"}
    y = ["ab"[i % 2] for i in range(200)]
    assert not ids({"t": texts, "y": y}, types, halves(200)) & {"leak", "near_leak"}
    assert "leak" in ids({"t": [*texts[:199], texts[1]], "y": y}, types, halves(200))
    for changed in (texts[1].upper() + "  ", texts[1].replace(" ", "\n"), texts[1] + " again"):
        found = check(read({"t": [*texts[:199], changed], "y": y}), types, "y", halves(200))
        assert [(f.id, f.problem.values["line"]) for f in found if "leak" in f.id] == [("near_leak", 2)]


def blobs(n: int, size: int = 36) -> np.ndarray:
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (n, 4, 4)).astype(np.float32)
    return np.repeat(np.repeat(coarse, size // 4, 1), size // 4, 2).astype(np.uint8)


@pytest.mark.parametrize("kind", ["pixels", "bytes", "files"])
def test_pictures_saved_again_are_found(kind, tmp_path):
    pixels = blobs(40)
    again = io.BytesIO()
    Image.fromarray(pixels[3]).save(again, "JPEG", quality=85)
    pixels[39] = np.asarray(Image.open(again))
    types = {"image": "image", "y": "category"}
    y = ["ab"[i % 2] for i in range(40)]
    column = pixels
    if kind != "pixels":
        column = []
        for i, p in enumerate(pixels):
            out = io.BytesIO()
            Image.fromarray(p).save(out, "PNG")
            (tmp_path / f"{i}.png").write_bytes(out.getvalue())
            column.append(out.getvalue() if kind == "bytes" else str(tmp_path / f"{i}.png"))
    found = check(read({"image": column, "y": y}), types, "y", halves(40))
    assert [(f.id, f.problem.values["line"]) for f in found if "leak" in f.id] == [("near_leak", 4)]


def test_a_question_that_is_asked_of_each_text_is_no_leak():
    texts, questions = [sentence(i) for i in range(200)], ["what is it about?", "who wrote it?"] * 100
    types = {"t": "text", "q": "text", "y": "category"}
    rows = {"t": texts, "q": questions, "y": ["ab"[i % 2] for i in range(200)]}
    assert "near_leak" not in ids(rows, types, halves(200))
    rows["t"] = [*texts[:199], texts[1] + " again"]
    found = check(read(rows), types, "y", halves(200))
    assert [(f.id, f.column) for f in found if "leak" in f.id] == [("near_leak", "t")]


def test_a_class_that_never_trains():
    y = ["a", "b"] * 10 + ["a", "c"] * 10
    found = check(read({"x": RNG.normal(size=40), "y": y}), TYPES, "y", halves(40))
    assert found[0].id == "unseen_class" and found[0].level == "error"


def test_every_finding_is_a_sentence_with_a_place():
    for name in ("missing", "spellings", "rare_class", "conflicting"):
        for finding in check(read(planted(name)[0]), planted(name)[1], "y"):
            assert str(finding).startswith("dict") and "{" not in str(finding)


@pytest.mark.parametrize(
    "cell", ["a" * 100_000, "a." * 50_000, "a@" * 50_000, "1 " * 50_000, "(1" * 50_000, "+1-" * 40_000]
)
def test_hostile_cells_cost_linear_time(cell):
    """No regular expression of ours may backtrack: quadratic time would take minutes here, past the time limit."""
    ids(clean_table() | {"k": [cell] * 20 + ["x"] * (N - 20)})
    with pytest.raises(DataError):
        typed(read({"x": [cell] * 20}), {"x": "number"})


@pytest.mark.parametrize("text", [b'"\\"' * 50_000, b'"' + b"\\" * 99_999, b'{"a": ' * 20_000])
def test_hostile_json_costs_linear_time(text):
    with pytest.raises(BadRow):
        strict(b"[" * 70 + text)
