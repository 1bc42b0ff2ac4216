"""Pictures for reports: pure functions from numbers to SVG (or one `<img>`), no script, nothing fetched.

Colours are CSS variables with a fallback, text is `currentColor`, so that a plot reads well on light and dark pages and on its
own. Titles and axis labels come from the caller, who takes them from the catalogue. Values that are not finite are left
out of the drawing, never drawn as zero; a plot without any value says so.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luban.drawing import (
    WIDTH,
    Axis,
    color,
    dash,
    empty,
    frame,
    legend_of,
    line,
    lone,
    path,
    short,
    span,
    square,
    svg,
    text,
    thinned,
)
from luban.markup import escape, fitted, number, tag, visible, width_of
from luban.messages import say

SHADE = (66, 128, 236)  # between the first colour of a light page and that of a dark one
RED, BLUE = np.array([214, 48, 49]), np.array([38, 98, 214])
MOST_DOTS = 3000


def lines(
    series: Mapping[str, tuple[Any, Any]],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    marks: Mapping[str, float] | None = None,
    zero: bool = False,
    height: float = 300,
) -> str:
    """Curves over a common axis: `{name: (x, y)}`. `marks` are named vertical lines (the best epoch)."""
    arrays = {n: (np.asarray(a, float).ravel(), np.asarray(b, float).ravel()) for n, (a, b) in series.items()}
    xs, ys = span(a[np.isfinite(b)] for a, b in arrays.values()), span((b for _, b in arrays.values()), zero=zero)
    if xs is None or ys is None:
        return empty(title)
    left = 14 + max(width_of(number(v), 12) for v in Axis(*ys, 1, 0).ticks())
    x, y = Axis(*xs, max(left, 40), WIDTH - 14), Axis(*ys, height, 28)
    whole = all(np.all(a[np.isfinite(a)] == np.round(a[np.isfinite(a)])) for a, _ in arrays.values())
    parts = frame(x, y, x_label, y_label, "x" if whole else "")
    for name, value in (marks or {}).items():
        if not math.isfinite(value):
            continue
        at = float(x(value))
        parts.append(line(at, y.start, at, y.end, opacity="0.55", stroke_dasharray="3 3"))
        right = at > (x.start + x.end) / 2
        parts.append(
            text(
                at + (-6 if right else 6),
                y.end + 12,
                fitted(name, 200, 11),
                size=11,
                soft=True,
                anchor="end" if right else "start",
            )
        )
    for i, (a, b) in enumerate(arrays.values()):
        a, b = thinned(np.asarray(x(a)), np.asarray(y(b)))
        parts.append(path(a, b, stroke=color(i), stroke_dasharray=dash(i)))
        parts += [tag("circle", cx=short(a[j]), cy=short(b[j]), r=3, fill=color(i)) for j in lone(a, b)]
    legend, more = legend_of(list(arrays), WIDTH, height + (62 if x_label else 44))
    return svg(WIDTH, height + (48 if x_label else 28) + more, parts + legend, title)


def bars(
    names: Sequence[Any],
    values: Any,
    intervals: Any = None,
    signed: bool = False,
    *,
    title: str = "",
    x_label: str = "",
) -> str:
    """Horizontal bars, one a name. `intervals` (N, 2) are drawn as whiskers; `signed` colours below zero otherwise."""
    values = np.asarray(values, float).ravel()
    limits = np.full((len(values), 2), np.nan) if intervals is None else np.asarray(intervals, float).reshape(-1, 2)
    across = span([values, limits], zero=True)
    if across is None:
        return empty(title)
    size, row = (12, 26) if len(values) <= 30 else (10, 17)
    left = min(max(width_of(visible(n), size) for n in names) + 14, 0.42 * WIDTH)
    x = Axis(*across, left + (52 if across[0] < 0 else 0), WIDTH - 58)
    parts = [line(float(x(0)), 6, float(x(0)), 8 + row * len(values), opacity="0.45")]
    for i, (name, value) in enumerate(zip(names, values.tolist())):
        top = 8 + row * i
        parts.append(text(left - 10, top + row / 2 + 4, fitted(name, left - 12, size), size=size, anchor="end"))
        parts += _bar(x, top, row, value, limits[i].tolist(), signed, size)
    height = 12 + row * len(values)
    if x_label:
        parts.append(
            text((x.start + x.end) / 2, height + 14, fitted(x_label, x.end - x.start, 12), anchor="middle", soft=True)
        )
    return svg(WIDTH, height + (22 if x_label else 2), parts, title)


def _bar(x: Axis, top: float, row: float, value: float, limits: list[float], signed: bool, size: float) -> list[str]:
    zero, middle = float(x(0)), top + row / 2
    if not math.isfinite(value):
        return [text(zero + 6, middle + 4, number(math.nan), size=size, soft=True)]
    at = float(x(value))
    paint = ("var(--pos,#d03b3b)" if value > 0 else "var(--neg,#2f6fde)") if signed else color(0)
    parts = [
        tag(
            "rect",
            x=short(min(zero, at)),
            y=short(top + 3),
            width=short(max(abs(at - zero), 0.8)),
            height=short(row - 6),
            rx=2,
            fill=paint,
        )
    ]
    ends = [at]
    if all(map(math.isfinite, limits)):
        ends += [float(v) for v in x(limits)]
        parts.append(line(ends[1], middle, ends[2], middle, stroke_width=1.5))
        parts += [line(e, middle - 4, e, middle + 4, stroke_width=1.5) for e in ends[1:]]
    if value < 0:
        parts.append(text(min(ends) - 6, middle + 4, number(value, 3), size=size - 1, anchor="end"))
    else:
        parts.append(text(max(ends) + 6, middle + 4, number(value, 3), size=size - 1))
    return parts


def heatmap(
    matrix: Any,
    rows: Sequence[Any],
    columns: Sequence[Any],
    show_values: bool = True,
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    by_row: bool = False,
    signed: bool = False,
    root: bool = False,
) -> str:
    """A table of coloured cells, such as a confusion matrix (rows: truth, columns: answer).

    `by_row` colours each cell by its share of the row, so that rare classes are seen too. Beyond 40 rows or columns the
    figures are left to the colours. `signed`: red above zero, blue below, as signed bars and words are. `root`: shares of 1,
    coloured by their square roots, so that small ones are seen beside large ones.
    """
    matrix = np.asarray(matrix, float).reshape(len(rows), len(columns))
    if not matrix.size or not np.isfinite(matrix).any():
        return empty(title)
    size = 12 if max(matrix.shape) <= 14 else 10 if max(matrix.shape) <= 26 else 8
    said = [[number(v, 3) for v in r] for r in matrix.tolist()]
    fits = max(width_of(s, size) for r in said for s in r) + 8
    left = min(max(width_of(visible(r), size) for r in rows) + 12, 170) + (22 if y_label else 0)
    widest = max(width_of(visible(c), size) for c in columns)
    cell = min(max((WIDTH - left - 10) / len(columns), 4), max(64, min(widest + 8, 120)))
    show_values = show_values and max(matrix.shape) <= 40
    if show_values:
        cell = max(cell, min(fits, 40))
    flat = widest <= cell - 4
    deep = size + 8 if flat else min(widest * 0.72 + 20, 116)
    top = deep + (22 if x_label else 0)
    tall = min(cell, 40) if len(columns) < 12 else cell
    width, height = left + cell * len(columns), top + tall * len(rows)
    parts = _heat_labels(rows, columns, left, top, cell, tall, size, flat, deep)
    if x_label:
        wide = max(cell * len(columns), 200)
        parts.append(text(left, 13, fitted(x_label, wide, 12), soft=True))
        width = max(width, left + width_of(x_label, 12))
    if y_label:
        middle = top + tall * len(rows) / 2
        said_y = fitted(y_label, max(tall * len(rows), 80), 12)
        parts.append(text(12, middle, said_y, anchor="middle", soft=True, transform=f"rotate(-90 12 {short(middle)})"))
    shades = np.sqrt(np.clip(matrix, 0, 1)) if root else _shades(matrix, by_row)
    shown_size = size if fits <= cell else max(size * cell / fits, 5)
    for i in range(len(rows)):
        for j in range(len(columns)):
            place = (left + cell * j, top + tall * i, cell, tall)
            hint = f"{visible(rows[i])} → {visible(columns[j])}: {said[i][j]}"
            parts.append(
                _heat_cell(place, float(shades[i, j]), said[i][j] if show_values else "", hint, shown_size, signed)
            )
    return svg(max(width, left + cell * len(columns) + (10 if flat else deep - cell / 2)), height + 4, parts, title)


def _shades(matrix: np.ndarray, by_row: bool) -> np.ndarray:
    """From -1 to 1; NaN where there is no value."""
    real = np.where(np.isfinite(matrix), np.abs(matrix), 0.0)
    most = real.sum(axis=1, keepdims=True) if by_row else real.max(initial=0.0)
    return np.divide(matrix, most, out=np.zeros_like(matrix), where=np.broadcast_to(most, matrix.shape) > 0)


def _heat_labels(rows, columns, left, top, cell, tall, size, flat, deep) -> list[str]:
    parts = []
    every = max(1, math.ceil((size + 1) / tall))
    for i, name in enumerate(rows):
        if i % every == 0:
            at = top + tall * (i + 0.5) + size * 0.36
            parts.append(text(left - 7, at, fitted(name, 158, size), size=size, anchor="end"))
    every = max(1, math.ceil((size + 1) / cell))
    for j, name in enumerate(columns):
        at = left + cell * (j + 0.5)
        if flat:
            parts.append(text(at, top - 7, visible(name), size=size, anchor="middle"))
        elif j % every == 0:
            turn = f"rotate(-45 {short(at)} {short(top - 6)})"
            parts.append(text(at, top - 6, fitted(name, (deep - 19) / 0.72, size), size=size, transform=turn))
    return parts


def _heat_cell(
    place: tuple[float, float, float, float], shade: float, said: str, hint: str, size: float, signed: bool
) -> str:
    x, y, w, h = place
    known = math.isfinite(shade)
    above, below = ("var(--pos,#d03b3b)", "var(--neg,#2f6fde)") if signed else (color(0), "var(--c2,#d9730d)")
    paint = "none" if not known else above if shade >= 0 else below
    strength = 0.05 + 0.9 * abs(shade) if known else 0
    box = tag(
        "rect",
        tag("title", escape(hint)),
        x=short(x + 0.5),
        y=short(y + 0.5),
        width=short(w - 1),
        height=short(h - 1),
        rx=min(2, w / 8),
        fill=paint,
        fill_opacity=short(strength),
    )
    if not said:
        return box
    ink = "var(--bg,#fff)" if strength > 0.55 else "currentColor"
    return box + text(
        x + w / 2, y + h / 2 + size * 0.36, said, size=short(size), anchor="middle", fill=ink, pointer_events="none"
    )


def scatter(x: Any, y: Any, diagonal: bool = False, *, title: str = "", x_label: str = "", y_label: str = "") -> str:
    """Dots; `diagonal` gives both axes one scale and draws where they agree (truth against answer)."""
    a, b = np.asarray(x, float).ravel(), np.asarray(y, float).ravel()
    real = np.isfinite(a) & np.isfinite(b)
    a, b = a[real], b[real]
    if not a.size:
        return empty(title)
    xs, ys = (span([a, b]),) * 2 if diagonal else (span([a]), span([b]))
    across, up, parts = square(x_label, y_label, xs, ys)
    if diagonal:
        parts.append(line(across.start, up.start, across.end, up.end, opacity="0.5", stroke_dasharray="4 4"))
    shown = np.arange(len(a)) if len(a) <= MOST_DOTS else np.linspace(0, len(a) - 1, MOST_DOTS).astype(int)
    faint = f"{min(0.75, max(0.18, 12 / math.sqrt(len(shown)))):.2f}"
    radius = 3.2 if len(shown) < 400 else 2.2
    dots = [
        tag("circle", cx=short(p), cy=short(q), r=radius)
        for p, q in zip(across(a[shown]).tolist(), up(b[shown]).tolist())
    ]
    parts.append(tag("g", *dots, fill=color(0), fill_opacity=faint))
    if len(shown) < len(a):
        said = say("plot.sampled", shown=f"{len(shown):,}", all=f"{len(a):,}")
        parts.append(text(across.end, 14, said, size=11, anchor="end", soft=True))
    return svg(across.end + 20, 372 + (42 if x_label else 24), parts, title)


def roc(curves: Mapping[str, tuple[Any, Any]], *, title: str = "", x_label: str = "", y_label: str = "") -> str:
    """Curves in the unit square against the diagonal of chance: `{name: (false positive rate, true positive rate)}`."""
    real = {n: (np.asarray(a, float).ravel(), np.asarray(b, float).ravel()) for n, (a, b) in curves.items()}
    if not any(a.size and np.isfinite(a).any() and np.isfinite(b).any() for a, b in real.values()):
        return empty(title)
    x, y, parts = square(x_label, y_label, (0.0, 1.0), (0.0, 1.0))
    parts.append(line(x.start, y.start, x.end, y.end, opacity="0.45", stroke_dasharray="4 4"))
    for i, (a, b) in enumerate(real.values()):
        a, b = thinned(np.asarray(x(a)), np.asarray(y(b)))
        parts.append(path(a, b, stroke=color(i), stroke_dasharray=dash(i)))
    legend, more = legend_of(list(real), x.end + 20, 432 if x_label else 412)
    return svg(x.end + 20, 372 + (42 if x_label else 24) + more, parts + legend, title)


def reliability(
    confidence: Any,
    accuracy: Any,
    counts: Any,
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    count_label: str = "",
) -> str:
    """Reliability diagram: accuracy a bin of confidence beside the diagonal, and below it how many answers fell there.

    The bins are of equal width; an empty one has NaN confidence and accuracy.
    """
    confidence, accuracy = np.asarray(confidence, float).ravel(), np.asarray(accuracy, float).ravel()
    counts = np.asarray(counts, float).ravel()
    if not counts.size or not counts.sum() > 0:
        return empty(title)
    x, y, parts = square("", y_label, (0.0, 1.0), (0.0, 1.0))
    n, wide = len(counts), (x.end - x.start) / len(counts)
    for i in np.flatnonzero(np.isfinite(accuracy)).tolist():
        at, top = x.start + wide * i, float(y(accuracy[i]))
        parts.append(
            tag(
                "rect",
                x=short(at + 1),
                y=short(top),
                width=short(wide - 2),
                height=short(max(y.start - top, 0.8)),
                rx=2,
                fill=color(0),
                fill_opacity="0.75",
            )
        )
    parts.append(line(x.start, y.start, x.end, y.end, opacity="0.5", stroke_dasharray="4 4"))
    for i in np.flatnonzero(np.isfinite(confidence) & np.isfinite(accuracy)).tolist():
        at = float(x(confidence[i]))
        parts.append(line(at, float(y(accuracy[i])), at, float(y(confidence[i])), "var(--c7,#d03b3b)", stroke_width=2))
    base, most = 462.0, counts.max()
    for i in range(n):
        tall = 50 * counts[i] / most
        hint = tag("title", escape(number(float(counts[i]))))
        parts.append(
            tag(
                "rect",
                hint,
                x=short(x.start + wide * i + 1),
                y=short(base - tall),
                width=short(wide - 2),
                height=short(tall),
                rx=1,
                opacity="0.35",
            )
        )
    parts.append(line(x.start, base, x.end, base, opacity="0.5"))
    said = f"{count_label} (≤ {number(float(most))})".strip()
    parts.append(text(x.start + 2, 406, fitted(said, 200, 11), size=11, soft=True))
    parts.append(text((x.start + x.end) / 2, base + 20, fitted(x_label, x.end - x.start, 12), anchor="middle"))
    return svg(x.end + 20, base + 28, parts, title)


def histogram(
    values: Any, *, bins: int = 30, title: str = "", x_label: str = "", y_label: str = "", height: float = 220
) -> str:
    """How many values fall in each of `bins` equal stretches; fewer where the values are few whole numbers."""
    values = np.asarray(values, float).ravel()
    values = values[np.isfinite(values)]
    if not values.size:
        return empty(title)
    low, high = float(values.min()), float(values.max())
    whole = bool(np.all(values == np.round(values))) and high - low < bins
    if whole:
        edges = np.arange(low - 0.5, high + 1)
    else:
        edges = np.linspace(low, high, bins + 1) if high > low else np.array([low - 0.5, low + 0.5])
    counts, edges = np.histogram(values, bins=edges)
    left = 14 + width_of(number(int(counts.max())), 12)
    x = Axis(float(edges[0]), float(edges[-1]), max(left, 40), WIDTH - 14)
    y = Axis(0.0, float(counts.max()) * 1.06, height, 28)
    parts = frame(x, y, x_label, y_label, "xy" if whole else "y")
    for n, a, b in zip(counts.tolist(), x(edges[:-1]).tolist(), x(edges[1:]).tolist()):
        if n:
            top = float(y(n))
            parts.append(
                tag(
                    "rect",
                    tag("title", number(n)),
                    x=short(a + 0.75),
                    y=short(top),
                    width=short(max(b - a - 1.5, 0.8)),
                    height=short(y.start - top),
                    rx=2,
                    fill=color(0),
                    fill_opacity="0.85",
                )
            )
    return svg(WIDTH, height + (48 if x_label else 28), parts, title)


def image(array: Any, overlay: Any = None, alpha: float = 0.6, *, title: str = "", width: int = 280) -> str:
    """An `<img>` with the picture inside it as PNG.

    `array` is uint8, (H, W) or (H, W, 3). `overlay` (h, w) are weights laid over it, stretched to the picture: red speaks for,
    blue against, as strong as the weight's share of the largest. Small pictures are shown with visible pixels.
    """
    from PIL import Image

    picture = np.asarray(array, np.uint8)
    if not picture.size:
        return empty(title)
    picture = picture if picture.ndim == 3 else picture[..., None]
    picture = picture[..., :3] if picture.shape[2] >= 3 else picture[..., :1].repeat(3, 2)
    small = picture.shape[1] < width
    if small:
        times = max(1, round(width / picture.shape[1]))
        picture = picture.repeat(times, 0).repeat(times, 1)
    if overlay is not None:
        picture = _overlaid(picture, np.nan_to_num(np.asarray(overlay, np.float32), posinf=0, neginf=0), alpha)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=False)
    data = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return tag(
        "img",
        src=data,
        alt=title,
        width=width,
        style=f"max-width:{width}px;image-rendering:{'pixelated' if small else 'auto'}",
    )


def shaded(shares: Any, title: str = "") -> str:
    """An `<img>` of shares of 1, (H, W), one pixel each: one colour, the stronger the larger, on whatever stands behind it.

    As with `heatmap(root=True)` the colour is as strong as the square root.
    """
    from PIL import Image

    shares = np.sqrt(np.clip(np.nan_to_num(np.asarray(shares, np.float32)), 0, 1))
    if not shares.size:
        return empty(title)
    pixels = np.empty((*shares.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = SHADE, np.round(255 * shares)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return picture(base64.b64encode(file.getvalue()).decode(), title)


def strip(pictures: Sequence[tuple[str, str]]) -> str:
    """Small pictures side by side, each with what it is called below it: (name, markup)."""
    shown = [tag("figure", drawn, tag("figcaption", escape(name))) for name, drawn in pictures]
    return tag("div", *shown, class_="strip")


def picture(png: str, title: str = "", width: int = 560) -> str:
    """An `<img>` of a PNG in base64."""
    style = f"max-width:100%;width:{width}px;image-rendering:pixelated"
    return tag("img", src="data:image/png;base64," + png, alt=title, width=width, style=style)


def _overlaid(picture: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    """The picture in grey, with each pixel tinted by its weight."""
    from PIL import Image

    height, width = picture.shape[:2]
    smooth = (
        Image.Resampling.NEAREST
        if height % weights.shape[0] == 0 and width % weights.shape[1] == 0
        else Image.Resampling.BILINEAR
    )
    weights = np.asarray(Image.fromarray(weights).resize((width, height), smooth))
    most = np.abs(weights).max()
    share = (weights / most if most > 0 else weights)[..., None]
    grey = picture @ np.array([0.299, 0.587, 0.114])
    tint = np.where(share > 0, RED, BLUE)
    strength = alpha * np.abs(share)
    return np.clip(grey[..., None] * (1 - strength) + tint * strength, 0, 255).astype(np.uint8)
