"""Images and videos as rows: a folder with one folder a class, MNIST-style idx files, CIFAR's binary files."""

from __future__ import annotations

import base64
import gzip
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from luban.data.in_memory import tensors
from luban.data.rows import Quarantined, Rows, csv_line
from luban.errors import DataError, Problem, problem

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".avif", ".jp2")
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv")
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
LARGEST = 64_000_000  # pixels of one image; more is taken for a decompression bomb
LARGEST_IDX = 4 << 30  # bytes that a packed idx file may unpack to
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_IDX_NAME = re.compile(r"(?P<set>.*?)[-_.]?(?P<what>images|labels)[-_.]?idx(?P<axes>\d)-ubyte(\.gz)?$", re.IGNORECASE)
_CIFAR_NAME = re.compile(r"(data_batch_\d+|test_batch|train|test)\.bin$")
_PARTS = {"t10k": "test", "test": "test", "val": "validation", "validation": "validation"}


# ---- a folder of images or videos


def folder(root: Path, source: str) -> Rows:
    """Columns `image` (path relative to `root`) and `label` (first folder level, where there are folders); `video` where it holds videos alone.

    Files that no image reader could open are quarantined, other files are told and left out.
    Raises DataError where the folder holds neither.
    """
    images, other, links = _walk(root)
    videos = [] if images else [path for path in other if path.lower().endswith(VIDEOS)]
    if not images and not videos:
        raise DataError(problem("data.no_images", place=source, endings=[e[1:] for e in ENDINGS]))
    other = [path for path in other if path not in {*videos}]
    good, lines, quarantine = [], [], []
    for line, path in enumerate(images or videos, 1):
        fault = image_fault(root / path) if images else None
        if fault:
            quarantine.append(Quarantined(line, fault[0], fault[1], csv_line([path])))
        else:
            good.append(path)
            lines.append(line)
    labels = [p.split("/", 1)[0] if "/" in p else None for p in good]
    columns = {"image" if images else "video": pa.array(good, pa.string())}
    if any(labels):
        columns["label"] = pa.array(labels, pa.string())
    notes = [
        problem(id, place=source, count=len(found), first=found[0])
        for id, found in (("data.not_images", other), ("data.links_skipped", links))
        if found
    ]
    return Rows(
        pa.table(columns), np.array(lines, np.int64), source, root, quarantine, len(images or videos), tuple(notes)
    )


def _walk(root: Path) -> tuple[list[str], list[str], list[str]]:
    """Images, other files and symbolic links below a folder, sorted; hidden files are passed over."""
    images, other, links = [], [], []
    for here, folders, files in os.walk(root):
        links += [_relative(root, here, f) for f in folders if os.path.islink(os.path.join(here, f))]
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            if os.path.islink(os.path.join(here, name)):
                links.append(_relative(root, here, name))
            else:
                (images if name.lower().endswith(ENDINGS) else other).append(_relative(root, here, name))
    return sorted(images), sorted(other), sorted(links)


def _relative(root: Path, here: str, name: str) -> str:
    return Path(here, name).relative_to(root).as_posix()


def opened(source: Any) -> Any:
    """A PIL image of a file or a path, its header read, in one of `FORMATS`. Raises OSError, DecompressionBombError.

    What else Pillow knows is left alone: EPS starts another program, and readers of old formats are looked at by nobody.
    """
    from PIL import Image

    warnings.filterwarnings("ignore", module=r"PIL\.")  # sizes are refused, damages told here anyway
    with decoding():
        return Image.open(source, formats=_formats())


@contextmanager
def decoding() -> Iterator[None]:
    """Pillow's readers raise whatever a damaged file makes them stumble over (struct.error, KeyError, TypeError ...): an OSError here."""
    from PIL import Image

    try:
        yield
    except (OSError, Image.DecompressionBombError):
        raise
    except Exception as e:
        raise OSError(str(e) or type(e).__name__) from e


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def image_fault(path: Path) -> tuple[str, dict] | None:
    """Why a file cannot be used as an image, without decoding its pixels; None where it can."""
    from PIL import Image

    size = path.stat().st_size
    if size == 0:
        return "data.image_empty", {}
    try:
        with opened(path) as image:
            width, height, kind = *image.size, image.format
    except OSError:
        return "data.image_unknown", {"formats": list(FORMATS)}
    except Image.DecompressionBombError:
        return "data.image_too_large", {"width": "?", "height": "?", "limit": LARGEST}
    if width * height > LARGEST:
        return "data.image_too_large", {"width": width, "height": height, "limit": LARGEST}
    with open(path, "rb") as file:
        file.seek(-min(size, 1 << 16), 2)
        end = file.read()
    if {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(kind or "", b"") not in end:
        return "data.image_truncated", {}
    if kind == "GIF" and not end.rstrip(b"\0").endswith(b";"):
        return "data.image_truncated", {}
    if kind == "PNG" and not _whole_png(path):
        return "data.image_damaged", {}
    return None


def _whole_png(path: Path) -> bool:
    """Whether the sums in a PNG are those of what it holds; its pixels are not decoded."""
    from PIL import Image

    try:
        with opened(path) as image, decoding():
            image.verify()
    except (OSError, Image.DecompressionBombError):
        return False
    return True


def upright(image: Any) -> tuple[int, int]:
    """(H, W) of a PIL image as it is looked at, from its header: the orientation that a camera noted is counted."""
    width, height = image.size
    turned = not _plain_png(image) and orientation(image) >= 5  # lying on its side
    return (width, height) if turned else (height, width)


def orientation(image: Any) -> int:
    """1 to 8, as EXIF counts how a camera was held; 1 where it says nothing, or what is no orientation."""
    try:
        said = image.getexif().get(0x0112, 1)
    except Exception:  # what a camera wrote beside the pixels may be damaged, and they be sound
        return 1
    return said if isinstance(said, int) and 1 <= said <= 8 else 1


def _plain_png(image: Any) -> bool:
    """A PNG without EXIF, told from its chunks: to see that none stands behind the pixels Pillow would decode all of them."""
    file = getattr(image, "fp", None)
    known = any(str(key).endswith("exif") for key in image.info)
    if getattr(image, "format", None) != "PNG" or file is None or known:
        return False
    here, behind, found = file.tell(), False, False
    file.seek(8)
    while not found and len(head := file.read(8)) == 8:
        behind |= head[4:] == b"IDAT"
        found = behind and head[4:] in (b"eXIf", b"zTXt", b"tEXt", b"iTXt")
        file.seek(int.from_bytes(head[:4], "big") + 4, 1)
    file.seek(here)
    return not found


def size_of(cell: Any) -> tuple[int, int] | None:
    """(H, W) of an image in a cell: the name of a file, bytes, base64; None for what cannot be read, or has no header."""
    from PIL import Image

    try:
        if isinstance(cell, str) and (cell.startswith("data:") or len(cell) > 4096):
            cell = base64.b64decode(cell.rpartition(",")[2])
        if not isinstance(cell, (str, bytes)):
            return None
        with opened(io.BytesIO(cell) if isinstance(cell, bytes) else cell) as image, decoding():
            return upright(image)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


# ---- MNIST-style idx files


def is_idx(path: Path) -> bool:
    return _IDX_NAME.search(path.name) is not None


def idx_folder(root: Path, source: str) -> Rows | None:
    """Rows of the idx pairs in a folder, or None when it holds none. Several pairs get a column `split`."""
    pairs: dict[str, dict[str, Path]] = {}
    for path in sorted(root.iterdir()):
        found = _IDX_NAME.search(path.name)
        if found:
            pairs.setdefault(found["set"].lower(), {})[found["what"].lower()] = path
    if not pairs:
        return None
    for name, pair in pairs.items():
        if len(pair) < 2:
            raise DataError(problem("data.idx_alone", place=f"{source}/{next(iter(pair.values())).name}", set=name))
    ordered = sorted(pairs, key=lambda n: (_part(n) != "train", n))
    return _in_parts([(_part(n), *idx_pair(pairs[n]["images"], pairs[n]["labels"], source)) for n in ordered], source)


def idx_file(path: Path, source: str) -> Rows:
    """Rows of one idx file and its partner (images beside labels), whichever of the two is named."""
    found = _IDX_NAME.search(path.name)
    pairs = {}
    for other in sorted(path.parent.iterdir()):
        match = _IDX_NAME.search(other.name)
        if match and found and match["set"] == found["set"]:
            pairs[match["what"].lower()] = other
    if len(pairs) < 2:
        raise DataError(problem("data.idx_alone", place=source, set=found["set"] if found else path.name))
    return _in_parts([("train", *idx_pair(pairs["images"], pairs["labels"], source))], source)


def idx_pair(images: Path, labels: Path, source: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, H, W) uint8 and (N,) labels. Raises DataError where the two do not belong together."""
    x, y = idx(images, source), idx(labels, source)
    if len(x) != len(y) or x.ndim < 3 or y.ndim != 1:
        raise DataError(problem("data.idx_pair", place=source, images=str(x.shape), labels=str(y.shape)))
    return x, y


def idx(path: Path, source: str) -> np.ndarray:
    """One idx file as an array (LeCun's format: two zero bytes, type, axes, sizes, values; big-endian)."""
    place = source if source.endswith(path.name) else f"{source}/{path.name}"
    data = _maybe_gzip(path, place)
    kind = _IDX_TYPES.get(data[2]) if len(data) >= 4 and data[:2] == b"\0\0" else None
    if kind is None or len(data) < 4 + 4 * data[3]:
        raise DataError(problem("data.wrong_magic", place=place, wanted="idx", found=data[:4].hex()))
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    start, count = 4 + 4 * data[3], int(np.prod(shape, dtype=np.float64))
    if len(data) - start != count * np.dtype(kind).itemsize:
        raise DataError(problem("data.idx_length", place=place, shape=str(shape), found=len(data) - start))
    array = np.frombuffer(data, kind, count, start).reshape(shape)
    return array if array.dtype.itemsize == 1 else array.astype(array.dtype.newbyteorder("="))


def _maybe_gzip(path: Path, place: str) -> bytes:
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            data = file.read(LARGEST_IDX + 1)
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(problem("data.unreadable", place=place, reason=str(e) or type(e).__name__)) from e
    if len(data) > LARGEST_IDX:
        raise DataError(problem("data.idx_too_large", place=place, limit=LARGEST_IDX))
    return data


def _part(name: str) -> str:
    return next((part for word, part in _PARTS.items() if word in name.lower()), "train")


# ---- CIFAR's binary files


def is_cifar(path: Path) -> bool:
    return _CIFAR_NAME.search(path.name) is not None


def cifar_folder(root: Path, source: str) -> Rows | None:
    """Rows of CIFAR-10's or CIFAR-100's `.bin` files in a folder; None where there are none.

    Raises DataError for a folder that holds the pickle files of the Python version.
    """
    files = [p for p in sorted(root.iterdir()) if is_cifar(p)]
    if not files:
        for path in sorted(root.iterdir()):
            if re.fullmatch(r"data_batch_\d+|test_batch|train|test", path.name) and path.is_file():
                raise DataError(problem("data.cifar_pickle", place=f"{source}/{path.name}"))
        return None
    return _in_parts(
        [(_part(p.name), *cifar(p, source)) for p in sorted(files, key=lambda p: (_part(p.name) != "train", p.name))],
        source,
    )


def cifar_file(path: Path, source: str) -> Rows:
    return _in_parts([("train", *cifar(path, source))], source)


def cifar(path: Path, source: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, 32, 32, 3) uint8 and (N,) labels, by name where the folder holds the list of names.

    CIFAR-10: a byte of label, then 3,072 of pixels, channel by channel. CIFAR-100: coarse, fine, pixels.
    """
    place = source if source.endswith(path.name) else f"{source}/{path.name}"
    data = np.frombuffer(path.read_bytes(), np.uint8)
    hundred = path.name in ("train.bin", "test.bin")
    width = 3074 if hundred else 3073
    if len(data) == 0 or len(data) % width:
        raise DataError(problem("data.cifar_length", place=place, found=len(data), width=width))
    records = data.reshape(-1, width)
    labels, pixels = records[:, width - 3073], records[:, width - 3072 :].reshape(-1, 3, 32, 32)
    names = path.parent / ("fine_label_names.txt" if hundred else "batches.meta.txt")
    if names.is_file():
        words = [w for w in names.read_text(encoding="utf-8").split("\n") if w]
        if labels.max() < len(words):
            labels = np.array(words, object)[labels]
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels


# ---- parts of one set


def _in_parts(parts: list[tuple[str, np.ndarray, np.ndarray]], source: str) -> Rows:
    """One table of several files; a column `split` says train or test where there is more than one part."""
    tables, named = [], len({p for p, _, _ in parts}) > 1
    for part, images, labels in parts:
        words = labels.tolist() if labels.dtype == object else [str(n) for n in labels.tolist()]
        columns = {"image": tensors(images), "label": pa.array(words, pa.string())}
        if named:
            columns["split"] = pa.array([part] * len(words), pa.string())
        tables.append(pa.table(columns))
    table = pa.concat_tables(tables)
    notes: tuple[Problem, ...] = (problem("data.split_column", place=source, column="split"),) if named else ()
    return Rows(table, np.arange(1, len(table) + 1, dtype=np.int64), source, rows_in=len(table), notes=notes)
