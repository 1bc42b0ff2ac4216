"""Boxes: how they are written, where they go when the picture moves, and what becomes of a detector's candidates."""

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as Pillow

from luban.columns.base import Ragged, make
from luban.columns.examples import Examples
from luban.columns.geometry import overlaps, placement
from luban.columns.picture import fitted
from luban.columns.suppression import candidates, suppressed
from luban.data import boxes as written
from luban.data.rows import BadRow
from luban.data.sources import read
from luban.errors import DataError, RecipeError, RequestError
from luban.markup import harmless
from luban.recipe import Recipe

SHAPES = [("crop", (60, 80)), ("pad", (60, 80)), ("stretch", (60, 80)), ("pad", (80, 60)), ("crop", (97, 41))]


def drawn(size, box, colour=(255, 0, 0)):
    """A grey picture (H, W, 3) with a filled rectangle of whole pixels x, y, w, h."""
    picture = np.full((*size, 3), 90, np.uint8)
    x, y, w, h = box
    picture[y : y + h, x : x + w] = colour
    return picture


def found(x):
    """The smallest box x0, y0, x1, y1 around the red pixels of x (3, H, W)."""
    rows, columns = np.nonzero((x[0] > 170) & (x[1] < 50))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def pair(side=(48, 64), shape="pad", picture=None, flip=True, shift=0.2, labels=("ball", "cat"), **settings):
    picture = np.zeros((60, 80, 3), np.uint8) if picture is None else picture
    settings |= {"side": list(side), "shape": shape, "flip": flip, "shift": shift}
    image = make("photo", "image", settings).fit([picture])
    column = make("objects", "boxes", {"of": "photo"}).beside({"photo": image})
    return image, column.fit([[{"label": k, "box": [1, 1, 5, 5]} for k in labels]], of=[picture])


# -- where boxes go ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_a_box_stands_where_its_pixels_stand(shape, size):
    box = [22, 18, 16, 24]
    picture = drawn(size, box)
    image, column = pair(shape=shape, picture=picture)
    x = column.encode([{"label": "ball", "box": box}], of=picture)
    assert x.shape == (1, 5) and x.dtype == np.float32 and x[0, 0] == 1
    assert np.abs(x[0, 1:] - found(image.encode(picture))).max() <= 1.0


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_there_and_back(shape, size):
    place = placement(size, (48, 64), shape)
    corners = np.array([[3.5, 4.25, 20.0, 30.0], [0, 0, size[1], size[0]]])
    assert np.allclose(place.back(place.there(corners)), corners)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_in_the_picture_as_it_is_looked_at(orientation):
    """Of a JPEG whose camera lay on its side, and that is decoded smaller than it is."""
    upright, box = (600, 360), [200, 120, 80, 240]
    picture = Pillow.fromarray(drawn(upright, box))
    turn = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    raw = picture if turn is None else picture.transpose(turn)
    file, exif = io.BytesIO(), Pillow.Exif()
    exif[0x0112] = orientation
    raw.save(file, "JPEG", quality=95, exif=exif)
    image, column = pair(picture=file.getvalue())
    assert image.placement(file.getvalue()).source == upright
    x = column.encode([{"label": "ball", "box": box}], of=file.getvalue())
    assert np.abs(x[0, 1:] - found(image.encode(file.getvalue()))).max() <= 1.0


def test_the_size_of_a_png_is_read_without_its_pixels(monkeypatch):
    file = io.BytesIO()
    Pillow.fromarray(drawn((60, 80), [1, 1, 5, 5])).save(file, "PNG")
    image, _ = pair()
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: 1 / 0)
    assert image.placement(file.getvalue()).source == (60, 80)
    assert image.placement(base64.b64encode(file.getvalue()).decode()).source == (60, 80)


def test_exif_behind_the_pixels_of_a_png_counts():
    exif, file = Pillow.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Pillow.fromarray(drawn((60, 80), [1, 1, 5, 5])).save(file, "PNG", exif=exif)
    data = file.getvalue()
    at = data.index(b"eXIf") - 4
    chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]
    behind = data.replace(chunk, b"").replace(b"\0\0\0\0IEND", chunk + b"\0\0\0\0IEND")
    image, _ = pair()
    assert image.placement(behind).source == image.placement(data).source == (80, 60)


def test_pixels_are_placed_by_the_same_rule_as_ever():
    """`fitted` of a picture that is as large as it says, by the arithmetic that it had of its own."""
    picture = np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8)
    for how in ("crop", "pad", "stretch"):
        assert np.array_equal(fitted(picture, (24, 24), how), fitted(picture, (24, 24), how, (37, 61)))
    inner = np.asarray(Pillow.fromarray(picture).resize((24, 15), Pillow.Resampling.BILINEAR))
    assert np.array_equal(fitted(picture, (24, 24), "pad")[4:19], inner)
    box = (12.0, 0.0, 49.0, 37.0)
    cut = np.asarray(Pillow.fromarray(picture).resize((24, 24), Pillow.Resampling.BILINEAR, box=box))
    assert np.array_equal(fitted(picture, (24, 24), "crop"), cut)


def test_what_is_cut_off_is_not_learned():
    _, column = pair(side=(48, 48), shape="crop", picture=np.zeros((48, 96, 3), np.uint8))
    regions = [
        {"label": "ball", "box": [0, 0, 20, 20]},  # wholly beside the middle
        {"label": "cat", "box": [14, 0, 20, 20]},  # half in it
        {"label": "cat", "box": [5, 0, 20, 20]},  # a twentieth in it
        {"label": "dog", "box": [40, 10, 9, 9]},  # no class of the training rows
    ]
    x = column.encode(regions, of=np.zeros((48, 96, 3), np.uint8))
    assert x.tolist() == [[2, 0, 0, 10, 20]]


# -- moving --------------------------------------------------------------------------------------------------------------
def moved_alike(column, image, boxes, picture):
    """Whether boxes and pixels agree after `augment`, over many draws."""
    raw = [{"label": "ball", "box": b} for b in boxes[:1]]
    x = np.stack([image.encode(picture)] * 64)
    t, mask = column.collate([column.encode(raw, of=picture)] * 64)
    changed, change = image.augment(x, np.ones(64, bool), np.random.default_rng(0))
    assert change.flip.any() and not change.flip.all()
    moved, mask = column.followed(t, mask, change)
    return all(np.array_equal(moved[i, 0, 1:], found(changed[i])) for i in range(64)) and mask.all()


def test_boxes_move_with_their_picture():
    picture = drawn((48, 64), [22, 18, 9, 12])
    image, column = pair(picture=picture)
    assert moved_alike(column, image, [[22, 18, 9, 12]], picture)


def test_control_boxes_that_stay_where_they_are():
    class Staying:
        def __init__(self, column):
            self.column = column

        def __getattr__(self, name):
            return getattr(self.column, name)

        def followed(self, x, mask, change):
            return self.column.followed(x, mask, change._replace(flip=np.zeros_like(change.flip)))

    picture = drawn((48, 64), [22, 18, 9, 12])
    image, column = pair(picture=picture)
    assert not moved_alike(Staying(column), image, [[22, 18, 9, 12]], picture)


def test_what_leaves_the_picture_goes():
    image, column = pair()
    x = np.array(
        [[[1, 0, 0, 6, 6], [2, 30, 20, 40, 30], [0, 0, 0, 0, 0]], [[-1, 58, 0, 64, 9], [0] * 5, [0] * 5]], np.float32
    )
    mask = np.array([[True, True, False], [True, False, False]])
    _, change = image.augment(np.zeros((2, 3, 48, 64), np.uint8), mask, np.random.default_rng(0))
    change = change._replace(dx=np.array([-8, 5]), dy=np.array([0, 1]), flip=np.array([False, True]))
    moved, there = column.followed(x, mask, change)
    assert there.tolist() == [[False, True, False], [True, False, False]]
    assert moved[0, 0].tolist() == [0] * 5 and moved[0, 1].tolist() == [2, 22, 20, 32, 30]
    assert moved[1, 0].tolist() == [-1, 0, 1, 1, 10]
    missing = np.zeros((2, 1, 5), np.float32)
    assert column.followed(missing, np.ones((2, 1), bool), change)[1].all()  # a truth that is missing stays so


def randomly(column, image, picture, box):
    """The pictures of a batch as RandAugment leaves them, and the boxes beside them."""
    x, told = np.stack([image.encode(picture)] * 200), column.encode([{"label": "ball", "box": box}], of=picture)
    columns = {"photo": image, "objects": column}
    examples = Examples(columns, {"photo": x}, {"objects": Ragged.of([told] * 200)}, np.arange(200), 200)
    arrays = examples.arrays(np.arange(200), np.random.default_rng(0))
    return examples, arrays.inputs["photo"][0], arrays.targets["objects"][0][:, 0, 1:]


def fitting(x, boxes):
    """The share of pictures whose bright part is where the box is, whatever became of its colour."""
    grey = x.astype(int).sum(1)
    middle = (grey.max((1, 2)) + grey.min((1, 2))) / 2
    places = [np.argwhere(g > m) for g, m in zip(grey, middle)]
    return np.mean([np.array_equal([*p.min(0)[::-1], *(p.max(0)[::-1] + 1)], b) for p, b in zip(places, boxes)])


def test_under_randaugment_boxes_stay_on_their_things_and_it_is_said():
    """Planted fault: boxes that say they could follow a turn, and do not."""
    picture = drawn((48, 64), [22, 18, 16, 6], (255, 255, 255))
    image, column = pair(picture=picture, shift=0.05, randaugment=0.3)
    examples, x, boxes = randomly(column, image, picture, [22, 18, 16, 6])
    assert examples.held == {"photo": ["objects"]}

    class Turned(type(column)):
        turns = True

    kept = {f.name: getattr(column, f.name) for f in dataclasses.fields(column)}
    other, turned, beside = randomly(Turned(**kept), image, picture, [22, 18, 16, 6])
    assert not other.held
    assert fitting(x, boxes) == 1 and fitting(turned, beside) < 0.8


# -- batches -------------------------------------------------------------------------------------------------------------
def test_missing_nothing_and_crowd_are_three_things():
    _, column = pair()
    picture = np.zeros((48, 64, 3), np.uint8)
    cells = [
        None,
        [],
        [{"label": "cat", "box": [1, 2, 3, 4], "iscrowd": 1}],
        [{"label": "cat", "box": [1, 2, 3, 4]}] * 2,
    ]
    x, mask = column.collate(column.encode_all(cells, of=[picture] * 4))
    assert x.shape == (4, 2, 5) and mask.tolist() == [[True, False], [False, False], [True, False], [True, True]]
    assert x[:, 0].tolist() == [[0] * 5, [0] * 5, [-2, 1, 2, 4, 6], [2, 1, 2, 4, 6]]
    x, mask = column.collate(column.encode_all([[], []], of=[picture] * 2))
    assert x.shape == (2, 1, 5) and not mask.any()


def test_how_many_objects_a_picture_has_does_not_sort_the_batches():
    from luban.columns.examples import Examples

    image, column = pair()
    picture = np.zeros((48, 64, 3), np.uint8)
    boxes = column.encode_all([[], [{"label": "cat", "box": [1, 2, 3, 4]}] * 3], of=[picture] * 2)
    x = image.encode_all([picture] * 2)
    assert (
        Examples({"photo": image, "objects": column}, {"photo": x}, {"objects": boxes}, np.arange(2), 2).lengths()
        is None
    )


# -- from candidates to boxes --------------------------------------------------------------------------------------------
def greedy(boxes, scores, limit):
    """The textbook's loop over every pair."""
    left, kept = list(np.argsort(-scores, kind="stable")), []
    while left:
        first = left.pop(0)
        kept.append(first)
        left = [i for i in left if overlaps(boxes[first], boxes[i : i + 1])[0] <= limit]
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_suppression_is_the_textbooks(seed):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (300, 3)).astype(np.float32)
    low = random.random((300, 2)) * 60 - 5
    corners = np.concatenate([low, low + random.random((300, 2)) * 30], 1)
    found = candidates(logits, 0.3)
    kept = suppressed(found, corners[found.rows], 0.4, 10_000)
    want = set()
    for k in range(3):
        rows = np.flatnonzero(1 / (1 + np.exp(-logits[:, k].astype(np.float64))) >= 0.3)
        want |= {(int(rows[i]), k) for i in greedy(corners[rows], logits[rows, k], 0.4)}
    assert {*zip(kept.rows.tolist(), kept.kinds.tolist())} == want
    assert np.all(np.diff(kept.scores) <= 0)
    first = suppressed(found, corners[found.rows], 0.4, 7)
    assert first.rows.tolist() == kept.rows[:7].tolist()


def test_control_boxes_of_two_classes_never_meet():
    one, two = np.array([[0, 0, 10, 10.0]] * 2), np.array([[3.0, -9], [-9, 2.0]])
    found = candidates(two, 0.5)
    assert len(suppressed(found, one, 0.5, 9).rows) == 2
    assert len(suppressed(found._replace(kinds=np.zeros(2, int)), one, 0.5, 9).rows) == 1


def raw(rows, classes=2):
    """Head output (N, 4 + K) of (box, class, logit)."""
    out = np.full((len(rows), 4 + classes), -9.0, np.float32)
    for row, (box, kind, logit) in zip(out, rows):
        row[:4], row[4 + kind] = box, logit
    return out


def test_decoding_gives_pixels_of_the_image_itself():
    picture = np.zeros((96, 256, 3), np.uint8)  # 24 x 64 in the middle of 48 x 64
    _, column = pair(picture=picture)
    out = raw(
        [([8, 16, 16, 20], 0, 2.0), ([8, 16, 16, 21], 0, 1.0), ([50, 0, 80, 60], 1, 3.0), ([0, 0, 64, 11], 1, 4.0)]
    )
    answer = column.decode(out, of=picture)
    told = [(v["label"], v["box"]) for v in answer.value]
    assert told == [("cat", [200.0, 0.0, 56.0, 96.0]), ("ball", [32.0, 16.0, 32.0, 16.0])]  # the padding holds no box
    assert answer.probability == answer.value[0]["score"] == pytest.approx(1 / (1 + np.exp(-3)))
    assert answer.places == (2 * 2 + 1, 0)
    assert column.decode(out[:2] * [1, 1, 1, 1, 0, 0] + raw([([0] * 4, 0, -8.0)] * 2)).value == []
    assert column.decode(raw([([0, 0, 9, 9], 0, -8.0)]), of=picture).probability is None
    assert np.isnan(column.decode(np.full((3, 6), np.nan), of=picture).probability)
    json.dumps(answer.value)


def test_which_box_is_explained():
    picture = np.zeros((48, 64, 3), np.uint8)
    _, column = pair(picture=picture)
    out = raw(
        [([0, 0, 9, 9], 0, 1.0), ([20, 20, 30, 30], 1, 2.0), ([40, 20, 50, 30], 1, 3.0), ([5, 30, 9, 40], 0, -6.0)]
    )
    answer = column.decode(out, of=picture)
    fixed = lambda target: tuple(map(int, divmod(int(column.fixed(answer, target)[0]), 2)))  # noqa: E731
    assert fixed(None) == (2, 1) and fixed("ball") == (0, 0) and fixed("cat") == (2, 1)
    assert fixed("cat@2") == (1, 1)
    assert column.fixed(answer, "cat@2")[1] is answer.value[1] and column.named(answer, answer.value[2]).startswith(
        "ball 0.73 ("
    )
    for missing, there in (("cat@3", "cat@1, cat@2"), ("@9", "@1, @2, @3")):
        with pytest.raises(RequestError, match=there):
            column.fixed(answer, missing)
    assert column.numbered(out[None]).tolist() == [2 * 2 + 1]
    nothing = column.decode(out[3:], of=picture)
    assert nothing.value == [] and int(column.fixed(nothing)[0]) == int(column.numbered(out[None, 3:])[0]) == 0
    _, unanswered = column.fixed(
        column.decode(out[1:], of=picture), "ball"
    )  # a class of its own, though no box of it is answered
    assert unanswered["label"] == "ball" and unanswered["score"] == pytest.approx(1 / (1 + np.exp(6)))
    assert "not answered" in column.named(column.decode(out[1:], of=picture), unanswered)
    assert column.fixed(column.decode(np.full((3, 6), np.nan), of=picture), "ball")[1]["box"] is None
    with pytest.raises(RequestError, match="0 of the kind"):
        column.fixed(nothing, "cat@1")
    for wrong in ("dog", "cat@x", "cat@0"):
        with pytest.raises(RequestError, match="class"):
            column.fixed(answer, wrong)


def test_a_person_reads_which_box_is_explained():
    picture = np.zeros((48, 64, 3), np.uint8)
    _, column = pair(picture=picture)
    out = raw([([10 * i, 0, 10 * i + 9, 9], 1, 4.0 - i) for i in range(5)])
    answer = column.decode(out, of=picture)
    said = column.legible(answer)
    assert said.startswith("cat 0.98 (x 0, y 0, ") and said.count("cat") == 3 and said.endswith("; 2 more")
    assert column.legible(column.decode(out[:0], of=picture)) == "no box"
    place, one = column.placement(picture), answer.value[1]
    marked = column.marked("<img>", answer, one, picture)
    x = float(re.search(r'<rect x="([\d.]+)"', marked)[1])
    assert x == pytest.approx(one["box"][0] * place.scale[1] + place.shift[1], abs=0.02)  # in pixels of what is shown
    assert harmless(marked) and f'viewBox="0 0 {place.target[1]} {place.target[0]}"' in marked


# -- bad input -----------------------------------------------------------------------------------------------------------
BAD = {
    "boxes.not_boxes": ["cat", '{"a": 1}', 7, [[1, 2, 3, 4]], {"label": ["a"], "box": []}],
    "boxes.no_label": [[{"box": [1, 2, 3, 4]}], [{"label": " ", "box": [1, 2, 3, 4]}], [{"label": None, "box": [1, 2, 3, 4]}]],
    "boxes.not_a_box": [[{"label": "cat", "box": b}] for b in ([1, 2, 3], "1 2 3 4", None, [1, 2, 3, float("nan")], [1, 2, True, 4])],
    "boxes.empty": [[{"label": "cat", "box": b}] for b in ([1, 2, 0, 4], [1, 2, 3, -4])],
    "boxes.not_an_area": [[{"label": "cat", "box": [1, 2, 3, 4], "area": a}] for a in (-1, "12", True, float("nan"), [12])],
}  # fmt: skip


@pytest.mark.parametrize(("id", "value"), [(i, v) for i, values in BAD.items() for v in values])
def test_a_bad_cell_is_told(id, value):
    with pytest.raises(BadRow) as e:
        written.plain(value)
    assert e.value.id == id
    with pytest.raises(DataError, match="objects"):
        pair()[1].encode(value, of=np.zeros((48, 64, 3), np.uint8))


def test_an_area_is_kept_where_it_is_told():
    cell = [
        {"label": "cat", "box": [1, 2, 30, 40], "area": 700.5},
        {"label": "cat", "box": [1, 2, 30, 40], "area": None},
    ]
    told, untold = written.plain(written.text_of(written.plain(cell)))
    assert (told.area, told.pixels, untold.area, untold.pixels) == (700.5, 700.5, None, 1200)
    cut, _ = written.inside([told, untold], (30, 20))
    assert cut.box == (1, 2, 19, 28) and cut.area == 700.5  # as the file has it


def test_a_box_outside_of_its_image():
    _, column = pair()
    picture = np.zeros((48, 64, 3), np.uint8)
    with pytest.raises(DataError, match="64 x 48"):
        column.encode([{"label": "cat", "box": [70, 2, 3, 4]}], of=picture)
    cut = column.encode([{"label": "cat", "box": [60, -2, 30, 12]}], of=picture)
    assert cut.tolist() == [[2, 60, 0, 64, 10]]


def photo(folder, name, size=(48, 64)):
    Pillow.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / name)
    return str(folder / name)


def test_bad_rows_go_aside_and_are_counted(tmp_path):
    cells = [
        [{"label": "cat", "box": [1, 2, 3, 4]}],
        [{"label": "cat", "box": [99, 2, 3, 4]}],
        [{"label": "cat", "box": [60, 2, 30, 4]}],
        [],
        None,
    ]
    files = [photo(tmp_path, f"{i}.png") for i in range(5)]
    with open(tmp_path / "rows.jsonl", "w") as file:
        file.writelines(json.dumps({"photo": f, "objects": c}) + "\n" for f, c in zip(files, cells))
    rows = read(tmp_path / "rows.jsonl")
    assert rows.table["objects"].type == pa.string()
    done = written.boxed(rows, "objects", "photo")
    assert [q.reason_id for q in done.quarantine] == ["boxes.outside"] and done.quarantine[0].line == 2
    assert [n.id for n in done.notes] == ["boxes.cut"]
    found = [written.plain(v) for v in done.table["objects"].to_pylist()]
    assert found[1][0].box == (60, 2, 4, 4) and found[2] == [] and found[3] is None
    with pytest.raises(DataError, match="outside"):
        written.boxed(rows.take([1]), "objects", "photo")


# -- recipes -------------------------------------------------------------------------------------------------------------
def test_the_image_is_told_and_nothing_is_cut_off():
    recipe = Recipe.of({"luban": 1, "inputs": {"photo": "image"}, "outputs": {"objects": "boxes"}})
    assert recipe.task() == "object-detection"
    assert recipe.along()["objects"].settings["of"] == "photo"
    assert recipe._with_lent("photo", recipe.inputs["photo"]).settings == {"shape": "pad", "largest": 256}
    plain = {"luban": 1, "inputs": {"photo": {"image": {"shape": "crop"}}}, "outputs": {"objects": "boxes"}}
    asked = Recipe.of(plain)
    assert asked._with_lent("photo", asked.inputs["photo"]).settings["shape"] == "crop"
    for inputs, of in (({"a": "image", "b": "image"}, None), ({"a": "text"}, None), ({"a": "image"}, "c")):
        with pytest.raises(RecipeError, match="image"):
            Recipe.of({"luban": 1, "inputs": inputs, "outputs": {"objects": {"boxes": {"of": of} if of else {}}}})


def test_how_far_two_answers_agree():
    from luban.columns.base import Answer

    _, column = pair()
    box = lambda k, x, s=0.9: {"label": k, "box": [x, 0, 10, 10], "score": s}  # noqa: E731
    agree = lambda a, b: column.agree(Answer(a), Answer(b))  # noqa: E731
    assert agree([], []) == 1 and agree([box("cat", 0)], []) == 0 and agree([box("cat", 0, 0.1)], []) == 1
    assert agree([box("cat", 0), box("cat", 30)], [box("cat", 1)]) == pytest.approx(2 / 3)
    assert agree([box("cat", 0)], [box("ball", 0)]) == 0 and agree([box("cat", 0)], [box("cat", 6)]) == 0
