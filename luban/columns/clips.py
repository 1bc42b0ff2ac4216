"""Moving pictures as frames: video files, animated images, folders of images, arrays -> some frames of each, evenly spaced."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from luban.columns import picture
from luban.data.images import ENDINGS, VIDEOS
from luban.errors import DataError, need, problem

LONGEST = 200_000  # frames of one clip that are looked through
STRANGER = 2_000  # of one that comes over the network


def frames(value: Any, count: int, *, files: bool = True, most: int = 0) -> list[Any]:
    """`count` frames of a clip, evenly spaced from the first to the last, each as `Image.encode` takes it; a shorter clip repeats some.

    value: path of a video file, of an animated image or of a folder of images (in the order of their names); bytes or base64 of one of the
    first two; an array (T, H, W) or (T, H, W, C); a list of images. `files` False (a server): no path is opened.
    Raises DataError; MissingExtra where a video file is to be read without OpenCV.
    """
    if isinstance(value, np.ndarray) or (isinstance(value, list) and value and not isinstance(value[0], (str, bytes))):
        return _of_sequence(value if isinstance(value, np.ndarray) else _arrays(value), count)
    if isinstance(value, list):
        return _of_sequence(value, count)
    if isinstance(value, Path):
        value = str(value)
    if files and isinstance(value, str) and os.path.isdir(value):
        return _of_folder(Path(value), count)
    if isinstance(value, str) and files and value.lower().endswith(VIDEOS):
        return _of_video(value, value, count, LONGEST)
    place, content = picture.source_of(value, files)
    if isinstance(content, io.BytesIO) and _is_video(content.getvalue()):
        with tempfile.NamedTemporaryFile(suffix=".video") as file:
            file.write(content.getvalue())
            file.flush()
            return _of_video(file.name, place, count, LONGEST if files else STRANGER)
    return _of_animation(value, count, files, most)


def pick(there: int, count: int) -> np.ndarray:
    """Numbers of `count` frames out of `there`, the first and the last among them."""
    return np.linspace(0, there - 1, count).round().astype(int)


def _of_sequence(value: Sequence[Any], count: int) -> list[Any]:
    if not len(value) or (isinstance(value, np.ndarray) and value.ndim not in (3, 4)):
        raise DataError(problem("video.not_frames", shape=str(getattr(value, "shape", (0,)))))
    return [value[i] for i in pick(len(value), count)]


def _arrays(value: list[Any]) -> list[Any]:
    return value if hasattr(value[0], "getbands") else [np.asarray(v) for v in value]


def _of_folder(folder: Path, count: int) -> list[str]:
    names = sorted(p for p in folder.iterdir() if p.name.lower().endswith(ENDINGS))
    if not names:
        raise DataError(problem("video.empty", place=str(folder)))
    return [str(names[i]) for i in pick(len(names), count)]


def _of_animation(value: Any, count: int, files: bool, most: int) -> list[np.ndarray]:
    """Of a GIF, WebP or PNG that moves; a still one is a clip of one frame."""
    with picture.opened(value, files=files, most=most) as image:
        there = min(getattr(image, "n_frames", 1), LONGEST if files else STRANGER)
        found: dict[int, np.ndarray] = {}
        for i in np.unique(pick(there, count)):
            try:
                image.seek(int(i))
            except (EOFError, OSError, SyntaxError, ValueError) as e:
                raise DataError(problem("image.damaged", place=image.luban_place, reason=str(e)[:100])) from e
            found[int(i)] = np.asarray(image.convert("RGB"))
    return [found[int(i)] for i in pick(there, count)]


# -- video files -------------------------------------------------------------------------------------------------------


def _is_video(content: bytes) -> bool:
    """MP4 and MOV, AVI, Matroska and WebM, by their first bytes."""
    head = content[:12]
    return head[4:8] == b"ftyp" or (head[:4] == b"RIFF" and head[8:] == b"AVI ") or head[:4] == b"\x1a\x45\xdf\xa3"


def _of_video(path: str, place: str, count: int, longest: int) -> list[np.ndarray]:
    """(H, W, 3) uint8 each. What the header says of the number of frames is not trusted."""
    with capture(path, place) as film:
        there = min(told(film), longest)
        found, seen = _kept(film, set(pick(there, count).tolist()) if there else set(), there or longest)
    if seen < there or not there:
        if not seen:
            raise DataError(problem("video.unreadable", place=place))
        with capture(path, place) as film:
            found, _ = _kept(film, set(pick(seen, count).tolist()), seen)
        there = seen
    return [found[i] for i in pick(there, count).tolist()]


@contextmanager
def capture(path: str, place: str = "") -> Iterator[Any]:
    """OpenCV's reader of a video file. Raises DataError for a file that is none, MissingExtra without OpenCV."""
    cv2 = need("cv2", "video")
    if not os.path.isfile(path):
        raise DataError(problem("image.no_file", place=place or path))
    film = cv2.VideoCapture(path)
    try:
        if not film.isOpened():
            raise DataError(problem("video.unreadable", place=place))
        yield film
    finally:
        film.release()


def told(film: Any) -> int:
    """Frames as the header has them; 0 where it does not say."""
    import cv2

    said = film.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(said) if said == said and 0 < said < 2**31 else 0


def _kept(film: Any, wanted: set[int], most: int) -> tuple[dict[int, np.ndarray], int]:
    """The wanted frames out of the first `most`, and how many there were."""
    found: dict[int, np.ndarray] = {}
    for i in range(most):
        if not film.grab():
            return found, i
        if i in wanted:
            good, frame = film.retrieve()
            if not good:
                return found, i
            found[i] = frame[..., ::-1]
    return found, most
