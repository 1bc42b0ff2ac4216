"""Pictures of a search: scores by trial, and every trial as one line through its settings. Pure functions to SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luban.drawing import WIDTH, Axis, color, dash, empty, frame, legend_of, line, path, short, span, svg, text
from luban.markup import escape, fitted, number, tag, width_of

HEIGHT = 280


def scores(
    numbers: Sequence[int],
    values: Sequence[float | None],
    *,
    higher: bool,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
) -> str:
    """A dot for each trial's score, a mark on the axis for each without one, and the best score so far as a line."""
    x_values, y_values = np.asarray(numbers, float), np.array([math.nan if v is None else v for v in values], float)
    xs, ys = span([x_values]), span([y_values])
    if xs is None or ys is None:
        return empty(title)
    left = 14 + max(width_of(number(v), 12) for v in Axis(*ys, 1, 0).ticks())
    x, y = Axis(*xs, max(left, 40), WIDTH - 14), Axis(*ys, HEIGHT, 28)
    parts = frame(x, y, x_label, y_label, "x")
    scored = np.where(np.isfinite(y_values), y_values, -math.inf if higher else math.inf)
    so_far = np.maximum.accumulate(scored) if higher else np.minimum.accumulate(scored)
    steps_x, steps_y = np.repeat(x_values, 2)[1:], np.repeat(np.where(np.isfinite(so_far), so_far, math.nan), 2)[:-1]
    parts.append(path(np.asarray(x(steps_x)), np.asarray(y(steps_y)), stroke=color(2), stroke_opacity="0.7"))
    for a, b in zip(x_values.tolist(), y_values.tolist()):
        hint = tag("title", escape(number(a)))
        if math.isfinite(b):
            parts.append(tag("circle", hint, cx=short(float(x(a))), cy=short(float(y(b))), r=4, fill=color(0)))
        else:
            parts.append(line(float(x(a)), y.start - 4, float(x(a)), y.start + 4, color(6), stroke_width=2))
    return svg(WIDTH, HEIGHT + (48 if x_label else 28), parts, title)


def whiskers(
    series: Mapping[str, Sequence[tuple[float, float, float, float]]],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
) -> str:
    """Lines of points with intervals over a logarithmic axis: `{name: [(x, value, low, high), ...]}`, x above 0."""
    points = [p for line_ in series.values() for p in line_]
    ys = span([np.array([p[1:] for p in points], float)]) if points else None
    if ys is None:
        return empty(title)
    xs = span([np.log10([p[0] for p in points])])
    left = 14 + max(width_of(number(v), 12) for v in Axis(*ys, 1, 0).ticks())
    x, y = Axis(*xs, max(left, 40), WIDTH - 24), Axis(*ys, HEIGHT, 28)
    parts = frame(
        Axis(0.25, 0.75, x.start, x.end), y, x_label, y_label, "x"
    )  # no whole number in it: no ticks of its own
    for at in _apart(sorted({p[0] for p in points}), x):
        parts.append(text(float(x(math.log10(at))), HEIGHT + 18, number(at, 3), anchor="middle", soft=True))
    for i, line_ in enumerate(series.values()):
        shift = 3.0 * (i - (len(series) - 1) / 2)  # lines that share their x must not hide each other
        at = np.array([float(x(math.log10(p[0]))) + shift for p in line_])
        parts.append(path(at, np.asarray(y([p[1] for p in line_])), stroke=color(i), stroke_dasharray=dash(i)))
        for a, (_, value, low, high) in zip(at.tolist(), line_):
            parts.append(line(a, float(y(low)), a, float(y(high)), color(i), stroke_width=1.5, opacity="0.7"))
            parts.append(
                tag("circle", tag("title", number(value)), cx=short(a), cy=short(float(y(value))), r=4, fill=color(i))
            )
    legend, more = legend_of(list(series), WIDTH, HEIGHT + (62 if x_label else 44))
    return svg(WIDTH, HEIGHT + (48 if x_label else 28) + more, parts + legend, title)


def _apart(values: Sequence[float], x: Axis, room: float = 46) -> list[float]:
    """Those that can be written beside each other, the last one always."""
    kept: list[float] = []
    for value in reversed(values):
        if not kept or float(x(math.log10(kept[-1]))) - float(x(math.log10(value))) >= room:
            kept.append(value)
    return kept


def parallel(
    names: Sequence[str], columns: Sequence[Sequence[Any]], scored: Sequence[float | None], *, higher: bool, logs: Sequence[bool] = (),
    score_name: str = "", title: str = "",
) -> str:  # fmt: skip
    """Parallel coordinates: an axis for each setting and one for the score; the better a trial, the stronger its line.

    Of trials with equal scores the first counts as the better. `columns`: per setting its value in each trial, None where the trial has none. `logs`: settings on a logarithmic axis.
    """
    values = np.array([math.nan if v is None else v for v in scored], float)
    if not len(names) or not np.isfinite(values).any():
        return empty(title)
    axes = [_Upright(c, log) for c, log in zip(columns, list(logs) or [False] * len(names))] + [
        _Upright(list(values), False)
    ]
    left, right = 56.0, WIDTH - 70.0
    places = np.linspace(left, right, len(axes))
    room = (right - left) / max(1, len(axes) - 1) - 8
    good = np.where(np.isfinite(values), values if higher else -values, -math.inf)
    rank = np.argsort(np.lexsort((-np.arange(len(good)), good)))  # the first of equal ones is the best
    parts = []
    for i in np.argsort(rank).tolist():
        if not math.isfinite(values[i]):
            continue
        share = (rank[i] + 1) / len(values)
        ys = np.array([a.at(i) for a in axes])
        best = rank[i] == len(values) - 1
        parts.append(
            path(
                places,
                ys,
                stroke=color(1) if best else color(0),
                stroke_opacity="1" if best else f"{0.12 + 0.55 * share**2:.2f}",
            )
        )
    for place, axis, name in zip(places.tolist(), axes, [*names, score_name]):
        parts.append(line(place, 34, place, HEIGHT, opacity="0.55"))
        parts.append(text(place, 20, fitted(name, max(room, 60), 11), size=11, anchor="middle"))
        parts += [
            text(place + 5, y + 4, fitted(said, max(room - 6, 40), 10), size=10, soft=True) for y, said in axis.ticks()
        ]
    return svg(WIDTH, HEIGHT + 20, parts, title)


class _Upright:
    """One vertical axis: numbers by size, anything else by name."""

    def __init__(self, values: Sequence[Any], log: bool):
        self.values = list(values)
        real = [v for v in self.values if v is not None and v == v]
        self.numeric = bool(real) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in real)
        self.log = log and self.numeric
        if self.numeric:
            known = [math.log10(v) if self.log else float(v) for v in real]
            low, high = min(known), max(known)
            room = 0.0 if high > low else max(0.5, abs(high) * 0.1)
            self.low, self.high = low - room, high + room
            self.marks = np.linspace(low, high, 3 if high > low else 1)
        else:
            self.names = sorted({str(v) for v in real})

    def at(self, i: int) -> float:
        value = self.values[i]
        if value is None or value != value:
            return math.nan
        return self._height(value)

    def _height(self, value: Any) -> float:
        if not self.numeric:
            share = (self.names.index(str(value)) + 0.5) / len(self.names)
        else:
            share = ((math.log10(value) if self.log else float(value)) - self.low) / (self.high - self.low)
        return HEIGHT - 8 - share * (HEIGHT - 52)

    def ticks(self) -> list[tuple[float, str]]:
        if not self.numeric:
            return [(self._height(n), n) for n in self.names]
        real = [10**m if self.log else m for m in self.marks.tolist()]
        return [(self._height(v), number(float(v), 3)) for v in real]
