"""Boxes drawn into their picture, for people: reports, `luban predict --draw`, videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luban.drawing import COLORS

LIKELY = 0.3  # probability from which on a box is drawn
LETTERS = 12  # pixels of a label's letters in a picture of up to `WIDE` pixels
WIDE = 480


def draw(
    picture: np.ndarray, found: Sequence[Mapping[str, Any]], labels: Sequence[str] = (), least: int = 0
) -> np.ndarray:
    """The picture, uint8 (H, W, 3), with a rectangle around each of `found` ({"label", "box", "score"?}), its label and its score.

    Each class has its colour, by its place among `labels`. The surest is drawn last, on top. Pictures narrower than `least` pixels are
    made larger, so that the letters can be read.
    """
    from PIL import Image, ImageDraw, ImageFont

    times = max(1, -(-least // max(1, picture.shape[1])))
    image = Image.fromarray(np.ascontiguousarray(picture).repeat(times, 0).repeat(times, 1))
    on = ImageDraw.Draw(image)
    size = max(LETTERS, round(LETTERS * max(image.size) / WIDE / 2))
    font, width = ImageFont.load_default(size), max(2, size // 7)
    for one in sorted(found, key=lambda v: v.get("score", 1.0)):
        colour = colour_of(one["label"], labels)
        x, y, w, h = (n * times for n in one["box"])
        on.rectangle((x, y, max(x, x + w - 1), max(y, y + h - 1)), outline=colour, width=width)
        score = one.get("score")
        text = one["label"] if score is None else f"{one['label']} {score:.2f}"
        left, top, right, bottom = on.textbbox((x, y), text, font=font)
        up = bottom - top + 4 if y - (bottom - top) - 4 >= 0 else 0  # above the box, in it where there is no room
        on.rectangle((left - 1, top - up - 1, right + 2, bottom - up + 2), fill=colour)
        on.text((x, y - up), text, fill="#ffffff", font=font)
    return np.asarray(image)


def colour_of(label: str, labels: Sequence[str]) -> str:
    known = labels.index(label) if label in labels else sum(label.encode())
    return COLORS[known % len(COLORS)]


def likely(found: Sequence[Mapping[str, Any]], least: float = LIKELY) -> list[Mapping[str, Any]]:
    """Those that are probable enough to be drawn; a picture full of guesses says nothing."""
    return [v for v in found if v.get("score", 1.0) >= least]
