"""What the evaluation page shows: curves, axes and every metric beside the baselines'."""

import re

import numpy as np
import pytest

import luban
from luban.markup import width_of


@pytest.fixture(scope="module", params=[2, 3])
def page(request):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 2))
    label = [f"<={'abc'[int(k)]}" for k in (x.sum(1) > 0).astype(int) + (request.param == 3) * (x[:, 0] > 0.7)]
    rows = [{"a": float(a), "b": float(b), "y": y} for (a, b), y in zip(x, label)]
    model = luban.train(rows, "y", size="nano", epochs=4, types={"y": "category"})
    return request.param, model.reports["evaluate"]


def test_roc_curves_of_two_classes_and_of_more(page):
    classes, report = page
    drawn = next(b.svg for b in report.blocks if getattr(b, "title", "") == "ROC curve")
    curves = len(re.findall(r"<path", drawn))
    assert curves == 3, f"{classes} classes: the model, linear, boosting; or one curve a class"
    assert "false positive rate" in drawn and "true positive rate" in drawn


def test_every_plot_names_its_axes(page):
    _, report = page
    plots = {b.title: b.svg for b in report.blocks if b.type == "plot"}
    assert "answer" in plots["Confusion matrix"] and "truth" in plots["Confusion matrix"]
    assert "confidence" in plots["Reliability"] and "rows" in plots["Reliability"]
    assert "epoch" in plots["Loss over the epochs"]


def test_baselines_stand_beside_every_metric(page):
    _, report = page
    table = next(b for b in report.blocks if b.type == "table" and b.title.startswith("Every metric"))
    assert {"majority", "linear"} <= set(table.columns)
    auc = next(r for r in table.rows if r[0] == "roc_auc")
    stored = report.numbers["outputs"]["y"]["baselines"]["linear"]["roc_auc"]
    value = stored["value"] if isinstance(stored, dict) else stored.value
    assert auc[table.columns.index("linear")] == f"{value:.4f}"


@pytest.mark.parametrize(("text", "least"), [("<=50K", 3.6), ("2,783", 2.7), ("≤ 100 %", 4.3)])
def test_labels_are_not_thought_narrower_than_they_are(text, least):
    """Widths in em, as a browser with common fonts draws them."""
    assert width_of(text, 10) >= 10 * least * 0.95
