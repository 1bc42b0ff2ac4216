"""Where the pixels of a picture go when it is brought to the network's size: one rule for pixels, boxes and masks.

Boxes are (N, 4): x0, y0, x1, y1 in pixels, edges counted, not centres: the box of a whole picture is 0, 0, width, height.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Placement(NamedTuple):
    """A picture of `source` (H, W) in one of `target` (H, W): point (x, y) goes to (x * scale_x + left, y * scale_y + top).

    `inner`: the size that the picture itself has there; `cut`: the part of it that is seen (left, top, right, bottom).
    """

    source: tuple[int, int]
    target: tuple[int, int]
    scale: tuple[float, float]  # of y, of x
    shift: tuple[float, float]  # top, left
    inner: tuple[int, int]
    cut: tuple[float, float, float, float]

    def there(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes of the picture, in pixels of the target; what sticks out is not clipped."""
        (sy, sx), (top, left) = self.scale, self.shift
        return boxes * np.array([sx, sy, sx, sy]) + np.array([left, top, left, top])

    def back(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes of the target, in pixels of the picture; what sticks out is not clipped."""
        (sy, sx), (top, left) = self.scale, self.shift
        return (boxes - np.array([left, top, left, top])) / np.array([sx, sy, sx, sy])


def placement(source: tuple[int, int], target: tuple[int, int], how: str) -> Placement:
    """`crop` fills the target and cuts the overhang off, `pad` fits the picture into its middle, `stretch` ignores its shape."""
    (height, width), (high, wide) = source, target
    whole = (0.0, 0.0, float(width), float(height))
    if source == target or how == "stretch":
        return Placement(source, target, (high / height, wide / width), (0.0, 0.0), target, whole)
    if how == "crop":
        ratio = min(height / high, width / wide)
        cut_h, cut_w = high * ratio, wide * ratio
        top, left = (height - cut_h) / 2, (width - cut_w) / 2
        cut = (left, top, left + cut_w, top + cut_h)
        return Placement(source, target, (1 / ratio, 1 / ratio), (-top / ratio, -left / ratio), target, cut)
    ratio = min(high / height, wide / width)
    inner = max(1, round(height * ratio)), max(1, round(width * ratio))
    shift = float((high - inner[0]) // 2), float((wide - inner[1]) // 2)
    return Placement(source, target, (inner[0] / height, inner[1] / width), shift, inner, whole)


def clipped(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (..., 4) cut at the edges of a picture of `size` (H, W)."""
    return np.clip(boxes, 0.0, np.array([size[1], size[0], size[1], size[0]], boxes.dtype))


def areas(boxes: np.ndarray) -> np.ndarray:
    """Of boxes (..., 4); 0 for one without inside."""
    return np.clip(boxes[..., 2] - boxes[..., 0], 0, None) * np.clip(boxes[..., 3] - boxes[..., 1], 0, None)


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of one box (4,), or of boxes (N, 1, 4), with others (M, 4): (M,) or (N, M)."""
    low, high = np.maximum(box[..., :2], others[..., :2]), np.minimum(box[..., 2:], others[..., 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    return shared / np.maximum(areas(box) + areas(others) - shared, 1e-12)
