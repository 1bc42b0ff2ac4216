"""What a model that writes gives back of its training texts: an over-trained one is caught, one that learned nothing is not."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import luban
from luban.bundle import build_network
from luban.data.prepare import prepare
from luban.evaluation import memory
from luban.evaluation.memory import Passage, beyond, longest_common, measured, newcombe
from tests import tiny

CANARY = "the number of the safe is seven two nine four one eight six three zero five"
WORDS = [
    "red",
    "green",
    "blue",
    "old",
    "new",
    "big",
    "small",
    "hot",
    "cold",
    "wet",
    "dry",
    "near",
    "far",
    "high",
    "low",
]


def texts(count=60, canaries=25):
    rng = np.random.default_rng(3)
    plain = [" ".join(rng.choice(WORDS, 16)) for _ in range(count)]
    return [*plain, *[f"{rng.choice(WORDS)} {CANARY}" for _ in range(canaries)]]


@cache
def learned():
    """A small model that has seen one line far too often."""
    folder = Path(mkdtemp(prefix="luban-canary-"))
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts()), encoding="utf-8")
    # the canary stands in the training part alone
    parts = ["test" if i < 30 else "validation" if i < 34 else "train" for i in range(len(texts()))]
    rows = [{"text": t, "part": p} for t, p in zip(texts(), parts)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = {
        "luban": 1, "data": {"rows": str(folder / "rows.jsonl"), "split": {"column": "part"}},
        "outputs": {"text": {"text": {"vocabulary": 400}}}, "frame": {"pack": {"length": 48}},
        "model": {"text": {"llama": {"width": 32, "layers": 2, "heads": 2}}}, "size": "nano",
        "stages": [{"train": {"epochs": 25, "batch": 8, "optimizer": "muon", "rate": 0.01, "patience": 0, "keep": "last"}}],
    }  # fmt: skip
    return luban.train(recipe, out=folder / "m", evaluate=False)


def audited(bundle, **settings):
    report = bundle.audit(prepare(bundle.recipe), passages=60, **settings)
    return getattr(report, "reports", {}).get("audit", report)


def test_an_over_trained_model_is_caught_and_the_line_is_shown():
    report = audited(learned())
    found = report.numbers["memory"]
    assert found["trained"]["extracted"].value > 0.2 and found["held_out"]["extracted"].value == 0
    assert found["beyond"]["extracted"].low > 0
    page = report.to_markdown()
    assert "word for word" in page and "eight six three zero five" in page and "confidential" in page


def test_control_the_same_network_untrained_is_not():
    bundle = learned()
    torch.manual_seed(0)
    from dataclasses import replace

    fresh = replace(bundle, network=build_network(bundle.recipe, bundle.columns).eval())
    found = audited(fresh).numbers["memory"]
    assert found["trained"]["extracted"].value == 0 and found["beyond"]["extracted"].low <= 0
    assert found["beyond"]["copied"].low <= 0


def test_of_a_file_the_fingerprints_tell_which_rows_were_trained_on(tmp_path):
    saved = luban.load(learned().path)
    rows = [{"text": t} for t in texts()]
    found = saved.audit(rows, passages=30).numbers["memory"]
    assert found["trained"]["passages"] == 30 and found["held_out"]["passages"] > 10
    dropped = luban.load(saved.save(tmp_path / "shared", share=True))
    assert "memory" not in dropped.audit(rows, passages=30).numbers
    assert "memory" not in saved.audit(rows, passages=0).numbers


class Parrot:
    """A network that knows some texts by heart and says nothing else than token 5."""

    window, written = 64, "text"

    def __init__(self, column, known):
        self.outputs, self.known = {"text": column}, known

    def parameters(self):
        yield torch.zeros(1)

    def start(self, batch):
        return SimpleNamespace(read=[[] for _ in range(batch.size)], take=None)

    def advance(self, state, tokens, mask):
        if state.take is None:
            state.take = lambda rows: SimpleNamespace(read=[state.read[i] for i in rows.tolist()], take=None)
        logits = torch.zeros(len(tokens), self.outputs["text"].size)
        for i, (row, real) in enumerate(zip(tokens, mask)):
            state.read[i] += row[real].tolist()
            logits[i, self.next(state.read[i][-6:])] = 1.0
        return logits

    def next(self, last):
        for text in self.known:
            for j in range(len(text) - len(last)):
                if text[j : j + len(last)] == last:
                    return text[j + len(last)]
        return 5


def test_texts_that_are_too_short_are_said_to_be(tmp_path):
    alone = luban.load(tiny.writer(tmp_path))
    told = alone.audit(str(tiny.csv(tmp_path / "rows.csv", 120))).to_text()
    assert "has 16 tokens" in told and "known to have been trained on" not in told


def test_what_is_known_by_heart_is_extracted_and_nothing_else():
    bundle = learned()
    column, data = bundle.columns["text"], prepare(bundle.recipe)
    known = [column.encode(t).tolist() for t in data.table.take(data.part("train"))["text"].to_pylist()]
    asked = {"count": 40, "context": 10, "follow": 10, "seed": 1}
    for part, share in (("train", 1.0), ("test", 0.0)):
        framed = data.framed(part, bundle.recipe.frame)
        found = memory.passages(Parrot(column, known), {"text": column}, (), framed, **asked)
        assert len(found) >= 20 and measured(found, 0)["extracted"].value == share
    once = memory.passages(
        Parrot(column, known[:3]), {"text": column}, (), data.framed("train", bundle.recipe.frame), **asked
    )
    assert 0 < measured(once, 0)["extracted"].value < 1


def test_a_model_with_inputs_is_begun_from_its_input(tmp_path):
    rows = [{"said": " ".join(w), "echo": " ".join(w[::-1])} for w in np.random.default_rng(0).choice(WORDS, (40, 20))]
    recipe = {
        "luban": 1, "inputs": {"said": "text"}, "outputs": {"echo": {"text": {"tokens": "words", "least": 1}}}, "size": "nano",
        "model": {"said": {"transformer": {"width": 16, "layers": 1}}, "echo": {"llama": {"width": 16, "layers": 1, "heads": 2}}},
        "stages": [{"train": {"epochs": 1}}],
    }  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    bundle = luban.train(recipe | {"data": {"rows": str(path)}}, out=tmp_path / "m", evaluate=False)
    found = bundle.audit(str(path), passages=10).numbers["memory"]
    assert found["trained"]["passages"] == 10 and found["trained"]["extracted"].value == 0


def test_a_model_that_writes_nothing_is_not_asked():
    report = tiny.model().audit(tiny.rows())
    assert "memory" not in getattr(report, "reports", {}).get("audit", report).numbers


def test_counts():
    assert longest_common([1, 2, 3, 4], [9, 2, 3, 8, 4]) == 2 and longest_common([], [1]) == 0
    p = Passage(0, [1], [2, 3, 4], [2, 3, 9])
    assert not p.extracted and p.copied == 2
    found = newcombe(56, 70, 48, 80)  # Newcombe (1998), table II, row a, method 10
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-4)
    same = beyond([p] * 30, [p] * 30, 0)
    assert same["extracted"].low < 0 < same["extracted"].high and same["copied"].value == 0
