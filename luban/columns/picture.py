"""One picture as pixels: files, bytes, base64 and arrays of every kind -> uint8 (H, W, C), whatever a camera wrote.

Orientation is taken from EXIF, transparency is laid on white, CMYK and palettes become RGB, 16 bits become 8, an
animation gives its first frame. Limits are checked from the header, before any pixel is decoded.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from luban.columns.geometry import placement
from luban.data import images
from luban.errors import DataError, problem

LARGEST = images.LARGEST
STRANGER = 16_000_000  # pixels of a picture that comes over the network, unless a server is told otherwise
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")


def open_image(value: Any, *, files: bool = True, most: int = 0) -> Any:
    """A PIL image of an encoded one, its header read and its size checked; pixels still to come.

    value: path, bytes, base64 (plain or `data:` URI), {"bytes", "path"}, or a PIL image. `files` False (a server): no
    path is opened. `most`: pixels of one that is opened, 0 = `LARGEST`, from strangers `STRANGER`. Raises DataError.
    """
    from PIL import Image

    limit, too_large = most or (LARGEST if files else STRANGER), f"image.too_large{'' if files else '_sent'}"
    place, source = source_of(value, files)
    try:
        image = source if isinstance(source, Image.Image) else images.opened(source)
    except FileNotFoundError:
        raise DataError(problem("image.no_file", place=place)) from None
    except OSError as e:
        raise DataError(problem("image.unknown", place=place, formats=list(images.FORMATS))) from e
    except Image.DecompressionBombError as e:
        raise DataError(problem(too_large, place=place, width="?", height="?", limit=limit)) from e
    width, height = image.size
    if width * height > limit:
        raise DataError(problem(too_large, place=place, width=width, height=height, limit=limit))
    image.luban_place = place
    return image


@contextmanager
def opened(value: Any, *, files: bool = True, most: int = 0) -> Iterator[Any]:
    """What `open_image` gives, for a while: what was opened for it is closed again. Raises DataError."""
    image = open_image(value, files=files, most=most)
    try:
        yield image
    finally:
        if image is not value:
            image.close()


@cache
def stamp(name: str) -> tuple[int, int] | str:
    """Length and time of a file; what is no file stands for itself."""
    try:
        found = os.stat(name)
    except (OSError, ValueError):
        return name[:200]
    return found.st_size, found.st_mtime_ns


def source_of(value: Any, files: bool) -> tuple[str, Any]:
    """What to show as the place of a mistake, and what Pillow can open."""
    if isinstance(value, dict) and {"bytes", "path"} & set(value):
        value = value.get("bytes") or value.get("path")
    if hasattr(value, "getbands"):
        return "", value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "", io.BytesIO(value)
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        raise DataError(problem("image.not_an_image", found=type(value).__name__))
    if value.startswith("data:"):
        return "", io.BytesIO(_decoded(value.partition(",")[2]))
    if files and os.path.isfile(value):
        return value, value
    if len(value) < 60 and files:
        raise DataError(problem("image.no_file", place=value))
    return "", io.BytesIO(_decoded(value))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as e:
        raise DataError(problem("image.bad_base64")) from e


def upright(image: Any) -> tuple[int, int]:
    """(H, W) as it is looked at. Raises DataError where that is damaged."""
    with _whole(image):
        return images.upright(image)


def frames(image: Any) -> int:
    """How many pictures an animation has, 1 for any other. Raises DataError where that is damaged."""
    with _whole(image):
        return getattr(image, "n_frames", 1)


def pixels(image: Any, channels: int, about: tuple[int, int] | None = None) -> np.ndarray:
    """uint8 (H, W, C) of a PIL image. `about` (H, W): a JPEG may be decoded smaller, but not below this.

    Raises DataError for a truncated or damaged picture.
    """
    from PIL import ImageOps

    mode = "L" if channels == 1 else "RGB"
    with _whole(image):
        if about and getattr(image, "format", None) == "JPEG":
            image.draft(mode, (about[1] * 2, about[0] * 2))
        if frames(image) > 1:
            image.seek(0)
        image.load()
        image = ImageOps.exif_transpose(image) if images.orientation(image) > 1 else image
        array = np.asarray(_opaque(_eight_bits(image)).convert(mode))
    return array[..., None] if channels == 1 else array


def indices(value: Any, *, files: bool = True, most: int = 0) -> np.ndarray:
    """The numbers (H, W) that stand in a grey or palette picture, as they are. Raises DataError for one in colour."""
    image = open_image(value, files=files, most=most)
    with _whole(image):
        image.load()
    if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
        raise DataError(problem("mask.colour", place=getattr(image, "luban_place", ""), found=image.mode))
    return np.asarray(image).astype(np.int64)


@contextmanager
def _whole(image: Any) -> Iterator[None]:
    """What Pillow cannot decode is a DataError."""
    from PIL import Image

    try:
        with images.decoding():
            yield
    except (OSError, Image.DecompressionBombError) as e:
        place = getattr(image, "luban_place", "")
        raise DataError(problem("image.damaged", place=place, reason=str(e)[:100])) from e


def _eight_bits(image: Any) -> Any:
    """I, I;16 and F, which `convert` would clip at 255, scaled to 0..255."""
    from PIL import Image

    if image.mode not in ("I", "I;16", "I;16B", "I;16L", "F"):
        return image
    x = np.nan_to_num(np.asarray(image).astype(np.float32))
    top = next((t for t in (1.0, 255.0, 65535.0) if x.max(initial=0) <= t and (t > 1 or image.mode == "F")), x.max())
    if image.mode.startswith("I;16"):
        top = 65535.0
    return Image.fromarray(np.clip(x * (255.0 / top), 0, 255).astype(np.uint8))


def _opaque(image: Any) -> Any:
    """Transparent pictures laid on white."""
    from PIL import Image

    if not ("A" in image.mode or "a" in image.mode or "transparency" in image.info):
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def fitted(array: np.ndarray, size: tuple[int, int], how: str, whole: tuple[int, int] | None = None) -> np.ndarray:
    """uint8 (H, W, C) brought to size (H, W): `crop` fills and cuts the overhang, `pad` fits and repeats the edge, `stretch`.

    `whole`: the picture's own size where a JPEG was decoded smaller, so that boxes and pixels are placed alike.
    """
    from PIL import Image

    height, width = array.shape[:2]
    if (height, width) == size:
        return array
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    kind = Image.Resampling.BILINEAR
    place = placement(whole or (height, width), size, how)
    if how == "crop":
        down, across = height / place.source[0], width / place.source[1]
        left, top, right, bottom = place.cut
        box = (left * across, top * down, min(right * across, width), min(bottom * down, height))
        done = np.asarray(image.resize(size[::-1], kind, box=box))
    else:
        done = np.asarray(image.resize(place.inner[::-1], kind))
        top, left = (int(n) for n in place.shift)
        space = ((top, size[0] - place.inner[0] - top), (left, size[1] - place.inner[1] - left))
        if any(map(any, space)):
            done = np.pad(done, (*space, (0, 0))[: done.ndim], mode="edge")
    return done.reshape(*size, -1)
