"""Sinks hear the numbers that the loop reads anyway; they change nothing that is learned."""

import json
import sys
import types

import pytest

import luban
from luban.errors import MissingExtra, RequestError
from luban.training import watching
from tests import tiny

ASK = {"types": {"review": "text"}, "size": "nano", "epochs": 3, "seed": 0, "evaluate": False}


class Listener:
    def __init__(self):
        self.steps, self.epochs = [], []

    def step(self, numbers):
        self.steps.append(dict(numbers))

    def epoch(self, numbers):
        self.epochs.append(dict(numbers))


def test_every_epoch_is_heard_and_nothing_changes(monkeypatch):
    silent = luban.train(tiny.rows(), "back", **ASK)
    monkeypatch.setattr(watching, "EVERY", 0.0)
    ear = Listener()
    with watching.listening_in(ear):
        heard = luban.train(tiny.rows(), "back", **ASK)
    assert ear.epochs == heard.metrics == silent.metrics and len(ear.epochs) == 3
    assert [s["step"] for s in ear.steps] == list(range(1, heard.history[-1]["steps"] + 1))
    assert heard.fingerprint() == silent.fingerprint()
    assert not watching.Ears().all  # nobody listens any more


def test_no_step_is_read_for_a_listener_more_often_than_it_may(monkeypatch):
    ear = Listener()
    with watching.listening_in(ear):
        luban.train(tiny.rows(), "back", **ASK)
    assert len(ear.epochs) == 3 and not ear.steps  # a run of a second, and EVERY is five


def test_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(watching, "EVERY", 0.0)
    model = luban.train(tiny.csv(tmp_path / "r.csv"), "back", **ASK, track=["tensorboard"], out=tmp_path / "m")
    events = EventAccumulator(str(tmp_path / "m" / "tensorboard")).Reload()
    told = [(e.step, round(e.value, 5)) for e in events.Scalars("epoch/validation_loss")]
    assert told == [(e["step"], round(e["validation_loss"], 5)) for e in model.metrics]
    assert len(events.Scalars("step/loss")) == model.history[-1]["steps"]
    assert json.loads((tmp_path / "m/metrics.jsonl").read_text().splitlines()[0]) == model.metrics[0]
    assert luban.load(tmp_path / "m").recipe.stage("train").settings["track"] == ["tensorboard"]
    luban.load(tmp_path / "m").save(tmp_path / "m")  # what lies beside stays, and a save does not mind it
    assert list((tmp_path / "m" / "tensorboard").iterdir())


class FakeMLflow(types.ModuleType):
    """The part of `mlflow.MlflowClient` (3.x) that the sink uses, with its signatures."""

    def __init__(self):
        super().__init__("mlflow")
        self.experiments, self.params, self.metrics, self.ended, self.uri = {}, {}, [], [], None

    def MlflowClient(self, tracking_uri):
        self.uri = tracking_uri
        return self

    def get_experiment_by_name(self, name):
        found = self.experiments.get(name)
        return found and types.SimpleNamespace(experiment_id=found)

    def create_experiment(self, name):
        self.experiments[name] = "1"
        return "1"

    def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
        assert experiment_id == "1"
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r"))

    def log_param(self, run_id, key, value):
        self.params[key] = value

    def log_metric(self, run_id, key, value, timestamp=None, step=None):
        self.metrics.append((key, value, step))

    def set_terminated(self, run_id, status=None):
        self.ended.append(status)


def test_mlflow(tmp_path, monkeypatch):
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    model = luban.train(tiny.rows(), "back", **ASK, track=["mlflow"], out=tmp_path / "m")
    assert fake.uri == f"sqlite:///{tmp_path / 'm' / 'mlflow.db'}" and fake.ended == ["FINISHED"]
    assert [(v, s) for k, v, s in fake.metrics if k == "epoch/loss"] == [(e["loss"], e["step"]) for e in model.metrics]
    assert fake.params["batch"] == model.history[0]["settings"]["batch"]
    with pytest.raises(KeyboardInterrupt), watching.listening_in(types.SimpleNamespace(epoch=interrupt)):
        luban.train(tiny.rows(), "back", **ASK, track=["mlflow"], out=tmp_path / "n")
    assert fake.ended == ["FINISHED", "FAILED"]


def interrupt(numbers):
    raise KeyboardInterrupt


def test_a_sink_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtra) as e:
        luban.train(tiny.rows(), "back", **ASK, track=["mlflow"], out=tmp_path / "m")
    assert "pip install 'luban[mlflow]'" in str(e.value)


def test_a_sink_needs_a_place(monkeypatch):
    pytest.importorskip("tensorboard")
    with pytest.raises(RequestError) as e:
        luban.train(tiny.rows(), "back", **ASK, track=["tensorboard"])
    assert e.value.id == "track.no_folder"


def test_a_misspelt_sink(tmp_path):
    with pytest.raises(RequestError) as e:
        luban.train(tiny.rows(), "back", **ASK, track=["tensorbord"], out=tmp_path / "m")
    assert "tensorboard" in str(e.value)
