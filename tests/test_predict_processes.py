"""Answers of several processes: the same lines in the same order, a bad row with its error, a dead process said."""

import json
import os
import signal

import pytest

import luban
from luban import predicting, predictions
from luban.errors import RequestError, WorkError
from tests import tagging, tiny


def test_two_processes_write_what_one_does(tmp_path):
    model = luban.load(tiny.folder(tmp_path))
    lines = tiny.csv(tmp_path / "rows.csv", 90).read_text().splitlines()
    lines[7] = lines[7].replace(lines[7].split(",")[1], "cheap")  # not a number
    lines.insert(40, "south,1.0")  # too short a row
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    for name in ("a.jsonl", "a.csv"):
        one = predictions.predict_file(model, str(tmp_path / "rows.csv"), tmp_path / f"one-{name}", chunk=16)
        two = predictions.predict_file(
            model, str(tmp_path / "rows.csv"), tmp_path / f"two-{name}", chunk=16, processes=2
        )
        assert one == two == (91, 2)
        assert (tmp_path / f"one-{name}").read_bytes() == (tmp_path / f"two-{name}").read_bytes()
    found = [json.loads(line) for line in (tmp_path / "two-a.jsonl").read_text().splitlines()]
    assert [i for i, row in enumerate(found) if "error" in row] == [6, 39]


def test_what_an_answer_tells_beside_its_value_comes_along(tmp_path):
    """Entities of tags; likewise places of words, and shares of a mask."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(r) + "\n" for r in tagging.rows(60)))
    model = luban.train(tagging.recipe(data={"rows": str(rows)}), out=tmp_path / "m", evaluate=False)
    for count in (1, 2):
        predictions.predict_file(model, str(rows), tmp_path / f"{count}.jsonl", chunk=16, processes=count)
    one, two = ((tmp_path / f"{count}.jsonl").read_text() for count in (1, 2))
    assert one == two and any(json.loads(line)["ner.entities"] for line in two.splitlines())


def test_a_model_that_is_not_saved_is_refused():
    with pytest.raises(RequestError) as e:
        predictions.predict_file(tiny.model(), tiny.rows(), "-", chunk=4, processes=2)
    assert e.value.id == "predict.not_saved"


def test_a_model_that_was_changed_since_it_was_saved_is_refused(tmp_path):
    model = luban.load(tiny.folder(tmp_path))
    next(model.network.parameters()).data.add_(1.0)
    with pytest.raises(RequestError) as e:
        predictions.predict_file(model, tiny.rows(), "-", chunk=4, processes=2)
    assert e.value.id == "predict.not_saved"


def test_few_rows_start_no_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predicting, "answers_of", None)
    model = luban.load(tiny.folder(tmp_path))
    assert predictions.predict_file(model, tiny.rows(), "-", processes=8) == (40, 0)


def die(data: bytes) -> str:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_is_said_and_nothing_is_written(tmp_path, monkeypatch):
    model = luban.load(tiny.folder(tmp_path))
    monkeypatch.setattr(predicting, "_begin", print)
    monkeypatch.setattr(predicting, "_answer", die)
    with pytest.raises(WorkError) as e:
        predictions.predict_file(model, tiny.rows(), tmp_path / "a.jsonl", chunk=16, processes=2)
    assert e.value.id == "predict.process_lost" and not list(tmp_path.glob("*a.jsonl*"))
