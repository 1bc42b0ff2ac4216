"""The n-gram model equals one written out by its definition, and its probabilities sum to 1."""

import lzma
from collections import Counter

import numpy as np
import pytest

import luban
from luban.evaluation import text_view
from luban.evaluation.ngram import KneserNey, as_bytes, byte_model, xz_sizes

TEXTS = ["the cat sat on the mat", "the rat sat", "a cat ate a rat on a mat, the end", "ma mat", "", "éa"] * 2 + [
    "that hat"
]


def by_definition(sequences, n, symbols):
    """P(w | h) of an interpolated modified Kneser-Ney model of order n, straight from the formulas; windows as tuples."""
    windows = [(0,) * (n - 1) + tuple(s) for s in sequences]
    counts = {n: Counter(w[i : i + n] for w in windows for i in range(len(w) - n + 1))}
    for k in range(n - 1, 0, -1):
        before = {w[i : i + k + 1] for w in windows for i in range(n - 1 - k, len(w) - k)}
        counts[k] = Counter(gram[1:] for gram in before)

    def discounts(k):
        n1, n2, n3, n4 = (sum(c == i for c in counts[k].values()) for i in (1, 2, 3, 4))
        if not (n1 and n2 and n3):
            return 0.5, 1.0, 1.5
        y = n1 / (n1 + 2 * n2)
        raw = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return tuple(min(max(d, 0), i) for i, d in enumerate(raw, 1))

    steps = {k: discounts(k) for k in counts}

    def p(w, h, k):
        if k == 0:
            return 1 / symbols
        own = {g[-1]: c for g, c in counts[k].items() if g[:-1] == h}
        below = p(w, h[1:], k - 1)
        if not own:
            return below
        taken = {x: steps[k][min(c, 3) - 1] for x, c in own.items()}
        total = sum(own.values())
        return max(own.get(w, 0) - taken.get(w, 0), 0) / total + sum(taken.values()) / total * below

    return lambda w, h: p(w, tuple(h), n)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_definition_and_sums_to_one(order):
    sequences = [as_bytes(t) for t in TEXTS]
    model, truth = KneserNey(sequences, order=order), by_definition([list(map(int, s)) for s in sequences], order, 256)
    for context in (b"", b"at", b"the c", b" ma", b"zzzzz", b"n"):
        window = [0] * (order - 1) + list(context)
        h = window[len(window) - order + 1 :]
        keys = np.array([int.from_bytes(bytes([*h, w]), "big") for w in range(256)], np.uint64)
        found = model.probabilities(keys)
        assert found.sum() == pytest.approx(1, abs=1e-12)
        assert found == pytest.approx([truth(w, h) for w in range(256)], abs=1e-12)


def test_lower_orders_of_one_model_are_models_of_that_order():
    sequences = [as_bytes(t) for t in TEXTS]
    large = KneserNey(sequences, order=6)
    for order in (1, 2, 4):
        small = KneserNey(sequences, order=order)
        assert large.nats(sequences, order) == pytest.approx(small.nats(sequences), abs=1e-9)


def test_a_text_starts_anew():
    model = KneserNey([as_bytes(t) for t in TEXTS], order=4)
    one, other = as_bytes("the mat"), as_bytes("unseen 文")
    together = model.nats([one, other, as_bytes("")])
    assert together == pytest.approx([*model.nats([one]), *model.nats([other]), 0.0])


def test_other_symbols_than_bytes():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 1000, 50) for _ in range(40)]
    model = KneserNey(sequences, order=3, symbols=1000, bits=10)
    h = sequences[0][:2]
    keys = np.array([(int(h[0]) << 20) | (int(h[1]) << 10) | w for w in range(1000)], np.uint64)
    assert model.probabilities(keys).sum() == pytest.approx(1)
    with pytest.raises(ValueError):
        KneserNey(sequences, order=7, bits=10)


def test_validation_chooses_the_order():
    train = [" ".join(np.random.default_rng(i).permutation(["one", "two", "three", "four"])) for i in range(300)]
    found = byte_model(train[:200], train[200:])
    assert found.order == int(np.argmin(found.bits)) + 1 > 1 and len(found.bits) == 8
    bits = found.nats(train[200:]).sum() / np.log(2) / sum(len(t) for t in train[200:])
    assert bits == pytest.approx(min(found.bits)) and bits < 1
    assert byte_model(train, []).order == 8


def test_control_without_discounts_the_sum_is_wrong(monkeypatch):
    from luban.evaluation import ngram

    monkeypatch.setattr(ngram, "_discounts", lambda counts: np.array([1.5, 1.0, 1.5]))  # takes more than there is
    model = KneserNey([as_bytes(t) for t in TEXTS], order=3)
    truth = by_definition([list(map(int, as_bytes(t))) for t in TEXTS], 3, 256)
    found = model.probabilities(np.array([int.from_bytes(bytes([97, 116, w]), "big") for w in range(256)], np.uint64))
    assert found != pytest.approx([truth(w, (97, 116)) for w in range(256)], abs=1e-3)


def test_xz_remembers_what_came_before():
    rng = np.random.default_rng(0)
    noise = "".join(map(chr, rng.integers(33, 126, 30_000)))
    again, new = xz_sizes([noise], [noise[1000:21_000], "".join(map(chr, rng.integers(33, 126, 20_000)))])
    assert again < 200 and new > 15_000
    whole = xz_sizes([noise], [noise[1000:21_000]], each=False)
    assert whole.shape == (1,) and abs(int(whole[0]) - int(again)) < 10
    assert abs(len(lzma.compress(noise.encode(), preset=9)) - int(xz_sizes([], [noise])[0])) < 200


def test_what_a_baseline_did_not_read_is_said(tmp_path, monkeypatch):
    """Of more text than `LATELY` the last is read; the report says of how much."""
    monkeypatch.setattr(text_view, "LATELY", 400)
    (tmp_path / "texts.csv").write_text("text\n" + "".join(f"row {i} of a text that goes on\n" for i in range(60)))
    recipe = {
        "luban": 1,
        "data": {"rows": str(tmp_path / "texts.csv")},
        "outputs": {"text": {"text": {"vocabulary": 300, "length": 16}}},
        "frame": {"pack": {"length": 16}},
        "model": {"text": {"gpt": {"width": 16, "layers": 1, "heads": 2}}},
        "stages": [{"train": {"epochs": 1, "precision": "fp32"}}, {"evaluate": {"resamples": 2}}],
    }
    said = luban.train(recipe).reports["evaluate"].to_text()
    assert "kneser_ney: Learned from the last" in said and "xz: Learned from the last" in said
