"""Baselines: as good as scikit-learn alone reaches, blind to the test rows' truth, sturdy on odd data."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from luban.evaluation import baselines as module
from luban.evaluation.baselines import baselines
from luban.messages import known


def test_every_baseline_has_a_name_for_readers():
    written = re.compile(r'(?:Baseline|_timed|answer)\(\s*"(\w+)"|"(tfidf|bm25)"')
    files = Path(module.__file__).parent.glob("*.py")
    names = {a or b for f in files for a, b in written.findall(f.read_text(encoding="utf-8"))}
    assert {"majority", "most_frequent_tag", "gradient_boosting", "bm25"} <= names
    assert not [n for n in names if not known(f"baseline.name.{n}")]


def split(x, y, seed=0):
    order = np.random.default_rng(seed).permutation(len(y))
    a, b = int(0.7 * len(y)), int(0.8 * len(y))
    return x[order[:a]], y[order[:a]], x[order[a:b]], y[order[a:b]], x[order[b:]], y[order[b:]]


def cancer():
    from sklearn.datasets import load_breast_cancer

    return load_breast_cancer(return_X_y=True)


def by_name(found):
    return {b.name: b for b in found}


def test_breast_cancer():
    *given, y_test = split(*cancer())
    found = by_name(baselines("category", *given, tabular=True))
    assert list(found) == ["majority", "linear", "gradient_boosting"]
    for name, least in (("majority", 0.5), ("linear", 0.94), ("gradient_boosting", 0.92)):
        b = found[name]
        assert (b.answers == y_test).mean() >= least, name
        assert b.probabilities.shape == (len(y_test), 2) and np.allclose(b.probabilities.sum(axis=1), 1)
        assert (b.probabilities.argmax(axis=1) == b.answers).all() and b.note == ""


def test_diabetes_numbers():
    from sklearn.datasets import load_diabetes

    *given, y_test = split(*load_diabetes(return_X_y=True))
    found = by_name(baselines("number", *given, tabular=True))
    error = {n: ((b.answers - y_test) ** 2).mean() for n, b in found.items()}
    assert list(found) == ["mean", "linear", "gradient_boosting"]
    assert error["mean"] > 1.3 * error["linear"] and error["linear"] < 3500 and error["gradient_boosting"] < 4200
    assert found["mean"].answers[0] == pytest.approx(given[1].mean()) and found["linear"].probabilities is None


def test_scale_does_not_matter_to_dense_features():
    x, y = cancer()
    *given, y_test = split(x * 10.0 ** np.arange(-14, 16), y)
    assert (by_name(baselines("category", *given))["linear"].answers == y_test).mean() >= 0.94


def test_strength_is_chosen_on_validation_rows():
    """Many noise features: a weak penalty overfits; the control always takes the weakest."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 300))
    y = (x[:, 0] + rng.logistic(size=400) > 0).astype(int)
    *given, _ = split(x, y)
    assert by_name(baselines("category", *given))["linear"].settings["C"] <= 0.1


def test_without_the_choice_it_would_overfit(monkeypatch):
    monkeypatch.setattr(module, "STRENGTHS", (100.0,))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 300))
    y = (x[:, 0] + rng.logistic(size=400) > 0).astype(int)
    *given, _ = split(x, y)
    assert by_name(baselines("category", *given))["linear"].settings["C"] > 0.1


@pytest.mark.parametrize("kind", ["category", "number"])
def test_sparse_features_of_text(kind):
    rng = np.random.default_rng(0)
    x = sparse.random(600, 2000, 0.02, random_state=0, format="csr")
    score = x @ rng.normal(size=2000)
    *given, y_test = split(x, (score > 0).astype(int) if kind == "category" else score)
    found = by_name(baselines(kind, *given))
    assert list(found) == ["majority" if kind == "category" else "mean", "linear"]
    b = found["linear"]
    if kind == "category":
        assert (b.answers == y_test).mean() > 0.6
    else:
        assert ((b.answers - y_test) ** 2).mean() < 0.9 * y_test.var()


def test_sparse_and_dense_tables_agree():
    x, y = cancer()
    *given, _ = split((x - x.mean(axis=0)) / x.std(axis=0), y)
    thin = [sparse.csr_matrix(g) if g.ndim == 2 else g for g in given]
    a, b = (by_name(baselines("category", *g, tabular=True)) for g in (given, thin))
    for name in a:
        np.testing.assert_allclose(a[name].probabilities, b[name].probabilities, atol=1e-6)


def test_without_validation_rows_some_training_rows_serve():
    x, y, _, _, x_test, y_test = split(*cancer())
    for none in ((None, []), (x[:0], y[:0])):
        found = by_name(baselines("category", x, y, *none, x_test, tabular=True))
        assert (found["linear"].answers == y_test).mean() > 0.93
        assert (found["gradient_boosting"].answers == y_test).mean() > 0.9


def test_missing_truths_unseen_labels_and_missing_numbers():
    x, y, x_valid, y_valid, x_test, _ = split(*cancer())
    x, y, y_valid = x.copy(), y.copy(), y_valid.copy()
    y[:5], y_valid[:5], x[::7, 3], x[:, 4] = -1, -1, np.nan, np.nan
    for b in baselines("category", x, y, x_valid, y_valid, x_test, tabular=True, classes=2):
        assert np.isfinite(b.probabilities).all(), b.name
    blank = np.full((40, 2), np.nan)
    assert len(baselines("category", blank, np.arange(40) % 2, None, [], blank, tabular=True)) == 3
    gap = sparse.csr_matrix(([np.nan, 1.0], ([0, 1], [3, 5])), shape=(40, 50))
    assert len(baselines("category", gap, np.arange(40) % 2, None, [], gap)) == 2
    assert len(baselines("category", blank[:, :0], np.arange(40) % 2, None, [], blank[:, :0])) == 1


def test_classes_without_training_rows_get_no_probability():
    x, y, x_valid, y_valid, x_test, _ = split(*cancer())
    for b in baselines("category", x, y * 2, x_valid, y_valid * 2, x_test, tabular=True, classes=4):
        assert b.probabilities.shape[1] == 4 and (b.probabilities[:, [1, 3]] == 0).all()


def test_one_class_and_no_rows():
    x = np.ones((20, 2))
    assert [b.name for b in baselines("category", x, np.ones(20, int), None, [], x, tabular=True)] == ["majority"]
    assert [b.name for b in baselines("number", x, np.ones(20), None, [], x, tabular=True)] == ["mean"]
    assert baselines("number", x, np.full(20, np.nan), None, [], x) == []
    found = baselines("category", *split(*cancer())[:4], np.zeros((0, 30)), tabular=True)
    assert all(len(b.answers) == 0 for b in found)


def test_a_class_of_one_row_stays_in_training():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2)), np.r_[np.zeros(14, int), np.ones(15, int), 2]
    for seed in range(8):
        assert all(
            b.probabilities.shape == (30, 3) for b in baselines("category", x, y, None, [], x, tabular=True, seed=seed)
        )


def test_too_many_rows_are_capped_and_said(monkeypatch):
    monkeypatch.setattr(module, "WORK", 30 * 100)
    monkeypatch.setattr(module, "TREE_ROWS", 120)
    x, y = cancer()
    found = by_name(baselines("category", *split(np.vstack([x, x]), np.r_[y, y])[:5], tabular=True))
    assert found["linear"].settings["rows"] == 500 and found["gradient_boosting"].settings["rows"] == 120
    assert "500 of 796" in found["linear"].said()


def test_the_same_seed_gives_the_same_answers():
    given = split(*cancer())[:5]
    a, b = (baselines("category", *given, tabular=True, seed=3) for _ in range(2))
    assert all((p.probabilities == q.probabilities).all() for p, q in zip(a, b))


def test_noise_stays_at_chance():
    """Baselines that had seen the test rows would beat chance on random labels; the control hands them the test rows."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1500, 20)), rng.integers(0, 2, 1500)
    *given, y_test = split(x, y)
    assert all(abs((b.answers == y_test).mean() - 0.5) < 0.1 for b in baselines("category", *given, tabular=True))
    leaked = baselines("category", given[4], y_test, given[4], y_test, given[4], tabular=True)
    assert max((b.answers == y_test).mean() for b in leaked) > 0.6
