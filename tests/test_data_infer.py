"""Types of columns, each with its reason."""

import numpy as np
import pytest

from luban.columns.infer import infer, types
from luban.data.sources import read
from luban.errors import DataError

N = 200
RNG = np.random.default_rng(0)
SENTENCES = [f"This is sentence number {i}, which says {RNG.integers(9)} things" for i in range(N)]
CASES = {
    "number": [str(x) for x in RNG.normal(size=N)],
    "one bad cell": [*(str(x) for x in RNG.normal(size=N - 1)), "abc"],
    "few bad cells": [*(str(x) for x in RNG.normal(size=N - 9)), *["abc"] * 9],
    "whole": [str(i * 7 % 83) for i in range(N)],
    "two numbers": [str(i % 2) for i in range(N)],
    "decimal comma": [f"{x:.2f}".replace(".", ",") for x in RNG.normal(size=N)],
    "zip": [f"{i * 37 % 99999:05d}" for i in range(N)],
    "word": [("red", "green", "blue")[i % 3] for i in range(N)],
    "word with NA": [("NA", "x")[i % 2] for i in range(N)],
    "sentence": SENTENCES,
    "chinese": [f"这本书很好看，我读了{i}遍" for i in range(N)],
    "chinese word": [("男", "女")[i % 2] for i in range(N)],
    "picture": [f"cats/{i}.jpg" for i in range(N)],
    "user_id": [str(1000 + i * 13) for i in range(N)],
    "row": [str(i) for i in range(N)],
    "code": [f"AB-{i:04d}" for i in range(N)],
    "constant": ["same"] * N,
    "nothing": [None] * N,
    "day": [f"2024-01-{i % 28 + 1:02d}" for i in range(N)],
    "truth": [i % 2 == 0 for i in range(N)],
    "float": RNG.normal(size=N),
    "pixels": np.zeros((N, 4, 4), np.uint8),
    "part": [("train", "test")[i % 2] for i in range(N)],
}
EXPECTED = {
    "number": "number",
    "one bad cell": "number",
    "few bad cells": "category",
    "whole": "number",
    "two numbers": "number",
    "decimal comma": "number",
    "zip": "category",
    "word": "category",
    "word with NA": "category",
    "sentence": "text",
    "chinese": "text",
    "chinese word": "category",
    "picture": "image",
    "user_id": "skip",
    "row": "skip",
    "code": "skip",
    "constant": "skip",
    "nothing": "skip",
    "day": "skip",
    "truth": "category",
    "float": "number",
    "pixels": "image",
    "part": "skip",
}


@pytest.fixture(scope="module")
def inferred():
    return infer(read(CASES))


@pytest.mark.parametrize("name", CASES)
def test_type(inferred, name):
    assert inferred[name].type == EXPECTED[name], inferred[name].reason
    assert inferred[name].reason


def test_settings_and_types(inferred):
    assert inferred["decimal comma"].settings == {"decimal": ","} and inferred["number"].settings == {}
    assert set(types(inferred)) == {n for n, t in EXPECTED.items() if t != "skip"}


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([i % 3 for i in range(60)], "category"),
        ([str(i % 10) for i in range(60)], "category"),
        ([i % 2 * 1000 for i in range(60)], "number"),
        ([i / 7 for i in range(60)], "number"),
        (list(range(60)), "number"),
        (["yes", "no"] * 30, "category"),
        (["same"] * 60, "category"),
        ([f"class {i % 40}" for i in range(60)], "category"),
    ],
)
def test_target_is_never_skipped(cells, kind):
    assert infer(read({"x": list(range(60)), "y": cells}), target="y")["y"].type == kind


def test_unknown_target_is_named():
    with pytest.raises(DataError) as e:
        infer(read({"price": [1, 2]}), target="prise")
    assert e.value.problems[0].nearest == "price"


def test_text_and_typed_formats_infer_alike(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,c\n" + "".join(f"{i / 3},{i % 4},{'xyz'[i % 3]}\n" for i in range(90)))
    text = read(str(tmp_path / "x.csv"))
    native = read(
        {"a": [i / 3 for i in range(90)], "b": [i % 4 for i in range(90)], "c": ["xyz"[i % 3] for i in range(90)]}
    )
    for target in (None, "a", "b", "c"):
        assert infer(text, target=target) == infer(native, target=target)
