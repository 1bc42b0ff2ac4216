"""The sample ledger: wherever a run is stopped and taken up again, its rows come once an epoch and in the same order."""

import signal

import numpy as np
import pytest
import torch

from luban.columns.examples import Examples
from luban.training import feed, snapshot
from luban.training.loop import Plan, fit

ROWS, BATCH, EPOCHS = 1003, 32, 3
STEPS = EPOCHS * -(-ROWS // BATCH)
PLAN = Plan(epochs=EPOCHS, batch=BATCH, rate=1e-3, keep="last", augment=False)


class Noting:
    """A step that learns nothing: it notes the rows, and asks to be stopped after some of them."""

    def __init__(self, *stops: int):
        self.rows, self.stops = [], set(stops)

    def __call__(self, state, batch, objective):
        self.rows.append(batch.rows.tolist())
        if state.step in self.stops:
            signal.raise_signal(signal.SIGTERM)
        return {"y": (torch.zeros(()), torch.ones(()))}


def told(place, *stops: int, rows: int = ROWS, plan: Plan = PLAN) -> list[list[int]]:
    """The batches of a run that is stopped after those steps, and taken up each time."""
    found = []
    for _ in range(len(stops) + 1):
        step = Noting(*stops)
        nothing = Examples({}, {}, {}, np.arange(rows) * 7, rows)
        network = torch.nn.Linear(1, 1)
        history = fit(network, nothing, None, plan=plan, objective=None, step=step, folder=place, resume=True, data="x")
        found += step.rows
        if history.stopped == "done":
            return found
    raise AssertionError("never ended")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return told(tmp_path_factory.mktemp("whole"))


def test_every_row_once_an_epoch(whole):
    assert len(whole) == STEPS
    per = STEPS // EPOCHS
    epochs = [[r for batch in whole[i * per : (i + 1) * per] for r in batch] for i in range(EPOCHS)]
    assert all(sorted(e) == list(range(0, 7 * ROWS, 7)) for e in epochs) and epochs[0] != epochs[1]


def test_stopped_once_at_every_boundary(whole, tmp_path):
    """0 lost, 0 doubled, 0 in another order; the last batch of an epoch has 11 rows."""
    for stop in range(STEPS):
        assert told(tmp_path / str(stop), stop) == whole


@pytest.mark.parametrize("stops", [(33, 40, 47), (0, 1, 2), (30, 31, 32), (93, 94, 95)])
def test_stopped_three_times_within_an_epoch(whole, tmp_path, stops):
    assert told(tmp_path, *stops) == whole


def forgetful(monkeypatch, change):
    real = snapshot.put_back

    def broken(run, tensors, state):
        real(run, tensors, state)
        change(run)

    monkeypatch.setattr(snapshot, "put_back", broken)


def test_control_a_counter_that_begins_anew_is_caught(whole, tmp_path, monkeypatch):
    forgetful(monkeypatch, lambda run: setattr(run, "position", 0))
    got = told(tmp_path, 40)
    assert got != whole and len(got) == STEPS


def test_control_a_resume_in_the_order_of_epoch_0_is_caught(whole, tmp_path, monkeypatch):
    real = feed.order

    def first(run):
        monkeypatch.setattr(
            feed, "order", lambda examples, batch, seed, epoch, **k: real(examples, batch, seed, 0, **k)
        )

    forgetful(monkeypatch, first)
    assert told(tmp_path, 40) != whole
