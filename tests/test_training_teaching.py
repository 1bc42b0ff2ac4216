"""A teacher that is asked once: what is kept is what it would say again, of every kind of answer, and no more than fits."""

import json

import numpy as np
import pytest
import torch

import luban
from luban.bundle import build_network
from luban.columns.base import make
from luban.columns.examples import encode
from luban.data.prepare import prepare
from luban.nn.tokens import Batch
from luban.recipe import Part
from luban.stages.compress import methods
from luban.training import checkpoints, loop, teaching
from luban.training.objectives import Distillation
from luban.training.plan import Plan
from luban.training.random import seed_torch
from tests import asking, compact, tagging
from tests.test_compress_language import LINES

TABLE = compact.rows(40)
CASES = compact.cases() | {"numbers": {"inputs": {"age": "number"}, "outputs": {"buys": "category", "spent": "number"}}}
ROW = Part("row")
WRITING = {
    "luban": 1,
    "size": "nano",
    "inputs": {"line": "text"},
    "outputs": {"text": {"text": {"vocabulary": 300, "least": 1, "length": 16}}},
    "model": {
        "line": {"transformer": {"width": 16, "layers": 1, "heads": 2}},
        "text": {"llama": {"width": 16, "layers": 1, "heads": 2}},
    },
}
RAGGED = ("tags", "span", "text")


def taught(case, place):
    """A teacher and the examples of its student; all that is unequal in length is trained for a step, for its columns."""
    if case not in RAGGED:
        model, framed = compact.bundle(table=TABLE, **CASES[case]), compact.data(TABLE).framed(np.arange(40), ROW)
        return model, encode(model.columns, model.inputs, model.outputs, framed)
    made = {"tags": tagging, "span": asking}.get(case)
    rows = made.rows(60) if made else [{"line": t[::-1], "text": t[: 9 + i % 9]} for i, t in enumerate(LINES)]
    (place / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    asked = made.recipe() if made else WRITING
    asked = asked | {"data": {"rows": str(place / "rows.jsonl")}, "stages": [{"train": {"steps": 1, "compile": "off"}}]}
    model = luban.train(asked, evaluate=False)
    framed = prepare(model.recipe).framed("train", model.recipe.frame)
    return model, encode(model.columns, model.inputs, model.outputs, framed)


def another(model):
    seed_torch(7, "weights")
    return build_network(model.recipe, model.columns).eval()


def losses(objective, network, examples, index):
    found = objective(network, Batch.of(examples.arrays(index)), np.random.default_rng(0))
    return {n: each.detach() for n, (each, _) in found.items()}


@pytest.mark.parametrize("case", [*CASES, *RAGGED])
def test_what_was_kept_teaches_what_asking_again_would(case, monkeypatch, tmp_path):
    monkeypatch.setattr(teaching, "AT_ONCE", 7)  # unequal lengths meet in other batches than those of the student
    model, examples = taught(case, tmp_path)
    known = teaching.ask(model.network, examples, "cpu", "fp32")
    assert case not in RAGGED or any(isinstance(rows, list) for rows in known.kept.values()), "control: lengths differ"
    student, order = another(model), np.random.default_rng(0).permutation(len(examples))
    for index in np.array_split(order, 4):
        once = losses(Distillation(model.network, kept=known), student, examples, index)
        again = losses(Distillation(model.network), student, examples, index)
        assert all(torch.allclose(once[n], again[n], rtol=1e-3, atol=1e-4) for n in again)
        wrong = losses(Distillation(model.network, kept=known), student, examples, np.arange(len(index)))
        assert any(not torch.allclose(wrong[n], again[n], rtol=1e-3, atol=1e-4) for n in again), "control"


def test_planted_fault_answers_of_the_first_rows_instead_of_the_own_are_seen():
    model, examples = taught("numbers", None)
    known, index = teaching.ask(model.network, examples, "cpu"), np.arange(30, 36)
    batch = Batch.of(examples.arrays(index))
    like = model.network(batch)
    own, first = known.of(batch.places, like), known.of(np.arange(6), like)
    assert all(torch.allclose(own[n], like[n], atol=1e-5) and not torch.allclose(first[n], like[n]) for n in like)


def test_places_go_along_when_a_batch_is_cut():
    _, examples = taught("numbers", None)
    index = np.array([9, 3, 30, 12, 5])
    batch = Batch.of(examples.arrays(index))
    assert [b.places.tolist() for b in batch.cut(2)] == [[9, 3], [30, 12, 5]]
    assert batch.take(torch.tensor([4, 0])).places.tolist() == [5, 9]
    assert batch.take(slice(1, 3)).places.tolist() == [3, 30]
    x, _ = batch.take(torch.tensor([4, 0])).inputs["age"]
    assert torch.equal(x, Batch.of(examples.arrays(np.array([5, 9]))).inputs["age"][0])


# -- when it is asked ----------------------------------------------------------------------------------------------------
def asked(monkeypatch, model, data, **settings):
    """How many rows a teacher answered while a student learned from it for three epochs."""
    rows = []
    make = methods.Distillation

    def watching(teacher, **rest):
        forward = teacher.forward
        teacher.forward = lambda batch, *more: rows.append(batch.size) or forward(batch, *more)
        return make(teacher, **rest)

    ask = teaching.ask
    monkeypatch.setattr(teaching, "ask", lambda t, e, *rest: rows.append(0) or ask(t, e, *rest))
    monkeypatch.setattr(methods, "Distillation", watching)
    model.compress(data, explain=0, resamples=20, **({"distill": "nano", "epochs": 3} | settings))
    return rows


@pytest.fixture(scope="module")
def tabular():
    table = compact.rows(120)
    model = compact.tabular(table, size="small")
    model.recipe = model.recipe.with_stage(Part("train", {"batch": 16, "compile": "off"}))
    return model, compact.data(table, model.recipe)


def test_further_epochs_ask_nothing(monkeypatch, tabular, capsys):
    assert asked(monkeypatch, *tabular) == [0]
    assert "has answered each of the 72 training rows once" in capsys.readouterr().err


def test_answers_that_are_too_many_are_not_kept(monkeypatch, tabular, capsys):
    monkeypatch.setattr(teaching, "KEPT", 72 * 2 * 4 - 1)  # two outputs of one number in four bytes
    rows = asked(monkeypatch, *tabular)
    assert sum(rows) >= 3 * 72 and "answers in every update" in capsys.readouterr().err


def test_fewer_updates_than_an_epoch_ask_for_what_they_use(monkeypatch, tabular, tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("luban: 1\nsize: nano\nstages: [train: {steps: 2, batch: 16, precision: fp32}]\n")
    assert asked(monkeypatch, *tabular, distill=str(path), epochs=0) == [16, 16]


@pytest.mark.parametrize("epochs, kind", [(2, "still"), (12, "always")])
def test_pictures_are_shown_as_they_were_asked_about_or_asked_about_as_they_are_shown(epochs, kind, monkeypatch):
    """Few epochs see them as they are; in many the teacher is asked about each moved view, and never about another one than the student sees."""
    model, examples = taught("together", None)
    assert examples.columns["photo"].moving
    told = []
    monkeypatch.setattr(methods, "tell", lambda ident, **_: told.append(ident))
    known, shown = methods.once_asked(model.copy_network(), model.recipe, examples, epochs, another(model))
    assert told == [f"compress.asked.{kind}"] and (known is None) == (shown is examples) == (kind == "always")
    seen = shown.arrays(np.arange(8), np.random.default_rng(0)).inputs["photo"][0]
    assert np.array_equal(seen, examples.arrays(np.arange(8)).inputs["photo"][0]) == (kind == "still")
    hidden = shown.arrays(np.arange(8), np.random.default_rng(0)).inputs["review"][0]
    assert not np.array_equal(hidden, examples.arrays(np.arange(8)).inputs["review"][0]), "tokens are hidden as ever"


@pytest.mark.parametrize("kind, settings", [("image", {"shift": 0.2}), ("image", {"flip": True}), ("image", {"erase": 1.0}), ("image", {"randaugment": 0.5}), ("video", {})])  # fmt: skip
def test_a_column_that_is_not_moved_augments_nothing(kind, settings):
    calm = {"shift": 0.0, "flip": False} if kind == "image" else {}
    column = make("photo", kind, calm | settings).supposed()
    x, mask = column.collate(column.encode_all([np.random.default_rng(1).integers(0, 255, (2, 9, 9) if kind == "video" else (9, 9), dtype=np.uint8)] * 4))  # fmt: skip
    assert column.moving and not column.unmoved().moving
    same = [np.array_equal(c.augment(x, mask, np.random.default_rng(0))[0], x) for c in (column, column.unmoved())]
    assert same == [False, True]


# -- it can be repeated --------------------------------------------------------------------------------------------------
def test_the_same_student_comes_out_again_and_after_a_stop(tmp_path):
    """Bit for bit: of a second run, and of one that went on from its checkpoint with answers that were asked for anew."""
    model, examples = taught("together", None)
    plan = Plan(epochs=3, batch=8, rate=1e-2, seed=3, device="cpu")

    def run(folder, stop=0, resume=False):
        student = another(model)
        known = teaching.ask(model.network, examples, "cpu")
        before = loop.Run.finish_epoch
        if stop:

            def once(self, heard):
                found = before(self, heard)
                if self.state.epoch == stop:
                    raise loop.Stopped(15)
                return found

            loop.Run.finish_epoch = once
        try:
            loop.fit(student, examples, None, plan=plan, objective=Distillation(model.network, kept=known), folder=folder, resume=resume)  # fmt: skip
        finally:
            loop.Run.finish_epoch = before
        return student.state_dict()

    whole, second = run(tmp_path / "whole"), run(tmp_path / "second")
    assert all(torch.equal(whole[n], second[n]) for n in whole)
    run(tmp_path / "part", stop=1)
    assert checkpoints.newest(tmp_path / "part")[1]["epoch"] == 1
    gone_on = run(tmp_path / "part", resume=True)
    assert all(torch.equal(whole[n], gone_on[n]) for n in whole)
