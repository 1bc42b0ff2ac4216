"""A column of images: files, bytes, base64 or arrays -> uint8 pixels of one size."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np

from luban.columns import augmenting, corruptions, picture
from luban.columns.augmenting import Move
from luban.columns.base import Answer, Column, Segments, to_list
from luban.columns.geometry import Placement, placement
from luban.columns.superpixels import superpixels
from luban.console import tell
from luban.data.images import ENDINGS
from luban.errors import DataError
from luban.settings import Count, Dial, Fraction

SAMPLE = 2000  # images looked at to learn size, mean and deviation
PATCHES = 7  # segments along the longer side
DECODERS = 4


@dataclass(frozen=True)
class Image(Column):
    """x is uint8 (C, H, W). A missing image is the mean colour everywhere.

    `side`: side, or [height, width]; auto takes the commonest size of the training images, no side above `largest`.
    `channels`: 1 grey, 3 colour; auto takes grey where every training image is. `shape`: how other shapes are brought
    to size. `shift` (share of a side) and `flip` (auto: colour images) move training images at random; `randaugment` (strength, 0.3
    is usual) does two more things to each of them: turns, shears, moves, brightness, contrast, colour; `erase` (share of
    images) takes a box out. See `luban.columns.augmenting`. `patches`: what explanations point at, squares or patches of like
    colour (`luban.columns.superpixels`).
    """

    side: int | list[Count] | Literal["auto"] = field(default="auto", kw_only=True)
    largest: Annotated[Count, Dial(nano=64, small=64, base=224)] = field(default=64, kw_only=True)
    channels: Literal["auto", 1, 3] = field(default="auto", kw_only=True)
    shape: Literal["crop", "pad", "stretch"] = field(default="crop", kw_only=True)
    scale: Literal["standard", "unit"] = field(default="standard", kw_only=True)  # unit: pixels / 255
    shift: Fraction = field(default=0.04, kw_only=True)
    flip: bool | Literal["auto"] = field(default="auto", kw_only=True)
    patches: Literal["grid", "superpixels"] = field(default="grid", kw_only=True)
    randaugment: Fraction = field(default=0.0, kw_only=True)
    erase: Fraction = field(default=0.0, kw_only=True)

    type: ClassVar[str] = "image"
    encoder: ClassVar[str] = "cnn"
    form: ClassVar[str] = "grid"
    head: ClassVar[str] = "dcgan"
    endings: ClassVar[tuple[str, ...]] = ENDINGS

    def fit(self, values: Iterable[Any]) -> Self:
        """Learns size, channels, mean and deviation per channel. Raises DataError when no value is an image."""
        values = values if isinstance(values, np.ndarray) else [v for v in to_list(values) if v is not None]
        if not len(values):
            raise DataError("column.all_missing", name=self.name)
        sample = [values[i] for i in np.unique(np.linspace(0, len(values) - 1, SAMPLE).astype(int))]
        looks = [_look(v) for v in sample]
        depth = self.channels if self.channels != "auto" else max(look.channels for look in looks)
        height, width = self._size([look.size for look in looks])
        if animated := sum(look.frames > 1 for look in looks):
            tell("image.animated", name=self.name, count=animated)
        learned = self.learned(height=height, width=width, channels=depth, top=max(look.top for look in looks))
        if self.scale == "unit":
            return learned.learned(mean=[0.0] * depth, deviation=[255.0] * depth)
        x = learned.learned(mean=[0.0] * depth).encode_all(sample)
        mean, deviation = _moments(x)
        return learned.learned(mean=mean, deviation=deviation)

    def supposed(self) -> Self:
        """In colour unless `channels` says so, as large as `side` or `largest`."""
        depth = 3 if self.channels == "auto" else self.channels
        height, width = self._size([(self.largest, self.largest)])
        mean, deviation = [127.0] * depth, [64.0] * depth
        return self.learned(height=height, width=width, channels=depth, top=255, mean=mean, deviation=deviation)

    def _size(self, sizes: list[tuple[int, int]]) -> tuple[int, int]:
        if self.side != "auto":
            return (self.side, self.side) if isinstance(self.side, int) else (self.side[0], self.side[-1])
        height, width = Counter(sizes).most_common(1)[0][0]
        ratio = min(1.0, self.largest / max(height, width))
        return max(1, round(height * ratio)), max(1, round(width * ratio))

    @property
    def size(self) -> int:
        return self.state["channels"]

    @property
    def hw(self) -> tuple[int, int]:
        return self.state["height"], self.state["width"]

    @property
    def pixels(self) -> int:
        """How many numbers an image has: C x H x W."""
        return self.size * self.hw[0] * self.hw[1]

    @property
    def strangers(self) -> int:
        """0: values may name files; otherwise how many pixels a picture that is sent may have."""
        return self.__dict__.get("_strangers", 0)

    def guarded(self, pixels: int = 0) -> Self:
        copy = replace(self)
        object.__setattr__(copy, "_strangers", pixels or picture.STRANGER)
        return copy

    # -- raw value <-> array ---------------------------------------------------------------------------------------
    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        """uint8 (C, H, W). Raises DataError for what is no image, is damaged, or is too large."""
        if value is None or (isinstance(value, float) and value != value):
            return np.broadcast_to(self.nothing(np.zeros((), np.uint8)), (self.size, *self.hw)).copy()
        if isinstance(value, list):
            value = _listed(value)
        if isinstance(value, np.ndarray):
            array = _depth(_bytes(_last(value), self.state["top"]), self.size)
        else:
            with picture.opened(value, files=not self.strangers, most=self.strangers) as image:
                whole = picture.upright(image)
                array = picture.pixels(image, self.size, self.hw)
            return np.ascontiguousarray(picture.fitted(array, self.hw, self.shape, whole).transpose(2, 0, 1))
        return np.ascontiguousarray(picture.fitted(array, self.hw, self.shape).transpose(2, 0, 1))

    def placement(self, value: Any) -> Placement:
        """Where the pixels of a raw value stand in what the network sees, from its header alone. Raises DataError."""
        if value is None or (isinstance(value, float) and value != value):
            return placement(self.hw, self.hw, self.shape)
        if isinstance(value, (list, np.ndarray)):
            source = _last(_listed(value) if isinstance(value, list) else value).shape[:2]
        else:
            with picture.opened(value, files=not self.strangers, most=self.strangers) as image:
                source = picture.upright(image)
        return placement(source, self.hw, self.shape)

    def whole(self, value: Any) -> np.ndarray:
        """The picture of a raw value in its own size and in colour, uint8 (H, W, 3). Raises DataError."""
        if value is None or (isinstance(value, float) and value != value):
            return np.broadcast_to(_depth(self.nothing(np.zeros((), np.uint8)).transpose(1, 2, 0), 3), (*self.hw, 3))
        if isinstance(value, (list, np.ndarray)):
            array = _last(_listed(value) if isinstance(value, list) else value)
            return _depth(_bytes(array, self.state["top"]), 3)
        with picture.opened(value, files=not self.strangers, most=self.strangers) as image:
            return picture.pixels(image, 3)

    def encode_all(self, values: Any, of: Any = None) -> np.ndarray:
        """uint8 (N, C, H, W); arrays that already have the size are only turned."""
        if (
            isinstance(values, np.ndarray)
            and values.dtype == np.uint8
            and values.shape[1:] == self.hw
            and self.size == 1
        ):
            return values[:, None]
        if isinstance(values, np.ndarray) and values.dtype == np.uint8 and values.shape[1:] == (*self.hw, self.size):
            return np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        items = list(values) if isinstance(values, np.ndarray) else to_list(values)
        if not items:
            return np.zeros((0, self.size, *self.hw), np.uint8)
        keys = [v if isinstance(v, str) else i for i, v in enumerate(items)]
        once = dict(zip(keys, items))  # a file that several rows name is opened once
        with ThreadPoolExecutor(DECODERS) as pool:
            found = dict(zip(once, pool.map(self.encode, once.values())))
        return np.stack([found[k] for k in keys])

    def decode(self, array: np.ndarray, mask: np.ndarray | None = None) -> Answer:
        """array (C, H, W) from -1 to 1 -> base64 of a PNG, which any image input reads."""
        return Answer(_png(shown(array[None])[0].transpose(1, 2, 0)))

    def outside(self, values: Any) -> bytes:
        """Length and time of each file that is named."""
        names = [v for v in to_list(values) if isinstance(v, str)] if not isinstance(values, np.ndarray) else ()
        return repr([picture.stamp(v) for v in names]).encode()

    # -- what explains it --------------------------------------------------------------------------------------------
    def segments(self, value: Any) -> Segments:
        """Patches of a regular grid, seven along the longer side: "r0c0" is the upper left one; or as many superpixels. index (H, W)."""
        if self.patches == "superpixels":
            return self._superpixels(value)
        height, width = self.hw
        patch = max(1, round(max(height, width) / PATCHES))
        rows, columns = (max(1, round(n / patch)) for n in (height, width))
        down, across = np.arange(height) * rows // height, np.arange(width) * columns // width
        names = [f"r{r}c{c}" for r in range(rows) for c in range(columns)]
        return Segments(names, down[:, None] * columns + across)

    def _superpixels(self, value: Any) -> Segments:
        height, width = self.hw
        shown = self.encode(value).transpose(1, 2, 0)
        index = superpixels(shown, max(1, round(PATCHES * PATCHES * min(height, width) / max(height, width))))
        return Segments([f"s{k}" for k in range(int(index.max()) + 1)], index)

    def spread(self, shown: np.ndarray, x: np.ndarray) -> np.ndarray:
        return shown[..., None, :, :]

    def nothing(self, x: np.ndarray) -> np.ndarray:
        """The mean colour of the training images, (C, 1, 1)."""
        return np.round(self.state["mean"]).astype(x.dtype)[:, None, None]

    @property
    def turning(self) -> bool:
        return self.randaugment > 0

    @property
    def mirrored(self) -> bool:
        return bool(self.flip if self.flip != "auto" else self.size == 3)

    @property
    def moving(self) -> bool:
        return bool(self.shift or self.mirrored or self.randaugment or self.erase)

    def unmoved(self) -> Self:
        return replace(self, shift=0.0, flip=False, randaugment=0.0, erase=0.0)

    def still(self) -> Self:
        copy = replace(self)
        object.__setattr__(copy, "_still", True)
        return copy

    def augment(self, x: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
        """Shifted by up to `shift` of a side (a pixel at least), the edge repeated; mirrored at random where `flip` allows; then
        what `randaugment` and `erase` do.
        """
        if not self.moving:
            return x, None
        count = len(x)
        far = [max(round(self.shift * n), self.shift > 0) for n in x.shape[2:]]
        dy, dx = (rng.integers(-n, n + 1, count) for n in far)
        change = Move(dy, dx, (rng.random(count) < 0.5) & self.mirrored, self.shift)
        drawn = None
        if self.randaugment:
            drawn = augmenting.draw(count, self.randaugment, rng, self.__dict__.get("_still", False))
            across = [np.rint(t * n).astype(int) for t, n in zip((drawn.translate_y, drawn.translate_x), x.shape[2:])]
            reach = self.shift + augmenting.FAR * self.randaugment
            change = Move(dy + across[0], dx + across[1], change.flip, reach, augmenting.turn_of(drawn))
        x = self.follow(x, change)
        x = augmenting.coloured(x, drawn) if drawn else x
        return (augmenting.erased(x, self.erase, self.nothing(x), rng) if self.erase else x), change

    def follow(self, x: np.ndarray, change: Any) -> np.ndarray:
        """The same move of another image of the same size."""
        return augmenting.moved(x, change)

    def corruptions(self) -> tuple[str, ...]:
        return tuple(corruptions.PARAMETERS)

    def corrupted(self, x: np.ndarray, name: str, severity: int, rng: np.random.Generator) -> np.ndarray:
        return corruptions.corrupted(x, name, severity, rng)

    # -- what others see of it ---------------------------------------------------------------------------------------
    def features(self, values: Any) -> Any:
        """Pixels 0..1 (N, C x H x W), averaged down to at most 32 x 32."""
        from scipy.sparse import csr_matrix

        x = self.encode_all(values)
        step = -(-max(self.hw) // 32)
        if step > 1:
            height, width = (n // step * step for n in self.hw)
            x = x[:, :, :height, :width].reshape(len(x), self.size, height // step, step, width // step, step)
            x = x.mean((3, 5), dtype=np.float32)
        return csr_matrix(x.reshape(len(x), -1).astype(np.float32) / 255)

    def schema(self) -> dict[str, Any]:
        colour = np.round(self.state["mean"]).astype(np.uint8)
        return {
            "type": ["string", "null"],
            "contentEncoding": "base64",
            "contentMediaType": "image/*",
            "examples": [_png(np.broadcast_to(colour, (1, 1, self.size)))],
        }

    def render(self, value: Any, weights: Sequence[float] | None = None) -> str:
        """The picture as the network sees it, with its heat map over it."""
        from luban.plots import image

        shown = self.encode(value).transpose(1, 2, 0)
        overlay = None
        if weights is not None and len(weights):
            overlay = np.asarray(weights, np.float32)[self.segments(value).index]
        return image(shown[..., 0] if self.size == 1 else shown, overlay)


class Look(NamedTuple):
    """What the header of an image says; `top` is the number that means white in an array."""

    size: tuple[int, int]
    channels: int
    frames: int = 1
    top: float = 255.0


def shown(array: np.ndarray) -> np.ndarray:
    """Pixels from -1 to 1 as uint8, same shape."""
    return np.clip(np.round((np.asarray(array, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def _look(value: Any) -> Look:
    if isinstance(value, list):
        value = _listed(value)
    if isinstance(value, np.ndarray):
        array = _last(value)
        top = 255.0
        if array.dtype != np.uint8:
            found = float(array.max(initial=0))
            top = 65535.0 if array.dtype == np.uint16 else 1.0 if 0 < found <= 1 else found or 1.0
        return Look(array.shape[:2], 1 if array.shape[2] <= 2 else 3, 1, top)
    with picture.opened(value) as image:
        return Look(picture.upright(image), 1 if image.mode in picture.GREY else 3, picture.frames(image))


def _listed(value: list[Any]) -> np.ndarray:
    try:
        return np.array(value, np.float32)
    except (ValueError, TypeError) as e:
        raise DataError("image.not_an_array", shape="?") from e


def _last(array: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) -> (H, W, C)."""
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3 or not array.size or min(array.shape[0], array.shape[2]) > 4:
        raise DataError("image.not_an_array", shape=str(array.shape))
    return array.transpose(1, 2, 0) if array.shape[2] > 4 else array


def _bytes(array: np.ndarray, top: float) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    x = array.astype(np.float32)
    if not np.isfinite(x).all():
        raise DataError("image.not_finite")
    return np.clip(np.round(x * (255.0 / top)), 0, 255).astype(np.uint8)


def _depth(array: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, 1 to 4) -> (H, W, channels); transparency on white."""
    if array.shape[2] in (2, 4):
        alpha = array[..., -1:].astype(np.float32) / 255
        array = np.round(array[..., :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    if array.shape[2] == channels:
        return array
    if channels == 3:
        return array[..., :1].repeat(3, axis=2)
    return np.round(array[..., :3] @ np.array([0.299, 0.587, 0.114]))[..., None].astype(np.uint8)


def _moments(x: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel of uint8 (N, C, H, W), from the histogram: exact and light."""
    grey = np.arange(256, dtype=np.float64)
    means, deviations = [], []
    for c in range(x.shape[1]):
        share = np.bincount(x[:, c].reshape(-1), minlength=256) / max(x[:, c].size, 1)
        mean = float((share * grey).sum())
        deviation = float(np.sqrt((share * (grey - mean) ** 2).sum()))
        means.append(mean)
        deviations.append(deviation if deviation > 1e-3 else 1.0)
    return means, deviations


def _png(array: np.ndarray) -> str:
    """uint8 (H, W, C) as base64 of a PNG."""
    from PIL import Image as Pillow

    file = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
