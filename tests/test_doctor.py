"""What the doctor finds: a broken library is named with its remedy, a sound one is not."""

import os

import pytest

from luban import doctor


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Packages that are installed: one sound, one that fails as a torchvision built for another torch does, one that dies, one that hangs."""
    for name, text in {
        "luban_sound": "x = 1",
        "torchvision": "raise RuntimeError('operator torchvision::nms does not exist')",
        "luban_dead": "import os; os.abort()",
        "luban_slow": "import time; time.sleep(30)",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "PATIENCE", 3.0)


def test_only_the_broken_are_named(planted):
    found = dict(doctor.cannot_load(("luban_sound", "torchvision", "luban_dead", "luban_slow", "luban_absent")))
    assert set(found) == {"torchvision", "luban_dead", "luban_slow"}
    assert "nms does not exist" in found["torchvision"]
    assert all(word in found["torchvision"] for word in ("transformers", "timm", "pip uninstall torchvision"))
    assert "3 seconds" in found["luban_slow"] and "--force-reinstall" in found["luban_dead"]


def test_one_broken_library_makes_the_machine_sick(planted, monkeypatch):
    monkeypatch.setattr(doctor, "TRIED", ("torchvision", "luban_sound"))
    monkeypatch.setattr(doctor, "_devices", lambda: ([], []))
    facts, sick = doctor.look()
    assert sick and any("torchvision" in name for name, _ in facts)


def test_facts_about_this_machine(monkeypatch):
    monkeypatch.setattr(doctor, "TRIED", ("numpy",))
    facts, sick = doctor.look()
    text = dict(facts)
    assert not sick and text["luban"] and text["torch"]
    for name in ("processor", "threads", "memory", "disk", "GPU", "verdict"):
        assert text[name], name
    assert str(os.cpu_count()) in text["threads"]


def test_the_verb_ends_with_1_where_something_is_broken(planted, monkeypatch, capsys):
    from luban.cli import main

    monkeypatch.setattr(doctor, "_devices", lambda: ([], []))
    for tried, code in (("torchvision",), 1), (("luban_sound",), 0):
        monkeypatch.setattr(doctor, "TRIED", tried)
        assert main(["doctor", "--json"]) == code
        assert ("torchvision (broken)" in capsys.readouterr().out) == bool(code)
