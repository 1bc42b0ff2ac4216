"""A column of short clips: some frames of each, evenly spaced, as pictures of one size. An input only."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np

from luban.columns import clips
from luban.columns.base import Column, Segments, to_list
from luban.columns.image import DECODERS, Image
from luban.columns.picture import STRANGER
from luban.data.images import VIDEOS
from luban.errors import DataError
from luban.settings import Count, Dial, Fraction

SAMPLE = 200  # clips looked at to learn size, mean and deviation
PATCHES = 4  # segments along the longer side of a frame
MOVING = (".gif", ".webp", ".png")  # pictures that may be animations
GREY = 16  # pixels a side of what simple baselines see


@dataclass(frozen=True)
class Video(Column):
    """x is uint8 (T, C, H, W), T = `frames`, from the first to the last frame; a shorter clip shows some twice. A missing clip is the mean colour.

    A value is the path of a video file (OpenCV reads it), of an animated image or of a folder of images, bytes or base64 of one of the first
    two, or an array (T, H, W) or (T, H, W, C). `side`, `largest`, `channels`, `shape`, `scale` are those of an image. `shift` moves
    all frames of a training clip alike; `flip` mirrors them, off by default: what goes left would go right.
    """

    frames: Count = field(default=8, kw_only=True)
    side: int | list[Count] | Literal["auto"] = field(default="auto", kw_only=True)
    largest: Annotated[Count, Dial(nano=32, small=64, base=112)] = field(default=64, kw_only=True)
    channels: Literal["auto", 1, 3] = field(default="auto", kw_only=True)
    shape: Literal["crop", "pad", "stretch"] = field(default="crop", kw_only=True)
    scale: Literal["standard", "unit"] = field(default="standard", kw_only=True)
    shift: Fraction = field(default=0.04, kw_only=True)
    flip: bool = field(default=False, kw_only=True)

    type: ClassVar[str] = "video"
    encoder: ClassVar[str] = "frames"
    form: ClassVar[str] = "frames"
    endings: ClassVar[tuple[str, ...]] = (*VIDEOS, *MOVING)

    @property
    def most(self) -> int:
        """Positions of a value."""
        return self.frames

    @cached_property
    def picture(self) -> Image:
        """The column of one frame."""
        given = {k: v for k, v in self.settings().items() if k != "frames"}
        found = Image(self.name, state=self.state, **given)
        return found.guarded(self.strangers) if self.strangers else found

    @property
    def strangers(self) -> int:
        """0: values may name files; otherwise how many pixels a picture that is sent may have."""
        return self.__dict__.get("_strangers", 0)

    def guarded(self, pixels: int = 0) -> Self:
        copy = replace(self)
        object.__setattr__(copy, "_strangers", pixels or STRANGER)
        return copy

    def fit(self, values: Iterable[Any]) -> Self:
        """Learns size, channels, mean and deviation from the frames of some clips. Raises DataError when no value is a clip."""
        values = values if isinstance(values, np.ndarray) else [v for v in to_list(values) if not _missing(v)]
        if not len(values):
            raise DataError("column.all_missing", name=self.name)
        sample = [values[i] for i in np.unique(np.linspace(0, len(values) - 1, SAMPLE).astype(int))]
        shots = [shot for value in sample for shot in clips.frames(value, self.frames)]
        return replace(self, state=self.picture.fit(shots).state)

    def supposed(self) -> Self:
        return replace(self, state=self.picture.supposed().state)

    @property
    def size(self) -> int:
        return self.state["channels"]

    @property
    def hw(self) -> tuple[int, int]:
        return self.state["height"], self.state["width"]

    # -- raw value <-> array ---------------------------------------------------------------------------------------
    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        """uint8 (T, C, H, W). Raises DataError for what is no clip or is damaged, MissingExtra for a video file without OpenCV."""
        if _missing(value):
            return np.repeat(self.picture.encode(None)[None], self.frames, 0)
        shots = clips.frames(value, self.frames, files=not self.strangers, most=self.strangers)
        return np.stack([self.picture.encode(shot) for shot in shots])

    def encode_all(self, values: Any, of: Any = None) -> np.ndarray:
        items = list(values) if isinstance(values, np.ndarray) else to_list(values)
        if not items:
            return np.zeros((0, self.frames, self.size, *self.hw), np.uint8)
        with ThreadPoolExecutor(DECODERS) as pool:
            return np.stack(list(pool.map(self.encode, items)))

    def outside(self, values: Any) -> bytes:
        return self.picture.outside(values)

    # -- what explains it --------------------------------------------------------------------------------------------
    def segments(self, value: Any) -> Segments:
        """Patches of each frame, four along the longer side: "f0r0c0" is the upper left one of the first. index (T, H, W)."""
        height, width = self.hw
        patch = max(1, round(max(height, width) / PATCHES))
        rows, columns = (max(1, round(n / patch)) for n in (height, width))
        down, across = np.arange(height) * rows // height, np.arange(width) * columns // width
        one = down[:, None] * columns + across
        names = [f"f{f}r{r}c{c}" for f in range(self.frames) for r in range(rows) for c in range(columns)]
        return Segments(names, np.arange(self.frames)[:, None, None] * rows * columns + one)

    def spread(self, shown: np.ndarray, x: np.ndarray) -> np.ndarray:
        return shown[..., None, :, :]

    def nothing(self, x: np.ndarray) -> np.ndarray:
        """The mean colour of the training frames, (C, 1, 1)."""
        return self.picture.nothing(x)

    @property
    def moving(self) -> bool:
        return self.picture.moving

    def unmoved(self) -> Self:
        return replace(self, shift=0.0, flip=False)

    def augment(self, x: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
        """All frames of a clip moved, and mirrored, alike."""
        if not self.moving:
            return x, None
        _, change = self.picture.augment(x[:, 0], mask, rng)
        return self.follow(x, change), change

    def follow(self, x: np.ndarray, change: Any) -> np.ndarray:
        return np.stack([self.picture.follow(x[:, t], change) for t in range(x.shape[1])], 1)

    # -- what others see of it ---------------------------------------------------------------------------------------
    def features(self, values: Any) -> Any:
        """(N, 2 x C x 16 x 16): the mean frame, and how much each pixel changes from one frame to the next, both 0..1."""
        from scipy.sparse import csr_matrix

        x = self.encode_all(values).astype(np.float32) / 255  # (N, T, C, H, W)
        moved = np.abs(np.diff(x, axis=1)).mean(1) if x.shape[1] > 1 else np.zeros_like(x[:, 0])
        both = np.concatenate([_small(x.mean(1)), _small(moved)], 1)
        return csr_matrix(both.reshape(len(x), -1))

    def schema(self) -> dict[str, Any]:
        return {**self.picture.schema(), "contentMediaType": "video/*"}

    def render(self, value: Any, weights: Sequence[float] | None = None) -> str:
        """The frames as the network sees them, side by side, each with its heat map over it."""
        from luban.plots import image

        x, index = self.encode(value), self.segments(value).index
        drawn = []
        for t, frame in enumerate(x.transpose(0, 2, 3, 1)):
            overlay = np.asarray(weights, np.float32)[index[t]] if weights is not None and len(weights) else None
            picture = image(frame[..., 0] if self.size == 1 else frame, overlay, width=120)
            drawn.append(f"<figure>{picture}<figcaption>{html.escape(str(t))}</figcaption></figure>")
        return f'<div class="strip">{"".join(drawn)}</div>'


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and value != value)


def _small(x: np.ndarray) -> np.ndarray:
    """(N, C, H, W) averaged down to at most 16 x 16."""
    step = -(-max(x.shape[2:]) // GREY)
    height, width = (max(n // step, 1) for n in x.shape[2:])
    cut = x[:, :, : height * step, : width * step]
    return cut.reshape(*x.shape[:2], height, step, width, step).mean((3, 5)) if step > 1 else x
