"""The rivals of language are strong and independent: a straw man or a shared mistake would show here."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.language import nanogpt_loop as nano
from benchmarks.language.joint_ngram import Alignment, JointNgram

FOLDER = Path(nano.__file__).parent
SMALL = nano.Shape(layers=2, heads=2, width=32, block=16, vocabulary=64)


@pytest.mark.parametrize("name", ["nanogpt_loop", "hf_trainer", "hf_generate"])
def test_a_rival_uses_nothing_of_luban(name):
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    found = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    found += [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert found and not [n for n in found if n.split(".")[0] in ("luban", "benchmarks")]


def test_nanogpt_sees_no_future():
    torch.manual_seed(0)
    model = nano.GPT(SMALL)
    ids = torch.randint(0, 64, (1, 16))
    other = ids.clone()
    other[0, 10:] = torch.randint(0, 64, (6,))
    targets = torch.randint(0, 64, (1, 16))
    first = [model(x[:, :10], targets[:, :10]).item() for x in (ids, other)]
    assert first[0] == first[1]
    whole = [model(x, torch.where(torch.arange(16) < 10, targets, -100)).item() for x in (ids, other)]
    assert whole[0] == pytest.approx(whole[1], abs=1e-6) == pytest.approx(first[0], abs=1e-5)


def test_nanogpt_learns_what_can_be_learned(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(i % 7 for i in range(5000)))
    tokens = nano.tokens_of(path)
    assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint16
    found = nano.train(tokens[:4500], tokens[4500:], SMALL, steps=60, batch=8, rate=1e-2, precision="fp32")
    assert found["validation_loss"] < 0.3 and found["tokens_per_s"] > 0 and found["precision"] == "fp32"
    untrained = nano.train(tokens[:4500], tokens[4500:], SMALL, steps=1, batch=8, rate=0.0, precision="fp32")
    assert untrained["validation_loss"] == pytest.approx(math.log(64), abs=0.2)


def test_nanogpt_has_ten_million_parameters():
    with torch.device("meta"):
        count = sum(p.numel() for p in nano.GPT(nano.Shape()).parameters())
    assert 10e6 < count < 11e6


SOUNDS = {"a": ("AH",), "b": ("B",), "x": ("K", "S"), "o": ("OW",), "e": (), "n": ("N",)}


def words(n, seed):
    rng = np.random.default_rng(seed)
    found = ["".join(rng.choice(list(SOUNDS), rng.integers(2, 7))) for _ in range(n)]
    return [(w, [p for x in w for p in SOUNDS[x]]) for w in found]


def test_letters_are_aligned_with_none_one_and_two_phonemes():
    alignment = Alignment(words(300, 0))
    assert alignment.best("axe", ["AH", "K", "S"]) == [("a", ("AH",)), ("x", ("K", "S")), ("e", ())]
    assert alignment.best("e", []) == [("e", ())] and alignment.best("a", ["AH"] * 3) is None
    assert alignment.table.sum(axis=1) == pytest.approx(1)


def test_forward_probability_is_the_sum_over_all_ways():
    alignment = Alignment(words(40, 1), rounds=2)
    word, sound = "axe", ["AH", "K", "S"]

    def ways(i, j):
        if i == len(word):
            return float(j == len(sound))
        row = alignment.table[alignment.letters[word[i]]]
        return sum(row[alignment._code(tuple(sound[j : j + k]))] * ways(i + 1, j + k) for k in range(3) if j + k <= len(sound))  # fmt: skip

    numbers = [
        np.array([[table[x] for x in xs]]) for table, xs in ((alignment.letters, word), (alignment.phonemes, sound))
    ]
    assert alignment._forward(*numbers)[-1][0, -1] == pytest.approx(ways(0, 0))


def test_new_words_are_read_right():
    model = JointNgram(words(600, 2))
    new = [(w, s) for w, s in words(200, 3) if s]
    answers = model.read([w for w, _ in new])
    assert np.mean([a == " ".join(s) for a, (_, s) in zip(answers, new)]) > 0.97
    assert model.read(["", "a?"]) == ["", ""]
