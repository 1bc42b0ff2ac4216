"""The common corruptions of images at five severities (Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations"), on encoded batches, uint8 (B, C, H, W); numpy, SciPy and Pillow.

Sides below 64 take the parameters of CIFAR-10-C, others those of ImageNet-C, which are made for 224 pixels.
Blurs and brightness are made by other means than the paper's code: alike, not equal to the last bit; the radii of a small
image's defocus are our own.
"""

from __future__ import annotations

import io

import numpy as np

SMALL = 64
SEVERITIES = (1, 2, 3, 4, 5)
# name -> parameters of the five severities for small images, for others
PARAMETERS = {
    "gaussian_noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),  # deviation
    "shot_noise": ((500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),  # photons of a white pixel
    "gaussian_blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),  # deviation in pixels
    "defocus_blur": ((0.8, 1.0, 1.2, 1.5, 2.0), (3, 4, 6, 8, 10)),  # radius of the disk
    "motion_blur": ((1.0, 1.5, 2.0, 2.0, 2.5), (3, 5, 8, 12, 15)),  # deviation along the way
    "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),  # added, of white
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),  # what is left of it
    "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),  # quality
    "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),  # of the side
}


def corrupted(x: np.ndarray, name: str, severity: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (B, C, H, W) -> the same, worse. Raises KeyError for an unknown name."""
    value = PARAMETERS[name][min(x.shape[2:]) >= SMALL][severity - 1]
    if name in ("jpeg", "pixelate"):
        return np.stack([(_jpeg if name == "jpeg" else _pixelate)(image, value) for image in x])
    h = x.astype(np.float32) / 255
    if name == "gaussian_noise":
        h = h + rng.normal(0, value, h.shape).astype(np.float32)
    elif name == "shot_noise":
        h = rng.poisson(h * value).astype(np.float32) / value
    elif name == "brightness":
        h = h + np.float32(value)
    elif name == "contrast":
        mean = h.mean((2, 3), keepdims=True)
        h = (h - mean) * np.float32(value) + mean
    else:
        h = _blurred(h, name, value, rng)
    return np.clip(np.rint(h * 255), 0, 255).astype(np.uint8)


def _blurred(h: np.ndarray, name: str, value: float, rng: np.random.Generator) -> np.ndarray:
    from scipy import ndimage

    if name == "gaussian_blur":
        return ndimage.gaussian_filter(h, (0, 0, value, value), mode="nearest")
    if name == "defocus_blur":
        return _filtered(h, _disk(value))
    return np.concatenate(
        [_filtered(image[None], _line(value, a)) for image, a in zip(h, rng.uniform(-45, 45, len(h)))]
    )


def _filtered(h: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Every channel convolved, the edge going on."""
    from scipy.signal import oaconvolve

    edge = len(kernel) // 2
    wide = np.pad(h, ((0, 0), (0, 0), (edge, edge), (edge, edge)), mode="edge")
    return oaconvolve(wide, kernel[None, None].astype(np.float32), mode="valid", axes=(2, 3))


def _disk(radius: float) -> np.ndarray:
    """A disk whose edge is as soft as a pixel."""
    side = int(np.ceil(radius))
    y, x = np.mgrid[-side : side + 1, -side : side + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1)
    return kernel / kernel.sum()


def _line(deviation: float, angle: float) -> np.ndarray:
    """Half a Gaussian along a line from the middle outwards, drawn between the pixels."""
    side = int(np.ceil(3 * deviation))
    steps = np.linspace(0, side, 4 * side + 1)
    weights = np.exp(-0.5 * (steps / deviation) ** 2)
    at = np.deg2rad(angle)
    y, x = side + steps * np.sin(at), side + steps * np.cos(at)
    kernel = np.zeros((2 * side + 1, 2 * side + 1))
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = np.floor(y).astype(int) + dy, np.floor(x).astype(int) + dx
            share = (1 - np.abs(y - row)) * (1 - np.abs(x - column)) * weights
            inside = (row < len(kernel)) & (column < len(kernel))
            np.add.at(kernel, (row[inside], column[inside]), share[inside])
    return kernel / kernel.sum()


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    _pillow(image).save(file, "JPEG", quality=quality)
    return _array(Image.open(file), image.shape)


def _pixelate(image: np.ndarray, share: float) -> np.ndarray:
    from PIL import Image

    height, width = image.shape[1:]
    small = _pillow(image).resize((max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX)
    return _array(small.resize((width, height), Image.Resampling.BOX), image.shape)


def _pillow(image: np.ndarray) -> object:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)))


def _array(image: object, shape: tuple[int, ...]) -> np.ndarray:
    found = np.asarray(image)
    return found.reshape(shape) if shape[0] == 1 else np.ascontiguousarray(found.transpose(2, 0, 1))
