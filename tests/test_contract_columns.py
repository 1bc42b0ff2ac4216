"""Contract battery of columns: runs over every registered column type.

A new column type needs one line in `VALUES`: some raw values as a table would hold them. Every check has a planted fault.
"""

import base64
import io
import json
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import ClassVar

import numpy as np
import pytest

from luban import registry
from luban.columns.base import Column, Ragged, Segments, from_json, make, take, to_list
from luban.columns.preference import BETWEEN
from luban.columns.text import Text
from luban.errors import DataError

NASTY = '<script>alert("x")</script> & "quotes"'


def png(seed, height=12, width=10):
    from PIL import Image

    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def gif(seed, frames=5):
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 12, 10, 3), np.uint8)
    first, *others = [Image.fromarray(p) for p in pixels]
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others)
    return base64.b64encode(file.getvalue()).decode()


def mask_png(classes):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(classes).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


TALK = [{"role": "user", "content": "is it good?"}, {"role": "assistant", "content": "它很好看。 😀"}]
VALUES = {
    "number": [1.5, -2.0, None, 1e9, 0.25, 3.0, 3.0],
    "category": ["a", "b", None, "", "a", NASTY, "b"],
    "text": ["Good, really good film", "它很好看。 ok", None, "", "  ", NASTY, "don't 😀👍🏽 \ud800 \0 ﬁn"],
    "chat": [
        TALK,
        [{"from": "human", "value": NASTY}, {"from": "gpt", "value": ""}],
        None,
        "",
        json.dumps(TALK),
        {"messages": [{"role": "system", "content": "be 短"}, *TALK, *TALK]},
    ],
    "preference": [
        {"prompt": "is it good?", "chosen": "很好 😀", "rejected": "no"},
        None,
        "",
        {"chosen": NASTY, "rejected": "b"},
        {"prompt": TALK[:1], "chosen": TALK, "rejected": [*TALK[:1], {"role": "assistant", "content": "?"}]},
    ],
    "image": [png(0), png(1), None, png(2, 40, 10), png(3, 12, 10), png(4), png(5)],
    "mask": [
        np.eye(16, 40, dtype=np.int64) * 2,
        [[0, 1, 255, 2] * 10] * 16,
        None,
        "",
        mask_png(np.arange(640, dtype=np.uint8).reshape(16, 40) % 3),
        np.ones((16, 40)),
        np.zeros((16, 40), bool),
    ],
    "noise": [3, 0, None, "", "12", 4.0, 2**40],
    "video": [gif(0), gif(1, 3), None, "", gif(2, 1), png(3), gif(4, 20)],
    "labels": ["a;b", ["b", "c"], None, "", [], NASTY, "c; a"],
    "span": [
        "de Lee",
        {"text": "Rome", "start": 3},
        None,
        "",
        [],
        '[{"text": "said", "answer_start": 6}]',
        ["two", "three"],
        NASTY,
    ],
    "boxes": [
        [{"label": NASTY, "box": [1, 2, 5, 6]}, {"label": "cat", "box": [0.5, 0, 4, 4], "crowd": True}],
        [{"label": "cat", "box": [2, 2, 30.5, 8]}],
        None,
        "",
        [],
        '[{"category": "dog", "bbox": [3, 4, 2, 2]}]',
        {"label": ["cat", "dog"], "bbox": [[0, 0, 3, 3], [5, 5, 4, 4]]},
    ],
    "tags": ["O B-PER I-PER", ["O", "B-LOC"], None, "", '[{"start": 0, "end": 5, "label": "PER"}]', "O", "I-LOC O O"],
}
# A column `of:` another gets the other's value beside its own; any text where a value is none of these.
TEXTS = dict(
    zip(map(repr, VALUES["tags"]), ["mr de Lee", ["in", "Rome"], "no tag", None, "Smith said", "word", "a b c"])
)
TEXTS |= dict(
    zip(
        map(repr, VALUES["span"]),
        ["mr de Lee", "in Rome", "no tag", None, "word", "Smith said", "one two three", NASTY],
    )
)
PHOTO = make("photo", "image", {"side": [24, 20], "shape": "pad"}).fit([png(0), png(1, 30, 12)])
WORDS = make("text", "text", {}).fit(["mr de lee in rome", "smith said a b c", "word", "mr de lee a b c in"])
VARIANTS = [
    *((n, {}) for n in registry.COLUMNS),
    *(("text", {"tokens": t}) for t in ("characters", "words", "bpe")),
    ("text", {"length": 3, "keep": "end"}),
    ("text", {"length": 3, "long": "split"}),
    ("text", {"lower": False, "normalise": False}),
    ("image", {"shape": "pad", "channels": 1}),
    ("image", {"side": [9, 5], "shape": "stretch"}),
    ("number", {"scale": "none"}),
    ("tags", {"scheme": "bioes"}),
    ("span", {"longest": 2}),
]
every = pytest.mark.parametrize(("type", "settings"), VARIANTS, ids=str)


def fitted(type, settings):
    return learned(make("x", type, settings), VALUES[type]), VALUES[type]


def beside(column):
    if not column.of_form:
        return column
    name, other = ("text", WORDS) if column.of_form == "ids" else ("photo", PHOTO)
    return replace(column, of=name).beside({name: other})


def learned(column, values):
    return beside(column).fit(values, of=others(column, values)) if column.of_form else column.fit(values)


def others(column, values):
    """Beside each value one of the column that this one is `of:`."""
    return [TEXTS.get(repr(v), "word") for v in values] if column.of_form == "ids" else [png(7, 16, 40)] * len(values)


def encode(column, value):
    return column.encode(value, of=others(column, [value])[0]) if column.of_form else column.encode(value)


def encode_all(column, values):
    return column.encode_all(values, of=others(column, values)) if column.of_form else column.encode_all(values)


def test_every_type_has_values():
    assert set(VALUES) == set(registry.COLUMNS)


# -- the faults that each check below must find ------------------------------------------------------------------------
@dataclass(frozen=True)
class Faulty(Text):
    type: ClassVar[str] = "text"
    fault: str = ""

    def encode_all(self, values, of=None):
        if self.fault == "fast":  # a fast road that forgets to normalise
            return super().encode_all([v.upper() if isinstance(v, str) else v for v in to_list(values)])
        return super().encode_all(values)

    def collate(self, items):
        x, mask = super().collate(items)
        return (x, np.ones_like(mask)) if self.fault == "mask" else (x, mask)

    def nothing(self, x):
        return np.full((), 1.5) if self.fault == "shape" else super().nothing(x)

    def segments(self, value):
        names, index = super().segments(value)
        return Segments(names, index + 1) if self.fault == "index" else Segments(names, index)

    def render(self, value, weights=None):
        return str(value) if self.fault == "html" else super().render(value, weights)

    def augment(self, x, mask, rng):
        return (
            (np.where(rng.random(x.shape) < 0.5, 1, x), None)
            if self.fault == "augment"
            else super().augment(x, mask, rng)
        )


def faulty(fault):
    return Faulty("x", lower=False, fault=fault).fit(VALUES["text"]), VALUES["text"]


# -- one road ----------------------------------------------------------------------------------------------------------
def same_road(column, values):
    together = encode_all(column, values)
    items = [
        together.take(np.array([i]))[0] if isinstance(together, Ragged) else together[i] for i in range(len(values))
    ]
    return all(
        a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in zip(items, [encode(column, v) for v in values])
    )


@every
def test_one_and_many_encode_alike(type, settings):
    column, values = fitted(type, settings)
    assert same_road(column, values)
    assert isinstance(encode_all(column, values), Ragged) == column.ragged
    assert len(column.encode_all([])) == 0


def test_control_one_road():
    assert not same_road(*faulty("fast"))


@every
def test_fitting_changes_nothing_but_a_new_column(type, settings):
    empty = make("x", type, settings)
    column = learned(empty, VALUES[type])
    assert empty.state == {} and column.state and column == learned(empty, VALUES[type])
    with pytest.raises(DataError):
        empty.fit([None, None])


@every
def test_survives_json(type, settings):
    column, values = fitted(type, settings)
    again = beside(from_json(json.loads(json.dumps(column.to_json(), allow_nan=False))))
    assert again == column and same_road(again, values)
    x, y = (c.collate(take(encode_all(c, values), np.arange(len(values)))) for c in (column, again))
    assert np.array_equal(x[0], y[0]) and np.array_equal(x[1], y[1])


# -- batches -----------------------------------------------------------------------------------------------------------
def batch(column, values, index=None):
    return column.collate(take(encode_all(column, values), np.arange(len(values)) if index is None else index))


def padding_is_marked(column, values):
    _, mask = batch(column, values)
    return (
        not mask.reshape(len(values), -1)[[i for i, v in enumerate(values) if v is None]].any() and mask.dtype == bool
    )


@every
def test_collate(type, settings):
    column, values = fitted(type, settings)
    x, mask = batch(column, values)
    ranks = {
        "scalar": 1,
        "index": 1,
        "ids": 2,
        "tags": 2,
        "labels": 2,
        "span": 2,
        "vectors": 3,
        "grid": 4,
        "frames": 5,
        "boxes": 3,
        "mask": 3,
    }
    assert x.ndim == ranks[column.form] and len(x) == len(mask) == len(values)
    assert np.isfinite(x.astype(float)).all(), "a network must never see a NaN"
    if column.form in ("ids", "index", "tags"):
        x = x[x != BETWEEN]
        ids = np.where(x < 0, ~x, x) if type in ("chat", "preference") else x  # ~id: given, not learned
        assert ids.min() >= 0 and ids.max() < column.size
    if column.form not in ("grid", "frames", "boxes"):  # of boxes a row of class 0 says that the truth is missing
        assert padding_is_marked(column, values)


def test_control_collate():
    assert not padding_is_marked(*faulty("mask"))


@every
def test_augmentation_keeps_shape_type_and_padding(type, settings):
    column, values = fitted(type, settings)
    assert augments_well(column, values)


def augments_well(column, values):
    x, mask = batch(column, values)
    before = x.copy()
    changed, _ = column.augment(x, mask, np.random.default_rng(0))
    again, _ = column.augment(x, mask, np.random.default_rng(0))
    same = changed.shape == x.shape and changed.dtype == x.dtype and np.array_equal(changed, again)
    kept = np.array_equal(changed[~mask], x[~mask]) if mask.shape == x.shape and column.form == "ids" else True
    return same and kept and np.array_equal(x, before)


def test_control_augmentation():
    assert not augments_well(*faulty("augment"))


def test_what_is_of_an_image_moves_with_it():
    column = make("x", "image", {"flip": True, "shift": 0.2}).fit(VALUES["image"])
    x = column.encode_all(VALUES["image"] * 4)
    moved, change = column.augment(x, np.ones(len(x), bool), np.random.default_rng(0))
    assert change.flip.any() and not change.flip.all() and np.array_equal(column.follow(x, change), moved)
    assert not np.array_equal(x, moved)  # control: without follow the two would differ
    i = int(np.flatnonzero(~change.flip)[np.abs(change.dy[~change.flip]).argmax()])
    dy, dx = int(change.dy[i]), int(change.dx[i])
    inner = np.roll(x[i], (dy, dx), (1, 2))[:, 3:-3, 3:-3]
    assert np.array_equal(moved[i][:, 3:-3, 3:-3], inner)


# -- segments ------------------------------------------------------------------------------------------------------------
def ablates_well(column, values):
    for value in values:
        x, (names, index) = encode(column, value), column.segments(value)
        if (
            index.max(initial=-1) >= len(names)
            or index.min(initial=0) < -1
            or (names and index.max(initial=-1) != len(names) - 1)
        ):
            return False
        keep = np.random.default_rng(0).random((5, len(names))) < 0.5
        keep[0] = True
        many, one = column.ablate(x, index, keep), column.ablate(x, index, keep[1])
        if many.shape != (5, *x.shape) or one.shape != x.shape or many.dtype != x.dtype:
            return False
        if not np.array_equal(many[0], x, equal_nan=x.dtype.kind == "f") or not np.array_equal(
            many[1], one, equal_nan=x.dtype.kind == "f"
        ):
            return False
    return True


@every
def test_segments_and_ablation(type, settings):
    assert ablates_well(*fitted(type, settings))


@pytest.mark.parametrize("fault", ["shape", "index"])
def test_control_ablation(fault):
    assert not ablates_well(*faulty(fault))


@every
def test_hiding_a_segment_changes_its_positions_only(type, settings):
    column, values = fitted(type, settings)
    x, (names, index) = encode(column, values[0]), column.segments(values[0])
    gone = column.ablate(x, index, np.arange(len(names)) != len(names) - 1)
    changed = np.broadcast_to(column.spread(index == len(names) - 1, x), x.shape)
    assert np.array_equal(gone[~changed], x[~changed])
    assert np.array_equal(gone[changed], np.broadcast_to(column.nothing(x), x.shape)[changed])


# -- what others see -------------------------------------------------------------------------------------------------------
@every
def test_schema_is_valid_and_its_example_is_one(type, settings):
    column, _ = fitted(type, settings)
    schema = column.schema()
    json.dumps(schema, allow_nan=False)
    assert schema["type"] and schema["examples"]
    for example in schema["examples"]:
        encode(column.guarded(), example)


@every
def test_features_have_a_row_for_each_value(type, settings):
    column, values = fitted(type, settings)
    made = column.featurizer(values)
    assert made(values).shape[0] == len(values) and made(values[:2]).shape == (2, made(values).shape[1])
    assert column.features(values).shape[0] == len(values)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


def seen(column, value, weighted):
    tags = Tags()
    count = len(column.segments(value).names)
    tags.feed(column.render(value, np.linspace(-1, 1, count) if weighted else None))
    return tags


@every
@pytest.mark.parametrize("weighted", [False, True])
def test_render_escapes_html(type, settings, weighted):
    column, values = fitted(type, settings)
    assert not any("script" in seen(column, v, weighted).tags for v in values)
    if type in ("text", "category"):
        assert NASTY in seen(column, NASTY, weighted).text or settings.get("length") == 3


def test_control_render():
    assert "script" in seen(*(faulty("html")[0], NASTY), False).tags


# -- what strangers send -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("type", list(registry.COLUMNS))
@pytest.mark.parametrize(
    "value", [[], {}, [1, [2]], b"\x00", float("inf"), "x" * 100_000, True, 10**400], ids=lambda v: str(v)[:12]
)
def test_a_strange_value_is_encoded_or_refused_in_a_sentence(type, value):
    column, _ = fitted(type, {})
    try:
        assert np.isfinite(column.collate([encode(column, value)])[0].astype(float)).all()
    except DataError as e:
        assert str(e) and len(str(e)) < 1000


def test_a_server_opens_no_file_that_a_stranger_names(tmp_path):
    column = make("x", "image", {}).fit(VALUES["image"])
    path = tmp_path / "secret.png"
    path.write_bytes(base64.b64decode(png(1)))
    assert column.encode(str(path)).shape  # control: at home it is read
    with pytest.raises(DataError):
        column.guarded().encode(str(path))


POOLING = [
    n
    for n in registry.COLUMNS
    if registry.find("columns", n).pools and not hasattr(registry.find("columns", n), "joined_up")
]


def check_pooling(column, o):
    """Windows (W, K) that say the same pool to what each says; their order does not matter."""
    alike, one = column.decode(column.pooled(np.repeat(o[:1], 3, 0))), column.decode(o[0])
    assert alike.value == (pytest.approx(one.value) if isinstance(one.value, float) else one.value)
    assert one.probability is None or alike.probability == pytest.approx(one.probability, abs=1e-6)
    assert np.allclose(column.pooled(o), column.pooled(o[::-1])) and column.pooled(o).shape == o[0].shape


@pytest.mark.parametrize("type", [n for n in POOLING if n != "tags"])  # which are stitched together
def test_windows_of_a_long_text_make_one_answer(type):
    column, _ = fitted(type, {})
    check_pooling(column, np.random.default_rng(0).normal(0, 2, (4, len(getattr(column, "labels", [0])))))


def test_control_pooling():
    class Summing(type(fitted("labels", {})[0])):
        def pooled(self, o):
            return o.sum(0)

    column = Summing("x").fit(VALUES["labels"])
    with pytest.raises(AssertionError):
        check_pooling(column, np.random.default_rng(0).normal(0, 2, (4, len(column.labels))))


def test_a_column_is_fitted_on_what_it_is_given():
    column = Text("t", tokens="words", least=1).fit(["alpha beta"])
    assert column.encode("alpha gamma").tolist()[1] == 1 and 1 not in column.encode("beta alpha").tolist()
    assert isinstance(replace(column, drop=0.5), Column)
