"""Energy: the machine's own counters, added up over packages, across their wrap-around; no counter, no figure."""

import sys
import types

import pytest

from luban import energy
from luban.applying import apply
from luban.data.prepare import data_of
from luban.energy import Meter
from luban.pages import energy_of, full_report
from luban.part import Part
from tests import tiny

RANGE = 262_143_328_850  # microjoules, as an Intel server says


@pytest.fixture
def powercap(tmp_path):
    """Two packages, one with its memory; and what would count the same energy twice."""
    zones = {
        "intel-rapl:0": "package-0", "intel-rapl:0:0": "dram", "intel-rapl:0:1": "core", "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0",
    }  # fmt: skip
    for zone, name in zones.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(name + "\n")
        (tmp_path / zone / "energy_uj").write_text("1000000\n")
        (tmp_path / zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def set_to(root, **joules):
    """At once, as the kernel does it: a reader never finds half a number."""
    for zone, value in joules.items():
        path = root / zone.replace("_", ":").replace("rapl", "intel-rapl") / "energy_uj"
        path.with_suffix(".new").write_text(f"{int(value * 1e6)}\n")
        path.with_suffix(".new").replace(path)


def test_every_package_once(powercap):
    assert [c.name for c in energy.rapl(powercap)] == ["package-0", "package-0-dram", "package-1"]


def test_joules_of_what_ran_inside(powercap):
    with Meter(energy.rapl(powercap)) as meter:
        set_to(powercap, rapl_0=31, rapl_0_0=3, rapl_1=11, rapl_0_1=500, rapl_2=900)
    assert meter.entry() == {
        "energy": {"joules": 42.0, "kwh": 42 / 3.6e6, "by": {"package-0": 30.0, "package-0-dram": 2.0, "package-1": 10.0}}
    }  # fmt: skip


def test_a_counter_that_goes_round(powercap):
    set_to(powercap, rapl_0=RANGE / 1e6 - 5)
    with Meter(energy.rapl(powercap)[:1]) as meter:
        set_to(powercap, rapl_0=7)
        meter._look()
        set_to(powercap, rapl_0=RANGE / 1e6 - 1)
        meter._look()
        set_to(powercap, rapl_0=2)
    assert meter.entry()["energy"]["joules"] == pytest.approx(12 + (RANGE / 1e6 - 8) + 3, abs=0.01)


def test_control_without_the_range_a_round_is_lost(powercap):
    set_to(powercap, rapl_0=RANGE / 1e6 - 5)
    counter = energy.rapl(powercap)[0]
    counter.range = 0.0
    with Meter([counter]) as meter:
        set_to(powercap, rapl_0=7)
    assert meter.entry()["energy"]["joules"] < 0


def test_looks_come_often_enough_by_themselves(powercap, monkeypatch):
    """Two rounds between begin and end: only the looks on the way can see the first."""
    monkeypatch.setattr(energy, "EVERY", 0.01)
    with Meter(energy.rapl(powercap)[:1]) as meter:
        for value in (RANGE / 1e6 - 1, 0.5):
            set_to(powercap, rapl_0=value)
            seen = meter.counters[0]
            for _ in range(500):
                if seen.last == pytest.approx(value):
                    break
                energy.threading.Event().wait(0.01)
        set_to(powercap, rapl_0=RANGE / 1e6 - 1)
    assert meter.entry()["energy"]["joules"] == pytest.approx(2 * RANGE / 1e6 - 2, abs=0.01)


@pytest.mark.parametrize("spoil", ["gone", "nonsense", "empty"])
def test_what_cannot_be_read_tells_nothing(powercap, spoil):
    found = energy.rapl(powercap)
    with Meter(found) as meter:
        set_to(powercap, rapl_0=31, rapl_1=31)
        path = powercap / "intel-rapl:0" / "energy_uj"
        path.unlink() if spoil == "gone" else path.write_text({"nonsense": "?", "empty": ""}[spoil])
    assert "package-0" not in meter.entry()["energy"]["by"] and "package-1" in meter.entry()["energy"]["by"]


def test_nothing_is_invented(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "nvml", list)
    with Meter() as meter:
        pass
    assert meter.entry() == {}


def test_a_card(monkeypatch, tmp_path):
    """NVML as the library speaks: millijoules, one handle a card; a card without a counter is left out."""
    used = {0: 5_000, 1: 9_000, 2: 1_000}

    def total(card):
        if card == 2:
            raise RuntimeError("not supported")
        return used[card]

    fake = types.SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 3, nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetTotalEnergyConsumption=total,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with Meter() as meter:
        used[0] += 2_500
        used[1] += 500
    assert meter.entry()["energy"]["by"] == {"gpu-0": 2.5, "gpu-1": 0.5}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [c.name for c in energy.nvml()] == ["gpu-1"]


def test_history_and_report_of_a_stage(powercap, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", powercap)
    monkeypatch.setattr(energy, "nvml", list)
    model = tiny.model()
    data = data_of(tiny.rows(), model.columns, model.recipe)
    judged = apply(model, data, Part("evaluate", {"resamples": 20, "baselines": False}))
    assert judged.history[-1]["energy"]["by"].keys() == {"package-0", "package-0-dram", "package-1"}
    assert "0 J" in full_report(judged).to_text()
    assert energy_of({"stage": "train"}) == energy_of({"energy": {"joules": None}}) == ""
    assert energy_of({"energy": {"joules": 7.2e6}}) == "2 kWh"
