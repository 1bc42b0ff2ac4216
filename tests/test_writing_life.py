"""A network that writes goes through the whole life: trained, judged, explained, compressed, saved."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch

import luban
from luban.errors import Unsupported
from luban.nn.grouped import GROUP, packed, unpacked_rows
from luban.nn.tokens import Batch
from luban.stages.explain import explain_rows
from tests import tiny

WORDS = ("red", "green", "blue", "old", "new")


def rows(count=300):
    rng = np.random.default_rng(1)
    each = [rng.choice(WORDS, rng.integers(1, 4)) for _ in range(count)]
    return [{"said": " ".join(w), "echo": " ".join(w).upper()} for w in each]


@cache
def model():
    recipe = {
        "luban": 1, "inputs": {"said": {"text": {"tokens": "words", "least": 1}}}, "outputs": {"echo": {"text": {"tokens": "words", "least": 1}}},
        "model": {"said": {"transformer": {"width": 32, "layers": 1}}, "echo": {"llama": {"width": 32, "layers": 1, "heads": 2}}},
        "size": "nano", "seed": 0, "stages": [{"train": {"epochs": 25, "batch": 32, "optimizer": "muon", "rate": 0.02, "patience": 0}}],
    }  # fmt: skip
    path = Path(mkdtemp(prefix="luban-echo-")) / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows())), encoding="utf-8")
    return luban.train(recipe | {"data": {"rows": str(path)}}, out=path.parent / "echo")


def test_it_learns_and_is_judged_beside_what_is_simple():
    found = model().reports["evaluate"].numbers["outputs"]["echo"]
    assert found["headline"] == {"metric": "chrf", "higher": True}
    assert found["metrics"]["exact_match"]["value"] > 0.8
    assert {"copy", "first_sentence", "translation_memory"} == set(found["baselines"])
    assert found["metrics"]["chrf"]["value"] > found["baselines"]["copy"]["chrf"]["value"]


def test_answers_and_generation_agree():
    for row in rows(4):
        answer = model().predict([row])[0]
        assert (
            answer["echo"] == model().generate(row["said"], temperature=0.0) == model().generate(row, temperature=0.0)
        )
        assert 0 < answer["echo.probability"] <= 1


def test_saved_and_loaded_it_writes_the_same(tmp_path):
    again = luban.load(model().save(tmp_path / "again"))
    assert [a["echo"] for a in again.predict(rows(20))] == [a["echo"] for a in model().predict(rows(20))]


def explained(method):
    bundle = model()
    values = [{"said": bundle.columns["said"].encode(r["said"])} for r in ROWS]
    return explain_rows(bundle.network, bundle.columns, ROWS, values, [0, 1], method=method, output="echo")


ROWS = [{"said": "red old"}, {"said": "blue new green"}]


@pytest.mark.parametrize("method", ["integrated-gradients", "kernel-shap", "lime"])
def test_every_word_speaks_for_its_own_answer(method):
    found = explained(method)
    assert [a.value for a in found.answers] == ["RED OLD", "BLUE NEW GREEN"]
    assert all(w.sum() > 1 for w in found.weights), "with nothing there the text is far less likely"
    if found.completeness is not None:
        assert (found.completeness.gap < 1e-2).all()


def test_the_matrix_adds_up_and_points_at_the_words():
    found = explained("integrated-gradients")
    for r in (0, 1):
        tokens, matrix = found.by_token[r]
        assert tokens[-1] == "(end)" and len(tokens) == len(matrix)
        assert np.abs(matrix.sum(0) - found.weights[r]).max() < 0.05 * np.abs(found.weights[r]).sum() + 1e-3
        words = [t.lower() for t in tokens[:-1]]
        right = [int(row.argmax()) == words.index(w) for w, row in zip(words, matrix)]
        assert np.mean(right) >= 0.5, (tokens, matrix)


def test_control_the_matrix_of_one_token_is_not_that_of_the_text():
    bundle = model()
    ids = torch.as_tensor(bundle.columns["echo"].encode("RED OLD")).long()[None]
    batch = Batch(
        {
            n: tuple(map(torch.as_tensor, bundle.columns[n].collate([bundle.columns[n].encode("red old")])))
            for n in ["said"]
        },
        {},
        1,
    )
    one = torch.where(torch.arange(ids.shape[1]) == 0, ids, ~ids)
    with torch.no_grad():
        score = lambda a: float(bundle.network.score(bundle.network(batch.answered("echo", a)), {"echo": a})["echo"])  # noqa: E731
        parts = [score(torch.where(torch.arange(ids.shape[1]) == j, ids, ~ids)) for j in range(ids.shape[1])]
        assert abs(sum(parts) - score(ids)) < 1e-4 and abs(score(one) - score(ids)) > 1e-6


def test_compressed_it_writes_nearly_the_same():
    small = model().compress(rows(30), quantize="int8", explain=2)
    assert small.bytes() < 0.5 * model().bytes()
    same = [a["echo"] == b["echo"] for a, b in zip(small.predict(rows(20)), model().predict(rows(20)))]
    assert np.mean(same) > 0.9


def test_in_four_bits():
    small = model().compress(rows(30), quantize="int4", explain=0)
    assert small.bytes() < 0.3 * model().bytes() and small.parameters() >= model().parameters()
    same = [a["echo"] == b["echo"] for a, b in zip(small.predict(rows(20)), model().predict(rows(20)))]
    assert np.mean(same) > 0.5
    weight = model().network.writer.embedding.weight.detach()
    q, scale = packed(weight)
    gap = (unpacked_rows(q, scale, weight.shape[1]) - weight).abs().unflatten(1, (-1, GROUP)).amax(2)
    assert (gap <= scale.float() * 0.51 + 1e-6).all() and q.numel() * 2 == weight.numel()


def test_what_cannot_be_is_said(tmp_path):
    with pytest.raises(Unsupported):
        model().export(out=tmp_path / "x.onnx", data=rows(5))
    alone = luban.load(tiny.writer(tmp_path))
    for wrong in (
        lambda: alone.explain(tiny.rows(3)),
        lambda: alone.predict(tiny.rows(3)),
        lambda: tiny.model().generate("x"),
    ):
        with pytest.raises(Unsupported):
            wrong()


def test_a_language_model_is_judged_by_bits(tmp_path):
    alone = luban.load(tiny.writer(tmp_path))
    found = alone.evaluate(tiny.rows(30)).numbers["outputs"]["review"]
    assert found["headline"] == {"metric": "bits_per_byte", "higher": False}
    assert 0 < found["metrics"]["bits_per_byte"]["value"] < 8
    text = alone.generate("good", tokens=5, seed=3)
    assert text == alone.generate("good", tokens=5, seed=3)
