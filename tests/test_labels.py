"""Any number of labels for a row, through the whole life."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle

import luban
from luban.columns.labels import Labels
from luban.errors import DataError
from luban.evaluation import label_view
from luban.nn.heads.labels import LabelsHead

WORDS = {"red": ("rose", "fire"), "big": ("whale", "tower"), "old": ("ruin", "castle")}


def rows(count=300):
    rng = np.random.default_rng(2)
    found = []
    for _ in range(count):
        labels = [name for name in WORDS if rng.random() < 0.4]
        words = [str(rng.choice(WORDS[name])) for name in labels] + list(rng.choice(["the", "a", "and"], 3))
        found.append({"text": " ".join(rng.permutation(words)), "kinds": labels})
    return found


@cache
def model():
    path = Path(mkdtemp(prefix="luban-labels-")) / "rows.jsonl"
    path.write_text(
        "\n".join(json.dumps(r | {"kinds": ";".join(r["kinds"]) or "none"}) for r in rows()), encoding="utf-8"
    )
    return luban.train(
        path,
        "kinds",
        types={"kinds": "labels", "text": "text"},
        size="nano",
        epochs=30,
        rate=0.006,
        out=path.parent / "m",
    )


def test_the_whole_life(tmp_path):
    bundle = model()
    found = bundle.reports["evaluate"].numbers["outputs"]["kinds"]
    assert bundle.recipe.task() == "text-multi-label-classification"
    assert found["metrics"]["f1_micro"]["value"] > 0.9 > found["baselines"]["majority"]["f1_micro"]["value"]
    answer = luban.load(bundle.path).predict([{"text": "the whale and a rose"}])[0]
    assert answer["kinds"] == ["big", "red"]
    told = bundle.explain(rows(2), rows=2, target="red").numbers["rows"]
    assert told[0]["explained"] == "red"
    small = bundle.compress(quantize="int8")
    assert small.bytes() < bundle.bytes()
    sides = [r | {"side": "left" if i < 25 else "right"} for i, r in enumerate(rows(60))]
    groups = luban.load(bundle.path).audit(sides, sensitive="side").numbers["outputs"]["kinds"]["groups"]
    assert {g: n["rows"] for g, n in groups.items()} == {"left": 25, "right": 35}
    assert all(n["f1_micro"].value > 0.8 for n in groups.values())
    bundle.export(out=tmp_path / "m.onnx", data=rows(20))
    assert (tmp_path / "m.onnx").is_file()


def test_cells():
    column = Labels("k").fit(["a;b", ["b", "c"], "", None, "a"])
    assert column.labels == ["a", "b", "c"] and column.state["rows"] == 4
    assert column.encode("c; a").tolist() == [1, 0, 1] == column.encode(["a", "c", "new"]).tolist()
    x, mask = column.collate(column.encode_all(["a", None, ""]))
    assert mask.tolist() == [True, False, True] and x[2].sum() == 0
    assert Labels("k").fit(["a|b c", "b c"]).labels == ["a", "b c"]
    for wrong in ({"a": 1}, [["a"]], b"a"):
        with pytest.raises(DataError):
            column.encode(wrong)
    with pytest.raises(DataError):
        Labels("k").fit([None, ""])


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_the_field_s(seed):
    rng = np.random.default_rng(seed)
    truth, p = rng.random((40, 6)) < 0.3, rng.random((40, 6))
    said = p >= 0.5
    found = label_view.metrics(truth, said)
    for name, kind, average in (("f1_micro", "f1", "micro"), ("f1_macro", "f1", "macro"), ("precision_micro", "precision", "micro"), ("recall_micro", "recall", "micro")):  # fmt: skip
        wanted = getattr(oracle, f"{kind}_score")(truth, said, average=average, zero_division=0)
        assert abs(found[name].value - wanted) < 1e-12
    assert abs(found["hamming_loss"].value - oracle.hamming_loss(truth, said)) < 1e-12
    assert abs(found["exact_match"].value - oracle.accuracy_score(truth, said)) < 1e-12
    assert abs(label_view.average_precision(truth, p).value - oracle.average_precision_score(truth, p)) < 1e-12


def test_the_head_s_loss_and_divergence():
    column = Labels("k").fit(["a;b", "b", "c"])
    torch.manual_seed(0)
    head = LabelsHead(column, 4)
    o, x = torch.randn(5, 3), torch.tensor([[1.0, 0, 1]] * 4 + [[-1.0] * 3])
    mask = x[:, 0] >= 0
    each, weight = head.loss(o, x, mask)
    p = o.sigmoid()
    wanted = -(x.clamp(min=0) * p.log() + (1 - x.clamp(min=0)) * (1 - p).log()).mean(1)
    assert torch.allclose(each[:4], wanted[:4], atol=1e-6) and each[4] == 0 == weight[4]
    assert head.divergence(o, o).abs().max() < 1e-6 and (head.divergence(o, -o) > 0).all()
    assert torch.equal(head.score(o, torch.tensor([0, 1, 2, 0, 1])), o[range(5), [0, 1, 2, 0, 1]])
