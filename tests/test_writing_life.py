"""A network that writes goes through the whole life: trained, judged, explained, compressed, saved."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import luban
from luban import pages
from luban.bundle import build_network
from luban.card import card
from luban.errors import DataError, Unsupported
from luban.generation.writing import searched
from luban.nn import grouped
from luban.nn.grouped import GROUP, packed, unpacked_rows
from luban.nn.tokens import Batch
from luban.report import Html
from luban.stages.compress import methods
from luban.stages.explain import explain_rows
from luban.stages.explain.going_on import GoingOn
from tests import tiny, writing

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


def test_groups_are_judged_by_what_is_written(tmp_path):
    """Rows of one group have a truth that nobody could write: it alone is judged badly."""
    told = [r | {"side": "left" if i < 10 else "right"} for i, r in enumerate(rows(24))]
    wrong = [r | {"echo": "NOTHING"} if r["side"] == "left" else r for r in told]
    groups = luban.load(model().path).audit(wrong, sensitive="side", passages=0).numbers["outputs"]["echo"]["groups"]
    assert {g: n["rows"] for g, n in groups.items()} == {"left": 10, "right": 14}
    assert groups["left"]["exact_match"].value == 0 and groups["right"]["exact_match"].value > 0.8


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
    q, scale, zero = packed(weight)
    groups = weight.numel() // GROUP
    assert q.numel() * 2 == weight.numel() and scale.numel() == groups and zero.numel() >= groups / 2


def test_a_model_in_four_bits_without_zero_points_is_still_read(tmp_path):
    """As they were saved before: the middle of the levels is zero."""
    whole = model()
    layers = [n for n, m in whole.network.named_modules() if grouped.in_groups(m) is not None]
    old = methods.edited(whole, {"edit": "quantize_groups", "layers": layers})
    table = old.network.writer.embedding
    assert table.zero is None and table.weight[0, 0] == (float(table.q[0, 0] % 16) - 8) * float(table.scale[0, 0])
    old.save(tmp_path / "old")
    assert luban.load(tmp_path / "old").predict(rows(5)) == old.predict(rows(5))
    assert methods.quantised(whole, "int4").parameters() == old.parameters()


def test_each_run_has_the_scale_and_zero_point_of_the_least_error(monkeypatch):
    weight = torch.randn(64, 125, generator=torch.Generator().manual_seed(0))  # the last run is not whole
    weight[0], weight[1] = 0, weight[1].abs()

    def error():
        gap = unpacked_rows(*packed(weight), 125) - weight
        return F.pad(gap, (0, 3)).square().unflatten(1, (-1, GROUP)).sum(2)

    found = error()
    assert found[1].sum() < 0.4 * found[2:].sum(1).mean()  # one sign: all sixteen levels are on its side
    weight = F.pad(weight, (0, 3))
    steps = (weight.unflatten(1, (-1, GROUP)).abs().amax(2) / 7)[..., None]
    plain = (torch.round(weight.unflatten(1, (-1, GROUP)) / steps.clamp(min=1e-9)) * steps).flatten(1) - weight
    assert found.sum() < 0.7 * plain.square().sum() and (found[0] == 0).all()
    weight = weight[:, :125]
    for share in grouped.TRIED:
        monkeypatch.setattr(grouped, "TRIED", (share,))
        assert (found <= error() + 1e-6).all()


def test_a_weight_of_zero_stays_zero():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)) + 2
    weight[:, ::3] = 0
    assert (unpacked_rows(*packed(weight), 64)[:, ::3] == 0).all()


def test_what_cannot_be_is_said(tmp_path):
    with pytest.raises(Unsupported):
        model().export(out=tmp_path / "x.onnx", data=rows(5))
    alone = luban.load(tiny.writer(tmp_path))
    for wrong in (
        lambda: alone.predict(tiny.rows(3)),
        lambda: tiny.model().generate("x"),
    ):
        with pytest.raises(Unsupported):
            wrong()


def test_a_language_model_is_judged_by_bits(tmp_path):
    alone = luban.load(tiny.writer(tmp_path))
    report = alone.evaluate(tiny.rows(30))
    found = report.numbers["outputs"]["review"]
    assert found["headline"] == {"metric": "bits_per_byte", "higher": False}
    assert 0 < found["metrics"]["bits_per_byte"]["value"] < 8
    text = alone.generate("good", tokens=5, seed=3)
    assert text == alone.generate("good", tokens=5, seed=3)
    worst = next(b for b in report.blocks if isinstance(b, Html) and "<th>" in b.html)
    assert worst.html.count("<tr>") == 11  # the ten worst, without an input to show beside them


def test_a_model_without_inputs_says_so_on_its_page_and_its_card(tmp_path):
    alone = luban.load(tiny.writer(tmp_path))
    assert "A model that writes review." in pages.full_report(alone).to_text()
    told = card(alone)
    assert "Inputs:" not in told and "model.generate(" in told and "model.predict(" not in told
    other = card(model())
    assert "Inputs:" in other and "model.predict(" in other


# -- the prompt of a language model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["llama", "gpt", "transformer", "lstm"])
def test_a_prompt_and_its_answer_are_read_as_one_text(head):
    """Prompts of different lengths, padded side by side: the logits of each answer are those of its text alone."""
    net = writing.network(head)
    asked = GoingOn(net)
    columns, _, values = asked.prompts(["the cat", "a dog and a cat", "mat"], 12)
    answers = torch.tensor([[5, 6, 7], [8, 9, 0], [10, 0, 0]])
    x, mask = map(torch.as_tensor, columns["prompt"].collate([v["prompt"] for v in values]))
    batch = Batch({"prompt": (x, mask)}, {}, 3).answered("text", answers)
    with torch.no_grad():
        found = asked(batch)["text"]
        for i, v in enumerate(values):
            ids = torch.tensor([[asked.column.begin, *v["prompt"].tolist(), *answers[i].tolist()]])
            alone = net.writer.logits(None, ids, torch.ones_like(ids, dtype=torch.bool))[0, len(v["prompt"]) : -1]
            assert (found[i] - alone).abs().max() < 1e-4
        shifted = Batch({"prompt": (x, torch.ones_like(mask))}, {}, 3).answered("text", answers)
        assert (asked(shifted)["text"] - found).abs().max() > 1e-3, "control: padding that counts as text"


def test_what_a_language_model_writes_is_explained_by_its_prompt(tmp_path):
    alone = luban.load(tiny.writer(tmp_path))
    report = alone.explain([{"review": "good bad odd"}, {"review": "odd"}], rows=2, tokens=4)
    first, second = report.numbers["rows"]
    assert first["segments"]["prompt"] == ["good", "bad", "odd"] and len(first["weights"]["prompt"]) == 3
    assert first["answer"] == alone.generate("good bad odd", tokens=4, temperature=0.0)
    matrix = first["by_token"]["weights"]
    assert matrix.shape == (4, 3) and second["by_token"]["weights"].shape[1] == 1
    assert np.abs(matrix.sum(0) - first["weights"]["prompt"]).max() < 0.05 * np.abs(matrix).sum() + 1e-3
    assert report.numbers["error"]["gap_share"] < 0.02
    assert "prompt" in report.to_markdown()


@pytest.mark.parametrize("method", ["kernel-shap", "lime"])
def test_other_methods_explain_a_prompt_too(tmp_path, method):
    alone = luban.load(tiny.writer(tmp_path))
    report = alone.explain([{"review": "good bad odd"}], rows=1, tokens=3, method=method, samples=16)
    assert len(report.numbers["rows"][0]["weights"]["prompt"]) == 3


def test_a_prompt_with_nothing_in_it_is_refused(tmp_path):
    alone = luban.load(tiny.writer(tmp_path))
    with pytest.raises(DataError):
        alone.explain([{"review": " "}], rows=1)
    with pytest.raises(DataError, match="review"):
        alone.explain([{"reviews": "good"}], rows=1)


def test_the_likeliest_text_is_searched_for_as_answers_are(capsys, monkeypatch):
    """`beams` of the recipe hold for `generate` at temperature 0, too; `--beams 1` and chance turn them off."""
    from dataclasses import replace

    from luban.cli import main
    from luban.generation import asking

    asked = []
    monkeypatch.setattr(asking, "searched", lambda net, texts, width, *more: asked.append(width) or searched(net, texts, width, *more))  # fmt: skip
    column = replace(model().columns["echo"], beams=3)
    recipe = model().recipe.plain()
    recipe["outputs"]["echo"]["text"]["beams"] = 3
    wide = replace(model(), recipe=luban.Recipe.of(recipe), columns={**model().columns, "echo": column})
    wide.network = build_network(wide.recipe, wide.columns)
    wide.network.load_state_dict(model().network.state_dict())
    wide.network.eval()
    answer = wide.predict([{"said": "red old"}])[0]["echo"]
    assert wide.generate("red old", temperature=0.0) == answer and asked == [3]
    wide.generate("red old", temperature=0.0, beams=1)
    wide.generate("red old", temperature=0.5)
    wide.generate("red old", n=2)
    assert asked == [3]
    folder = str(wide.save(mkdtemp(prefix="luban-wide-")))
    for flags, widths in ([], [3]), (["--beams", "1"], []), (["--beams", "2"], [2]):
        asked.clear()
        main(["generate", folder, "--prompt", "red old", "--temperature", "0", *flags])
        assert asked == widths
    assert answer in capsys.readouterr().out
