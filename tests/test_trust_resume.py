"""A run that is stopped or killed anywhere goes on as if nothing had been: the same weights, bit for bit."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import luban
from luban import pipeline
from luban.errors import RequestError
from luban.training import loop, snapshot

ASK = {"types": {"words": "text"}, "size": "nano", "evaluate": False, "precision": "fp32", "epochs": 3, "batch": 16}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    lines = [
        f"{a:.3f},{' '.join(rng.choice(list('abcd'), 5))},{'yes' if a + rng.normal() > 0 else 'no'}"
        for a in rng.normal(size=120)
    ]
    path.write_text("\n".join(["a,words,y", *lines, ""]))
    return str(path)


@pytest.fixture(scope="module")
def unbroken(rows, tmp_path_factory):
    bundle = luban.train(rows, "y", out=tmp_path_factory.mktemp("unbroken"), **ASK)
    assert bundle.history[-1]["steps"] == 18
    return bundle


def same(a, b):
    one, two = a.network.state_dict(), b.network.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def trained(bundle):
    return [h for h in bundle.history if h["stage"] == "train"][-1]


def numbers(bundle):
    return [{k: v for k, v in e.items() if k != "seconds"} for e in bundle.metrics]


class Killed(BaseException):
    pass


def broken_at(monkeypatch, step, act):
    """In update number `step` (from 0) something happens to the process."""
    seen, real = [0], loop.plain

    def counting(state, batch, objective):
        if seen[0] == step:
            act()
        seen[0] += 1
        return real(state, batch, objective)

    monkeypatch.setattr("luban.training.loop.fit.__kwdefaults__", {**loop.fit.__kwdefaults__, "step": counting})


def kill():
    raise Killed


@pytest.mark.parametrize("step", [0, 1, 5, 6, 10, 17])
def test_stopped_by_a_signal(rows, unbroken, tmp_path, monkeypatch, step):
    """Batch boundaries: the first update, within an epoch, its last, the first of the next, the very last."""
    with monkeypatch.context() as patch:
        broken_at(patch, step, lambda: signal.raise_signal(signal.SIGTERM))
        stopped = luban.train(rows, "y", out=tmp_path / "out", **ASK)
    assert stopped.history[-1]["stopped"] == "signal" and stopped.history[-1]["signal"] == signal.SIGTERM
    assert stopped.history[-1]["steps"] == step + 1
    assert luban.load(tmp_path / "out").predict(rows) == stopped.predict(rows)
    again = pipeline.resume(tmp_path / "out")
    assert same(again, unbroken) and numbers(again) == numbers(unbroken) and trained(again)["stopped"] == "done"
    assert same(luban.load(tmp_path / "out"), unbroken)


KINDS = {
    "muon": {"optimizer": "muon", "schedule": "reduce-on-plateau", "ema": 0.9, "accumulate": 2, "clip_value": 0.1},
    "lion": {
        "optimizer": "lion",
        "schedule": "one-cycle",
        "freeze": ["words"],
        "rates": {"a": 0.5},
        "layer_decay": 0.9,
    },
    "nesterov": {"optimizer": {"sgd": {"nesterov": True}}, "schedule": "warmup-stable-decay", "clip_weights": 0.5},
    "adagrad": {"optimizer": "adagrad", "schedule": "step", "keep": "last", "ema": 0.99},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_goes_on_where_it_was(rows, unbroken, tmp_path, monkeypatch, kind):
    whole = luban.train(rows, "y", out=tmp_path / "whole", **ASK, **KINDS[kind])
    with monkeypatch.context() as patch:
        broken_at(patch, 7, lambda: signal.raise_signal(signal.SIGTERM))
        luban.train(rows, "y", out=tmp_path / "out", **ASK, **KINDS[kind])
    again = pipeline.resume(tmp_path / "out")
    assert same(again, whole) and numbers(again) == numbers(whole) and not same(again, unbroken)


def test_what_it_cost_before_is_counted(rows, tmp_path, monkeypatch):
    """The history says what the whole training took: what went before, up to the checkpoint, and what followed."""

    def stop():
        time.sleep(3.0)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        broken_at(patch, 7, stop)
        first = trained(luban.train(rows, "y", out=tmp_path / "out", **ASK))
    assert "earlier" not in first and 3.0 < first["seconds"] < 60
    again = trained(pipeline.resume(tmp_path / "out"))
    assert 3.0 < again["earlier"]["seconds"] <= first["seconds"] < 60
    assert again["seconds"] > again["earlier"]["seconds"] and again["cpu_seconds"] > again["earlier"]["cpu_seconds"] > 0


@pytest.mark.parametrize("step", [1, 6, 13])
def test_killed_between_checkpoints(rows, unbroken, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        broken_at(patch, step, kill)
        with pytest.raises(Killed):
            luban.train(rows, "y", out=tmp_path / "out", checkpoint_seconds=0, **ASK)
    again = pipeline.resume(tmp_path / "out")
    assert same(again, unbroken) and numbers(again) == numbers(unbroken)


def test_control_a_resume_that_forgets_its_place_differs(rows, unbroken, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        broken_at(patch, 8, lambda: signal.raise_signal(signal.SIGTERM))
        luban.train(rows, "y", out=tmp_path / "out", **ASK)
    real = snapshot.put_back

    def forgetful(run, tensors, state):
        real(run, tensors, {**state, "position": 0})

    monkeypatch.setattr(snapshot, "put_back", forgetful)
    assert not same(pipeline.resume(tmp_path / "out"), unbroken)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(RequestError) as e:
        pipeline.resume(tmp_path)
    assert e.value.id == "resume.nothing"


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_on_the_command_line(rows, tmp_path, number, code):
    out = tmp_path / "out"
    words = [
        "train",
        rows,
        "--target",
        "y",
        "--type",
        "words=text",
        "--size",
        "nano",
        "--set",
        "train.epochs=400",
        "--set",
        "train.patience=0",
    ]
    command = [sys.executable, "-m", "luban.cli", *words, "--out", str(out)]
    running = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    log = out / "run.log"
    until = time.monotonic() + 60
    while (
        running.poll() is None
        and not (log.exists() and log.read_text().count('"epoch"') >= 2)
        and time.monotonic() < until
    ):
        time.sleep(0.02)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == code, said
    assert "Traceback" not in said
    bundle = luban.load(out)
    assert {a["y"] for a in bundle.predict(rows)} <= {"yes", "no"} and bundle.history[-1]["stopped"] == "signal"
    assert bundle.history[-1]["steps"] < 400 * 6


def test_a_whole_run_goes_on(rows, tmp_path, monkeypatch):
    """A stopped `run` is not taken for a finished stage: neither `run` again nor `resume` trains less than the rest."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"luban: 1\ndata: {{rows: {rows}}}\ninputs: {{a: number, words: text}}\noutputs: {{y: category}}\nsize: nano\n"
        "stages:\n- train: {epochs: 3, batch: 16, precision: fp32}\n- evaluate: {baselines: false}\n- compress: {explain: 0}\n"
    )
    whole = pipeline.run(str(recipe), tmp_path / "whole")
    for name, go_on in (("again", lambda out: pipeline.run(str(recipe), out)), ("resume", pipeline.resume)):
        with monkeypatch.context() as patch:
            broken_at(patch, 8, lambda: signal.raise_signal(signal.SIGTERM))
            stopped = pipeline.run(str(recipe), tmp_path / name)
        assert trained(stopped)["steps"] == 9 and not stopped.reports
        done = go_on(tmp_path / name)
        assert same(done, whole) and trained(done)["steps"] == 18 and {"evaluate", "compress"} <= set(done.reports)
    seen = []
    broken_at(monkeypatch, 0, lambda: seen.append(1))
    pipeline.run(str(recipe), tmp_path / "again", set=["train.epochs=4"])
    assert seen, "other settings: nothing of the old checkpoints is taken up"


@pytest.mark.parametrize("epochs, said", [(2, False), (3, True)])
def test_checkpoints_of_another_recipe_are_left_and_told(rows, tmp_path, monkeypatch, capsys, epochs, said):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"luban: 1\ndata: {{rows: {rows}}}\ninputs: {{a: number}}\noutputs: {{y: category}}\nsize: nano\n"
        "stages:\n- train: {epochs: 2, batch: 16, precision: fp32}\n"
    )
    with monkeypatch.context() as patch:
        broken_at(patch, 4, lambda: signal.raise_signal(signal.SIGTERM))
        pipeline.run(str(recipe), tmp_path / "out")
    capsys.readouterr()
    done = pipeline.run(str(recipe), tmp_path / "out", set=[f"train.epochs={epochs}"])
    assert ("starts anew" in capsys.readouterr().err) is said and trained(done)["steps"] == 6 * epochs


def test_a_refused_resume_changes_nothing(rows, unbroken, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        broken_at(patch, 7, lambda: signal.raise_signal(signal.SIGTERM))
        luban.train(rows, "y", out=tmp_path / "out", **ASK)
    with pytest.raises(RequestError) as e:
        pipeline.resume(tmp_path / "out", set=["train.epochs=5"])
    assert e.value.id == "resume.other_settings"
    assert same(pipeline.resume(tmp_path / "out"), unbroken)


def test_a_misspelt_folder_is_not_made(tmp_path):
    from luban.cli import main

    assert main(["resume", str(tmp_path / "nowhere")]) == 2 and not (tmp_path / "nowhere").exists()
