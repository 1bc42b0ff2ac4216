"""Metrics: equal to scikit-learn's on many random tables, defined or explained where data is odd."""

import json
import math
import warnings

import numpy as np
import pytest

from luban.evaluation import metrics
from luban.evaluation.metrics import classification, confusion, per_class, regression, roc_curve


def table(seed: int, n: int, k: int, *, ties: bool = False, absent: bool = False):
    """Truth, probabilities, labels; `ties` rounds the scores, `absent` takes class 0 out of the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(int(absent), k, n)
    z = rng.normal(size=(n, k))
    z[np.arange(n), truth] += 1.0
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    if ties:
        p = np.round(p, 1) + 0.01
        p /= p.sum(axis=1, keepdims=True)
    return truth, p, [f"class {i}" for i in range(k)]


def oracle(truth, p, k):
    """The same from scikit-learn."""
    from sklearn import metrics as sk

    answers = p.argmax(axis=1)
    kept = truth >= 0
    quiet = {"zero_division": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {
            "accuracy": sk.accuracy_score(truth, answers),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, answers),
            "precision_macro": sk.precision_score(truth, answers, average="macro", **quiet),
            "recall_macro": sk.recall_score(truth, answers, average="macro", **quiet),
            "f1_macro": sk.f1_score(truth, answers, average="macro", **quiet),
            "f1_micro": sk.f1_score(truth, answers, average="micro", **quiet),
            "f1_weighted": sk.f1_score(truth, answers, average="weighted", **quiet),
            "log_loss": sk.log_loss(truth[kept], p[kept], labels=range(k)),
            "roc_auc": np.mean([sk.roc_auc_score(truth[kept] == c, p[kept, c]) for c in np.unique(truth[kept])]),
        }
        if k == 2:
            found |= {
                "brier": sk.brier_score_loss(truth[kept], p[kept, 1]),
                "roc_auc": sk.roc_auc_score(truth[kept], p[kept, 1]),
                "average_precision": sk.average_precision_score(truth[kept], p[kept, 1]),
            }
            for name in ("precision", "recall", "f1"):
                score = getattr(sk, name + "_score")
                found[name] = score(truth, answers, labels=[1], average="macro", **quiet)
        else:
            found["brier"] = sk.brier_score_loss(truth[kept], p[kept], labels=range(k))
    return found


CASES = [
    (s, n, k, t, a)
    for s, (n, k) in enumerate([(40, 2), (300, 2), (60, 3), (500, 7), (5000, 2)])
    for t in (0, 1)
    for a in (0, 1)
]


@pytest.mark.parametrize("seed, n, k, ties, absent", [c for c in CASES if not (c[2] == 2 and c[4])])
def test_values_equal_scikit_learn(seed, n, k, ties, absent):
    truth, p, labels = table(seed, n, k, ties=ties, absent=absent)
    ours = classification(truth, p, labels, resamples=40)
    theirs = oracle(truth, p, k)
    assert set(theirs) | {"ece"} == set(ours)
    for name, value in theirs.items():
        assert ours[name].value == pytest.approx(value, abs=1e-12), name
        assert ours[name].low <= ours[name].value <= ours[name].high, name


@pytest.mark.parametrize("k", [2, 4])
def test_labels_never_seen_count_as_wrong_and_are_left_out_of_losses(k):
    truth, p, labels = table(3, 200, k)
    truth[:20] = -1
    ours, theirs = classification(truth, p, labels, resamples=40), oracle(truth, p, k)
    for name, value in theirs.items():
        assert ours[name].value == pytest.approx(value, abs=1e-12), name
    assert ours["log_loss"].note == "metric.unseen_left_out" and ours["log_loss"].count == 20
    assert "20 rows" in ours["log_loss"].to_json()["reason"]
    assert ours["accuracy"].value <= 0.9


def test_the_oracle_sees_a_dropped_unseen_row():
    truth, p, labels = table(3, 200, 3)
    truth[:20] = -1
    wrong = classification(truth[20:], p[20:], labels, resamples=1)["accuracy"].value
    assert wrong != pytest.approx(oracle(truth, p, 3)["accuracy"], abs=1e-6)


def test_one_class_gives_a_reason_instead_of_a_crash():
    _, p, labels = table(0, 50, 2)
    for only in (0, 1):
        found = classification(np.full(50, only), p, labels, resamples=40)
        for name in ("roc_auc", "average_precision"):
            assert math.isnan(found[name].value) and found[name].note == "metric.one_class"
            assert found[name].to_json()["value"] is None and found[name].to_json()["reason"]
        assert math.isfinite(found["f1_macro"].value) and math.isfinite(found["log_loss"].value)


def test_no_rows_and_only_unknown_labels_and_one_row():
    none = classification([], np.zeros((0, 3)), ["a", "b", "c"])
    assert all(math.isnan(m.value) and m.note == "metric.no_rows" for m in none.values())
    unknown = classification([-1, -1], [[0.5, 0.5], [0.9, 0.1]], ["a", "b"])
    assert unknown["accuracy"].value == 0 and unknown["log_loss"].note == "metric.no_known_rows"
    assert classification([1], [[0.2, 0.8]], ["a", "b"])["accuracy"].value == 1
    json.dumps([{n: m.to_json() for n, m in found.items()} for found in (none, unknown)], allow_nan=False)


def test_a_row_that_is_not_finite_is_wrong_and_said():
    truth, p, labels = table(0, 50, 3)
    p[0] = np.nan
    found = classification(truth, p, labels, resamples=40)
    expected = (p[1:].argmax(axis=1) == truth[1:]).sum() / 50
    assert found["accuracy"].value == pytest.approx(expected)
    assert found["log_loss"].note == found["roc_auc"].note == "metric.not_finite"


def test_absent_classes_are_said():
    truth, p, labels = table(0, 100, 4, absent=True)
    assert classification(truth, p, labels, resamples=40)["roc_auc"].note == "metric.absent_classes"


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError):
        classification([0, 1], np.ones((2, 3)) / 3, ["a", "b"])
    with pytest.raises(ValueError):
        classification([0, 5], np.ones((2, 2)) / 2, ["a", "b"])


def test_certain_and_float32_answers_equal_scikit_learn():
    p = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    truth = np.array([0, 1, 1])
    assert classification(truth, p, ["a", "b"], resamples=1)["log_loss"].value == pytest.approx(
        oracle(truth, p, 2)["log_loss"], rel=1e-5
    )


@pytest.mark.parametrize("k", [2, 3])
def test_ece_in_the_table_equals_the_function(k):
    from luban.evaluation.calibration import ece

    truth, p, labels = table(1, 400, k)
    right = p.argmax(axis=1) == truth
    assert classification(truth, p, labels, resamples=1)["ece"].value == pytest.approx(ece(p.max(axis=1), right))


def test_the_same_seed_gives_the_same_interval_and_row_order_does_not_change_values():
    truth, p, labels = table(0, 300, 3)
    a, b = (classification(truth, p, labels, resamples=50, seed=4) for _ in range(2))
    c = classification(truth[::-1], p[::-1], labels, resamples=50)
    assert a == b
    assert all(a[n].value == pytest.approx(c[n].value) for n in a)


@pytest.mark.parametrize("k", [2, 5])
def test_intervals_of_areas_equal_a_plain_bootstrap(k):
    """The fast ways (ranks rounded to levels, first-order influence) against drawing rows and calling scikit-learn."""
    from sklearn.metrics import roc_auc_score

    truth, p, labels = table(5, 1500, k)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(100):
        rows = rng.integers(0, 1500, 1500)
        draws.append(np.mean([roc_auc_score(truth[rows] == c, p[rows, c]) for c in range(k)]))
    low, high = np.quantile(draws, [0.025, 0.975])
    ours = classification(truth, p, labels)["roc_auc"]
    assert abs(ours.low - low) < 0.25 * (high - low) and abs(ours.high - high) < 0.25 * (high - low)


def test_weighted_metrics_equal_metrics_of_repeated_rows():
    truth, p, labels = table(2, 60, 2, ties=True)
    weights = np.random.default_rng(0).integers(0, 4, 60)
    rows = np.repeat(np.arange(60), weights)
    at_once = metrics._Rows(truth, p).statistic(weights[None].astype(float))[0]
    repeated = classification(truth[rows], p[rows], labels, resamples=1)
    names = metrics._Rows(truth, p).names
    for name, value in zip(names, at_once):
        if name in ("ece",):  # divides by the number of rows, which a bootstrap draw keeps
            value = value * 60 / len(rows)
        assert value == pytest.approx(repeated[name].value, abs=1e-12), name


@pytest.mark.parametrize("ties", [False, True])
def test_roc_curve_equals_scikit_learn(ties):
    from sklearn.metrics import roc_curve as theirs

    truth, p, _ = table(0, 200, 2, ties=ties)
    for ours, expected in zip(roc_curve(truth, p[:, 1]), theirs(truth, p[:, 1])):
        np.testing.assert_allclose(ours, expected)
    fpr, tpr, _ = roc_curve([1, 1], [0.1, 0.2])
    assert np.isnan(fpr).all() and tpr[-1] == 1


def test_per_class_and_confusion_equal_scikit_learn():
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    truth, p, labels = table(0, 200, 5, absent=True)
    answers = p.argmax(axis=1)
    expected = precision_recall_fscore_support(truth, answers, labels=range(5), zero_division=0)
    rows = per_class(truth, answers, labels)
    for name, column in zip(("precision", "recall", "f1", "support"), expected):
        np.testing.assert_allclose([getattr(r, name) for r in rows], column)
    np.testing.assert_array_equal(confusion(truth, answers, 5), confusion_matrix(truth, answers, labels=range(5)))


def test_confusion_rows_are_truth():
    assert confusion([0, 0, -1], [1, 1, 0], 2).tolist() == [[0, 2], [0, 0]]


@pytest.mark.parametrize("n", [10, 11, 500])
def test_regression_equals_scikit_learn(n):
    from sklearn import metrics as sk

    rng = np.random.default_rng(n)
    truth = rng.normal(size=n) * 3 + 1e4
    answers = truth + rng.normal(size=n).round(1)
    ours = regression(truth, answers, resamples=100)
    expected = {
        "mse": sk.mean_squared_error(truth, answers),
        "rmse": sk.root_mean_squared_error(truth, answers),
        "mae": sk.mean_absolute_error(truth, answers),
        "r2": sk.r2_score(truth, answers),
        "median_absolute_error": sk.median_absolute_error(truth, answers),
    }
    assert set(ours) == set(expected)
    for name, value in expected.items():
        assert ours[name].value == pytest.approx(value, rel=1e-9), name
        assert ours[name].low <= ours[name].value <= ours[name].high, name


def test_regression_on_odd_data():
    assert regression([2, 2, 2], [1, 2, 3])["r2"].note == "metric.constant_truth"
    assert regression([], [])["mae"].note == "metric.no_rows"
    assert regression([1, 2], [1, np.inf])["mse"].note == "metric.not_finite"
    assert regression([1, np.nan, 3], [1, 2, 4])["mae"].value == 0.5
    assert regression([1, np.nan, 3], [1, 2, 4])["mae"].count == 1
    assert regression([1], [2])["mse"].low is None


def test_a_draw_of_rows_has_the_draws_median():
    rng = np.random.default_rng(0)
    truth, answers = rng.normal(size=9), rng.normal(size=9)
    weights = np.array([3, 0, 1, 0, 0, 2, 1, 1, 1])
    order = np.argsort(np.abs(truth - answers), kind="stable")
    found = metrics._errors(truth, answers)(weights[order][None].astype(float))[0]
    assert found[4] == pytest.approx(np.median(np.repeat(np.abs(truth - answers), weights)))
