"""Schedules against torch's own and against their formulas."""

import math

import pytest
import torch

from luban.training.schedules import Plateau, Schedule
from luban.yaml_file import dump, parse

TOTAL = 100


def factors(name, warmup=0.0, total=TOTAL):
    schedule = Schedule(name, warmup, total)
    return [schedule(s) for s in range(total)]


def theirs(make, total=TOTAL):
    """The rate before each step of a torch schedule that starts at 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, found = make(optimizer), []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


S = torch.optim.lr_scheduler
AS_TORCH = {
    "constant": ("constant", lambda o: S.ConstantLR(o, 1.0)),
    "linear": ({"linear": {"end": 0.1}}, lambda o: S.LinearLR(o, 1.0, 0.1, TOTAL)),
    "cosine": ("cosine", lambda o: S.CosineAnnealingLR(o, TOTAL)),
    "step": ({"step": {"at": [0.5, 0.75], "factor": 0.2}}, lambda o: S.MultiStepLR(o, [50, 75], 0.2)),
    "exponential": ({"exponential": {"end": 0.01}}, lambda o: S.ExponentialLR(o, 0.01 ** (1 / TOTAL))),
    "one-cycle": ("one-cycle", lambda o: S.OneCycleLR(o, 1.0, total_steps=TOTAL, cycle_momentum=False)),
    "one-cycle-short": ({"one-cycle": {"rise": 0.1, "start": 10, "end": 100}},
                        lambda o: S.OneCycleLR(o, 1.0, total_steps=TOTAL, pct_start=0.1, div_factor=10, final_div_factor=100,
                                               cycle_momentum=False)),
}  # fmt: skip


@pytest.mark.parametrize("name", AS_TORCH)
def test_equal_to_torch(name):
    ours, reference = AS_TORCH[name]
    assert factors(ours) == pytest.approx(theirs(reference), abs=1e-9)


def test_control_another_end_is_seen():
    assert factors({"linear": {"end": 0.2}}) != pytest.approx(theirs(AS_TORCH["linear"][1]), abs=1e-3)


@pytest.mark.parametrize("name", ["cosine", "linear", "step", "warmup-stable-decay", "reduce-on-plateau"])
def test_warm_up(name):
    found = factors(name, warmup=0.1)
    assert found[:10] == pytest.approx([(i + 1) / 10 for i in range(10)]) and found[10] == 1.0


@pytest.mark.parametrize("shape", ["root", "linear", "cosine"])
def test_warmup_stable_decay(shape):
    found = factors({"warmup-stable-decay": {"shape": shape, "decay": 0.2, "end": 0.1}}, warmup=0.1)
    assert set(found[10:82]) == {1.0}
    v = (90 - 82) / 18
    want = {"root": 1 - math.sqrt(v), "linear": 1 - v, "cosine": 0.5 * (1 + math.cos(math.pi * v))}[shape]
    assert found[90] == pytest.approx(0.1 + 0.9 * want) and min(found) > 0.1 - 1e-9


LOSSES = [1.0, 0.9, 0.95, 0.94, 0.93, 0.92, 0.91, 0.5, 0.51, 0.5, 0.5, 0.52, 0.53, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_reduce_on_plateau(patience):
    schedule = Schedule({"reduce-on-plateau": {"factor": 0.5, "patience": patience, "least": 0.1}}, 0.0, TOTAL)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle = S.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, min_lr=0.1)
    for loss in LOSSES:
        schedule.judged(loss)
        oracle.step(loss)
        assert schedule(5) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert schedule(5) < 1


def test_plateau_goes_on_from_its_state():
    """Stopped anywhere and taken up with the state, it does what it would have done."""
    whole = Schedule("reduce-on-plateau", 0.0, TOTAL)
    for i, loss in enumerate(LOSSES):
        again = Schedule("reduce-on-plateau", 0.0, TOTAL)
        again.state = dict(whole.state)
        whole.judged(loss)
        again.judged(loss)
        assert again.state == whole.state, i
    assert isinstance(whole.shape, Plateau) and whole.state["factor"] < 1


@pytest.mark.parametrize("number", [1e-8, 1e-5, 2.5e-7, 1e300, 0.1])
def test_small_numbers_are_written_and_read_back(number):
    assert parse(dump({"rate": number}), "here")[0] == {"rate": number}
