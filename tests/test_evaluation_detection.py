"""COCO's metrics: equal to those of `pycocotools` on random sets with crowds, ties, empty images, many boxes and every size."""

import contextlib
import io

import numpy as np
import pytest

from luban.evaluation.detection import MOST, NAMES, Boxes, Judged, curve

SETS = 200


def drawn(seed):
    """A random set: some images with nothing, crowds, boxes found near true ones, scores that are equal, more than 100 boxes."""
    random = np.random.default_rng(seed)
    classes, images = int(random.integers(1, 4)), int(random.integers(1, 9))
    truth, found = [], []
    for _ in range(images):
        n = int(random.integers(0, 7))
        true = boxes(random, n)
        kinds, crowd = random.integers(0, classes, n), random.random(n) < 0.15
        near = np.repeat(true, 2, 0) + random.normal(0, 3, (2 * n, 4)) * random.random()
        near[:, 2:] = np.maximum(near[:, 2:], 1)
        more = int(random.integers(0, 8)) if random.random() > 0.03 else 250
        answers = np.concatenate([near, boxes(random, more), true[: n // 2]])
        said = np.concatenate([np.repeat(kinds, 2), random.integers(0, classes, more), kinds[: n // 2]])
        scores = np.round(random.random(len(answers)), int(random.integers(1, 4)))
        order = random.permutation(len(answers))
        truth.append(Boxes(true, kinds, crowd, outlined(random, true)))
        found.append(Boxes(answers[order], said[order], scores[order]))
    return truth, found, classes


def outlined(random, true):
    """Areas as COCO has them: of the outline, a part of the box, of crowds and odd files more; of a third of the images none are told."""
    if random.random() < 1 / 3:
        return None
    return true[:, 2:].prod(1) * random.choice([0.1, 0.5, 0.8, 1.0, 1.4], len(true))


def boxes(random, n):
    sides = np.exp(random.uniform(np.log(4), np.log(200), (n, 2)))
    return np.concatenate([random.random((n, 2)) * 200, sides], 1)


def reference(truth, found, classes):
    """What `pycocotools` says: the seven metrics, and of each class its average precision."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        gold, names = coco.COCO(), [{"id": k + 1, "name": str(k)} for k in range(classes)]
        annotations = [
            {
                "image_id": i + 1,
                "category_id": int(k) + 1,
                "bbox": b.tolist(),
                "area": float(a),
                "iscrowd": int(c),
            }
            for i, t in enumerate(truth)
            for b, k, c, a in zip(t.boxes, t.kinds, t.marks, t.boxes[:, 2:].prod(1) if t.areas is None else t.areas)
        ]
        for number, one in enumerate(annotations):
            one["id"] = number + 1
        gold.dataset = {
            "images": [{"id": i + 1} for i in range(len(truth))],
            "annotations": annotations,
            "categories": names,
        }
        gold.createIndex()
        results = [
            {"image_id": i + 1, "category_id": int(k) + 1, "bbox": b.tolist(), "score": float(s)}
            for i, f in enumerate(found)
            for b, k, s in zip(f.boxes, f.kinds, f.marks)
        ]
        if not results:
            return None
        done = evaluation.COCOeval(gold, gold.loadRes(results), "bbox")
        done.evaluate()
        done.accumulate()
        done.summarize()
    order = [0, 1, 2, 3, 4, 5, 8]
    precision = done.eval["precision"][:, :, :, 0, 2]  # (T, R, K)
    by_class = [float(np.mean(precision[:, :, k])) for k in range(classes)]
    return done.stats[order], by_class


def same(mine, theirs):
    mine = np.where(np.isnan(mine), -1, mine)
    return np.abs(mine - np.asarray(theirs)).max() < 1e-6


@pytest.mark.parametrize("start", range(0, SETS, 50))
def test_the_metrics_are_those_of_pycocotools(start):
    compared = 0
    for seed in range(start, start + 50):
        truth, found, classes = drawn(seed)
        theirs = reference(truth, found, classes)
        if theirs is None:
            continue
        judged = Judged(truth, found, classes)
        assert same(judged.statistic(judged.whole[None])[0], theirs[0]), seed
        assert same(np.array([row[0] for row in judged.by_class()]), theirs[1]), seed
        compared += 1
    assert compared > 40


@pytest.mark.parametrize("fault", ["areas", "crowds", "order", "most"])
def test_control_a_small_fault_is_seen(fault, monkeypatch):
    wrong = 0
    if fault == "most":
        monkeypatch.setattr("luban.evaluation.detection.MOST", MOST + 200)
    for seed in range(60):
        truth, found, classes = drawn(seed)
        theirs = reference(truth, found, classes)
        if theirs is None:
            continue
        if fault == "areas":
            truth = [t._replace(areas=None) for t in truth]
        if fault == "crowds":
            truth = [t._replace(marks=np.zeros(len(t.marks), bool)) for t in truth]
        if fault == "order":
            found = [Boxes(*(v[::-1] for v in f[:3])) for f in found]
        judged = Judged(truth, found, classes)
        wrong += not same(judged.statistic(judged.whole[None])[0], theirs[0])
    assert wrong > 0


def one(box, kind=0, mark=0.0):
    return Boxes(np.array([box], float), np.array([kind]), np.array([mark]))


NOTHING = Boxes(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))


def test_by_hand():
    true = [one([0, 0, 40, 40]), one([0, 0, 40, 40]), NOTHING]
    found = [one([0, 0, 40, 40], mark=0.9), one([0, 0, 40, 26], mark=0.6), one([5, 5, 9, 9], mark=0.7)]
    judged = Judged([t._replace(marks=np.zeros(len(t.marks), bool)) for t in true], found, 2)
    metrics = judged.metrics(resamples=50)
    assert list(metrics) == list(NAMES)
    # at 0.5: right, wrong, right: precision 1 up to half of the recall (51 of 101), then 2 / 3
    assert metrics["map_50"].value == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert metrics["map_75"].value == pytest.approx(51 / 101)
    assert metrics["map_small"].value != metrics["map_small"].value and metrics["map_small"].low is None
    assert judged.by_image().tolist() == [1.0, 1.0, 0.0]
    assert judged.by_class()[0][2:] == (2, 3) and np.isnan(judged.by_class()[1][0])
    assert metrics["map"].low <= metrics["map"].value <= metrics["map"].high


def test_a_drawn_image_counts_as_often_as_it_was_drawn():
    truth, found, classes = drawn(3)
    judged = Judged(truth, found, classes)
    times = np.random.default_rng(0).integers(0, 3, len(truth))
    twice = Judged(*([v[i] for i in np.repeat(np.arange(len(truth)), times)] for v in (truth, found)), classes)
    ours, theirs = judged.statistic(times[None].astype(float))[0], twice.statistic(twice.whole[None])[0]
    assert np.allclose(ours, theirs, atol=0.02, equal_nan=True)  # equal scores may stand in another order
    flat = [
        f._replace(marks=f.marks + np.random.default_rng(i).random(len(f.marks)) * 1e-3) for i, f in enumerate(found)
    ]
    judged = Judged(truth, flat, classes)
    twice = Judged(*([v[i] for i in np.repeat(np.arange(len(truth)), times)] for v in (truth, flat)), classes)
    assert np.allclose(
        judged.statistic(times[None].astype(float))[0][:3], twice.statistic(twice.whole[None])[0][:3], atol=0.02
    )


def test_nothing_found_and_nothing_to_find():
    empty = Judged([NOTHING, NOTHING], [NOTHING, NOTHING], 1).metrics(resamples=20)
    assert all(np.isnan(m.value) for m in empty.values())
    blind = Judged([one([0, 0, 40, 40], mark=False)], [NOTHING], 1)
    assert blind.metrics()["map"].value == 0.0 and blind.metrics()["mar_100"].value == 0.0
    assert curve(blind.matches[0], 0, blind.whole)[0].shape == (10, 101)
