"""Superpixels: an image cut into patches of like colour (SLIC, Achanta et al. 2012), in numpy and SciPy."""

from __future__ import annotations

import numpy as np

ROUNDS = 6
COMPACT = 10.0  # how much a step of one patch's width weighs, in units of CIELAB colour


def superpixels(image: np.ndarray, count: int) -> np.ndarray:
    """uint8 (H, W, C) -> int (H, W): numbers of about `count` patches, 0 to K - 1, each in one piece."""
    height, width = image.shape[:2]
    step = max(1.0, (height * width / max(1, count)) ** 0.5)
    colour = _lab(image)
    rows, columns = (np.arange(step / 2, n, step) for n in (height, width))
    y, x = (c.reshape(-1) for c in np.meshgrid(rows, columns, indexing="ij"))
    centres = np.column_stack([colour[y.astype(int), x.astype(int)], y, x])
    grid = np.indices((height, width)).transpose(1, 2, 0).astype(np.float64)
    points = np.concatenate([colour, grid], axis=2)  # (H, W, 5)
    scale = np.array([1.0] * 3 + [COMPACT / step] * 2)
    label = np.zeros((height, width), int)
    for _ in range(ROUNDS):
        label = _nearest(points, centres, step, scale)
        flat, size = label.reshape(-1), np.bincount(label.reshape(-1), minlength=len(centres))
        there = size > 0
        sums = np.stack([np.bincount(flat, points[..., i].reshape(-1), len(centres)) for i in range(5)], 1)
        centres[there] = sums[there] / size[there, None]
    return _in_one_piece(label)


def _nearest(points: np.ndarray, centres: np.ndarray, step: float, scale: np.ndarray) -> np.ndarray:
    """The nearest centre of each pixel, among those at most one patch away."""
    height, width = points.shape[:2]
    best, label = np.full((height, width), np.inf), np.zeros((height, width), int)
    for k, centre in enumerate(centres):
        top, left = (max(0, int(c - step)) for c in centre[3:])
        there = np.s_[top : int(centre[3] + step) + 1, left : int(centre[4] + step) + 1]
        far = np.square((points[there] - centre) * scale).sum(2)
        closer = far < best[there]
        best[there][closer] = far[closer]
        label[there][closer] = k
    return label


def _in_one_piece(label: np.ndarray) -> np.ndarray:
    """Of each number the largest connected piece; stray ones take, pixel by pixel from their edge on, a neighbour's number."""
    from scipy import ndimage

    kept = np.full(label.shape, -1)
    for number, k in enumerate(np.unique(label)):
        pieces, found = ndimage.label(label == k)
        largest = 1 + np.bincount(pieces.reshape(-1), minlength=found + 1)[1:].argmax()
        kept[pieces == largest] = number
    while (kept < 0).any():
        wide = np.pad(kept, 1, constant_values=-1)
        for neighbour in (wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]):
            kept = np.where(kept < 0, neighbour, kept)
    return kept


def _lab(image: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of sRGB or grey, (H, W, 3)."""
    h = image.astype(np.float64) / 255
    h = np.broadcast_to(h, (*h.shape[:2], 3)) if h.shape[2] == 1 else h
    h = np.where(h > 0.04045, ((h + 0.055) / 1.055) ** 2.4, h / 12.92)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    f = h @ (matrix / np.array([[0.9505], [1.0], [1.089]])).T
    f = np.where(f > 0.008856, np.cbrt(f), 7.787 * f + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], 2)
