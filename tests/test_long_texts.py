"""Texts longer than the model reads at once: cut, split into windows whose answers make one, or refused, as the recipe asks."""

import json
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import luban
from luban import pipeline
from luban.bundle import Bundle, build_network
from luban.cli import main
from luban.columns import windows
from luban.columns.answering import answer, outputs_of
from luban.columns.base import make, together
from luban.columns.examples import Examples, encode_values
from luban.columns.fitting import fit_columns
from luban.columns.kept import encode_kept
from luban.columns.windows import Windows, by_sentences, opened, overlapping, stitched
from luban.data.frames import Framed
from luban.data.prepare import data_of, prepare
from luban.data.sources import read
from luban.engines import OnnxEngine
from luban.errors import DataError, RecipeError
from luban.evaluation.table import table
from luban.generation.asking import stream
from luban.predictions import predict_file
from luban.stages.compress import methods
from luban.stages.serve.engine import Guarded
from luban.training.random import rng
from tests import tagging
from tests.test_trust_resume import broken_at, same

WORDS = ["red", "green", "blue", "old", "new", "the", "a", "cat"]
RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS, n)) for n in (3, 5, 8, 8, 4, 6) * 4]
LONG = " ".join(RNG.choice(WORDS, 19))
SMALL = {"transformer": {"width": 16, "layers": 1, "heads": 2}}
READ = {"text": {"tokens": "words", "least": 1, "length": 8, "long": "split"}}


def made(inputs, outputs, rows, **more):
    """An untrained Bundle with weights large enough that what is read makes a difference."""
    recipe = luban.Recipe.of({"luban": 1, "inputs": inputs, "outputs": outputs, "size": "nano", **more}).resolved()
    columns = {}
    for name, part in {**recipe.inputs, **recipe.outputs}.items():
        column = make(name, part.type, dict(part.settings)).beside(columns)
        of = getattr(column, "of", None)
        columns[name] = column.fit(rows[name], of=rows[of]) if of else column.fit(rows[name])
    torch.manual_seed(0)
    network = build_network(recipe, together(columns)).eval()
    for p in network.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, 0, 0.5)
    return Bundle(recipe, columns, network)


ROWS = {
    "said": TEXTS,
    "two": ["yes", "no"] * 12,
    "three": ["a", "b", "c"] * 8,
    "kinds": [["x"], ["x", "y"], []] * 8,
    "size": [1.0, 2.0, 5.0, 9.0] * 6,
    "tags": [" ".join("X" if w in ("red", "green") else "Y" for w in t.split()) for t in TEXTS],
}
KINDS = {"two": "category", "three": "category", "kinds": "labels", "size": "number"}


@pytest.fixture(scope="module")
def judge():
    return made({"said": READ}, KINDS, ROWS, model={"said": SMALL})


@pytest.fixture(scope="module")
def tagger():
    return made({"said": READ}, {"tags": {"tags": {"of": "said"}}}, ROWS, model={"said": SMALL})


@pytest.fixture(scope="module")
def translator():
    text = {"text": {"vocabulary": 280, "length": 6, "least": 1}}
    rows = {"said": [*TEXTS, "a cat. the red cat!"], "echo": TEXTS}
    writer = {"llama": {"width": 16, "layers": 1, "heads": 2}}
    return made({"said": READ}, {"echo": text}, rows, model={"said": SMALL, "echo": writer})


def pieces(text, room=8):
    words = text.split()
    return [" ".join(words[a:b]) for a, b in overlapping(len(words), room)]


# -- where windows are ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("length, room", [(1, 8), (8, 8), (9, 8), (19, 8), (100, 7), (5, 1), (3, 2)])
def test_windows_hold_every_position_and_no_more_than_there_is_room(length, room):
    found = overlapping(length, room)
    assert {i for a, b in found for i in range(a, b)} == set(range(length))
    assert all(b - a <= room for a, b in found) and found[-1][1] == length


def test_stretches_end_with_sentences_else_before_a_word():
    ends, begins = np.zeros(20, bool), np.ones(20, bool)
    ends[[4, 11]] = True
    begins[16:] = False
    assert by_sentences(ends, begins, 8) == [(0, 5), (5, 12), (12, 20)]
    assert by_sentences(np.zeros(20, bool), begins, 8) == [(0, 8), (8, 15), (15, 20)]  # 16 is inside a word
    assert by_sentences(np.zeros(20, bool), np.zeros(20, bool), 8) == [(0, 8), (8, 16), (16, 20)]


def test_a_position_is_read_in_the_window_that_it_stands_nearest_to_the_middle_of():
    parts = [np.array([[9], [0], [0], [0], [0]]), np.array([[9], [1], [1], [1], [1]])]  # one line before
    assert stitched(parts, [np.arange(4), np.arange(2, 6)])[:, 0].tolist() == [9, 0, 0, 0, 1, 1, 1]


# -- answers --------------------------------------------------------------------------------------------------------------
def mean(bundle, text, name, key):
    found = bundle.predict([{"said": t} for t in pieces(text)])
    return float(np.mean([f[key] for f in found]))


def pooled_well(bundle):
    """Whether the answers to a long text are the means over its windows."""
    (found,) = bundle.predict([{"said": LONG}])
    keys = ["two.probability.yes", "three.probability.a", "kinds.probability.x", "size"]
    return all(found[k] == pytest.approx(mean(bundle, LONG, k.split(".")[0], k), abs=1e-5) for k in keys)


def test_probabilities_and_numbers_are_means_over_windows(judge):
    assert pooled_well(judge)
    assert judge.predict([{"said": LONG}]) != judge.predict([{"said": " ".join(LONG.split()[:8])}])


def test_planted_fault_a_last_window_that_is_forgotten(judge, monkeypatch):
    monkeypatch.setattr("luban.columns.text.overlapping", lambda n, room: overlapping(n, room)[:-1])
    assert not pooled_well(judge)


def test_what_is_short_is_answered_as_ever_beside_what_is_long(judge):
    together = judge.predict([{"said": t} for t in (TEXTS[0], LONG, TEXTS[1], None)])
    for row, text in zip(together, (TEXTS[0], LONG, TEXTS[1], None)):
        (alone,) = judge.predict([{"said": text}])
        assert row["three"] == alone["three"] and row["size"] == pytest.approx(alone["size"], abs=1e-5)


def test_a_file_an_evaluation_and_a_server_read_all_of_it(judge, tmp_path, capsys):
    (wanted,) = judge.predict([{"said": LONG}])
    rows = [{"said": t, **{k: ROWS[k][i] for k in KINDS}} for i, t in enumerate([LONG, *TEXTS[:5]])]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    predict_file(judge, path, tmp_path / "out.jsonl")
    assert "said: 1 of 6 rows hold more than the 8 tokens" in capsys.readouterr().err
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert first["size"] == pytest.approx(wanted["size"], abs=1e-6)
    (served,) = Guarded(judge.engine, "torch").answers([{"said": LONG}], 32)
    assert served["size"].value == pytest.approx(wanted["size"], abs=1e-6)
    judged = table(judge, data_of(str(path), judge.columns))
    assert judged.outputs["size"].answers[0].value == pytest.approx(wanted["size"], abs=1e-6)
    assert judge.evaluate(str(path)).numbers["outputs"]["size"]["metrics"]


def test_an_exported_file_splits_as_the_model_does(tmp_path):
    pytest.importorskip("onnxruntime")
    few = {n: KINDS[n] for n in ("three", "size")}
    judge = made(
        {"said": READ}, few, ROWS, model={"said": {"cnn": {"channels": [8]}}}
    )  # the gate tries longer texts than 8
    rows = [{"said": t, **{k: ROWS[k][i] for k in few}} for i, t in enumerate(TEXTS)]
    engine = OnnxEngine(judge.export("onnx", out=tmp_path / "model.onnx", data=rows))
    asked = [{"said": LONG}, {"said": TEXTS[0]}]
    for ours, theirs in zip(judge.predict(asked), (r.plain() for r in answer(engine, asked))):
        assert theirs["three"] == ours["three"] and theirs["size"] == pytest.approx(ours["size"], abs=1e-4)


def test_every_word_has_a_tag_that_a_window_gave_it(tagger):
    (found,) = tagger.predict([{"said": LONG}])
    assert len(found["tags"]) == 19
    beyond = tagger.columns["tags"]._beyond
    cut = Bundle(tagger.recipe, {n: cutting(c) for n, c in tagger.columns.items()}, tagger.network)
    (short,) = cut.predict([{"said": LONG}])
    assert short["tags"][8:] == [beyond] * 11 != found["tags"][8:]


def cutting(column):
    return replace(column, long="cut") if column.type == "text" else column


def test_a_tag_is_what_its_own_window_says(tagger):
    """Of tags without an order the stitched one at a place is that of the window whose middle is nearest."""
    examples, _ = encode_values(opened(tagger.columns), ["said"], [{"said": LONG}])
    found = Windows.of(examples, sentences=False)
    assert [at.tolist()[0] for at in found.places["said"]] == [0, 6, 11]
    raw = outputs_of(tagger.engine, examples)["tags"][0]
    alone = outputs_of(tagger.engine, found.examples)["tags"]
    before = len(alone[0]) - 8
    assert np.allclose(raw[before + 9], alone[1][before + 3], atol=1e-5)
    assert len(raw) == before + 19


def test_names_beyond_the_window_are_found_and_judged(tmp_path):
    rows = tagging.rows(160, seed=3)
    long = [{k: " ".join(r[k] for r in rows[i : i + 4]) for k in rows[0]} for i in range(120, 160, 4)]
    text = {"text": {"length": 12, "long": "split"}}
    model = luban.train(rows[:120], target="ner", inputs=["sentence"], types={"ner": "tags"}, size="nano", epochs=12, rate=0.01, set=[f"inputs.sentence={json.dumps(text)}"], evaluate=False)  # fmt: skip
    f1 = lambda m: m.evaluate(long).numbers["outputs"]["ner"]["metrics"]["f1"]["value"]  # noqa: E731
    cut = Bundle(model.recipe, {n: cutting(c) for n, c in model.columns.items()}, model.network)
    assert f1(model) > f1(cut) + 0.2


# -- texts that are written --------------------------------------------------------------------------------------------------
def test_a_translation_is_joined_from_those_of_its_sentences(translator):
    text = "the red cat. a new old cat! the blue cat the new a old cat"
    parts = ["the red cat.", "a new old cat!", "the blue cat the new a old cat"]
    (whole,) = translator.predict([{"said": text}])
    each = [r["echo"] for r in translator.predict([{"said": p} for p in parts])]
    assert whole["echo"].split() == " ".join(each).split()
    assert translator.predict([{"said": parts[0]}])[0]["echo"] == each[0]


def test_texts_are_joined_with_blanks_only_where_a_script_has_them():
    column = make("t", "text", {"tokens": "bpe", "vocabulary": 300, "least": 1, "ends": True, "normalise": False})
    column = column.fit(["a cat sat. on it", "猫坐下。"] * 5)
    ended = lambda t: np.array([(i, -0.1) for i in column.encode(t)])  # noqa: E731
    text = lambda *parts: column.decode(column.joined_up([ended(p) for p in parts])).value  # noqa: E731
    assert text("a cat.", "on it") == "a cat. on it" and text("a ", "cat") == "a cat"
    assert text("猫坐下。", "猫") == "猫坐下。猫"
    assert column.decode(column.joined_up([ended("a"), ended("b")])).probability == pytest.approx(np.exp(-0.3), rel=0.2)


def test_vectors_are_means_of_length_one():
    rows = {"said": TEXTS, "other": TEXTS[::-1]}
    model = made({"said": READ, "other": READ}, {}, rows, fusion="match", model={"said": SMALL, "other": SMALL})
    (found,) = model.embed([LONG])
    parts = model.embed(pieces(LONG)).mean(0)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
    assert np.allclose(found, parts / np.linalg.norm(parts), atol=1e-5)


# -- refused, and what cannot be ------------------------------------------------------------------------------------------------
def test_what_is_refused_goes_to_the_quarantine_with_its_length(tmp_path, capsys):
    rows = [{"said": t, "two": ROWS["two"][i]} for i, t in enumerate(TEXTS)]
    rows[3]["said"] = rows[17]["said"] = LONG
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = {"text": {"tokens": "words", "least": 1, "length": 8, "long": "refuse"}}
    asked = [f"inputs.said={json.dumps(text)}"]
    model = luban.train(str(path), target="two", types={"two": "category"}, size="nano", epochs=1, set=asked, out=tmp_path / "m")  # fmt: skip
    assert "2 rows are left out. The first: Column 'said': 19 tokens, and at most 8" in capsys.readouterr().err
    ledger = (tmp_path / "m" / "quarantine.csv").read_text().splitlines()
    assert len(ledger) == 3 and ledger[1].startswith("4,") and "19 tokens" in ledger[1]
    assert sum(next(h for h in model.history if h["stage"] == "train")["rows"].values()) == 22
    assert model.evaluate(str(path)).numbers["rows"] == 22
    assert "19 tokens" in model.predict([{"said": LONG}])[0]["error"]
    main(["predict", str(tmp_path / "m"), str(path), "--out", str(tmp_path / "out.jsonl")])
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(found) == 24 and [i for i, r in enumerate(found) if "error" in r] == [3, 17]
    (served,) = Guarded(model.engine, "torch").answers([{"said": LONG}], 32)
    assert served.id == "column.too_long" and served.place == "said"


def test_a_text_without_end_is_no_longer_split(judge):
    column = judge.columns["said"].opened()
    with pytest.raises(DataError, match=f"{8 * 256 + 1} tokens, and at most {8 * 256}"):
        column.encode("cat " * (8 * 256 + 1))
    with pytest.raises(DataError, match="characters, far more"):
        column.encode("x" * 1_000_000)


def of(**more):
    plain = {"luban": 1, "data": {"rows": "x.csv"}, "inputs": {"said": READ, "other": "text"}, "outputs": {"two": "category"}}  # fmt: skip
    return luban.Recipe.of(plain | more).resolved()


@pytest.mark.parametrize(
    "more, said",
    [
        ({"inputs": {"said": READ}, "outputs": {"where": {"span": {"of": "said"}}}}, "cannot be split for"),
        ({"model": {"other": {"joint": "said"}}}, "one sequence with another text"),
        ({"outputs": {"echo": {"text": {"long": "split"}}}}, "'echo' is written"),
        ({"outputs": {"echo": {"text": {"long": "refuse"}}}}, "'echo' is written"),
        ({"inputs": {"said": {"text": {"long": "chop"}}}}, "chop"),
    ],
)
def test_what_cannot_be_split_is_said_before_work_starts(more, said):
    with pytest.raises(RecipeError, match=said):
        of(**more)


# -- what a network learns from -----------------------------------------------------------------------------------------------
ENDS = [" ".join([*RNG.choice(WORDS, 19), ("sun", "rain")[i % 2]]) for i in range(200)]
TOLD = [{"said": t, "two": t.split()[-1]} for t in ENDS]  # that only the end of a text tells
ASK = {
    "target": "two",
    "types": {"two": "category"},
    "size": "nano",
    "evaluate": False,
    "precision": "fp32",
    "epochs": 16,
    "patience": 0,
    "keep": "last",
}


def taught(long, rows=TOLD, **more):
    text = {"text": {**READ["text"], "long": long}}
    bag = {"said": {"bag": {"embedding": 8}}}
    return luban.train(rows, set=[f"inputs.said={json.dumps(text)}", f"model={json.dumps(bag)}"], **ASK | more)


def right(model):
    rows = TOLD[160:]
    return np.mean([a["two"] == r["two"] for a, r in zip(model.predict(rows), rows)])


def test_what_only_the_end_of_a_long_text_tells_is_learned_from_its_windows(capsys):
    assert right(taught("split", TOLD[:160], rate=0.03)) > 0.9
    assert "one window of each, drawn at random, is learned from" in capsys.readouterr().err


def test_planted_fault_what_is_cut_off_is_not_learned(monkeypatch):
    assert right(taught("cut", TOLD[:160], rate=0.03)) < 0.7
    monkeypatch.setattr("luban.columns.windows.Drawn.drawn", lambda self, random: self)  # always the first window
    assert right(taught("split", TOLD[:160], rate=0.03)) < 0.7


def learned_from(columns, rows, outputs=()):
    framed = Framed(pa.Table.from_pylist(rows), np.arange(len(rows)))
    return encode_kept(columns, ["said"], outputs, framed)


def test_each_epoch_reads_another_window_and_all_of_them_in_the_end(judge):
    examples = learned_from(judge.columns, [{"said": t} for t in (LONG, TEXTS[0])])
    whole, seen = examples.inputs["said"][0].tolist(), set()
    assert examples.lengths().tolist() == [8, 3]
    for epoch in range(20):
        drawn = examples.drawn(partial(rng, 0, "windows", epoch))
        again = examples.drawn(partial(rng, 0, "windows", epoch))
        x, mask = drawn.arrays(np.arange(2)).inputs["said"]
        assert (x == again.arrays(np.arange(2)).inputs["said"][0]).all()
        assert mask.sum(1).tolist() == [8, 3] and x[1, :3].tolist() == examples.inputs["said"][1].tolist()
        assert (drawn.arrays(np.array([1, 0])).inputs["said"][0] == x[::-1]).all()  # whatever stands beside it
        seen |= {start for start in range(12) if whole[start : start + 8] == x[0].tolist()}
    assert seen == {0, 6, 11}


def test_the_examples_of_a_batch_are_told_by_where_they_stand_among_all(judge):
    """What a teacher said of an example is found by it."""
    examples = learned_from(judge.columns, [{"said": t} for t in (LONG, *TEXTS[:3])])
    assert examples.arrays(np.array([3, 0])).places.tolist() == [3, 0]


def test_a_teacher_of_long_texts_is_asked_about_each_window_that_is_seen(judge, monkeypatch):
    """What it said of one window is no answer to the next."""
    told = []
    monkeypatch.setattr(methods, "tell", lambda ident, **_: told.append(ident))
    for text, kind in ((LONG, "always"), (TEXTS[0], "once")):
        examples = learned_from(judge.columns, [{"said": text}] * 8)
        network = judge.copy_network()
        known, shown = methods.once_asked(network, judge.recipe, examples, 2, judge.copy_network())
        assert (known is None) == (kind == "always") and shown is examples
    assert told == ["compress.asked.always", "compress.asked.once"]


def test_tags_go_with_their_window(tagger):
    tags = " ".join("X" if w in ("red", "green") else "Y" for w in LONG.split())
    examples = learned_from(tagger.columns, [{"said": LONG, "tags": tags}], ["tags"])
    known = {tagger.columns["said"].encode(w)[0]: w in ("red", "green") for w in ("red", "green")}
    x_number = tagger.columns["tags"].labels.index("X") + 1
    for epoch in range(5):
        arrays = examples.drawn(partial(rng, 0, "windows", epoch)).arrays(np.arange(1))
        ids, answers = arrays.inputs["said"][0][0], arrays.targets["tags"][0][0]
        assert len(ids) == len(answers) == 8
        assert [i in known for i in ids] == [a == x_number for a in answers]


def test_a_stopped_run_reads_the_windows_that_the_unbroken_one_would(tmp_path, monkeypatch):
    path = str(tmp_path / "rows.jsonl")
    Path(path).write_text("".join(json.dumps(r) + "\n" for r in TOLD))
    whole = taught("split", path, out=tmp_path / "whole", batch=32, epochs=4)
    assert whole.history[-1]["steps"] == 20
    with monkeypatch.context() as patch:
        broken_at(patch, 12, lambda: signal.raise_signal(signal.SIGTERM))
        taught("split", path, out=tmp_path / "out", batch=32, epochs=4)
    assert same(pipeline.resume(tmp_path / "out"), whole)


def test_a_network_that_writes_learns_from_the_beginning_and_says_so(translator, capsys):
    rows = [{"said": LONG, "echo": "a cat"}, {"said": TEXTS[0], "echo": "a cat"}]
    examples = learned_from(translator.columns, rows, ["echo"])
    assert examples.inputs["said"].lengths.tolist() == [8, 3] and type(examples) is Examples
    recipe = luban.Recipe.of({"luban": 1, "inputs": {"said": READ}, "outputs": {"echo": "text"}, "size": "nano"})
    fit_columns(recipe, prepare(recipe, read([{"said": f"{LONG} {i}", "echo": "a cat"} for i in range(20)])))
    assert "Training reads their beginning" in capsys.readouterr().err


@pytest.mark.parametrize("how", [{}, {"temperature": 0.0}, {"beams": 2, "temperature": 0.0}])
def test_generation_from_a_long_text_is_refused_before_it_begins(translator, how):
    with pytest.raises(DataError, match=r"'said': 19 tokens, and at most 8 are read at once. `luban predict` reads"):
        translator.generate(LONG, **how)
    with pytest.raises(DataError, match="19 tokens"):
        next(stream(translator, LONG))
    assert translator.generate(" ".join(LONG.split()[:8]))


def test_a_network_gets_no_more_than_a_window(judge, monkeypatch):
    """Planted fault: without windows the whole text would reach the network."""
    longest = []
    run = type(judge.engine).run
    monkeypatch.setattr(type(judge.engine), "run", lambda self, a: longest.append(a.inputs["said"][0].shape[1]) or run(self, a))  # fmt: skip
    judge.predict([{"said": LONG}])
    assert max(longest) == 8
    monkeypatch.setattr(windows.Windows, "of", classmethod(lambda *a, **k: None))
    with pytest.raises(RuntimeError):
        judge.predict([{"said": LONG}])
    assert max(longest) == 19
