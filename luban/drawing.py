"""The parts that plots are drawn from: axes, grid, legend, lines of points. Pure functions to SVG strings.

Colours are CSS variables with a fallback and text is `currentColor`, so that a drawing reads well on light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from luban.markup import escape, fitted, number, tag, width_of
from luban.messages import say

COLORS = ("#2f6fde", "#d9730d", "#1a9a6c", "#b8439e", "#8a6d00", "#0a93b5", "#d03b3b", "#6b5bd2")
DASHES = (None, "7 4", "2 3")
FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','PingFang SC','Noto Sans CJK SC',sans-serif"
WIDTH = 680
MOST_POINTS = 1500  # along a line; more than the screen has columns


def color(i: int) -> str:
    return f"var(--c{i % len(COLORS) + 1},{COLORS[i % len(COLORS)]})"


@dataclass
class Axis:
    """From data to picture along one axis: [low, high] -> [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: Any) -> Any:
        return self.start + (np.asarray(value, float) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        rough = (self.high - self.low) / about
        size = 10 ** math.floor(math.log10(rough))
        step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(i * step, 12) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def span(values: Iterable[Any], *, zero: bool = False, unit: bool = False) -> tuple[float, float] | None:
    """A range that holds all finite values, never empty; `zero` includes 0, `unit` is 0 to 1 whatever comes."""
    if unit:
        return 0.0, 1.0
    found = [v[np.isfinite(v)] for v in (np.asarray(v, float).ravel() for v in values)]
    found = [v for v in found if v.size]
    if not found:
        return None
    low, high = min(float(v.min()) for v in found), max(float(v.max()) for v in found)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        room = abs(high) * 0.1 or 1.0
        low, high = low - room, high + room
    pad = 0.04 * (high - low)
    return (low if zero and low == 0 else low - pad), (high if zero and high == 0 else high + pad)


def text(
    x: float, y: float, said: str, *, size: float = 12, anchor: str = "start", soft: bool = False, **more: Any
) -> str:
    said = escape(said)
    return tag(
        "text",
        said,
        x=short(x),
        y=short(y),
        font_size=size,
        text_anchor=anchor,
        opacity="0.72" if soft else None,
        **more,
    )


def line(x1: float, y1: float, x2: float, y2: float, stroke: str = "currentColor", **more: Any) -> str:
    return tag("line", x1=short(x1), y1=short(y1), x2=short(x2), y2=short(y2), stroke=stroke, **more)


def short(value: float) -> str:
    return f"{float(value):.2f}".rstrip("0").rstrip(".")


def svg(width: float, height: float, parts: Iterable[str], label: str = "") -> str:
    """The whole drawing; `label` is what a screen reader says."""
    return tag(
        "svg",
        tag("title", escape(label)) if label else "",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {short(width)} {short(height)}",
        class_="plot",
        role="img",
        fill="currentColor",
        font_family=FONT,
        style=f"min-width:{short(0.7 * width)}px;max-width:{short(1.15 * width)}px;height:auto",
    )


def empty(label: str = "") -> str:
    said = text(WIDTH / 2, 44, say("plot.empty"), size=13, anchor="middle", soft=True)
    frame = tag("rect", x=1, y=1, width=WIDTH - 2, height=76, rx=8, fill="none", stroke="currentColor", opacity="0.25")
    return svg(WIDTH, 78, [frame, said], label)


def frame(x: Axis, y: Axis, x_label: str, y_label: str, whole: str = "") -> list[str]:
    """Grid, ticks and axis labels; `whole` names the axes (x, y) that count and have no ticks between whole numbers."""
    parts = []
    for value in kept(y.ticks(), "y" in whole):
        at = float(y(value))
        parts.append(line(x.start, at, x.end, at, stroke="var(--grid,#8883)"))
        parts.append(text(x.start - 8, at + 4, number(value), anchor="end", soft=True))
    for value in kept(x.ticks(7), "x" in whole):
        parts.append(text(float(x(value)), y.start + 18, number(value), anchor="middle", soft=True))
    parts.append(line(x.start, y.start, x.end, y.start, opacity="0.5"))
    if x_label:
        parts.append(text((x.start + x.end) / 2, y.start + 38, fitted(x_label, x.end - x.start, 12), anchor="middle"))
    if y_label:
        parts.append(text(2, y.end - 14, fitted(y_label, x.end, 12)))
    return parts


def kept(ticks: list[float], whole: bool) -> list[float]:
    return [t for t in ticks if t == round(t)] if whole else ticks


def legend_of(names: Sequence[str], width: float, top: float) -> tuple[list[str], float]:
    """Marks and names in as many rows as they need, and the height of that; one name needs none."""
    if len(names) < 2:
        return [], 0.0
    parts, x, y = [], 44.0, top
    for i, name in enumerate(names):
        said = fitted(name, 240, 12)
        room = 34 + width_of(said, 12)
        if x + room > width and x > 44:
            x, y = 44.0, y + 20
        parts.append(line(x, y - 4, x + 20, y - 4, color(i), stroke_width=2.5, stroke_dasharray=dash(i)))
        parts.append(text(x + 26, y, said))
        x += room + 14
    return parts, y - top + 22


def dash(i: int) -> str | None:
    return DASHES[i // len(COLORS) % len(DASHES)]


def path(x: np.ndarray, y: np.ndarray, **more: Any) -> str:
    """One line, broken where a value is missing."""
    steps, pen = [], False
    for a, b in zip(x.tolist(), y.tolist()):
        real = math.isfinite(a) and math.isfinite(b)
        if real:
            steps.append(f"{'L' if pen else 'M'}{short(a)} {short(b)}")
        pen = real
    return tag("path", d="".join(steps), fill="none", stroke_width=2, stroke_linejoin="round", **more)


def lone(x: np.ndarray, y: np.ndarray) -> list[int]:
    """Points without a neighbour, which a line cannot show."""
    real = np.isfinite(x) & np.isfinite(y)
    before, after = np.r_[False, real[:-1]], np.r_[real[1:], False]
    return np.flatnonzero(real & ~before & ~after).tolist()


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most about `MOST_POINTS` points: the lowest and the highest of each stretch stay, so no peak is lost."""
    n = len(x)
    if n <= MOST_POINTS:
        return x, y
    edges = np.linspace(0, n, MOST_POINTS // 2 + 1).astype(int)
    keep = {0, n - 1}
    for a, b in pairwise(edges.tolist()):
        part = y[a:b]
        if np.isfinite(part).any():
            keep |= {a + int(np.nanargmin(part)), a + int(np.nanargmax(part))}
        keep |= set((a + np.flatnonzero(~np.isfinite(part))[:1]).tolist())
    order = sorted(keep)
    return x[order], y[order]


def square(
    label_x: str, label_y: str, x_span: tuple[float, float], y_span: tuple[float, float]
) -> tuple[Axis, Axis, list[str]]:
    left = 14 + max(width_of(number(v), 12) for v in Axis(*y_span, 1, 0).ticks())
    x, y = Axis(*x_span, max(left, 40), max(left, 40) + 340), Axis(*y_span, 368, 28)
    return x, y, frame(x, y, label_x, label_y)
