"""audit: calibration that changes no answer, groups by any column, and what is said when there is nothing to say."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from luban.bundle import Bundle
from luban.errors import DataError, RequestError
from luban.evaluation import calibration, fairness
from luban.report import Report
from luban.stages.audit import groups as grouping
from luban.stages.audit.calibrate import calibrated
from luban.stages.audit.groups import groups_of
from luban.stages.train import train
from tests import compact

TABLE = compact.rows(600)


@pytest.fixture(scope="module")
def model():
    made = compact.tabular(TABLE)
    return train(made, compact.data(TABLE, made.recipe), epochs=6, batch=32, rate=3e-3)


@pytest.fixture(scope="module")
def data(model):
    return compact.data(TABLE, model.recipe)


def sure_of_itself(model, times=40.0):
    """The same answers with logits that are far too large."""
    network = model.copy_network()
    head = network.heads[list(model.outputs).index("buys")].out
    head.weight.data.mul_(times), head.bias.data.mul_(times)
    return replace(model, network=network)


def probabilities(model):
    return np.array([r["buys.probability.yes"] for r in model.predict(TABLE.slice(480).to_pylist())])


def test_an_overconfident_model_is_cooled_and_no_answer_changes(model, data, tmp_path):
    hot = sure_of_itself(model)
    cool = hot.audit(data)
    assert isinstance(cool, Bundle)
    found = cool.reports["audit"].numbers["outputs"]["buys"]["calibration"]
    assert found["kept"] and found["temperature"] > 1.5
    assert found["log_loss_fitted"] < found["log_loss"] and found["ece_floor"] > 0
    records = TABLE.slice(480).to_pylist()
    before, after = hot.predict(records), cool.predict(records)
    assert [r["buys"] for r in before] == [r["buys"] for r in after]
    assert probabilities(cool) != pytest.approx(probabilities(hot))
    assert hot.columns["buys"].state.get("temperature") is None, "the original is left as it was"
    cool.save(tmp_path / "m")
    again = Bundle.load(tmp_path / "m")
    assert again.predict(records) == after
    assert again.network.outputs["buys"].state["temperature"] == found["temperature"]
    assert cool.network.outputs["buys"].state["temperature"] == found["temperature"]


def test_a_second_audit_has_nothing_to_change(model, data):
    once = sure_of_itself(model).audit(data)
    again = once.audit(data)
    report = getattr(again, "reports", {}).get("audit", again)
    assert report is again and not again.numbers["outputs"]["buys"]["calibration"]["kept"]


def test_a_temperature_that_does_not_help_the_held_out_rows_is_not_kept(model, data):
    """Validation rows with turned labels ask for a temperature that the held-out rows do not want."""
    part = data.part("validation")
    labels = np.array(TABLE["buys"].to_pylist(), object)
    labels[part] = np.where(labels[part] == "yes", "no", "yes")
    turned = compact.data(TABLE.set_column(TABLE.column_names.index("buys"), "buys", pa.array(labels)), model.recipe)
    found = model.audit(turned)
    numbers = getattr(found, "numbers", None)
    assert numbers is not None and not numbers["outputs"]["buys"]["calibration"]["kept"]
    assert numbers["outputs"]["buys"]["calibration"]["fitted_temperature"] > 5


def test_asked_not_to_or_without_validation_rows_nothing_changes(model, data):
    hot = sure_of_itself(model)
    for found in (hot.audit(data, calibrate=False), hot.audit(compact.data(TABLE, split=False))):
        numbers = found.numbers["outputs"]["buys"]["calibration"]
        assert not numbers["kept"] and "fitted_temperature" not in numbers and numbers["reason"] == "audit.no_fit_rows"


def test_where_only_validation_rows_are_held_out_half_of_them_judge(model, data):
    splits = replace(data.splits, test=np.zeros(0, np.int64))
    found = sure_of_itself(model).audit(replace(data, splits=splits))
    numbers = found.reports["audit"].numbers["outputs"]["buys"]["calibration"]
    assert numbers["rows"] == 60 and numbers["fit_rows"] == 60


@pytest.mark.parametrize("seed", range(20))
def test_temperature_never_changes_the_order_of_classes(seed):
    """Random logits, single and many, and labels never seen: the answer stays, the loss of the fitted rows falls."""
    from luban.columns.category import Category
    from luban.evaluation.table import Predictions

    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 6))
    column = Category("c").fit([str(i) for i in range(k)])
    raw = rng.normal(0, 8, (60, 1 if k == 2 else k))
    truth, known = rng.integers(0, k + 1, 60), rng.random(60) < 0.9
    p = Predictions(column, raw, truth, known, column.decode_all(raw))
    found = calibrated("c", p, p)
    warmed = column.learned(temperature=found.fitted)
    assert [a.value for a in warmed.decode_all(raw)] == [a.value for a in column.decode_all(raw)]
    assert found.loss_after <= found.loss + 1e-9
    assert np.isfinite(found.numbers(0)["ece"])


# -- groups ---------------------------------------------------------------------------------------------------------------


def test_groups_of_a_column_that_is_no_input(model, data):
    report = model.audit(data, sensitive="sex", calibrate=False)
    assert report.numbers["sensitive"] == {"column": "sex", "is_input": False, "groups": ["f", "m"]}
    numbers = report.numbers["outputs"]["buys"]
    assert numbers["positive"] == "yes" and set(numbers["groups"]) == {"f", "m"}
    answers = np.array([r["buys"] for r in model.predict(TABLE.slice(480).to_pylist())])
    sex = np.array(TABLE["sex"].to_pylist())[480:]
    shares = {g: (answers[sex == g] == "yes").mean() for g in "fm"}
    for g in "fm":
        assert numbers["groups"][g]["selection_rate"].value == pytest.approx(shares[g])
        assert numbers["groups"][g]["rows"] == (sex == g).sum()
    assert numbers["demographic_parity_difference"].value == pytest.approx(abs(shares["f"] - shares["m"]))
    assert numbers["four_fifths"] in ("kept", "broken", "cannot_tell")
    assert set(report.numbers["outputs"]["spent"]["groups"]) == {"f", "m"}
    assert "not an input" in report.to_markdown()
    assert report.to_json()["numbers"]["outputs"]["buys"]["equalized_odds_difference"]["low"] is not None


def test_an_input_is_said_to_be_one_and_a_named_label_is_the_favoured_one(model, data):
    report = model.audit(data, sensitive="city", positive="no", output="buys")
    report = getattr(report, "reports", {}).get("audit", report)
    assert report.numbers["sensitive"]["is_input"] and "is an input" in report.to_markdown()
    assert report.numbers["outputs"]["buys"]["positive"] == "no" and list(report.numbers["outputs"]) == ["buys"]


def test_three_classes_without_a_favoured_one_compare_accuracy_only():
    made = compact.bundle({"age": "number"}, {"kind": "category"}, TABLE)
    numbers = made.audit(compact.data(TABLE), sensitive="sex", calibrate=False).numbers["outputs"]["kind"]
    assert "demographic_parity_ratio" not in numbers and numbers["accuracy_score_difference"].value >= 0
    named = made.audit(compact.data(TABLE), sensitive="sex", positive="b", calibrate=False).numbers["outputs"]["kind"]
    assert named["positive"] == "b" and "demographic_parity_ratio" in named


def test_few_rows_cannot_tell(model):
    report = model.audit(compact.data(TABLE.slice(0, 40), split=False), sensitive="sex")
    assert report.numbers["outputs"]["buys"]["four_fifths"] == "cannot_tell"
    assert "Cannot tell" in report.to_markdown()


def test_where_nobody_is_selected_no_share_is_told():
    alike = fairness.rates(np.zeros(80), np.zeros(80, bool), np.repeat(["a", "b"], 40))
    report = Report("audit", "t")
    assert grouping.write_classes(report, "buys", alike, fairness.summary(alike), "yes") == "cannot_tell"
    assert "No group is ever selected." in report.to_text() and "nan" not in report.to_text()


def test_a_planted_bias_is_found():
    """A model that answers by sex alone: the rule is broken, and the audit says so."""
    rng = np.random.default_rng(0)
    sex = rng.choice(["f", "m"], 600)
    table = pa.table({"sex": sex, "got": np.where((sex == "m") ^ (rng.random(600) < 0.05), "yes", "no")})
    made = compact.bundle({"sex": "category"}, {"got": "category"}, table)
    made = train(made, compact.data(table, made.recipe), epochs=12, batch=32, rate=1e-2)
    numbers = made.audit(compact.data(table), sensitive="sex", calibrate=False).numbers["outputs"]["got"]
    assert numbers["four_fifths"] == "broken" and numbers["demographic_parity_ratio"].high < 0.2


def test_what_is_not_there_is_refused_with_the_nearest_name(model, data):
    with pytest.raises(DataError, match="sex"):
        model.audit(data, sensitive="sxe")
    with pytest.raises(RequestError, match="buys"):
        model.audit(data, output="buy")
    with pytest.raises(RequestError, match="yes"):
        model.audit(data, sensitive="sex", positive="yess")
    with pytest.raises(DataError):
        model.audit(compact.data(TABLE.drop_columns(["buys", "spent"]), split=False))
    with pytest.raises(DataError, match="50"):
        model.audit(data, sensitive="review")


def test_group_names():
    assert groups_of(["a", None, "", 1.0, float("nan")], "c") == ["a", "(missing)", "(missing)", "1", "(missing)"]
    ages = groups_of([float(a) for a in range(20, 60)], "age")
    assert len(set(ages)) == 4 and ages[0].startswith("1:") and ages[-1].startswith("4:")
    assert groups_of([0, 1, 0], "flag") == ["0", "1", "0"]


def test_the_report_reads_back_whole(model, data, tmp_path):
    from luban.report import Report

    report = model.audit(data, sensitive="sex", calibrate=False)
    report.save(tmp_path)
    again = Report.load(tmp_path / "audit.json")
    assert again.numbers == report.to_json()["numbers"]
    assert again.numbers["outputs"]["buys"]["calibration"]["ece"] == pytest.approx(
        calibration.ece(*_confidence(model, data))
    )


def _confidence(model, data):
    rows = TABLE.take(data.part("test")).to_pylist()
    answers = model.predict(rows)
    return [a["buys.probability"] for a in answers], [a["buys"] == r["buys"] for a, r in zip(answers, rows)]
