"""Plots: valid SVG for every kind of data, nothing drawn where there is nothing, values where they belong."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from luban import drawing, plots
from luban.markup import fitted, harmless, visible, width_of

NAN, INF = float("nan"), float("inf")
EVIL = '<script>"&\n\x00'


def parsed(svg: str) -> ElementTree.Element:
    """The drawing as XML; no coordinate may be NaN or infinite."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        for key, value in element.attrib.items():
            assert key == "class" or not re.search(r"\b(nan|inf)\b", value), (key, value)
    return root


def found(svg: str, name: str) -> list[ElementTree.Element]:
    return list(parsed(svg).iter("{http://www.w3.org/2000/svg}" + name))


DRAWINGS = {
    "lines": plots.lines(
        {EVIL: ([1, 2, 3], [1, NAN, 2]), "b": ([1, 2], [INF, 3]), "c": ([], [])},
        title=EVIL,
        x_label=EVIL,
        y_label=EVIL,
        marks={EVIL: 2, "n": NAN},
    ),
    "lines constant": plots.lines({"a": ([1, 2], [5, 5])}),
    "lines one point": plots.lines({"a": ([1], [0])}),
    "lines huge": plots.lines({"a": ([1, 2], [-1e300, 1e300])}),
    "lines tiny": plots.lines({"a": ([0, 1], [1e-300, 2e-300])}),
    "bars": plots.bars([EVIL, "b", "c"], [1.5, NAN, -2], [[1, 2], [NAN, NAN], [-3, -1]], signed=True, x_label=EVIL),
    "bars zero": plots.bars(["a"], [0]),
    "heatmap": plots.heatmap([[1, NAN], [-2, 0]], [EVIL, "b"], [EVIL, "d"], x_label=EVIL, y_label=EVIL, by_row=True),
    "heatmap zero": plots.heatmap(np.zeros((2, 2)), ["a", "b"], ["a", "b"], by_row=True),
    "scatter": plots.scatter([1, NAN, 3], [1, 2, INF], diagonal=True, x_label=EVIL),
    "reliability": plots.reliability([NAN, 0.7], [NAN, 0.5], [0, 9], x_label=EVIL, y_label=EVIL, count_label=EVIL),
    "roc": plots.roc({EVIL: ([0, 0.5, 1], [0, 0.9, 1]), "b": ([NAN], [NAN])}, x_label=EVIL),
    "histogram": plots.histogram([1, 2, 2, NAN], x_label=EVIL),
}
EMPTY = {
    "lines": plots.lines({}),
    "lines nan": plots.lines({"a": ([1], [NAN])}),
    "bars": plots.bars([], []),
    "bars nan": plots.bars(["a"], [NAN]),
    "heatmap": plots.heatmap(np.zeros((0, 0)), [], []),
    "heatmap nan": plots.heatmap([[NAN]], ["a"], ["b"]),
    "scatter": plots.scatter([NAN], [1]),
    "reliability": plots.reliability([NAN], [NAN], [0]),
    "roc": plots.roc({"a": ([NAN], [NAN])}),
    "histogram": plots.histogram([]),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_drawing_is_valid_and_harmless(name):
    parsed(DRAWINGS[name])
    assert harmless(DRAWINGS[name]) and "<script" not in DRAWINGS[name]
    assert "currentColor" in DRAWINGS[name] and "var(--" in DRAWINGS[name]


def test_the_check_sees_a_nan():
    with pytest.raises(AssertionError):
        parsed('<svg xmlns="http://www.w3.org/2000/svg"><circle cx="nan"/></svg>')


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_to_draw_is_said(name):
    assert [t.text for t in found(EMPTY[name], "text")] == ["nothing to draw"]


def test_a_gap_breaks_the_line_and_a_lone_point_is_a_dot():
    svg = plots.lines({"a": ([1, 2, 3, 4, 5], [1, 2, NAN, 3, NAN])})
    assert found(svg, "path")[0].get("d").count("M") == 2
    assert len(found(svg, "circle")) == 1


def test_long_lines_keep_their_peak():
    y = np.zeros(100_000)
    y[54_321] = 1.0
    a, b = drawing.thinned(np.arange(100_000.0), y)
    assert len(a) < 2 * drawing.MOST_POINTS and b.max() == 1.0


def test_bars_lie_where_the_values_are():
    rects = found(plots.bars(["a", "b", "c"], [1.0, 2.0, -1.0], signed=True), "rect")
    start = [float(r.get("x")) for r in rects]
    wide = [float(r.get("width")) for r in rects]
    assert wide[1] == pytest.approx(2 * wide[0], rel=0.01) and wide[2] == pytest.approx(wide[0], rel=0.01)
    assert start[0] == start[1] and start[2] + wide[2] == pytest.approx(start[0], abs=0.02)
    assert rects[2].get("fill") != rects[0].get("fill")


@pytest.mark.parametrize("k", [2, 20, 60])
def test_a_confusion_matrix_of_any_size_shows_each_cell(k):
    matrix = np.arange(k * k).reshape(k, k)
    svg = plots.heatmap(matrix, range(k), range(k))
    assert len(found(svg, "rect")) == k * k
    shown = [t.text for t in found(svg, "text")]
    assert (f"{k * k - 1:,}" in shown) == (k <= 40)


def test_heatmap_rows_are_truth_from_the_top():
    rects = found(plots.heatmap([[9, 0], [5, 1]], ["a", "b"], ["a", "b"]), "rect")
    hints = {r[0].text: (float(r.get("x")), float(r.get("y"))) for r in rects}
    assert hints["b → a: 5"][0] == hints["a → a: 9"][0] and hints["b → a: 5"][1] > hints["a → a: 9"][1]


def test_by_row_makes_a_rare_class_as_strong_as_a_common_one():
    assert plots._shades(np.array([[900.0, 100], [1, 9]]), True).tolist() == [[0.9, 0.1], [0.1, 0.9]]


def test_many_dots_are_sampled_and_said():
    svg = plots.scatter(np.arange(10_000), np.arange(10_000))
    assert len(found(svg, "circle")) == plots.MOST_DOTS
    assert any("3,000 of 10,000" in t.text for t in found(svg, "text"))


def test_curves_go_through_their_points():
    x, y = drawing.Axis(0, 10, 100, 200), drawing.Axis(0, 1, 50, 0)
    assert x(5) == 150 and y(1) == 0 and y.ticks() == [0, 0.2, 0.4, 0.6, 0.8, 1.0]


def pixels(html: str) -> np.ndarray:
    data = re.search(r"base64,([^\"]+)", html).group(1)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3), (8, 8, 4), (500, 300)])
def test_an_image_is_embedded(shape):
    html = plots.image(np.full(shape, 77, np.uint8), title=EVIL)
    assert harmless(html) and "<script" not in html
    assert (pixels(html) == 77).all()


def test_the_overlay_is_red_for_and_blue_against():
    weights = np.array([[1.0, -1.0], [0.0, NAN]])
    shown = pixels(plots.image(np.full((2, 2), 128, np.uint8), weights))
    half = shown.shape[0] // 2
    red, blue, none = shown[0, 0], shown[0, -1], shown[-1, 0]
    assert red[0] > red[2] + 50 and blue[2] > blue[0] + 50 and len(set(none)) == 1 and half


def test_a_coarse_overlay_is_stretched_to_the_picture():
    shown = pixels(plots.image(np.zeros((28, 28), np.uint8), np.eye(7), width=28))
    assert shown.shape[:2] == (28, 28) and shown[0, 0, 0] > 50 and shown[0, -1, 0] == 0


def test_no_picture_is_said():
    assert "nothing to draw" in plots.image(np.zeros((0, 0), np.uint8))


def test_a_name_is_cut_where_it_is_wider_than_its_room_and_no_further_is_read():
    for text in ("wide", "a long word that has no room", "W" * 40, "漢字" * 30, "a\n" * 30, "", "\x00" * 50):
        short = fitted(text, 60, 11)
        assert width_of(short.removesuffix("…"), 11) <= 60
        whole = "".join(visible(text))
        if short != whole:
            longer = whole[: len(short)].rstrip()
            assert short.endswith("…") and whole.startswith(short[:-1])
            assert width_of(longer + "…", 11) > 60 or longer == short[:-1]

    class Counted(str):
        """Slices, and nothing else, are read."""

        __slots__ = ()

        def __str__(self):
            return self

        def __iter__(self):
            raise AssertionError

    assert fitted(Counted("a" * 10_000_000), 60, 11).startswith("aaa")
