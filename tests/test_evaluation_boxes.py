"""The view of boxes: numbers, pictures, worst images, slices and baselines, from a table of predictions made by hand."""

import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from luban.columns.base import Answer, make
from luban.columns.drawn import colour_of, draw, likely
from luban.data.boxes import text_of
from luban.evaluation.detection_view import DetectionView, detection_baselines
from luban.evaluation.table import Predictions, Table
from luban.report import Report

TRUTH = [
    [{"label": "cat", "box": [10, 10, 40, 30]}],
    [{"label": "cat", "box": [5, 5, 30, 30]}, {"label": "dog", "box": [50, 20, 25, 30]}],
    [],
    None,
    [{"label": "owl", "box": [5, 5, 30, 30]}, {"label": "cat", "box": [0, 0, 9, 9], "crowd": True}],
]
FOUND = [
    [("cat", [11, 10, 40, 30], 0.9)],
    [("cat", [60, 40, 20, 10], 0.8), ("dog", [50, 20, 25, 29], 0.7), ("dog", [0, 0, 5, 5], 0.1)],
    [("cat", [5, 5, 9, 9], 0.6)],
    [("cat", [5, 5, 9, 9], 0.6)],
    [("cat", [0, 0, 8, 8], 0.9)],
]


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    files = [str(folder / f"{i}.png") for i in range(5)]
    for i, file in enumerate(files):
        Image.fromarray(np.full((60, 80, 3), 40 * i, np.uint8)).save(file)
    image = make("photo", "image", {"shape": "pad"}).fit(files)
    column = make("objects", "boxes", {"of": "photo"}).beside({"photo": image})
    column = column.fit(TRUTH[:4], of=files[:4])
    answers = [Answer([{"label": k, "box": b, "score": s} for k, b, s in row], row[0][2]) for row in FOUND]
    truth = [column.truth(v) for v in TRUTH]
    cells = pa.table({"photo": files, "objects": [None if t is None else text_of(t) for t in truth]})
    known = np.array([t is not None for t in truth])
    predictions = Predictions(column, np.zeros((5, 3, 6)), truth, known, answers)
    return DetectionView("objects", predictions, 60, 0, Table(np.arange(5), cells, {"objects": predictions}))


def test_sizes_go_by_the_area_that_is_told(view):
    truth = [[{**one, "area": 100.0} for one in TRUTH[0]]] + [
        text_of(t) if t else t for t in view.predictions.truth[1:]
    ]
    told = [view.predictions.column.truth(t) for t in truth]
    predictions = Predictions(view.predictions.column, view.predictions.raw, told, view.predictions.known, view.predictions.answers)  # fmt: skip
    smaller = DetectionView("objects", predictions, 60, 0, view.judged)
    assert view.judged_boxes.matches[0].truths[1].sum() == 1 and smaller.judged_boxes.matches[0].truths[1].sum() == 2
    assert np.isnan(smaller.metrics["map_medium"].value) and not np.isnan(view.metrics["map_medium"].value)


def test_the_numbers(view):
    metrics = view.metrics
    assert metrics["map_50"].value == pytest.approx(
        np.mean([51 / 101, 1.0, 0.0])
    )  # cat: one of two; dog; owl cannot be found
    found = view.numbers([])
    assert found["headline"] == {"metric": "map", "higher": True}
    assert found["classes"]["owl"] == {"map": 0.0, "map_50": 0.0, "boxes": 1, "found": 0}
    assert found["classes"]["cat"]["boxes"] == 2  # a crowd is none
    json.dumps(found, allow_nan=False)


def test_the_worst_images_are_drawn(view):
    assert view.per_row().tolist()[:1] == [1.0] and np.isnan(view.per_row()[3])
    worst = view.worst(9).tolist()
    assert worst == [2, 4, 1]
    f1, truth, answer = view.row(1)
    assert f1 == "0.50" and "<img" in truth and "<img" in answer and truth != answer
    assert len(view.row_names()) == 3


def test_the_report(view):
    rivals = detection_baselines(view.predictions.column, TRUTH[:4], *[view.judged.cells["photo"].to_pylist()[:4]] * 2)
    rivals[0].answers.append([])
    report = Report("evaluate", "boxes")
    view.write(report, rivals)
    view.write_slices(report, view.judged, ["photo"])
    page = report.to_html()
    assert "usual_boxes" in page and "owl" in page and "precision" in page


def test_the_usual_boxes(view):
    files = view.judged.cells["photo"].to_pylist()
    (usual,) = detection_baselines(view.predictions.column, TRUTH[:4], files[:4], files)
    assert usual.name == "usual_boxes" and len(usual.answers) == 5
    cat = next(v for v in usual.answers[0] if v["label"] == "cat")
    assert np.allclose(cat["box"], [7.5, 7.5, 35, 30]) and cat["score"] == pytest.approx(2 / 3)


def test_a_model_against_another(view):
    better = DetectionView("objects", Predictions(**{**view.predictions.__dict__, "answers": [
        Answer([{"label": r.label, "box": list(r.box), "score": 0.9} for r in t or () if r.label != "owl"], 0.9) for t in view.predictions.truth
    ]}), 60, 0, view.judged)  # fmt: skip
    difference = view.difference(better)
    assert (
        difference["map"].value == pytest.approx(better.metrics["map"].value - view.metrics["map"].value)
        and difference["map"].value > 0
    )


# -- drawing -------------------------------------------------------------------------------------------------------------
def test_boxes_are_drawn_where_they_are():
    picture = np.zeros((60, 80, 3), np.uint8)
    shown = draw(picture, [{"label": "cat", "box": [20, 30, 40, 20], "score": 0.5}], ["cat"])
    colour = tuple(int(colour_of("cat", ["cat"])[i : i + 2], 16) for i in (1, 3, 5))
    assert shown.shape == (60, 80, 3) and picture.max() == 0
    assert (shown[49, 20:60] == colour).all() and (shown[30:50, 59] == colour).all() and (shown[40, 30:50] == 0).all()
    assert shown[:30].any()  # the label stands above
    large = draw(picture, [{"label": "dog", "box": [0, 0, 80, 60]}], ["cat", "dog"], least=200)
    assert large.shape == (180, 240, 3)
    assert len(likely([{"score": 0.2}, {"score": 0.4}, {}])) == 2
