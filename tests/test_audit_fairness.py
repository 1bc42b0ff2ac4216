"""Group metrics against hand formulas and Fairlearn; intervals that cover; "cannot tell" where nobody could."""

import math
import warnings

import numpy as np
import pytest

from luban.evaluation import fairness
from luban.evaluation.fairness import difference, four_fifths, rates, ratio, summary


def random_table(seed, groups=None, whole=False):
    """Truth, answers and groups; groups may be tiny, of one class, or never selected unless `whole`."""
    rng = np.random.default_rng(seed)
    k = groups or int(rng.integers(1, 6))
    n = int(rng.integers(60, 200)) if whole else int(rng.integers(1, 60))
    group = rng.integers(0, k, n)
    lean, base = rng.random(k), rng.random(k)
    if not whole:
        lean, base = (np.where(rng.random(k) < 0.3, rng.integers(0, 2, k), v) for v in (lean, base))
    truth, answer = rng.random(n) < base[group], rng.random(n) < lean[group]
    if whole:  # every group holds both classes
        group = np.r_[group, np.repeat(np.arange(k), 2)]
        truth, answer = np.r_[truth, np.tile([True, False], k)], np.r_[answer, np.tile([True, False], k)]
    return truth, answer, np.array([f"g{g}" for g in group])


def by_hand(truth, answer, group):
    """Share by share in plain Python; None where there is nothing to take a share of."""
    found = {}
    for g in sorted(set(group)):
        rows = [(bool(t), bool(a)) for t, a, own in zip(truth, answer, group) if own == g]
        share = lambda hits, of: len(hits) / len(of) if of else None  # noqa: E731
        positive, negative = [r for r in rows if r[0]], [r for r in rows if not r[0]]
        found[g] = {
            "selection_rate": share([r for r in rows if r[1]], rows),
            "true_positive_rate": share([r for r in positive if r[1]], positive),
            "false_positive_rate": share([r for r in negative if r[1]], negative),
            "accuracy": share([r for r in rows if r[0] == r[1]], rows),
        }
    return found


def test_rates_differences_and_ratios_equal_hand_formulas_on_500_tables(monkeypatch):
    monkeypatch.setattr(fairness, "DRAWS", 200)
    undefined = 0
    for seed in range(500):
        table = random_table(seed)
        found, hand = rates(*table), by_hand(*table)
        assert found.groups == tuple(hand)
        for rate in fairness.RATES:
            for value, (g, want) in zip(found.values(rate), hand.items()):
                undefined += want[rate] is None
                assert math.isnan(value) if want[rate] is None else value == pytest.approx(want[rate]), (seed, g, rate)
            there = [w[rate] for w in hand.values() if w[rate] is not None]
            d, r = difference(found, rate), ratio(found, rate)
            if len(there) < 2:
                assert math.isnan(d.value) and math.isnan(r.value)
                continue
            assert d.value == pytest.approx(max(there) - min(there))
            assert d.low <= d.value <= d.high
            if max(there) > 0:
                assert r.value == pytest.approx(min(there) / max(there)) and r.low <= r.value <= r.high
            else:
                assert math.isnan(r.value)
    assert undefined > 100, "the tables must hold groups of one class"


def fairlearn():
    warnings.simplefilter("ignore")
    return pytest.importorskip("fairlearn.metrics")


def test_names_and_values_are_those_of_fairlearn():
    with warnings.catch_warnings():
        f = fairlearn()
        for seed in range(8):
            truth, answer, group = random_table(seed, groups=int(seed % 4) + 2, whole=True)
            ours = summary(rates(truth, answer, group))
            for name, value in ours.items():
                if name == "accuracy_score_difference":
                    want = f.accuracy_score_difference(truth, answer, sensitive_features=group)
                else:
                    want = getattr(f, name)(truth, answer, sensitive_features=group)
                assert value.value == pytest.approx(want), (seed, name)
            frame = f.MetricFrame(
                metrics={n: getattr(f, n) for n in fairness.RATES[:3]},
                y_true=truth,
                y_pred=answer,
                sensitive_features=group,
            )
            found = rates(truth, answer, group)
            for name in fairness.RATES[:3]:
                assert np.allclose(frame.by_group[name].to_numpy(float), found.values(name))


def test_control_a_rate_of_nothing_is_zero_for_fairlearn_and_nothing_here():
    truth, answer, group = np.array([1, 1, 0, 0]), np.array([1, 1, 0, 1]), np.array(["a", "a", "b", "b"])
    with warnings.catch_warnings():
        assert fairlearn().equal_opportunity_difference(truth, answer, sensitive_features=group) == 1.0
    assert math.isnan(summary(rates(truth, answer, group))["equal_opportunity_difference"].value)


def test_control_swapped_groups_and_macro_averages_are_seen():
    """The ratio is of the smallest over the largest whichever way the groups are named; a mean over groups is not it."""
    truth = np.zeros(90, bool)
    answer = np.r_[np.ones(10, bool), np.zeros(35, bool), np.ones(20, bool), np.zeros(25, bool)]
    group = np.repeat(["a", "b"], 45)
    swapped = np.repeat(["b", "a"], 45)
    assert ratio(rates(truth, answer, group), "selection_rate").value == pytest.approx(0.5)
    assert ratio(rates(truth, answer, swapped), "selection_rate").value == pytest.approx(0.5)
    assert (
        rates(truth, answer, group).values("selection_rate").tolist()
        != rates(truth, answer, swapped).values("selection_rate").tolist()
    )


SHARES = [[0.5, 0.5], [0.3, 0.6], [0.5, 0.5, 0.5], [0.1, 0.2, 0.15, 0.4], [0.95, 0.9]]


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("rows", [30, 100])
def test_intervals_cover_the_truth(shares, rows):
    """In 250 draws the interval of difference, ratio and a group's own rate holds the true value at least 92 times in 100."""
    rng, draws = np.random.default_rng(rows), 250
    group = np.repeat(np.arange(len(shares)), rows)
    covered = np.zeros(3)
    for seed in range(draws):
        found = rates(np.zeros(len(group)), rng.random(len(group)) < np.array(shares)[group], group)
        d, r = difference(found, "selection_rate", seed=seed), ratio(found, "selection_rate", seed=seed)
        own = found.metric("selection_rate", 0)
        truths = (max(shares) - min(shares), min(shares) / max(shares), shares[0])
        covered += [m.low is None or m.low <= t <= m.high for m, t in zip((d, r, own), truths)]
    assert (covered / draws >= 0.92 - 0.02).all(), covered / draws  # 0.02: what 250 draws can be off


def test_control_a_plain_bootstrap_of_the_maximum_never_covers_equality():
    rng, missed = np.random.default_rng(0), 0
    for _ in range(40):
        answer = rng.random((5, 50)) < 0.5
        drawn = [np.ptp([rng.choice(own, 50).mean() for own in answer]) for _ in range(100)]
        missed += np.quantile(drawn, 0.025) > 0
    assert missed > 35


@pytest.mark.parametrize(
    "hits, rows, verdict",
    [
        ((50, 50), 100, "cannot_tell"),  # alike, but 100 rows cannot show it
        ((5000, 5000), 10_000, "kept"),
        ((900, 100), 1000, "broken"),
        ((28, 2), 29, "cannot_tell"),  # plain to see, but too few rows
        ((400, 320), 1000, "cannot_tell"),  # 0.8 to the dot
    ],
)
def test_verdicts_are_held_back_where_nobody_could_tell(hits, rows, verdict):
    answer = np.concatenate([np.arange(rows) < h for h in hits])
    found = rates(np.zeros(2 * rows), answer, np.repeat(["a", "b"], rows))
    parity = ratio(found, "selection_rate")
    assert four_fifths(found, parity) == verdict
    if parity.low < 0.8 <= parity.high:
        assert verdict == "cannot_tell"


def test_whenever_the_interval_spans_the_rule_nothing_is_said():
    for seed in range(200):
        found = rates(*random_table(seed, whole=True))
        parity = ratio(found, "selection_rate", seed=seed)
        if parity.low is not None and parity.low < 0.8 <= parity.high:
            assert four_fifths(found, parity) == "cannot_tell"
