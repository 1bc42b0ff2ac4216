"""LIME: a linear score gives its slopes, the fit is told right, and the lime package agrees."""

import numpy as np
import pytest

from luban.stages.explain.lime import design, lime


def test_the_slope_of_a_linear_model():
    rng = np.random.default_rng(0)
    w, x, b = rng.normal(size=9), rng.normal(size=(3, 9)), rng.normal(size=9)
    found = lime(lambda keep: np.where(keep, x[:, None], b) @ w, 9)
    assert np.allclose(found.weights, w * (x - b), rtol=1e-3, atol=1e-4)
    assert found.fit.min() > 0.9999 and found.error.max() < 1e-3


def test_it_is_the_weighted_ridge_of_scikit_learn():
    from sklearn.linear_model import Ridge

    keep = design(6, 300, 0.5, 0)
    scores = np.sin(keep.keep @ np.arange(6.0))
    found = lime(lambda k: scores[None], 6, samples=300)
    weight = keep.near * 300
    ridge = Ridge(alpha=1e-3).fit(keep.keep, scores, sample_weight=weight)
    assert np.allclose(found.weights[0], ridge.coef_, atol=1e-6)
    assert np.allclose(found.fit[0], ridge.score(keep.keep, scores, weight), atol=1e-6)


def test_a_score_that_is_not_linear_fits_badly_and_says_so():
    rng = np.random.default_rng(0)
    good = lime(lambda keep: (keep @ np.arange(8.0))[None], 8)
    parity = lime(lambda keep: (keep.sum(1) % 2).astype(float)[None], 8)
    noise = lime(lambda keep: rng.normal(size=(1, len(keep))), 8)
    assert good.fit[0] > 0.99 and parity.fit[0] < 0.8 and noise.fit[0] < 0.3
    assert good.error[0] < 0.01 and noise.error[0] > 0.5


def test_the_error_is_that_of_unseen_masks():
    f = lambda keep: np.sin(3 * keep @ np.linspace(-1, 1, 10))[None]  # noqa: E731
    found = lime(f, 10, samples=200, seed=0)
    fresh = design(10, 4000, 0.5, 9)
    rest = f(fresh.keep)[0] - found.intercept[0] - fresh.keep @ found.weights[0]
    assert found.error[0] == pytest.approx(np.sqrt(rest**2 @ fresh.near), rel=0.2)


def test_fewer_masks_than_segments_still_have_one_answer():
    found = lime(lambda keep: (keep @ np.ones(60))[None], 60, samples=40)
    assert np.isfinite(found.weights).all() and found.error[0] > 0


def test_near_masks_count_more():
    plan = design(10, 500, 0.5, 0)
    removed = (~plan.keep).sum(1)
    assert plan.near[removed == 1].min() > plan.near[removed == 9].max()
    assert plan.near[0] == plan.near.max() and plan.keep[0].all()


def test_the_lime_package_agrees_on_a_text():
    text = pytest.importorskip("lime.lime_text")
    words = [f"w{i}" for i in range(8)]
    value = dict(zip(words, np.linspace(-1, 1, 8)))

    def probability(texts):
        z = np.array([sum(value.get(w, 0.0) for w in t.split()) for t in texts])
        return np.stack([1 - z, z], 1)  # linear, so that both estimate the same slopes

    explainer = text.LimeTextExplainer(random_state=0, bow=False)
    theirs = dict(explainer.explain_instance(" ".join(words), probability, num_features=8, num_samples=3000).as_list())
    mine = lime(lambda keep: (keep @ np.linspace(-1, 1, 8))[None], 8, samples=3000)
    assert np.allclose([theirs[w] for w in words], mine.weights[0], atol=0.02)


def test_control_equal_weights_are_told_apart_from_near_ones():
    """With all masks counting alike the local slope of a curved score is lost."""
    f = lambda keep: ((keep.mean(1)) ** 6)[None]  # noqa: E731
    near, far = (lime(f, 12, samples=2000, width=w).weights.sum() for w in (0.15, 50.0))
    assert near > 1.5 * far
