"""Entity metrics equal seqeval's; simple taggers answer what counting says; pairs of models over the same rows."""

import numpy as np
import pytest
from seqeval.metrics import accuracy_score, classification_report, f1_score, precision_score, recall_score

from luban.columns.base import make
from luban.data.tagged import Scheme, scheme_of
from luban.evaluation import entities, paired
from luban.evaluation.tag_baselines import tag_baselines

SCHEMES = {"bio": Scheme(), "bioes": scheme_of(["B-A", "I-A", "E-A", "S-A"])}


def drawn(letters: str, rows: int, seed: int):
    rng = np.random.default_rng(seed)
    tags = ["O", "O", *(f"{c}-{k}" for c in letters for k in ("PER", "LOC", "ORG"))]
    truth = [rng.choice(tags, rng.integers(1, 9)).tolist() for _ in range(rows)]
    answers = [[t if rng.random() < 0.7 else str(rng.choice(tags)) for t in row] for row in truth]
    return truth, answers


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore")  # seqeval warns of types without a single answer
def test_metrics_are_seqevals(scheme, seed):
    truth, answers = drawn("BI" if scheme == "bio" else "BIES", 60, seed)
    counts = entities.Counts(truth, answers, SCHEMES[scheme])
    found = counts.metrics(resamples=200)
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert found[name].value == pytest.approx(score(truth, answers), abs=1e-12)
        assert found[name].low < found[name].value < found[name].high
    assert found["f1_macro"].value == pytest.approx(f1_score(truth, answers, average="macro"))
    assert found["accuracy"].value == pytest.approx(accuracy_score(truth, answers))
    report = classification_report(truth, answers, output_dict=True)
    for line in counts.by_type():
        want = report[line.label]
        assert (line.precision, line.recall, line.f1) == pytest.approx(
            (want["precision"], want["recall"], want["f1-score"])
        )
        assert line.support == want["support"]


def test_control_a_shifted_entity_is_wrong():
    truth, answers = [["B-PER", "I-PER", "O"]], [["O", "B-PER", "O"]]
    found = entities.Counts(truth, answers, SCHEMES["bio"]).metrics()
    assert found["f1"].value == 0 and found["accuracy"].value == pytest.approx(1 / 3)
    matrix = entities.confusion(truth, answers, SCHEMES["bio"], ["PER"])
    assert matrix.tolist() == [[0, 1], [1, 0]]


def test_tags_without_prefixes_are_judged_one_by_one():
    truth, answers = [["NN", "VB", "NN"], ["VB"]], [["NN", "NN", "NN"], ["VB"]]
    found = entities.Counts(truth, answers, Scheme("none", {})).metrics()
    assert found["f1"].value == found["accuracy"].value == 0.75 and "precision" not in found


def test_nothing_to_find_has_no_f1_and_says_so():
    found = entities.Counts([["O"]], [["O"]], SCHEMES["bio"]).metrics()
    assert found["f1"].value != found["f1"].value and found["f1"].note == "metric.no_entities"
    with pytest.raises(ValueError):
        entities.Counts([["O"]], [["O", "O"]], SCHEMES["bio"])


def test_differences_of_two_models_are_paired():
    truth, worse = drawn("BI", 80, 1)
    better = [[t if rng < 0.9 else w for t, w, rng in zip(a, b, np.random.default_rng(0).random(len(a)))] for a, b in zip(truth, worse)]  # fmt: skip
    first, second = (entities.Counts(truth, x, SCHEMES["bio"], ["PER", "LOC", "ORG"]) for x in (worse, better))
    found = paired.of_counts(first, second)["f1"]
    assert found.value == pytest.approx(second.metrics()["f1"].value - first.metrics()["f1"].value)
    assert 0 < found.low < found.value < found.high
    same = paired.of_counts(first, first)["f1"]
    assert same.value == 0 and same.low is None


def test_simple_taggers():
    texts, tags = ["in york mr york", "york said", "of new york"], ["O B-LOC O B-PER", "B-LOC O", "O B-LOC I-LOC"]
    text = make("t", "text", {"tokens": "words"}).fit(texts)
    column = make("y", "tags", {"of": "t"}).beside({"t": text}).fit(tags, of=texts)
    usual, known = tag_baselines(column, (tags, texts), ["mr york in new york", "unknown"])
    assert usual.name == "most_frequent_tag" and usual.answers == [["O", "B-LOC", "O", "B-LOC", "B-LOC"], ["O"]]
    assert known.name == "known_names" and known.answers == [["O", "B-LOC", "O", "B-LOC", "I-LOC"], ["O"]]
