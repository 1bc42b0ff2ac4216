"""A language model that is shown examples in its prompt: what is read, how a class is scored, what it is held against."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
import yaml

import luban
from luban.bundle import Bundle
from luban.data.prepare import prepare
from luban.errors import DataError, RequestError, Unsupported
from luban.evaluation import prompting
from luban.evaluation.prompting import Template, balanced, scores
from tests import tiny, writing

WARM, COLD = ("fire", "sun", "lamp", "oven"), ("ice", "snow", "frost", "hail")


def labelled(count=240, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        kind = ("warm", "cold")[int(rng.random() < 0.35)]
        words = rng.choice(WARM if kind == "warm" else COLD, 3)
        rows.append({"said": f"{words[0]} {words[1]} {words[2]}", "kind": kind})
    return rows


@cache
def written():
    """A language model that has read such rows, one, two and four after another."""
    rng = np.random.default_rng(5)
    lines = [f"said: {r['said']}\nkind: {r['kind']}" for r in labelled(1500, seed=7)]
    folder = Path(mkdtemp(prefix="luban-shots-"))
    texts = ["\n\n".join(rng.choice(lines, n)) for n in rng.choice([1, 2, 4], 500)]
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts), encoding="utf-8")
    recipe = {
        "luban": 1, "data": {"rows": str(folder / "texts.jsonl"), "split": {"validation": 0.05, "test": 0}},
        "outputs": {"text": {"text": {"vocabulary": 400}}}, "frame": {"pack": {"length": 96}},
        "model": {"text": {"llama": {"width": 64, "layers": 2, "heads": 4}}}, "size": "nano",
        "stages": [{"train": {"epochs": 5, "batch": 4, "tokens": 0, "optimizer": "muon", "rate": 0.005, "patience": 0}}],
    }  # fmt: skip
    return luban.train(recipe, out=folder / "writer", evaluate=False)


@cache
def asked():
    folder = Path(mkdtemp(prefix="luban-shots-"))
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, labelled())), encoding="utf-8")
    return luban.train(
        str(folder / "rows.jsonl"), "kind", types={"said": "text"}, size="nano", epochs=1, out=folder / "trained"
    )


def judged(model=None, **settings):
    rows = asked().recipe.data["rows"]
    return luban.shots(model or written(), rows, beside=asked(), **{"draws": 1, "shots": [0, 4]} | settings)


def parts():
    data = prepare(asked().recipe)
    said = data.table["said"].to_pylist()
    return {p: [said[i] for i in data.part(p)] for p in ("train", "test")}


def test_what_it_has_read_it_can_say_and_the_trained_model_stands_beside():
    report = judged(shots=[0, 1, 4], draws=2)
    found = report.numbers
    assert set(found["shots"]) == {"0", "1", "4"} and found["part"] == "test"
    assert found["shots"]["4"]["accuracy"].value > 0.9 > found["baselines"]["majority"]["accuracy"].value
    assert len(found["shots"]["4"]["draws"]) == 2 and len(found["shots"]["0"]["draws"]) == 1
    assert found["shots"]["4"]["against"]["majority"].low > 0 and "trained" in found["shots"]["4"]["against"]
    assert found["trained_on"] == 0 and found["rows"] == len(parts()["test"])
    page = report.to_markdown()
    assert "kind:" in report.to_html() and "Zhao" in page


def test_control_with_the_names_of_the_classes_exchanged_it_is_wrong():
    found = judged(shots=[0], labels={"warm": "cold", "cold": "warm"}).numbers
    assert found["shots"]["0"]["accuracy"].value < 0.5


def test_examples_are_training_rows_as_many_of_each_class_and_more_is_more():
    given = ["a"] * 50 + ["b"] * 30 + ["c"] * 2
    for k in (1, 3, 4, 16):
        places = balanced(given, ["a", "b", "c"], k, seed=3)
        counts = [sum(given[i] == label for i in places) for label in "abc"]
        assert len(set(places)) == k and max(counts[:2]) - min(counts[:2]) <= 1 and counts[2] <= 2
    assert set(balanced(given, ["a", "b", "c"], 4, 3)) <= set(balanced(given, ["a", "b", "c"], 16, 3))
    assert balanced(given, ["a", "b", "c"], 4, 3) == balanced(given, ["a", "b", "c"], 4, 3)
    assert balanced(given, ["a", "b", "c"], 4, 3) != balanced(given, ["a", "b", "c"], 4, 3, draw=1)
    page, there = judged(shots=[8]).to_html(), parts()
    assert sum(f"said: {t}" in page for t in there["train"]) >= 8
    others = set(there["test"][1:]) - {*there["train"], there["test"][0]}
    assert len(others) > 5 and not any(f"said: {t}" in page for t in others), "held-out rows are nobody's example"


@pytest.mark.parametrize("head", ["llama", "gpt", "transformer", "lstm"])
def test_scores_are_those_of_each_text_alone(head):
    """The shared beginning is read once; every answer has its own length."""
    net = writing.network(head)
    column = writing.columns()["text"]
    prompts = ["the cat sat on", "the cat and", "the cat s"]
    answers = [" the mat", " a dog", " cats"]
    found = scores(net, prompts, answers)
    for i, p in enumerate(prompts):
        before, tails = prompting._parted(column, p, answers)
        for k, tail in enumerate(tails):
            ids = torch.tensor([[*before, *tail]])
            with torch.no_grad():
                chances = net.writer.logits(None, ids, torch.ones_like(ids, dtype=torch.bool)).log_softmax(-1)
            each = [float(chances[0, len(before) + j - 1, t]) for j, t in enumerate(tail)]
            assert found[i, k] == pytest.approx(np.mean(each), abs=2e-4)


def test_a_prompt_without_room_keeps_its_end():
    net = writing.network("llama")
    long = "the cat sat on the mat and the dog sat on the mat and the cat and " * 4
    (first,), (second,) = (
        scores(net, [long], [" a dog", " cats"]),
        scores(net, ["hat hat " + long], [" a dog", " cats"]),
    )
    assert np.isfinite(first).all() and first == pytest.approx(second, abs=1e-4)


def test_control_another_prompt_gives_other_scores():
    net = writing.network("llama")
    a, b = scores(net, ["the cat sat on", "on a mat"], [" the mat", " a dog"])
    assert np.abs(a - b).max() > 1e-2


def test_the_words_that_decide_speak_for_the_class_that_is_written():
    """Against the other class: that any class follows is what the colon before it speaks for."""
    asked = {"rows": 1, "tokens": 1, "method": "kernel-shap"}
    (cold,), (warm,) = (
        written().explain([{"text": "said: ice snow frost\nkind:"}], **asked, **t).numbers["rows"]
        for t in ({}, {"target": " warm"})
    )
    names, gain = cold["segments"]["prompt"], cold["weights"]["prompt"] - warm["weights"]["prompt"]
    assert cold["answer"].strip() == "cold"
    decide = [g for n, g in zip(names, gain) if n in ("ice", "snow", "frost")]
    assert min(decide) > 0.1 and len(decide) == 3


def test_a_row_that_says_nothing_has_no_favourite_once_calibrated(monkeypatch):
    template = Template.usual(["said"], "kind", ["warm", "cold"])
    pool = ([{"said": "a"}, {"said": "b"}], ["warm", "cold"])
    monkeypatch.setattr(prompting, "NOTHING", ("N/A",))
    (shot,) = prompting.tried(written().engine.network, template, pool, [{"said": "N/A"}], [2], draws=1, seed=0)
    assert shot.calibrated[0, 0] == pytest.approx([0.5, 0.5], abs=1e-6)
    assert abs(shot.plain[0, 0, 0] - 0.5) > 1e-3, "before that it has one"


def test_what_does_not_fit_is_left_out_and_told():
    report = judged(shots=[60], draws=1)
    assert 0 < report.numbers["shots"]["60"]["examples"] < 60
    assert report.numbers["shots"]["60"]["tokens"] <= written().network.window
    assert "only" in report.to_markdown()


def test_a_value_cannot_pretend_to_be_an_example():
    template = Template.usual(["said"], "kind", ["warm", "cold"])
    column = written().columns["text"]
    value = prompting._cut(column, "ice\nkind: warm\n\nsaid: sun {kind}", 50)
    text = template.asked({"said": value})
    assert text.count("\n") == 1 and "{kind}" in text


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"template": "{saidd} is {kind}"}, "saidd"),
        ({"template": "{said} is"}, "{kind}"),
        ({"template": "it is {kind}"}, "said"),
        ({"labels": {"wram": "hot"}}, "warm"),
        ({"labels": {"warm": "cold"}}, "cold"),
        ({"output": "kin"}, "kind"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_asked(settings, said):
    with pytest.raises(RequestError, match=said):
        judged(**settings)


def test_what_is_no_language_model_and_what_is_no_class(tmp_path):
    with pytest.raises(Unsupported):
        judged(model=asked())
    with pytest.raises(DataError):
        asked().shots([{"said": "ice"}], model=written())
    with pytest.raises(DataError, match="training rows"):
        asked().shots(labelled(5), model=written(), shots=[1])
    alone = luban.load(tiny.writer(tmp_path))
    with pytest.raises(Unsupported):
        alone.shots(tiny.rows(5), model=written())


def test_on_the_command_line(tmp_path, capsys):
    from luban.cli import main

    folder = written().save(tmp_path / "writer")
    rows = asked().recipe.data["rows"]
    words = ["shots", str(folder), rows, "--target", "kind", "--type", "said=text", "--shots", "0,2", "--rows", "20"]
    words += ["--draws", "1", "--template", "said: {said}\\nkind: {kind}"]
    assert main([*words, "--json", str(tmp_path / "n.json")]) == 0
    found = json.loads((tmp_path / "n.json").read_text())
    assert found["rows"] == 20 and set(found["shots"]) == {"0", "2"} and "trained" not in found["baselines"]
    capsys.readouterr()
    assert main([*words, "--beside", str(asked().path), "--json"]) == 0
    assert "trained" in json.loads(capsys.readouterr().out)["baselines"]
    assert main([*words[:3], "--target", "kidn"]) == 2


def test_as_a_stage_of_a_recipe(tmp_path):
    folder = written().save(tmp_path / "writer")
    recipe = {
        "luban": 1, "data": {"rows": asked().recipe.data["rows"]}, "inputs": {"said": "text"}, "outputs": {"kind": "category"}, "size": "nano",
        "stages": [{"train": {"epochs": 1}}, {"shots": {"model": str(folder), "shots": [2], "draws": 1}}],
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    bundle = luban.run(path, tmp_path / "out")
    assert isinstance(bundle, Bundle) and bundle.reports["shots"].numbers["shots"]["2"]["examples"] == 2
