"""Batches under a budget of tokens: nothing lost, nothing too large, little padding, the same whenever it is asked."""

import numpy as np
import pyarrow as pa
import pytest

import luban
from luban.columns.base import Ragged
from luban.columns.examples import Examples
from luban.training import batches
from luban.training.batches import epochs_of, order, padding, tokens_for, updates_in


def texts(count: int = 3000, seed: int = 0) -> Examples:
    """Examples with the lengths of real sentences: many short ones and a long tail."""
    lengths = np.clip(np.random.default_rng(seed).lognormal(3, 0.8, count).astype(int), 1, 256)
    flat = np.zeros(lengths.sum(), np.int32)
    return Examples({}, {"text": Ragged(flat, np.concatenate([[0], np.cumsum(lengths)]))}, {}, np.arange(count), count)


def faults(examples: Examples, found: list[np.ndarray], batch: int, tokens: int) -> list[str]:
    """What is wrong with the batches of an epoch."""
    lengths = examples.lengths()
    wrong = []
    if sorted(np.concatenate(found).tolist()) != list(range(len(examples))):
        wrong.append("not every example once")
    if any(len(b) > 1 and len(b) * lengths[b].max() > tokens for b in found):
        wrong.append("over the budget")
    if any(len(b) > batches.MOST_OF * batch for b in found):
        wrong.append("too many examples")
    return wrong


@pytest.mark.parametrize("tokens", [1, 300, 1000, 100_000])
def test_every_example_once_within_the_budget(tokens):
    examples = texts()
    for epoch in range(3):
        assert not faults(examples, order(examples, 32, 7, epoch, tokens=tokens), 32, tokens)


def test_control_a_budget_of_real_tokens_is_seen(monkeypatch):
    def wrong(index, lengths, most, tokens):
        return np.split(index, np.flatnonzero(np.diff(np.cumsum(lengths) // tokens)) + 1)

    examples = texts()
    monkeypatch.setattr(batches, "_cut_by_tokens", wrong)
    assert "over the budget" in faults(examples, order(examples, 32, 7, 0, tokens=1000), 32, 1000)


def test_a_function_of_seed_and_epoch():
    examples = texts(500)
    same = [[b.tolist() for b in order(examples, 16, s, e, tokens=400)] for s, e in ((1, 2), (1, 2), (1, 3), (2, 2))]
    assert same[0] == same[1] and same[0] != same[2] and same[0] != same[3]


def test_auto_keeps_the_number_of_updates_and_takes_the_padding_away():
    examples = texts()
    tokens = tokens_for(examples, 32)
    found = order(examples, 32, 0, 0, tokens=tokens)
    assert 0.9 * len(examples) / 32 < len(found) < 1.25 * len(examples) / 32
    shuffled = np.random.default_rng(0).permutation(len(examples))
    assert padding(examples, found) < 1.05 < 2 < padding(examples, [shuffled[i : i + 32] for i in range(0, 3000, 32)])


def test_updates_are_counted_before_they_are_made():
    examples = texts(700)
    made = [len(order(examples, 16, 3, epoch, tokens=333)) for epoch in range(4)]
    assert updates_in(examples, 16, 3, 4, tokens=333) == sum(made)
    assert (
        epochs_of(sum(made[:2]), examples, 16, 3, 333) == 2 and epochs_of(sum(made[:2]) + 1, examples, 16, 3, 333) == 3
    )


def test_without_lengths_a_budget_changes_nothing():
    plain = Examples({}, {"x": np.zeros(100)}, {}, np.arange(100), 100)
    assert tokens_for(plain, 16) == 0 and updates_in(plain, 16, 0, 3, tokens=50) == 21
    assert [len(b) for b in order(plain, 16, 0, 0, tokens=50)] == [16] * 6 + [4]


def test_the_budget_stands_in_the_recipe_and_in_the_history(capsys):
    rng = np.random.default_rng(0)
    rows = pa.table(
        {"text": [" ".join(rng.choice(["a", "b", "c"], n)) for n in rng.integers(1, 60, 80)], "y": ["u", "v"] * 40}
    )
    made = luban.train(rows, "y", types={"text": "text"}, size="nano", epochs=1, evaluate=False)
    chosen, line = made.recipe.stage("train").settings, made.history[-1]
    assert chosen["tokens"] >= 59 and line["batches"]["padding"] < 1.5 and line["steps"] == line["batches"]["count"]
    assert f"at most {chosen['tokens']} positions" in capsys.readouterr().err.replace(",", "")
    fixed = luban.train(rows, "y", types={"text": "text"}, size="nano", epochs=1, tokens=0, evaluate=False)
    assert fixed.history[-1]["batches"]["most"] == chosen["batch"]


def beside(lengths: np.ndarray, side: int, written: bool = False) -> Examples:
    """Texts of these lengths with a picture of `side` x `side` each."""
    text = Ragged(np.zeros(lengths.sum(), np.int32), np.concatenate([[0], np.cumsum(lengths)]))
    picture, count = np.zeros((len(lengths), 3, side, side), np.uint8), len(lengths)
    ins, outs = ({"picture": picture}, {"text": text}) if written else ({"picture": picture, "text": text}, {})
    return Examples({}, ins, outs, np.arange(count), count)


def test_short_questions_beside_pictures_are_mixed():
    """Each kind of question has a length of its own: sorted by it, a batch would hold one kind."""
    lengths = np.random.default_rng(0).choice([4, 5, 6, 9], 1000)
    mixed = beside(lengths, side=32)
    for tokens in (0, 200):
        found = order(mixed, 20, 0, 0, tokens=tokens)
        assert not faults(mixed, found, 20, 20 * 9) and all(len(set(lengths[b])) > 1 for b in found)
        assert updates_in(mixed, 20, 0, 1, tokens) == len(found) == 50
    assert tokens_for(mixed, 20) == 0


@pytest.mark.parametrize(
    "examples",
    [
        texts(1000),
        beside(np.random.default_rng(0).choice([4, 5, 6, 9], 1000), side=2),  # padding costs as much as the picture
        beside(np.random.default_rng(0).choice([4, 5, 6, 90], 1000), side=32),  # long texts
        beside(np.random.default_rng(0).choice([4, 5, 6, 9], 1000), side=32, written=True),
    ],
)
def test_everywhere_else_like_lengths_stand_together(examples):
    assert padding(examples, order(examples, 20, 0, 0)) < 1.2
