"""Common corruptions: worse with every severity, the same draw for every model, asked for as a capability; mistaken pairs; superpixels."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

import luban
from luban.columns.base import make
from luban.columns.corruptions import PARAMETERS, SEVERITIES, corrupted
from luban.columns.superpixels import superpixels
from luban.errors import Unsupported


def scene(count: int, side: int, channels: int) -> np.ndarray:
    """Soft shapes with a few hard edges, uint8 (B, C, H, W)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(9 * (x * np.cos(a) + y * np.sin(a)) + a) for a in rng.uniform(0, 6, count * channels)]
    h = 128 + 70 * np.stack(waves).reshape(count, channels, side, side)
    h[:, :, side // 4 : side // 2, side // 4 : side // 2] += 40
    return np.clip(h, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize(("side", "channels"), [(28, 1), (96, 3)])
def test_each_corruption_is_worse_with_every_severity(name, side, channels):
    x = scene(6, side, channels)
    found = [corrupted(x, name, s, np.random.default_rng(0)) for s in SEVERITIES]
    assert all(f.shape == x.shape and f.dtype == np.uint8 for f in found)
    far = [np.abs(f.astype(float) - x).mean() for f in found]
    assert far[0] > 0.01 and far[-1] > far[0] and all(b > 0.85 * a for a, b in pairwise(far)), far
    again = corrupted(x, name, 3, np.random.default_rng(0))
    assert np.array_equal(again, found[2]) and np.array_equal(x, scene(6, side, channels))


def test_noise_has_the_deviation_of_the_paper():
    x = np.full((4, 1, 64, 64), 128, np.uint8)
    for severity, wanted in zip(SEVERITIES, PARAMETERS["gaussian_noise"][1][:3]):
        found = corrupted(x, "gaussian_noise", severity, np.random.default_rng(0))
        assert (found.astype(float) / 255).std() == pytest.approx(wanted, rel=0.05)
    photons = corrupted(x, "shot_noise", 2, np.random.default_rng(0)) / 255
    assert photons.std() == pytest.approx((128 / 255 / 25) ** 0.5, rel=0.1)


def table(count: int = 90, side: int = 16) -> pa.Table:
    """Squares at three places."""
    rng = np.random.default_rng(0)
    photos, where = rng.integers(0, 90, (count, side, side), np.uint8), rng.integers(0, 3, count)
    for photo, w in zip(photos, where):
        photo[4:12, 1 + 5 * w : 5 + 5 * w] += 120
    photos = pa.FixedShapeTensorArray.from_numpy_ndarray(photos)
    return pa.table({"photo": photos, "y": [("left", "middle", "right")[w] for w in where]})


@pytest.fixture(scope="module")
def model():
    return luban.train(table(), "y", size="nano", evaluate=False, epochs=2, device="cpu", augment=False)


def test_the_report_tells_how_the_score_falls(model, tmp_path):
    report = model.evaluate(table(), corruptions=True, resamples=20)
    numbers = report.numbers["robustness"]["y"]
    assert set(numbers["corruptions"]["photo"]) == set(PARAMETERS) and numbers["metric"] == "accuracy"
    assert all(len(v) == 5 for v in numbers["corruptions"]["photo"].values())
    assert numbers["mean"] <= 1 and numbers["clean"] == report.numbers["outputs"]["y"]["metrics"]["accuracy"]["value"]
    again = model.evaluate(table(), corruptions=True, resamples=20, baselines=False)
    assert again.numbers["robustness"] == report.numbers["robustness"]
    page = report.to_html()
    assert "Robustness to common corruptions" in page and "jpeg" in page
    assert "robustness" not in model.evaluate(table(), resamples=20, baselines=False).numbers


def test_columns_that_know_no_corruption_are_told():
    plain = pa.table({"x": np.arange(60.0) % 7, "y": ["a", "b"] * 30})
    model = luban.train(plain, "y", size="nano", evaluate=False, epochs=1, device="cpu")
    with pytest.raises(Unsupported, match="corruptions"):
        model.evaluate(plain, corruptions=True)


def test_what_is_taken_for_what(model):
    from luban.evaluation.table import table as judged
    from luban.evaluation.views import view

    data = luban.data.prepare.prepare(model.recipe, luban.data.sources.read(table()))
    found = judged(model, data, np.arange(90))
    seen = view("y", found.outputs["y"], found, resamples=5, seed=0)
    pairs = seen.mistaken(10)
    wrong = int((seen.probabilities.argmax(1) != seen.truth).sum())
    assert sum(len(rows) for _, _, rows in pairs) == wrong
    labels = seen.labels
    for truth, answer, rows in pairs:
        assert truth != answer
        assert {labels[seen.truth[i]] for i in rows} == {truth}
        assert {labels[seen.probabilities[i].argmax()] for i in rows} == {answer}
    sizes = [len(rows) for *_, rows in pairs]
    assert sizes == sorted(sizes, reverse=True)


# -- superpixels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(28, 28, 1), (40, 64, 3), (3, 5, 1), (1, 1, 3)])
def test_superpixels_are_each_in_one_piece(shape):
    from scipy import ndimage

    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    found = superpixels(image, 20)
    assert found.shape == shape[:2] and set(np.unique(found)) == set(range(found.max() + 1))
    assert all(ndimage.label(found == k)[1] == 1 for k in range(found.max() + 1))


def test_superpixels_follow_edges_that_squares_cut():
    """Planted fault: a grid cuts the disk in half somewhere."""
    y, x = np.mgrid[:60, :60]
    inside = np.hypot(y - 27, x - 33) < 15
    image = np.where(inside[..., None], [230, 40, 40], [40, 40, 200]).astype(np.uint8)

    def mixed(index):
        shares = [inside[index == k].mean() for k in np.unique(index)]
        return np.mean([min(s, 1 - s) for s in shares])

    column = make("p", "image", {"side": 60, "patches": "superpixels"}).fit([image])
    squares = make("p", "image", {"side": 60}).fit([image])
    assert mixed(column.segments(image).index) < 0.02 < mixed(squares.segments(image).index)


def test_superpixels_explain(model):
    columns = {**model.columns, "photo": replace(model.columns["photo"], patches="superpixels")}
    report = replace(model, columns=columns).explain(table().slice(0, 2), method="lime")
    (names,) = {tuple(row["segments"]["photo"]) for row in report.numbers["rows"][:1]}
    assert names[0] == "s0" and len(names) > 10
