"""Loader workers: the same batches in the same order, the same weights bit for bit, no thread left behind."""

import threading
import time

import numpy as np
import pyarrow as pa
import pytest

import luban
from luban.columns.base import make
from luban.columns.examples import encode
from luban.data.frames import row
from luban.training.feed import Feed
from luban.training.loader import ahead
from luban.training.plan import Plan

TYPES = {"x": "number", "note": "text", "photo": "image", "y": "category"}


def table(count: int = 120) -> pa.Table:
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (count, 8, 8), np.uint8)
    return pa.table(
        {
            "x": rng.normal(size=count),
            "note": [" ".join(rng.choice(["a", "b", "c", "d"], n)) for n in rng.integers(1, 30, count)],
            "photo": pa.FixedShapeTensorArray.from_numpy_ndarray(photos),
            "y": rng.choice(["u", "v"], count),
        }
    )


@pytest.fixture
def examples():
    rows = table()
    values = {n: rows[n] if n != "photo" else rows[n].combine_chunks().to_numpy_ndarray() for n in TYPES}
    columns = {n: make(n, t, {}).fit(values[n]) for n, t in TYPES.items()}
    return encode(columns, ["x", "note", "photo"], ["y"], row(rows, np.arange(len(rows))))


def fed(examples, workers: int, start: int = 0) -> list[dict]:
    plan = Plan(epochs=2, batch=8, rate=0.1, tokens=120, seed=5, loader_workers=workers)
    feed, found = Feed(examples, plan), []
    for epoch in range(2):
        for batch in feed.batches(epoch, start):
            pairs = {**batch.inputs, **batch.targets}
            found.append(
                {n: (x.numpy().tobytes(), m.numpy().tobytes()) for n, (x, m) in pairs.items()}
                | {"rows": batch.rows.tolist()}
            )
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_batches_whoever_makes_them(examples, workers):
    assert fed(examples, workers) == fed(examples, 0)
    assert fed(examples, workers, start=3) == fed(examples, 0, start=3)


def test_control_a_stream_of_random_numbers_would_be_seen(examples, monkeypatch):
    """What `rng` must not be: one stream that whoever comes first draws from."""
    stream = np.random.default_rng(0)
    right = fed(examples, 0)
    monkeypatch.setattr("luban.training.feed.rng", lambda *place: stream)
    assert fed(examples, 2) != fed(examples, 0) != right


@pytest.mark.parametrize("workers", [1, 2])
def test_training_is_bit_for_bit_the_same(workers):
    def weights(count):
        made = luban.train(
            table(80), "y", types={"note": "text"}, size="nano", epochs=2, evaluate=False, seed=3, loader_workers=count
        )
        return {k: v.numpy().tobytes() for k, v in made.network.state_dict().items()}

    assert weights(workers) == weights(0)


def test_results_come_in_order_however_long_each_takes():
    def slow(n: int) -> int:
        time.sleep(0.02 if n % 3 == 0 else 0)
        return n

    assert list(ahead(slow, range(30), 2)) == list(range(30))


def test_an_error_comes_in_its_place_and_no_thread_stays():
    def fails(n: int) -> int:
        if n == 5:
            raise ValueError("five")
        return n

    before, seen = threading.active_count(), []
    with pytest.raises(ValueError, match="five"):
        for n in ahead(fails, range(1000), 2):
            seen.append(n)
    assert seen == [0, 1, 2, 3, 4] and threading.active_count() == before
    made = []
    for n in ahead(lambda n: made.append(n) or n, range(1000), 2):
        if n == 3:
            break
    assert threading.active_count() == before and len(made) < 30  # left early: the rest is not made
