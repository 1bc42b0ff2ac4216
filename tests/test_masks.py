"""Masks: where they go when the picture moves, what a U-Net's head makes of maps, and how its answers are judged."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as Pillow

import luban
from luban.asking import Ask
from luban.columns.answering import answer
from luban.columns.base import make
from luban.columns.mask import NOTHING, coloured, lab, palette, restored, sampled
from luban.data.prepare import raw
from luban.engines import OnnxEngine
from luban.errors import DataError, RecipeError, RequestError
from luban.evaluation import mask_view
from luban.nn.heads.unet import UNet
from luban.planning.subject import of_recipe

SHAPES = [("crop", (60, 80)), ("pad", (60, 80)), ("stretch", (60, 80)), ("pad", (80, 60)), ("crop", (97, 41))]
GREYS = np.array([0, 110, 220], np.uint8)  # of the classes 0, 1, 2 in a picture


def scene(size, seed=0):
    """A mask (H, W) of three classes in large blobs, and a picture whose grey tells the class."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    random = np.random.default_rng(seed)
    classes = np.zeros(size, np.uint8)
    for k in (1, 2):
        cy, cx = random.uniform(0.25, 0.75, 2) * size
        classes[(y - cy) ** 2 + (x - cx) ** 2 < (min(size) / 5) ** 2] = k
    return classes, GREYS[classes]


def pair(side=(48, 64), shape="pad", size=(60, 80), **settings):
    classes, picture = scene(size)
    image = make(
        "photo", "image", {"side": list(side), "shape": shape, "flip": True, "shift": 0.2, "channels": 1} | settings
    )
    image = image.fit([picture])
    column = make("mask", "mask", {"of": "photo"}).beside({"photo": image}).fit([classes], of=[picture])
    return image, column


def agreement(x, pixels):
    """Share of the pixels whose grey is nearest to that of their class, the picture's edges being blurred apart."""
    told = np.abs(pixels.astype(int)[..., None] - GREYS.astype(int)).argmin(-1)
    known = x != NOTHING
    return (told == x)[known].mean()


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_a_mask_lies_on_its_picture(shape, size):
    image, column = pair(shape=shape, size=size)
    classes, picture = scene(size)
    x, pixels = column.encode(classes, of=picture), image.encode(picture)[0]
    assert x.shape == (48, 64) and x.dtype == np.uint8 and agreement(x, pixels) > 0.97
    assert agreement(np.roll(x, 6, 1), pixels) < 0.95  # control
    beyond = (x == NOTHING).any()
    assert beyond == (shape == "pad" and size != (48, 64) and size[0] * 64 != size[1] * 48)


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_an_answer_goes_back_to_the_size_of_the_image(shape, size):
    _, column = pair(side=(96, 128), shape=shape, size=size)
    classes, picture = scene(size)
    own = column.encode(classes, of=picture)
    logits = F.one_hot(torch.tensor(np.where(own == NOTHING, 0, own)).long(), 3).permute(2, 0, 1).numpy() * 9.0
    answer = column.decode(logits, of=picture)
    found = np.asarray(Pillow.open(io.BytesIO(base64.b64decode(answer.value))))
    place = column.placement(picture)
    left, top, right, bottom = (round(v) for v in place.cut)
    seen = slice(max(0, top), bottom), slice(max(0, left), right)
    assert found.shape == size and (found == classes)[seen].mean() > 0.985
    assert answer.details["shares"].keys() == {"0", "1", "2"} and 0.9 < answer.probability <= 1
    assert np.array_equal(column.truth(answer.value), found)  # what is answered can be read again


def test_a_mask_moves_exactly_as_its_picture(monkeypatch):
    image, column = pair(randaugment=0.5)
    classes, picture = scene((60, 80))
    x, masks = (
        np.stack([c.encode(v, of=picture) if c is column else c.encode(v)] * 40)
        for c, v in ((image, picture), (column, classes))
    )
    x = GREYS[np.where(masks == NOTHING, 0, masks)][:, None]  # sharp edges: what moves them differently is seen
    monkeypatch.setattr("luban.columns.augmenting.coloured", lambda x, drawn: x)
    moved, change = image.augment(x, np.ones(len(x), bool), np.random.default_rng(0))
    assert change.flip.any() and change.turn is not None and not np.array_equal(moved, x)
    followed = column.follow(masks, change)
    told = np.where(followed == NOTHING, 0, followed)
    assert np.array_equal(GREYS[told][:, None], moved)
    assert not np.array_equal(GREYS[np.where(masks == NOTHING, 0, masks)][:, None], moved)  # a flip without follow


@pytest.mark.parametrize(
    ("drawn", "labels", "classes", "shares", "seen"),
    [
        ([[0, 255, 255, 0]], (), ["0", "1"], [0.5, 0.5], [[0, 1, 1, 0]]),
        ([[0, 255, 255, 255]], ["wall", "door"], ["wall", "door"], [0.25, 0.75], [[0, 1, 1, 1]]),
        ([[0, 255, 1, 1]], (), ["0", "1"], [1 / 3, 2 / 3], [[0, NOTHING, 1, 1]]),
        ([[0, 255, 255, 0]], ["a", "b", "c"], ["a", "b", "c"], [1, 0, 0], [[0, NOTHING, NOTHING, 0]]),
    ],
)
def test_black_and_white_is_two_classes(drawn, labels, classes, shares, seen):
    """255 is the second class where nothing else is drawn, and counts for nothing where other classes are, or are named."""
    column = make("m", "mask", {"labels": list(labels)}).fit([drawn])
    assert column.classes == classes and column.state["shares"] == pytest.approx(shares)
    again = make("m", "mask", {"labels": list(labels)}).learned(**column.state)
    assert column.truth(drawn).tolist() == again.truth(drawn).tolist() == seen


def test_what_is_no_mask_is_refused():
    _, column = pair()
    _, picture = scene((60, 80))
    colour = io.BytesIO()
    Pillow.fromarray(np.zeros((60, 80, 3), np.uint8)).save(colour, "PNG")
    for value, said in (
        (np.zeros((60, 81), int), "60, 81"),
        (np.full((60, 80), 300), "300"),
        ([[0.5]], "whole number"),
        (colour.getvalue(), "colour"),
        (np.zeros((60, 80, 3), int), "60, 80, 3"),
    ):
        with pytest.raises(DataError, match=said):
            column.encode(value, of=picture)
    assert (column.encode(np.full((60, 80), 9), of=picture) == NOTHING).all()  # a class that training never saw
    assert (column.encode(None, of=picture) == NOTHING).all() and not column.collate([column.encode(None)])[1].any()
    with pytest.raises(DataError, match="fewer"):
        make("m", "mask", {"labels": ["a"]}).fit([[[0, 1]]])
    own = make("m", "mask", {"ignore": 0, "labels": ["none", "a", "b"]}).fit([[[0, 1, 2]]])
    assert own.truth([[0, 1, 2]]).tolist() == [[NOTHING, 1, 2]] and own.classes == ["none", "a", "b"]
    palette = Pillow.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    file = io.BytesIO()
    palette.save(file, "PNG")
    assert own.truth(file.getvalue()).shape == (2, 2)


def test_masks_that_cannot_be_meant_go_aside_with_what_is_wrong(tmp_path):
    blurred, stray = scene((60, 80))[0] * 100, scene((60, 80))[0]
    stray[3, 4:6] = 7, 255
    files = {f"{i}.png": scene((60, 80), i)[0] for i in range(8)} | {"stray.png": stray, "small.png": stray[:30] % 3}
    for name, array in files.items():
        Pillow.fromarray(array).save(tmp_path / name)
    Pillow.fromarray(blurred).save(tmp_path / "blurred.jpg", quality=70)
    Pillow.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "photo.png")
    Pillow.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "colour.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:-60])
    masks = [*files, "blurred.jpg", "colour.png", "broken.png"]
    (tmp_path / "rows.csv").write_text("photo,mask\n" + "".join(f"photo.png,{m}\n" for m in masks))
    column = make("mask", "mask", {"of": "photo", "labels": ["none", "a", "b"]})
    columns = {"photo": make("photo", "image", {}), "mask": column}
    rows = raw(tmp_path / "rows.csv", columns)
    told = {q.raw.strip().rsplit("/", 1)[-1]: q for q in rows.quarantine}
    assert {k: q.reason_id for k, q in told.items()} == {
        "stray.png": "mask.no_class", "small.png": "mask.other_size", "blurred.jpg": "mask.lossy", "colour.png": "mask.colour",
        "broken.png": "mask.unreadable",
    }  # fmt: skip
    assert "class: 7. Classes are 0 to 2, and 255" in told["stray.png"].reason
    assert "JPEG" in told["blurred.jpg"].reason and "PNG" in told["blurred.jpg"].reason
    assert len(rows) == 8
    open_ended = raw(tmp_path / "rows.csv", {**columns, "mask": make("mask", "mask", {"of": "photo"})})
    assert len(open_ended) == 9  # without names any number may be a class
    (tmp_path / "rows.csv").write_text("photo,mask\nphoto.png,blurred.jpg\n")
    with pytest.raises(DataError, match="compression"):
        raw(tmp_path / "rows.csv", columns)


def test_arrays_and_names_with_spaces_are_masks(tmp_path):
    Pillow.fromarray(scene((60, 80))[0]).save(tmp_path / "a mask of it.png")
    Pillow.fromarray(scene((60, 80))[1]).save(tmp_path / "photo.png")
    columns = {"photo": make("photo", "image", {}), "mask": make("mask", "mask", {"of": "photo"})}
    (tmp_path / "rows.csv").write_text("photo,mask\nphoto.png,a mask of it.png\nphoto.png,\n")
    assert len(raw(tmp_path / "rows.csv", columns)) == 2
    photo = str(tmp_path / "photo.png")
    assert len(raw({"photo": [photo], "mask": [scene((60, 80))[0].tolist()]}, columns)) == 1


# -- the head ------------------------------------------------------------------------------------------------------------
def head(column, **settings):
    torch.manual_seed(0)
    pyramid = SimpleNamespace(channels=(4, 8, 16, 16), sizes=((24, 32), (12, 16), (6, 8), (6, 8)), side=(48, 64))
    return UNet(column, pyramid, width=4, **settings)


def maps(count=2):
    sizes = ((4, 24, 32), (8, 12, 16), (16, 6, 8), (16, 6, 8))
    return [torch.randn(count, *s) for s in sizes]


@pytest.mark.parametrize("settings", [{}, {"dice": 0.5}, {"balance": "classes"}], ids=str)
def test_the_head_learns_a_mask_from_maps(settings):
    _, column = pair()
    network, given = head(column, **settings), maps()
    x = torch.randint(0, 3, (2, 48, 64), dtype=torch.uint8)
    x[:, :4] = NOTHING
    o = network(given)
    assert o.shape == (2, 3, 48, 64)
    each, weight = network.loss(o, x, torch.ones(2, dtype=bool))
    assert torch.equal(weight, network.weigh(x, torch.ones(2, dtype=bool)))
    if not settings:
        want = F.cross_entropy(o, torch.where(x == NOTHING, -100, x.long()), ignore_index=-100, reduction="none").sum(
            (1, 2)
        )
        assert torch.allclose(each, want, rtol=1e-5) and (weight == 44 * 64).all()
    (each.sum() / weight.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    x[0] = NOTHING  # no truth at all
    each, weight = network.loss(o, x, torch.zeros(2, dtype=bool))
    assert weight[0] == 0 and each[0] == 0 and torch.isfinite(each).all()


def test_the_score_is_the_mean_log_odds_over_the_fixed_pixels():
    _, column = pair()
    network = head(column)
    o = torch.randn(2, 3, 48, 64)
    answers = [column.decode(v) for v in o.numpy()]
    fixed = [column.fixed(a, "2") for a in answers]
    assert [name for _, name in fixed] == ["2", "2"]
    found = network.score(o, torch.tensor(np.array([f for f, _ in fixed])))
    p = o.softmax(1)[:, 2]
    odds = torch.log(p / (1 - p))
    want = torch.stack([odds[i][torch.tensor(a.own) == 2].mean() for i, a in enumerate(answers)])
    assert torch.allclose(found, want, atol=1e-4)
    assert column.fixed(answers[0])[1] in ("1", "2")  # the background last
    with pytest.raises(RequestError):
        column.fixed(answers[0], "9")
    away = o.clone()
    away[:, 2] = -99
    assert (column.fixed(column.decode(away[0].numpy()), "2")[0] == 3).all()  # answered nowhere: over the whole picture


def test_divergence_is_zero_for_equals():
    _, column = pair()
    network, o = head(column), torch.randn(2, 3, 48, 64)
    assert torch.allclose(network.divergence(o, o), torch.zeros(2), atol=1e-6)
    assert (network.divergence(o, -o) > 0.1).all()


# -- the numbers ---------------------------------------------------------------------------------------------------------
def test_iou_by_hand():
    truth = np.array([[0, 0, 1, 1], [NOTHING, 2, 2, 1]], np.uint8)
    said = np.array([[0, 1, 1, 1], [0, 2, 0, 1]], np.uint8)
    mean, accuracy, *iou = mask_view.shares(mask_view.confusion(truth, said, 3)[None])[0]
    assert iou == pytest.approx([1 / 3, 3 / 4, 1 / 2]) and accuracy == pytest.approx(5 / 7)
    assert mean == pytest.approx((1 / 3 + 3 / 4 + 1 / 2) / 3)
    perfect = mask_view.measured(
        np.stack([mask_view.confusion(truth, np.where(truth == NOTHING, 0, truth), 3)] * 9), ["a", "b", "c"], 0, 50
    )
    assert perfect["mean_iou"].value == perfect["mean_iou"].low == 1 and set(perfect) == {
        "mean_iou",
        "accuracy",
        "iou a",
        "iou b",
        "iou c",
    }


def test_the_baseline_says_what_is_commonest_at_a_place():
    training = np.array([[[0, 1]], [[0, 1]], [[2, 0]]], np.uint8)
    assert mask_view.per_position(training, 3).answers.tolist() == [[0, 1]]


def test_colours_and_sampling_keep_their_sizes():
    _, column = pair()
    classes, picture = scene((60, 80))
    place = column.placement(picture)
    assert restored(sampled(classes, place), place).shape == classes.shape
    over = coloured(classes, np.repeat(picture[..., None], 3, 2))
    assert over.shape == (60, 80, 3) and np.array_equal(
        over[classes == 0], np.repeat(picture[..., None], 3, 2)[classes == 0]
    )


@pytest.mark.parametrize("classes", [12, 40, 255])
def test_colours_of_many_classes_are_told_apart(classes):
    """By people who see three colours: 2.3 in CIELAB is just noticed."""
    places = lab(palette()[[*range(classes), NOTHING]])
    apart = np.linalg.norm(places[:, None] - places, axis=2)[~np.eye(classes + 1, dtype=bool)]
    assert apart.min() > (19 if classes <= 40 else 13)
    assert np.array_equal(coloured(np.array([[39, NOTHING]], np.uint8))[0], [palette()[39], [255] * 3])


# -- its whole life ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """Forty pictures of 16 x 24 pixels with a bright disc or square, their masks, and a table of both."""
    place, random = tmp_path_factory.mktemp("discs"), np.random.default_rng(0)
    lines = ["image,mask"]
    for i in range(40):
        y, x = np.mgrid[:16, :24]
        cy, cx, kind = random.uniform(5, 11), random.uniform(5, 19), i % 2 + 1
        near = (y - cy) ** 2 + (x - cx) ** 2 < 16 if kind == 1 else np.maximum(abs(y - cy), abs(x - cx)) < 4
        classes = (near * kind).astype(np.uint8)
        pixels = np.where(near, 130 + 60 * kind, 40)[..., None] + random.normal(0, 8, (16, 24, 3))
        Pillow.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{i}.png")
        Pillow.fromarray(classes).save(place / f"m{i}.png")
        lines.append(f"{i}.png,m{i}.png")
    (place / "rows.csv").write_text("\n".join(lines) + "\n")
    return place


@pytest.fixture(scope="module")
def model(discs, tmp_path_factory):
    recipe = {
        "luban": 1,
        "data": {"rows": str(discs / "rows.csv")},
        "inputs": {"image": "image"},
        "outputs": {"mask": {"mask": {"of": "image", "labels": ["none", "disc", "square"]}}},
        "model": {"image": {"resnet": {"depth": 18, "width": 8}}, "mask": {"unet": {"width": 8}}},
        "size": "nano",
        "stages": [{"train": {"epochs": 6, "batch": 4, "rate": 0.003}}],
    }
    return luban.train(recipe, out=tmp_path_factory.mktemp("seg") / "m")


def test_it_is_trained_judged_and_answers_at_the_size_of_the_image(model, discs):
    assert model.recipe.task() == "image-segmentation"
    numbers = model.reports["evaluate"].to_json()["numbers"]["outputs"]["mask"]
    found, rival = numbers["metrics"], numbers["baselines"]["per_position"]
    assert found["mean_iou"]["low"] < found["mean_iou"]["value"] <= 1 and set(found) == set(rival)
    assert found["mean_iou"]["value"] > rival["mean_iou"]["value"]
    assert model.reports["evaluate"].to_html().count("data:image/png") > 10
    (row,) = model.predict([{"image": str(discs / "3.png")}])
    classes = np.asarray(Pillow.open(io.BytesIO(base64.b64decode(row["mask"]))))
    assert classes.shape == (16, 24) and classes.max() < 3 and set(row["mask.shares"]) == {"none", "disc", "square"}
    again = luban.load(model.path)
    assert again.predict([{"image": str(discs / "3.png")}]) == [row]


def test_what_explains_a_mask_adds_up(model, discs):
    data = str(discs / "rows.csv")
    found = model.explain(data, rows=2, target="disc").numbers
    assert found["error"]["gap_relative"] < 0.05 and found["rows"][0]["explained"] == "disc"
    report = model.explain(data, rows=2, method="grad-cam")
    (row, *_) = report.numbers["rows"]
    assert row["explained"] in ("disc", "square", "none")
    shown = report.to_text()
    assert row["answer"] not in shown and " %" in shown.split("none ", 1)[1][:8]
    assert report.to_html().count("data:image/png") == 4 and "■" in report.to_html()  # the map, and the mask beside it


def test_a_class_answered_nowhere_is_called_so():
    _, column = pair()
    o = np.zeros((3, 48, 64), np.float32)
    o[0] = 9
    answer = column.decode(o)
    assert column.legible(answer) == f"{column.classes[0]} 100.0 %"
    assert column.named(answer, column.classes[0]).endswith("100.0 %") and "nowhere" in column.named(answer, "2")


@pytest.mark.slow
def test_smaller_and_exported_it_says_the_same(model, discs, tmp_path):
    small = model.compress(quantize="int8")
    numbers = small.reports["compress"].to_json()["numbers"]
    assert numbers["agreement"]["mask"]["same"]["value"] > 0.95 and "mean_iou" in numbers["outputs"]["mask"]
    pytest.importorskip("onnxruntime")
    path = model.export(out=tmp_path / "m.onnx")
    (row,) = answer(OnnxEngine(path, threads=1), [{"image": str(discs / "5.png")}])
    theirs, mine = row.answers["mask"], model.predict([{"image": str(discs / "5.png")}])[0]
    same = np.asarray(Pillow.open(io.BytesIO(base64.b64decode(mine["mask"])))) == theirs.classes
    assert same.mean() > 0.99


def test_a_mask_is_planned_and_needs_maps(model):
    assert of_recipe(model.recipe, Ask()).rows == 32
    plain = model.recipe.plain()
    with pytest.raises(RecipeError, match="maps"):
        luban.train(plain | {"model": {"image": "mlp"}}, evaluate=False)
