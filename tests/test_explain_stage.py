"""The explain stage on whole Bundles: every input type, every method, what it says of itself, what it refuses."""

import json
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
import torch

from luban.errors import DataError, RequestError, Unsupported
from luban.messages import set_language
from luban.report import Report
from luban.stages import explain as stage
from luban.stages.explain import explain
from luban.stages.explain.game import Masked, Scorer, example, still
from luban.stages.explain.shapley import exact_shapley
from tests.explaining import INPUTS, OUTPUTS, Rows, bundle, mixed, table

METHODS = ("integrated-gradients", "kernel-shap", "lime")


def weights(report, row=0):
    return {n: np.asarray(w) for n, w in report.numbers["rows"][row]["weights"].items()}


def pictures(rows=12, side=12, seed=0):
    import base64
    import io

    from PIL import Image

    rng, found = np.random.default_rng(seed), []
    for _ in range(rows):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
        found.append(base64.b64encode(file.getvalue()).decode())
    return found


def everything(**more):
    """Text, image, number and category in one Bundle."""
    rng = np.random.default_rng(1)
    words = ["good", "bad", "film", "plot", "very", "dull", "bright", "slow"]
    data = pa.table(
        {
            "review": [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(12)],
            "photo": pictures(),
            "stars": rng.normal(size=12).tolist(),
            "kind": rng.choice(["x", "y"], 12).tolist(),
            "grade": rng.choice(["a", "b", "c"], 12).tolist(),
            "price": rng.normal(10, 3, 12).tolist(),
        }
    )
    inputs = {"review": {"text": {"least": 1}}, "photo": "image", "stars": "number", "kind": "category"}
    return bundle(data, inputs, {"grade": "category", "price": "number"}, wide=1.5, **more), Rows(data)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_explains_every_output_and_says_its_error(method, output):
    model, data = mixed()
    report = explain(model, data, method=method, output=output, rows=8)
    assert len(report.numbers["rows"]) == 8 and set(weights(report)) == set(INPUTS)
    for row in report.numbers["rows"]:
        assert np.isfinite(row["score"]) and np.isfinite(list(row["weights"].values())).all()
        if method == "lime":
            assert 0.5 < row["fit"] <= 1 and row["surrogate_error"] >= 0
        else:
            assert row["gap_relative"] <= 0.01
    assert list(report.numbers["columns"].values()) == sorted(report.numbers["columns"].values(), reverse=True)


def test_weights_are_the_shapley_values_of_the_predicted_class():
    model, data = mixed()
    report = explain(model, data, method="kernel-shap", output="grade", rows=[3, 7])
    names, columns = list(INPUTS), model.columns
    for row in report.numbers["rows"]:
        raw = data.table.slice(row["row"], 1).to_pylist()[0]

        def game(keep, raw=raw, row=row):
            typical = {n: None if n == "kind" else columns[n]._typical() for n in names}
            typical |= {
                n: columns[n].state["middle"] * columns[n].state["deviation"] + columns[n].state["mean"]
                for n in names[:3]
            }
            asked = [{n: raw[n] if k else typical[n] for n, k in zip(names, keep_row)} for keep_row in keep]
            from luban.columns.answering import outputs_of
            from luban.columns.examples import encode_values

            z = outputs_of(model.engine, encode_values(columns, names, asked)[0])["grade"].astype(float)
            k = columns["grade"].labels.index(row["answer"])
            return (z[:, k] - np.log(np.exp(np.delete(z, k, 1)).sum(1)))[None]

        truth = exact_shapley(game, 4)[0]
        assert np.allclose([row["weights"][n][0] for n in names], truth, atol=1e-4)


def test_another_class_can_be_asked_for():
    model, data = mixed()
    scores = [explain(model, data, output="grade", target=t, rows=2).numbers["rows"][0]["score"] for t in "abc"]
    chances = [explain(model, data, output="grade", target=t, rows=2).numbers["rows"][0]["probability"] for t in "abc"]
    assert sum(chances) == pytest.approx(1)  # each that of the class explained, not of the one answered
    predicted = explain(model, data, output="grade", rows=2).numbers["rows"][0]
    assert max(scores) == pytest.approx(predicted["score"])
    odds = np.exp(scores)
    assert (odds / (1 + odds)).sum() == pytest.approx(1, abs=1e-5)  # log-odds of all classes make one distribution


def test_shap_is_another_name_of_kernel_shap():
    model, data = mixed()
    assert explain(model, data, method="shap", rows=1).numbers["method"] == "kernel-shap"


@pytest.mark.parametrize("deaf", [False, True])
def test_a_map_in_which_nothing_speaks_for_the_answer_is_said_to_be_empty(deaf):
    model, data = everything()
    if deaf:  # the score follows from the bias alone
        torch.nn.init.zeros_(dict(model.network._heads())["grade"].out.weight)
    report = explain(model, data, method="grad-cam", output="grade", rows=3)
    said, rows = " ".join(report.to_text().split()), report.numbers["rows"]
    flat = [[n for n in ("photo", "review") if not np.any(weights(report, i)[n])] for i in range(3)]
    assert [sorted(r.get("empty", [])) for r in rows] == flat and all(map(len, flat)) >= deaf
    assert said.count("nothing in it speaks for this answer") == sum(map(bool, flat))
    assert ("3 of 3 rows have an empty map" in said) == deaf and ("have an empty map" in said) == any(flat)


@pytest.mark.parametrize("method", [*METHODS, "grad-cam"])
def test_text_image_number_and_category_together(method):
    model, data = everything()
    report = explain(model, data, method=method, rows=4, samples=600 if method != "lime" else "auto")
    for i, row in enumerate(report.numbers["rows"]):
        assert len(weights(report, i)["review"]) == len(data.table["review"][i].as_py().split())
        assert weights(report, i)["photo"].size > 1
        if method == "integrated-gradients":
            assert row["gap_relative"] <= 0.01
        if method == "kernel-shap":
            assert row["gap_relative"] <= 1e-5 and row["standard_error"] > 0
    page = report.to_html()
    assert "<img" in page and 'class="seg"' in page and ("<svg" in page) == (method != "grad-cam")
    assert report.numbers["without"] == (["stars", "kind"] if method == "grad-cam" else [])


def test_two_words_by_hand():
    """Two segments of one text, and nothing else: the Shapley values from four forward passes."""
    data = pa.table({"t": ["good film", "bad plot", "good plot", "bad film"] * 3, "y": ["p", "n"] * 6})
    model = bundle(data, {"t": {"text": {"least": 1}}}, {"y": "category"})
    report = explain(model, Rows(data), method="kernel-shap", rows=1, target="p")
    column = model.columns["t"]
    x = column.encode("good film")
    four = np.stack([np.where(k, x, 1) for k in ([0, 0], [1, 0], [0, 1], [1, 1])])
    scorer = Scorer(model.network, model.columns, "y", np.array([model.columns["y"].labels.index("p")]))
    v = scorer({"t": list(four)}, np.zeros(4, int))
    first = (v[1] - v[0] + v[3] - v[2]) / 2
    assert np.allclose(weights(report)["t"], [first, v[3] - v[0] - first], atol=1e-5)


def test_an_empty_text_has_nothing_to_weigh():
    data = pa.table({"t": ["good film", "", "dull"] * 4, "n": [1.0, 2.0, 3.0] * 4, "y": ["p", "n", "p"] * 4})
    model = bundle(data, {"t": {"text": {"least": 1}}, "n": "number"}, {"y": "category"})
    for method in METHODS:
        report = explain(model, Rows(data), method=method, rows=3)
        assert weights(report, 1)["t"].size == 0 and weights(report, 1)["n"].size == 1


def test_a_row_explained_alone_and_among_longer_ones_is_the_same():
    model, data = everything()
    for method in ("integrated-gradients", "lime", "grad-cam"):
        together = explain(model, data, method=method, rows=6)
        alone = explain(model, data, method=method, rows=[2])
        for n, w in weights(alone).items():
            assert np.allclose(w, weights(together, 2)[n], atol=2e-3, equal_nan=True), (method, n)


def test_masks_of_a_row_are_what_ablate_makes_of_it():
    model, data = everything()
    raw = data.table.to_pylist()[0]
    x = {n: model.columns[n].encode(raw[n]) for n in model.inputs}
    e = example(model.columns, 0, raw, x)
    masked = Masked(Scorer(model.network, model.columns, "price", np.zeros(1, int)), [e])
    keep = np.random.default_rng(0).random((5, e.players)) < 0.5
    by_hand = {
        n: [model.columns[n].ablate(x[n], e.segments[n].index, k) for k in part] for n, part in e.split(keep).items()
    }
    assert np.allclose(masked(np.array([0]), keep)[0], masked.scorer(by_hand, np.zeros(5, int)), atol=1e-4)


def test_a_background_row_and_the_rows_in_turn():
    model, data = mixed()
    other = {"n0": 1.0, "n1": 2.0, "n2": 0.5, "kind": "red"}
    for method in METHODS:
        row = explain(model, data, method=method, rows=1, background=other).numbers["rows"][0]
        base = explain(model, Rows(pa.Table.from_pylist([other])), rows=1, target=row["explained"]).numbers["rows"][0]
        assert row["baseline"] == pytest.approx(base["score"], abs=1e-4), method
    same = explain(model, data, method="kernel-shap", rows=[5], background=data.table.to_pylist()[5])
    assert all(np.allclose(w, 0) for w in weights(same).values())
    turn = explain(model, data, method="kernel-shap", rows=4, background="rows").numbers["rows"][0]
    each = [
        explain(model, data, method="kernel-shap", rows=4, background=b).numbers["rows"][0]
        for b in data.table.to_pylist()[:4]
    ]
    for n in INPUTS:
        assert np.allclose(turn["weights"][n], np.mean([e["weights"][n] for e in each], axis=0), atol=1e-5)
    assert turn["gap_relative"] < 1e-6


# -- the network is left as it was, and the checks see a network that was not still ------------------------------------
def test_the_network_is_left_as_it_was():
    model, data = everything()
    model.network.train()
    model.network.encoders[0].eval()
    first = next(model.network.parameters())
    first.requires_grad_(False)
    modes = [m.training for m in model.network.modules()]
    flags = [p.requires_grad for p in model.network.parameters()]
    state = {k: v.clone() for k, v in model.network.state_dict().items()}
    for method in (*METHODS, "grad-cam"):
        explain(model, data, method=method, rows=2)
    assert [m.training for m in model.network.modules()] == modes
    assert [p.requires_grad for p in model.network.parameters()] == flags
    assert all(p.grad is None for p in model.network.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.network.state_dict().items())


def test_flags_come_back_after_an_error():
    model, _ = mixed()
    model.network.train()
    with pytest.raises(KeyError), still(model.network):
        assert not model.network.training
        raise KeyError
    assert model.network.training and all(p.requires_grad for p in model.network.parameters())


@pytest.mark.parametrize("method", ["integrated-gradients", "kernel-shap"])
def test_control_train_mode_left_on_is_seen(method, monkeypatch):
    model, data = mixed(fusion={"concat": {"dropout": 0.5}})
    good = explain(model, data, method=method, rows=5).numbers["error"]["gap_relative"]

    @contextmanager
    def restless(network):
        network.train()
        yield network

    monkeypatch.setattr(stage, "still", restless)
    torch.manual_seed(0)
    assert good <= 0.01 < explain(model, data, method=method, rows=5).numbers["error"]["gap_relative"]


@pytest.mark.parametrize("fault", ["baseline ignored", "wrong class"])
def test_control_the_completeness_printed_is_not_a_formality(fault, monkeypatch):
    """A method that forgets the baseline, or explains another class, is shown up by the gap that stands in the report."""
    model, data = mixed()
    shapley = stage.METHODS["kernel-shap"]

    def forgetful(task):
        if fault == "wrong class":
            task.scorer.answers = (task.scorer.answers + 1) % 3
        else:
            task.masked.blank = {n: np.ones_like(v) for n, v in task.masked.blank.items()}
        before = task.scorer.answers, dict(task.masked.blank)
        found = shapley(task)
        task.scorer.answers = (before[0] - 1) % 3 if fault == "wrong class" else before[0]
        task.masked.blank = {n: np.stack([e.blank[n] for e in task.examples]) for n in task.masked.blank}
        return found

    assert explain(model, data, method="kernel-shap", rows=5).numbers["error"]["gap_relative"] <= 1e-6
    monkeypatch.setitem(stage.METHODS, "kernel-shap", forgetful)
    assert explain(model, data, method="kernel-shap", rows=5).numbers["error"]["gap_relative"] > 0.01


def test_deletion_tells_a_good_order_from_a_wrong_one(monkeypatch):
    model, data = mixed()
    good = explain(model, data, method="kernel-shap", rows=20).numbers["rows"]
    shapley = stage.METHODS["kernel-shap"]

    def reversed_(task):
        found = shapley(task)
        found.weights = [-w for w in found.weights]
        return found

    monkeypatch.setitem(stage.METHODS, "kernel-shap", reversed_)
    bad = explain(model, data, method="kernel-shap", rows=20).numbers["rows"]
    mean = lambda rows: np.mean([r["deletion_z"] for r in rows])  # noqa: E731
    assert mean(good) > 1 and mean(bad) < -1


def test_grad_cam_finds_the_place_that_matters():
    """A network that sums the green of one corner: the map is its share of the score, and empty for the opposite answer."""
    from torch import nn

    from luban.stages.explain.grad_cam import grad_cam

    layer = nn.Conv2d(3, 2, 1, bias=False)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.weight[0, 1] = 1.0
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = grad_cam(lambda: layer(x)[:, 0, :4, :4].sum((1, 2)), layer, (8, 8))
    assert torch.allclose(found, x[:, 1] * 16 / 64, atol=1e-6)  # weight of the channel: the mean of its gradient
    assert (grad_cam(lambda: -layer(x)[:, 0].sum((1, 2)), layer, (8, 8)) == 0).all()  # what speaks against is not shown
    stretched = grad_cam(lambda: layer(x).sum((1, 2, 3)), layer, (16, 16))
    assert stretched.shape == (2, 16, 16)
    with pytest.raises(ValueError):
        grad_cam(lambda: layer(x).sum((1, 2, 3)), layer, (8,))
    with pytest.raises(ValueError):
        grad_cam(lambda: x.sum((1, 2, 3)).requires_grad_(), layer, (8, 8))


def test_captum_agrees_on_grad_cam_and_on_integrated_gradients():
    captum = pytest.importorskip("captum.attr")
    from torch import nn

    from luban.evaluation.integrated_gradients import integrated_gradients
    from luban.stages.explain.grad_cam import grad_cam

    torch.manual_seed(0)
    layer, rest = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 2))
    network, x = nn.Sequential(layer, rest).eval(), torch.rand(2, 3, 8, 8)
    theirs = captum.LayerGradCam(network, layer).attribute(x, target=1, relu_attributions=True)[:, 0]
    assert torch.allclose(grad_cam(lambda: network(x)[:, 1], layer, (6, 6)), theirs, atol=1e-6)
    mine = integrated_gradients(lambda e, i: network(e["x"])[:, 1], {"x": x}, {"x": torch.zeros_like(x)})
    theirs = captum.IntegratedGradients(network).attribute(x, target=1, n_steps=50)
    assert torch.allclose(mine.weights["x"].float(), theirs.float(), atol=1e-5)


# -- refusals ----------------------------------------------------------------------------------------------------------
def test_grad_cam_is_refused_where_there_is_no_feature_layer():
    model, data = mixed()
    with pytest.raises(Unsupported) as e:
        explain(model, data, method="grad-cam")
    assert all(n in str(e.value) for n in (*INPUTS, "integrated-gradients", "lime", "kernel-shap"))


@pytest.mark.parametrize(
    "settings, kind, words",
    [
        ({"rows": 0}, RequestError, ["0"]),
        ({"rows": [0, 99]}, RequestError, ["99", "39"]),
        ({"rows": []}, RequestError, ["[]"]),
        ({"target": "A"}, RequestError, ["'A'", "'a'", "a, b, c"]),
        ({"output": "grad"}, RequestError, ["'grad'", "'grade'", "price"]),
        ({"output": "price", "target": "a"}, RequestError, ["price"]),
        ({"method": "limes"}, RequestError, ["'limes'", "'lime'", "kernel-shap"]),
        ({"method": "kernel-shap", "samples": 3}, RequestError, ["3", "4", "8"]),
        ({"background": "mean"}, RequestError, ["'mean'", "typical"]),
        ({"background": {"n0": 1}}, DataError, ["n1"]),
    ],
)
def test_what_cannot_be_done_is_said(settings, kind, words):
    model, data = mixed()
    with pytest.raises(kind) as e:
        explain(model, data, **settings)
    assert all(w in str(e.value) for w in words), str(e.value)


def test_a_background_row_is_refused_for_values_of_different_lengths():
    model, data = everything()
    with pytest.raises(RequestError, match="review"):
        explain(model, data, background=data.table.to_pylist()[0])


# -- the report --------------------------------------------------------------------------------------------------------
def test_the_report_is_saved_and_read_back(tmp_path):
    model, data = mixed()
    report = explain(model, data, rows=3, out=str(tmp_path))
    assert report.kind == "explain"
    again = Report.load(tmp_path / "explain.json")
    assert again.numbers == json.loads(json.dumps(report.to_json()["numbers"]))
    assert (tmp_path / "explain.html").read_text(encoding="utf-8").count("<svg") == 4  # all rows, then each


def test_what_users_wrote_cannot_become_markup():
    name = "<script>x</script>"
    data = table()
    data = data.append_column(name, data["n1"]).append_column("t", pa.array(["<b>bold</b> & <i>so</i>"] * len(data)))
    model = bundle(data, {name: "number", "t": {"text": {"least": 1}}}, {"grade": "category"})
    page = explain(model, Rows(data), rows=2).to_html()
    assert "<script" not in page and "<b>bold" not in page


def test_same_seed_same_report_in_any_language():
    model, data = everything()
    first, again = (explain(model, data, method="kernel-shap", rows=2, seed=3).numbers for _ in range(2))
    assert json.dumps(first, default=str) == json.dumps(again, default=str)
    set_language("pseudo")
    try:
        assert "⟦" in explain(model, data, rows=1).title
    finally:
        set_language(None)
