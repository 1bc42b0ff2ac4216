"""NaN, infinity, 1e30 and too high a rate: caught before the update, named down to the row, undone, gone on from."""

import copy
import json
import math
import signal
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from luban import console
from luban.columns.base import make
from luban.columns.examples import encode
from luban.data.frames import row
from luban.errors import Diverged
from luban.training import guard
from luban.training.batches import order
from luban.training.loop import Plan, fit
from luban.training.objectives import supervised
from luban.training.random import seed_torch
from luban.training.state import State
from luban.training.steps import plain

ROWS, BATCH, STEPS = 320, 16, 20
PLAN = Plan(epochs=1, batch=BATCH, rate=3e-3, keep="last", augment=False)
WILD = (math.nan, math.inf, 1e30)
POSITIONS = [pytest.param((0, 4, 9, 19), id="four"), pytest.param(range(STEPS), id="all", marks=pytest.mark.slow)]


class Small(torch.nn.Module):
    """The least that is a network: four numbers, one answer, dropout, and no form of the numbers that bounds them."""

    separable = True

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = torch.nn.Linear(4, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, batch):
        x = torch.stack([batch.inputs[f"x{i}"][0] for i in range(4)], 1)
        if self.training:
            self.seen += batch.size
        return {"y": self.last(self.drop(torch.tanh(self.first(x))) + self.first(x) / 9)[:, 0]}

    def loss(self, o, batch):
        y, mask = batch.targets["y"]
        return {"y": ((o["y"] - y) ** 2 * mask, mask.float())}


@pytest.fixture(scope="module")
def parts():
    """Network, training and validation examples."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS + 40, 4))
    table = pa.table({f"x{i}": x[:, i] for i in range(4)} | {"y": x.sum(1) + rng.normal(size=len(x))})
    columns = {n: make(n, "number", {}).fit(table[n]) for n in table.column_names}
    seed_torch(0, "weights")
    inputs = [f"x{i}" for i in range(4)]
    cut = lambda index: encode(columns, inputs, ["y"], row(table, index))  # noqa: E731
    return Small(), cut(np.arange(ROWS)), cut(np.arange(ROWS, ROWS + 40))


def at(examples, step: int) -> np.ndarray:
    """The rows of the batch of a step."""
    return order(examples, BATCH, PLAN.seed, 0)[step]


class Planted:
    """The plain step on the supervised objective, with a fault in one step. `once`: only the first time it is made."""

    def __init__(self, step: int = -1, kind: str = "", value: float = 0.0, row: int = -1, once: bool = True):
        self.at, self.kind, self.value, self.row, self.once, self.tries = step, kind, value, row, once, 0
        self.left_out = set()

    def objective(self, network, batch, rng):
        losses = supervised(network, batch, rng)
        if self.kind == "loss":
            factor = torch.where(torch.as_tensor(batch.rows == self.row), self.value, 1.0)
            losses = {n: (each * factor, weight) for n, (each, weight) in losses.items()}
        return losses

    def __call__(self, state, batch, objective):
        here = state.step == self.at
        self.tries += here
        if state.step in self.left_out:
            return {}
        if here and (self.tries == 1 or not self.once):
            if self.kind == "weight":
                with torch.no_grad():
                    state.parameters[0].view(-1)[3] = self.value
            if self.kind == "gradient":
                real = state.update

                def update():
                    state.flat[7] = self.value
                    del state.update
                    real()

                state.update = update
        return plain(state, batch, objective)


def run(parts, step: Planted, *, plan: Plan = PLAN, folder=None, resume=False):
    """The run's history and weights."""
    network, training, validation = parts
    network = copy.deepcopy(network)
    history = fit(
        network, training, validation, plan=plan, objective=step.objective, step=step, folder=folder, resume=resume
    )
    return history, network.state_dict()


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def spoilt(examples, name: str, rows, value: float):
    """A copy with a value in some rows of a column, past all checks of the data."""
    examples = copy.deepcopy(examples)
    for names, x, _ in examples.blocks:
        if name in names:
            x[rows, names.index(name)] = value
    if name in examples.flat_targets:
        examples.flat_targets[name][0][rows] = value
    return examples


def planted_row(parts, step: int, side: str, value: float):
    """The parts with a value in one row of the batch of that step; the row's id."""
    network, training, validation = parts
    index = int(at(training, step)[5])
    return (network, spoilt(training, {"input": "x1", "label": "y"}[side], [index], value), validation), index


@pytest.fixture(scope="module")
def clean(parts):
    return run(parts, Planted())


@pytest.fixture(scope="module")
def without(parts):
    """The weights of a run that leaves out the batch of a step, by step."""
    found = {}

    def of(step: int):
        if step not in found:
            leaving = Planted()
            leaving.left_out = {step}
            found[step] = run(parts, leaving)[1]
        return found[step]

    return of


def left_out(history, step: int, row: int) -> bool:
    """Whether that batch, and for the sake of that row alone, was left out; nothing of it is in the loss."""
    met = [(i["step"], i["cause"], i["rows"], i["action"]) for i in history.incidents]
    return met == [(step, "rows", [row], "left_out")] and math.isfinite(history.epochs[0]["loss"])


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("value", WILD)
@pytest.mark.parametrize("kind", ["input", "label", "loss"])
def test_a_row_is_caught_named_and_its_batch_left_out(positions, parts, without, kind, value, tmp_path):
    """What is left are the weights, bit for bit, of a run that never saw the batch."""
    for step in positions:
        if kind == "loss":
            bad, row = parts, int(at(parts[1], step)[5])
        else:
            bad, row = planted_row(parts, step, kind, value)
        console.log_to(tmp_path / f"{step}.log")
        history, weights = run(bad, Planted(step, kind, value, row))
        console.log_to(None)
        assert left_out(history, step, row), (step, history.incidents)
        assert same(weights, without(step)) and history.epochs[0]["left_out"] == 1
        lines = [json.loads(line) for line in (tmp_path / f"{step}.log").read_text().splitlines()]
        assert [line["rows"] for line in lines if line["event"] == "divergence"] == [[row]]
        assert any(f"row {row} " in line.get("text", "") for line in lines), "in words too"


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("value", WILD)
@pytest.mark.parametrize("kind", ["gradient", "weight"])
def test_what_happens_once_leaves_no_trace(positions, parts, clean, kind, value, tmp_path):
    """A gradient or a weight is hit: back to the last good checkpoint, once more, and the result is the clean run's."""
    for step in positions:
        place = tmp_path / str(step) if step % 2 else None  # checkpoints on disk, or the copy in memory
        plan = replace(PLAN, checkpoint_seconds=0.0 if step % 4 < 2 else 60.0)
        history, weights = run(parts, Planted(step, kind, value), plan=plan, folder=place)
        assert [(i["step"], i["action"]) for i in history.incidents] == [(step, "again")]
        assert history.incidents[0]["cause"] == ("weights" if kind == "weight" else "batch")
        assert history.incidents[0]["rows"] == at(parts[1], step).tolist()
        assert same(weights, clean[1]) and history.epochs == clean[0].epochs


@pytest.mark.parametrize("positions", POSITIONS)
def test_what_happens_again_and_again_is_left_out(positions, parts, without):
    for step in positions:
        history, weights = run(parts, Planted(step, "gradient", math.nan, once=False))
        assert [i["action"] for i in history.incidents] == ["again", "left_out"]
        assert same(weights, without(step))


def test_a_poisoned_weight_that_no_batch_uses_gets_into_no_checkpoint(parts, clean, tmp_path):
    from luban.training import checkpoints

    class Hidden(Planted):
        def __call__(self, state, batch, objective):
            numbers = super().__call__(state, batch, objective)
            if state.step == 9 and not self.tries:
                self.tries = 1
                state.network.register_buffer("unused", torch.tensor([math.nan]), persistent=True)
            return numbers

    with pytest.raises(Exception, match="unused"):
        run(parts, Hidden(), plan=replace(PLAN, checkpoint_seconds=0.0), folder=tmp_path)
    assert "unused" not in checkpoints.newest(tmp_path)[0]["model"]


# -- too high a rate -----------------------------------------------------------------------------------------------------

HOT = {"sgd": 3.0, "adamw": 1e3}  # a hundredth of them is a rate at which the run goes on
LOST = {"sgd": 1e5, "adamw": 1e6}  # and no thousandth of these


class Rising(Planted):
    """From a step on the rate is far too high."""

    def __call__(self, state, batch, objective):
        state.plan = replace(state.plan, rate=HOT[state.plan.optimizer] if state.step >= self.at else PLAN.rate)
        return super().__call__(state, batch, objective)


def hot(optimizer: str, **settings):
    settings = {"epochs": 2, "on_divergence": "slower", "clip": 0.0, "warmup": 0.0, **settings}
    return replace(PLAN, optimizer=optimizer, rate=HOT[optimizer], **settings)


def cut(history, weights, plan) -> bool:
    """Whether the rate, and nothing else, was changed, no row blamed, and the run came to its end with numbers."""
    actions = [i["action"] for i in history.incidents]
    ended = history.stopped == "done" and len(history.epochs) == plan.epochs
    sound = all(math.isfinite(e[k]) for e in history.epochs for k in ("loss", "validation_loss"))
    return (
        ended and sound and "slower" in actions and "left_out" not in actions
        and all(i["cause"] == "batch" for i in history.incidents)
        and all(w.isfinite().all() for w in weights.values())
    )  # fmt: skip


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("optimizer", HOT)
def test_too_high_a_rate_is_cut(positions, parts, optimizer, tmp_path):
    """From whatever step on it is too high. Of the weights that it has made no checkpoint is gone back to."""
    for step in positions:
        place = tmp_path / str(step) if step % 2 else None  # checkpoints on disk, or the copy in memory
        plan = hot(optimizer, checkpoint_seconds=0.0 if step % 4 < 2 else 60.0, epochs=1 + (step > 13))
        console.log_to(tmp_path / f"{step}.log")
        history, weights = run(parts, Rising(step), plan=plan, folder=place)
        console.log_to(None)
        assert cut(history, weights, plan), (step, history.incidents, history.epochs)
        assert history.incidents[0]["step"] > step, "the step before made the weights that this one met"
        lines = [json.loads(line) for line in (tmp_path / f"{step}.log").read_text().splitlines()]
        rates = [f"the rate is {HOT[optimizer] * 0.1 ** (i + 1):.3g} " for i in range(guard.TRIES)]
        assert any(rates[0] in line.get("text", "") for line in lines), "in words too"


FAULTS = {
    "a cut that cuts nothing": ("CUT", 1.0, "no row of it is to blame"),
    "rows judged with weights that have blown up": ("Guard._take_good", lambda self: True, r"of row \d"),
    "back to where the bad weights are": ("Guard._good", lambda self: self.run.newest(), "no row of it is to blame"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_control_a_rate_that_is_not_cut_as_it_should_ends_the_run(parts, monkeypatch, fault, tmp_path):
    """The run of above, from step 9 on, which comes to its end."""
    name, instead, sentence = FAULTS[fault]
    monkeypatch.setattr(f"luban.training.guard.{name}", instead)
    with pytest.raises(Diverged, match=sentence):
        run(parts, Rising(9), plan=hot("adamw", checkpoint_seconds=0.0), folder=tmp_path)


@pytest.mark.parametrize("policy", ["skip", "slower", "stop"])
@pytest.mark.parametrize("optimizer", LOST)
def test_too_high_a_rate_ends_after_three(parts, optimizer, policy):
    """What is advised is not what is set, and no row is said to be looked at."""
    network, training, validation = parts
    network = copy.deepcopy(network)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    plan = replace(hot(optimizer, on_divergence=policy), rate=LOST[optimizer])
    with pytest.raises(Diverged, match="lower rate") as e:
        fit(network, training, validation, plan=plan, objective=supervised)
    assert same(network.state_dict(), before), "what is left are the last weights that were good"
    assert ("on_divergence: slower" in str(e.value)) == (policy != "slower") and "Look at" not in str(e.value)


class Blown(Planted):
    """After a step, once, every weight is so many times larger: no loss of some rows is finite, of others it is."""

    def __call__(self, state, batch, objective):
        numbers = super().__call__(state, batch, objective)
        if state.step == self.at and self.tries == 1:
            with torch.no_grad():
                for p in state.parameters:
                    p *= self.value
        return numbers


def test_validation_rows_are_not_blamed_for_weights_that_have_blown_up(parts, clean, monkeypatch):
    found, real = [], guard.senseless
    monkeypatch.setattr(guard, "senseless", lambda run: found.append(real(run)) or found[-1])
    history, weights = run(parts, Blown(STEPS - 1, value=3e10))
    assert 0 < len(found[0]) < len(parts[2]) and found[1:] == [[]], "some, by the weights of then"
    assert [(i["cause"], i["rows"], i["action"]) for i in history.incidents] == [("batch", [], "again")]
    assert same(weights, clean[1])


@pytest.mark.parametrize("cause", ["batch", "weights"])
def test_where_no_row_is_known_none_are_spoken_of(cause):
    told = guard.what({"step": 3, "epoch": 1, "cause": cause, "rows": [], "weights": ["last.bias"]})
    assert "row" not in told and ("last.bias" in told) == (cause == "weights")


# -- policies and places -------------------------------------------------------------------------------------------------


def many_rows(parts, steps):
    network, training, validation = parts
    rows = [int(at(training, s)[3]) for s in steps]
    return (network, spoilt(training, "x0", rows, math.nan), validation), rows


def test_three_are_left_out_and_the_fourth_ends_the_run(parts):
    bad, rows = many_rows(parts, [2, 7, 11])
    history, _ = run(bad, Planted())
    assert [i["rows"][0] for i in history.incidents] == rows
    bad, rows = many_rows(parts, [2, 7, 11, 12])
    with pytest.raises(Diverged, match=f"row {rows[3]} .*3 such incidents"):
        run(bad, Planted())


def test_two_rows_of_one_batch_are_both_named(parts):
    network, training, validation = parts
    rows = [int(r) for r in at(training, 4)[[1, 9]]]
    history, _ = run((network, spoilt(training, "x0", rows, math.inf), validation), Planted())
    assert history.incidents[0]["rows"] == rows


def test_stop_means_stop(parts):
    bad, row = planted_row(parts, 6, "input", math.nan)
    with pytest.raises(Diverged, match=f"step 6 .* row {row} "):
        run(bad, Planted(), plan=replace(PLAN, on_divergence="stop"))


def test_a_bad_validation_row_is_named_not_dropped_from_the_mean(parts):
    network, training, validation = parts
    with pytest.raises(Diverged, match=f"validation row {ROWS + 17} "):
        run((network, training, spoilt(validation, "x2", [17], math.nan)), Planted())


def test_what_was_met_is_known_to_a_resumed_run(parts, without, tmp_path):
    bad, _ = planted_row(parts, 5, "label", math.nan)

    class Stopping(Planted):
        def __call__(self, state, batch, objective):
            if state.step == self.at:
                self.at = -1
                signal.raise_signal(signal.SIGTERM)
            return super().__call__(state, batch, objective)

    stopped, _ = run(bad, Stopping(8), folder=tmp_path)
    assert stopped.stopped == "signal"
    history, weights = run(bad, Planted(), folder=tmp_path, resume=True)
    assert len(history.incidents) == 1 and same(weights, without(5))


def test_where_the_device_is_not_waited_for(parts, monkeypatch):
    """As on an accelerator: updates are skipped on the device, found late; the run comes again, watched, to the step."""
    real = State.__init__

    def far(self, *a, **k):
        real(self, *a, **k)
        self.far = self.late = True

    monkeypatch.setattr(State, "__init__", far)
    history, clean = run(parts, Planted())
    assert not history.incidents
    for kind in ("label", "gradient"):
        bad, row = planted_row(parts, 9, "label", math.nan) if kind == "label" else (parts, -1)
        history, weights = run(bad, Planted(9, kind, math.nan))
        if kind == "label":
            assert left_out(history, 9, row)
            leaving = Planted()
            leaving.left_out = {9}
            clean = run(parts, leaving)[1]
        torch.testing.assert_close(weights, clean, rtol=1e-4, atol=1e-6)  # the watched steps clip in double precision
        clean = run(parts, Planted())[1]


# -- clean runs and controls ---------------------------------------------------------------------------------------------


def test_a_clean_run_is_the_same_bits_with_and_without(parts, clean, monkeypatch):
    assert not clean[0].incidents and "left_out" not in clean[0].epochs[0]
    step = lambda self, batch: self.run.make_step(self.run.state, batch, self.run.objective)  # noqa: E731
    monkeypatch.setattr(guard.Guard, "step", step)
    monkeypatch.setattr(guard.Guard, "unsound", lambda self: None)

    def clipped(self, norm):
        if norm > PLAN.clip:
            self.flat.mul_(PLAN.clip / (norm + 1e-6))

    monkeypatch.setattr(State, "_checked", clipped)
    history, weights = run(parts, Planted())
    assert same(weights, clean[1]) and history.epochs == clean[0].epochs


class Filtering(Planted):
    """As some trainers do: what is not finite is replaced, in the log by the mean of what was."""

    def objective(self, network, batch, rng):
        losses = super().objective(network, batch, rng)
        return {n: (torch.nan_to_num(each, 0.0, 0.0, 0.0), weight) for n, (each, weight) in losses.items()}

    def __call__(self, state, batch, objective):
        real = state.update

        def update():
            state.flat.nan_to_num_(0.0, 0.0, 0.0)
            del state.update
            real()

        state.update = update
        return super().__call__(state, batch, objective)


@pytest.mark.parametrize("kind", ["input", "label"])
def test_control_a_filter_over_nan_is_not_taken_for_a_guard(parts, without, kind):
    bad, row = planted_row(parts, 9, kind, math.nan)
    history, weights = run(bad, Filtering())
    assert not left_out(history, 9, row) and not same(weights, without(9))


def test_control_an_update_that_is_not_checked_is_caught(parts, monkeypatch):
    monkeypatch.setattr(State, "_checked", lambda self, norm: None)
    monkeypatch.setattr(guard.Guard, "judged", lambda self, loss: None)
    bad, row = planted_row(parts, 9, "input", math.nan)
    try:
        history, _ = run(bad, Planted())
        assert not left_out(history, 9, row)
    except Diverged:
        pass
