"""Boxes drawn into their picture, and what the colours of masks mean below it, for people: reports, `luban predict --draw`, videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luban.drawing import COLORS

LIKELY = 0.3  # probability from which on a box is drawn
LETTERS = 12  # pixels of a label's letters in a picture of up to `WIDE` pixels
WIDE = 480
NARROW = 240  # pixels that a picture with a legend is wide at least


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


def with_legend(picture: np.ndarray, labels: Sequence[str], colours: np.ndarray) -> np.ndarray:
    """The picture, uint8 (H, W, 3), and below it each label behind a square of its colour (K, 3), in as many lines as that takes.

    The height is even and depends on the labels and the picture's size alone, so that it goes for every frame of a video. Pictures
    narrower than `NARROW` pixels are made larger, so that the letters can be read.
    """
    from PIL import Image, ImageDraw, ImageFont

    times = max(1, -(-NARROW // max(1, picture.shape[1])))
    whole = picture.repeat(times, 0).repeat(times, 1)
    height, width = whole.shape[:2]
    size = max(LETTERS, round(LETTERS * max(height, width) / WIDE / 2))
    font, line = ImageFont.load_default(size), size + size // 2
    places, x, y = [], size // 2, height + size // 2
    for label in labels:
        room = 2 * size + int(font.getlength(label))
        if x > size // 2 and x + room > width:
            x, y = size // 2, y + line
        places.append((x, y))
        x += room
    below = y + line - height
    image = Image.new("RGB", (width, height + below + (height + below) % 2), "#ffffff")
    image.paste(Image.fromarray(np.ascontiguousarray(whole)))
    on = ImageDraw.Draw(image)
    for (x, y), label, colour in zip(places, labels, colours):
        on.rectangle((x, y, x + size - 2, y + size - 2), fill=tuple(colour.tolist()), outline="#000000")
        on.text((x + size + 2, y - 1), label, fill="#000000", font=font)
    return np.asarray(image)


def colour_of(label: str, labels: Sequence[str]) -> str:
    known = labels.index(label) if label in labels else sum(label.encode())
    return COLORS[known % len(COLORS)]


def likely(found: Sequence[Mapping[str, Any]], least: float = LIKELY) -> list[Mapping[str, Any]]:
    """Those that are probable enough to be drawn; a picture full of guesses says nothing."""
    return [v for v in found if v.get("score", 1.0) >= least]
