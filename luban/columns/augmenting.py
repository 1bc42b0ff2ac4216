"""Changes of training images, made on a whole batch of uint8 (B, C, H, W) at once; numpy only.

Places move by a `Move`, which columns `of:` an image follow; colours and erased boxes move nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

TWO = 2  # operations that RandAugment does to each image
# What an operation does at full strength; ranges of the paper's code as torchvision has them.
TURN, SHEAR, FAR, FACTOR = np.pi / 6, 0.3, 150 / 331, 0.9
OPERATIONS = ("brightness", "contrast", "saturation", "rotate", "shear_x", "shear_y", "translate_x", "translate_y")
COLOURS = OPERATIONS[:3]
AREA, ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of an erased box


class Move(NamedTuple):
    """What `augment` did to each of B images: turned and sheared about its centre by `turn` (B, 2, 2), where there is one; rows and
    columns moved by (dy, dx); then mirrored left to right where `flip`.

    A point (y, x) goes to turn @ ((y, x) - centre) + centre + (dy, dx), then x to its mirror image.
    """

    dy: np.ndarray
    dx: np.ndarray
    flip: np.ndarray
    reach: float  # the largest shift as a share of the side
    turn: np.ndarray | None = None


def moved(x: np.ndarray, change: Move) -> np.ndarray:
    """A Move of (B, C, H, W) of any type: each pixel is that whose place it takes, and beyond the edge the edge goes on."""
    if change.turn is not None:
        x = _turned(x, change.turn)
    height, width = x.shape[2:]
    reach = int(max(np.abs(change.dy).max(initial=0), np.abs(change.dx).max(initial=0)))
    wide = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
    result = np.empty_like(x)
    starts = zip((reach - change.dy).tolist(), (reach - change.dx).tolist(), change.flip.tolist())
    for i, (top, left, flip) in enumerate(starts):  # a stretch of memory each: five times as fast as looking pixels up
        piece = wide[i, :, top : top + height, left : left + width]
        result[i] = piece[..., ::-1] if flip else piece
    return result


def _turned(x: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Those images that are turned at all, nearest neighbours."""
    channels, height, width = x.shape[1:]
    result, grid = x.copy(), np.indices((height, width), np.float32).reshape(2, -1)
    centre = np.array([[(height - 1) / 2], [(width - 1) / 2]], np.float32)
    for i in np.flatnonzero((turn != np.eye(2)).any((1, 2))):
        back = np.linalg.inv(turn[i]).astype(np.float32) @ (grid - centre) + centre
        rows, columns = np.rint(back, out=back).astype(np.intp)
        place = np.clip(rows, 0, height - 1) * width + np.clip(columns, 0, width - 1)
        result[i] = x[i].reshape(channels, -1).take(place, axis=1).reshape(x.shape[1:])
    return result


# -- RandAugment -------------------------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """What is to be done to each of B images. Angles in radians, shares of a side, factors (1 = as it is)."""

    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    rotate: np.ndarray
    shear_x: np.ndarray
    shear_y: np.ndarray
    translate_x: np.ndarray
    translate_y: np.ndarray


def draw(count: int, strength: float, rng: np.random.Generator, still: bool = False) -> Drawn:
    """Two different operations for each image, either way, at `strength` 0 to 1 of what each can be (Cubuk et al. 2020,
    "RandAugment": its magnitude 9 of 30 is 0.3). `still`: none that turns or shears.
    """
    allowed = [o for o in OPERATIONS if not still or o in COLOURS or o.startswith("translate")]
    order = rng.random((count, len(allowed))).argsort(axis=1)[:, :TWO]
    signs = rng.choice([-1.0, 1.0], (count, TWO))
    amount = {o: np.zeros(count) for o in OPERATIONS}
    for i in range(TWO):
        for k, name in enumerate(allowed):
            here = order[:, i] == k
            amount[name][here] = signs[here, i] * strength
    most = {"rotate": TURN, "shear_x": SHEAR, "shear_y": SHEAR, "translate_x": FAR, "translate_y": FAR}
    return Drawn(**{o: 1 + FACTOR * a if o in COLOURS else most[o] * a for o, a in amount.items()})


def turn_of(drawn: Drawn) -> np.ndarray | None:
    """The linear part (B, 2, 2) over (y, x) of rotation and shear; None where nothing turns."""
    if not (drawn.rotate.any() or drawn.shear_x.any() or drawn.shear_y.any()):
        return None
    c, s, one = np.cos(drawn.rotate), np.sin(drawn.rotate), np.ones_like(drawn.rotate)
    rotation = np.stack([np.stack([c, -s], 1), np.stack([s, c], 1)], 1)
    shear = np.stack([np.stack([one, drawn.shear_y], 1), np.stack([drawn.shear_x, one], 1)], 1)
    return shear @ rotation


def coloured(x: np.ndarray, drawn: Drawn) -> np.ndarray:
    """uint8 (B, C, H, W) brighter or darker, with more or less contrast and (three channels) colour."""
    result = x.copy()
    which = np.flatnonzero((drawn.brightness != 1) | (drawn.contrast != 1) | (drawn.saturation != 1))
    if not len(which):
        return result
    h = x[which].astype(np.float32)
    bright, contrast, colour = (f[which].astype(np.float32)[:, None, None, None] for f in drawn[:3])
    h *= bright
    grey = _grey(h)
    h += (1 - colour) * (grey - h)
    h += (1 - contrast) * (grey.mean((2, 3), keepdims=True) - h)
    result[which] = np.clip(np.rint(h, out=h), 0, 255, out=h).astype(np.uint8)
    return result


def _grey(x: np.ndarray) -> np.ndarray:
    """(B, 1, H, W): ITU-R 601 luma of three channels, one channel as it is."""
    if x.shape[1] != 3:
        return x[:, :1]
    return np.tensordot(x, np.array([0.299, 0.587, 0.114], np.float32), (1, 0))[:, None]


# -- erasing -----------------------------------------------------------------------------------------------------------


def erased(x: np.ndarray, chance: float, fill: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A box of some of the images (B, C, H, W) becomes `fill` (C, 1, 1), 2 % to a third of the area (Zhong et al. 2020, "Random
    Erasing Data Augmentation"; cutout of DeVries and Taylor 2017 with any shape).
    """
    count, _, height, width = x.shape
    hit, area = rng.random(count) < chance, rng.uniform(*AREA, count) * height * width
    aspect = np.exp(rng.uniform(*np.log(ASPECT), count))
    rows = np.clip(np.rint(np.sqrt(area * aspect)), 1, height).astype(int)
    columns = np.clip(np.rint(np.sqrt(area / aspect)), 1, width).astype(int)
    top, left = (
        np.floor(rng.random(count) * (n - size + 1)).astype(int) for n, size in ((height, rows), (width, columns))
    )
    result = x.copy()
    for i in np.flatnonzero(hit):
        result[i, :, top[i] : top[i] + rows[i], left[i] : left[i] + columns[i]] = fill
    return result
