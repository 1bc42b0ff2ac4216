"""A column of masks: the class of every pixel of the image that it is `of:` (semantic segmentation). An output only.

What the network sees are class numbers on its own picture, after the same geometry as the image's, nearest neighbours; its answer
goes back the same way to the image's own size.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np

from luban.columns import picture
from luban.columns.augmenting import moved
from luban.columns.base import Answer, Column, Segments, to_list
from luban.columns.geometry import Placement
from luban.errors import BundleError, DataError, RequestError, problem
from luban.markup import escape, tag
from luban.messages import listed, say
from luban.settings import Natural

NOTHING = 255  # stands in x where a pixel counts for nothing
WHITE = 1  # the class of what is white in masks of black and white
TOLD = 4  # classes of an answer in a table
FIRST = np.array([  # Okabe and Ito 2008, and four more that people who see two colours tell apart
    (40, 40, 40), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167), (90, 30, 130), (120, 60, 20), (200, 200, 200), (0, 80, 60),
], np.uint8)  # fmt: skip


@cache
def palette() -> np.ndarray:
    """uint8 (256, 3): the colour of each class, white where a pixel counts for nothing. After those of `FIRST` each is the colour of a
    coarse grid that is furthest, in CIELAB, from all before it and from white (Glasbey et al. 2007).
    """
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 17)] * 3, indexing="ij"), -1).reshape(-1, 3).astype(np.uint8)
    found, places = [*FIRST], lab(grid)
    far = np.linalg.norm(places[:, None] - lab(np.array([*FIRST, (255, 255, 255)])), axis=2).min(1)
    while len(found) < NOTHING:
        best = int(far.argmax())
        found.append(grid[best])
        far = np.minimum(far, np.linalg.norm(places - places[best], axis=1))
    return np.stack([*found, np.full(3, 255, np.uint8)])


def lab(colours: np.ndarray) -> np.ndarray:
    """sRGB 0..255 (N, 3) -> CIELAB under D65, in which a distance of 10 is easily seen."""
    share = np.asarray(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4339, 0.2126, 0.0178], [0.3762, 0.7152, 0.1095], [0.1899, 0.0722, 0.8727]])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@dataclass(frozen=True)
class Painted(Answer):
    """The mask of one image. `classes`: uint8 (H, W) of the image itself, `own`: of the network's picture."""

    classes: np.ndarray | None = None
    own: np.ndarray | None = None


@dataclass(frozen=True)
class Mask(Column):
    """x is uint8 (H, W): class numbers from 0, 255 where a pixel counts for nothing (`ignore`, beyond the picture, no truth).

    A raw value is a file, bytes or base64 of a grey or palette PNG of the image's own size, or an array, of class numbers. `of`: the
    image column, which then is brought to size by `pad` unless it says otherwise. `labels`: names of the classes 0, 1, ...
    Where all masks that it learns from hold nothing but 0 and 255, black and white as they are often drawn, 255 is class 1.
    """

    of: str | None = field(default=None, kw_only=True)
    labels: list[str] = field(default=(), kw_only=True)
    ignore: Natural = field(default=NOTHING, kw_only=True)
    image_column: Any = field(default=None, kw_only=True, compare=False, repr=False)  # see `beside`

    type: ClassVar[str] = "mask"
    form: ClassVar[str] = "mask"
    of_form: ClassVar[str] = "grid"
    lends: ClassVar[dict[str, Any]] = {"shape": "pad", "largest": 128}
    encoder: ClassVar[str] = ""
    head: ClassVar[str] = "unet"
    turns: ClassVar[bool] = True

    def beside(self, others: Mapping[str, Column]) -> Self:
        return replace(self, image_column=others.get(self.of or ""))

    def fit(self, values: Iterable[Any], of: Any = None) -> Self:
        """Learns how many classes there are, and the share of the pixels that each has. Raises DataError where no row has a mask."""
        counts = np.zeros(NOTHING + 1, np.int64)
        for value in to_list(values):
            classes = self.truth(value)
            if classes is not None:
                counts += np.bincount(classes.ravel(), minlength=NOTHING + 1)
        white = (
            self.ignore == NOTHING and set(counts.nonzero()[0]) == {0, NOTHING} and len(self.labels) in (0, WHITE + 1)
        )
        if white:
            counts[WHITE] = counts[NOTHING]
        counts = counts[:NOTHING]
        if not counts.any():
            raise DataError("column.all_missing", name=self.name)
        size = int(counts.nonzero()[0].max()) + 1
        if self.labels and len(self.labels) < size:
            raise DataError("mask.few_labels", name=self.name, largest=size - 1, labels=list(self.labels))
        names = list(self.labels) or [str(i) for i in range(size)]
        shares = counts[: len(names)] / counts.sum()
        return self.learned(classes=names, shares=[float(s) for s in shares], **({"white": True} if white else {}))

    def supposed(self) -> Self:
        names = list(self.labels) or [str(i) for i in range(10)]
        return self.learned(classes=names, shares=[1 / len(names)] * len(names))

    def check(self) -> None:
        if not self.classes or not all(isinstance(k, str) for k in self.classes):
            raise BundleError("bundle.bad_column", reason=str(self.classes)[:80])

    @property
    def classes(self) -> list[str]:
        return self.state["classes"]

    @property
    def size(self) -> int:
        return len(self.classes)

    @property
    def strangers(self) -> int:
        """0: values may name files; otherwise how many pixels a picture that is sent may have."""
        return self.__dict__.get("_strangers", 0)

    def guarded(self, pixels: int = 0) -> Self:
        copy = replace(self)
        object.__setattr__(copy, "_strangers", pixels or picture.STRANGER)
        return copy

    # -- raw value <-> array -----------------------------------------------------------------------------------------------
    def truth(self, value: Any, of: Any = None) -> np.ndarray | None:
        """uint8 (H, W) as it was drawn, 255 where a pixel counts for nothing; None where there is no mask. Raises DataError."""
        if value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and value != value):
            return None
        if isinstance(value, (list, tuple, np.ndarray)):
            found = self._numbers(value)
        else:
            found = picture.indices(value, files=not self.strangers, most=self.strangers)
        if found.ndim != 2 or not found.size:
            raise DataError("mask.no_mask", name=self.name, found=str(found.shape))
        if self.state.get("white"):
            found = np.where(found == NOTHING, WHITE, found)
        known = found != self.ignore
        if (found[known] >= NOTHING).any() or (found[known] < 0).any():
            raise DataError("mask.too_many", name=self.name, largest=int(np.abs(found[known]).max()), most=NOTHING - 1)
        return np.where(known, found, NOTHING).astype(np.uint8)

    def _numbers(self, value: Any) -> np.ndarray:
        try:
            found = np.asarray(value)
        except ValueError:
            raise DataError("mask.no_mask", name=self.name, found="?") from None
        whole = found.dtype.kind in "iub" or (found.dtype.kind == "f" and (found == np.round(found)).all())
        if not whole or not found.size:
            raise DataError("mask.no_mask", name=self.name, found=f"{found.dtype} {found.shape}")
        if np.abs(found).max() > 2**31:
            raise DataError("mask.too_many", name=self.name, largest="> 2^31", most=NOTHING - 1)
        return found.astype(np.int64)

    def placement(self, of: Any) -> Placement:
        """How the image `of` stands in the network's picture. Raises DataError where there is no image column."""
        if self.image_column is None:
            raise DataError("mask.no_image", name=self.name, of=self.of or "")
        return self.image_column.placement(of)

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        """uint8 (H, W). A class that training never saw counts for nothing. Raises DataError where image and mask differ in size."""
        classes = self.truth(value)
        if classes is None:
            return np.full(self.image_column.hw if self.image_column is not None else (1, 1), NOTHING, np.uint8)
        place = self.placement(of)
        if classes.shape != tuple(place.source):
            raise DataError("mask.other_size", name=self.name, found=list(classes.shape), of=self.of or "", want=list(place.source))  # fmt: skip
        found = sampled(np.where(classes < self.size, classes, NOTHING), place)
        return found.astype(np.uint8)

    def encode_all(self, values: Any, of: Any = None) -> np.ndarray:
        cells = to_list(values)
        pictures = [None] * len(cells) if of is None else of if isinstance(of, np.ndarray) else to_list(of)
        hw = self.image_column.hw if self.image_column is not None else (1, 1)
        items = [self.encode(v, p) for v, p in zip(cells, pictures)]
        return np.stack(items) if items else np.zeros((0, *hw), np.uint8)

    def outside(self, values: Any) -> bytes:
        """Length and time of each file that is named."""
        return repr([picture.stamp(v) for v in to_list(values) if isinstance(v, str)]).encode()

    def collate(self, items: Any) -> tuple[np.ndarray, np.ndarray]:
        """mask (B,): whether any pixel counts."""
        x = np.asarray(items)
        return x, (x != NOTHING).reshape(len(x), -1).any(1)

    def follow(self, x: np.ndarray, change: Any) -> np.ndarray:
        """Moved, turned and mirrored exactly as the pictures are (`luban.columns.augmenting.moved`)."""
        return moved(x[:, None], change)[:, 0]

    # -- what the network says ---------------------------------------------------------------------------------------------
    def narrowed(self, o: np.ndarray) -> np.ndarray:
        """Logits (B, K, H, W) -> uint8 (B, 2, H, W): the class of each pixel, and its probability times 255."""
        o = np.asarray(o, np.float32)
        best = o.argmax(1)
        chance = 1 / np.exp(o - o.max(1, keepdims=True)).sum(1)
        return np.stack([best.astype(np.uint8), np.round(np.nan_to_num(chance) * NOTHING).astype(np.uint8)], 1)

    def decode(self, array: np.ndarray, mask: np.ndarray | None = None, of: Any = None) -> Painted:
        """Logits (K, H, W), or what `narrowed` made of them, -> a mask of the image's own size (without `of` of the network's picture).

        `value`: base64 of a grey PNG of class numbers. `probability`: the mean over pixels, NaN where a logit is no number.
        """
        array = np.asarray(array)
        if array.dtype != np.uint8:
            if not np.isfinite(array).all():
                return Painted("", float("nan"))
            array = self.narrowed(array[None])[0]
        own, chance = array
        classes = restored(own, self.placement(of)) if of is not None else own
        shares = np.bincount(classes.ravel(), minlength=self.size)[: self.size] / classes.size
        told = {k: round(float(s), 6) for k, s in zip(self.classes, shares)}
        value = base64.b64encode(png(classes)).decode()
        return Painted(value, float(chance.mean()) / NOTHING, details={"shares": told}, classes=classes, own=own)

    details: ClassVar[dict[str, str]] = {"shares": "text"}

    def decode_all(self, array: Any, mask: np.ndarray | None = None, of: Any = None) -> list[Answer]:
        pictures = [None] * len(array) if of is None else of if isinstance(of, np.ndarray) else to_list(of)
        return [self.decode(a, None, p) for a, p in zip(array, pictures)]

    def agree(self, a: Any, b: Any) -> float:
        """The share of pixels of the same class."""
        return float((a.classes == b.classes).mean())

    def numbered(self, array: np.ndarray) -> np.ndarray:
        """(B, H, W): see `fixed`."""
        return np.array([self.fixed(a)[0] for a in self.decode_all(array)])

    def fixed(self, answer: Answer, target: Any = None, of: Any = None) -> tuple[np.ndarray, str]:
        """Which class over which pixels is explained, as `score` takes it: int64 (H, W) of the network's picture, 1 + the class where it
        was answered, 0 elsewhere; and its name.

        `target`: a class; without one that with the most pixels, class 0 (the background) last. A class that was answered nowhere is
        explained over the whole picture. Raises RequestError for what is no class.
        """
        own = getattr(answer, "own", None)
        if own is None:
            own = np.zeros(self.image_column.hw, np.uint8)
        if target is not None and str(target) not in self.classes:
            raise RequestError(
                problem("explain.no_such_class", name=str(target), output=self.name, allowed=self.classes)
            )
        counts = np.bincount(own.ravel(), minlength=self.size)
        usual = int(counts[1:].argmax()) + 1 if counts[1:].any() else 0
        chosen = self.classes.index(str(target)) if target is not None else usual
        where = own == chosen if counts[chosen] else np.ones_like(own, bool)
        return np.where(where, chosen + 1, 0).astype(np.int64), self.classes[chosen]

    # -- what others see of it -----------------------------------------------------------------------------------------------
    def segments(self, value: Any) -> Segments:
        return Segments([self.name], np.zeros((), np.int64))

    def spread(self, shown: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.asarray(shown)[..., None, None]

    def nothing(self, x: np.ndarray) -> np.ndarray:
        return np.uint8(NOTHING)[()]

    def features(self, values: Any) -> Any:
        """(N, K): the share of the pixels that each class has."""
        from scipy.sparse import csr_matrix

        found = []
        for value in to_list(values):
            classes = self.truth(value)
            known = classes[classes < self.size] if classes is not None else np.zeros(0, np.uint8)
            found.append(np.bincount(known, minlength=self.size) / max(1, known.size))
        return csr_matrix(np.array(found, np.float32).reshape(-1, self.size))

    def schema(self) -> dict[str, Any]:
        return {"type": ["string", "null"], "contentEncoding": "base64", "contentMediaType": "image/png", "examples": [None]}  # fmt: skip

    def render(self, value: Any, weights: Sequence[float] | None = None) -> str:
        from luban.plots import image

        classes = self.truth(value)
        return image(coloured(classes)) if classes is not None else ""

    def legible(self, answer: Answer) -> str:
        """The shares of the pixels that the commonest classes have."""
        shares = sorted(answer.details["shares"].items(), key=lambda pair: -pair[1]) if answer.details else []
        return listed(_share(k, s) for k, s in shares[:TOLD] if s) or say("mask.nothing")

    def named(self, answer: Answer, explained: str) -> str:
        share = answer.details["shares"][explained] if answer.details else 0.0
        return _share(explained, share) if share else say("mask.nowhere", label=explained)

    def marked(self, drawn: str, answer: Painted, explained: Any, of: Any) -> str:
        """The picture, and beside it the mask that was answered, as the network sees both, with what the colours mean."""
        from luban.plots import image

        if answer.own is None:
            return drawn
        shares = answer.details["shares"]
        return (
            drawn
            + " "
            + image(coloured(answer.own))
            + legend([_share(k, s) if (s := shares[k]) else "" for k in self.classes])
        )


def painted(answer: Answer) -> np.ndarray:
    """uint8 (H, W): the classes of an answer, of one that came from another process too."""
    classes = getattr(answer, "classes", None)
    return picture.indices(answer.value).astype(np.uint8) if classes is None else classes


def _share(label: str, share: float) -> str:
    return say("mask.share", label=label, percent=f"{100 * share:.1f}")


def sampled(classes: np.ndarray, place: Placement) -> np.ndarray:
    """A mask of the picture (H, W) on the network's picture, nearest neighbours; `NOTHING` beyond the picture."""
    (rows, inside_rows), (columns, inside_columns) = (_from(place, axis) for axis in (0, 1))
    found = classes[rows][:, columns]
    return np.where(inside_rows[:, None] & inside_columns, found, NOTHING)


def _from(place: Placement, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row (or column) of the network's picture that of the picture itself, and whether there is one."""
    centre = (np.arange(place.target[axis]) + 0.5 - place.shift[axis]) / place.scale[axis]
    found = np.floor(centre).astype(np.int64)
    last = place.source[axis] - 1
    return np.clip(found, 0, last), (found >= 0) & (found <= last)


def restored(own: np.ndarray, place: Placement) -> np.ndarray:
    """A mask of the network's picture on the picture itself, nearest neighbours; what was cut off is as the edge."""
    where = []
    for axis in (0, 1):
        centre = (np.arange(place.source[axis]) + 0.5) * place.scale[axis] + place.shift[axis]
        where.append(np.clip(np.floor(centre).astype(np.int64), 0, place.target[axis] - 1))
    return own[where[0]][:, where[1]]


def coloured(classes: np.ndarray, over: np.ndarray | None = None) -> np.ndarray:
    """uint8 (H, W, 3): a colour for each class, `NOTHING` white; half over a picture (H, W, 3) where one is given, whole where a class ends."""
    colours = palette()[classes]
    if over is None:
        return colours
    half = np.where(_edges(classes)[..., None], colours, (over.astype(np.uint16) + colours) // 2)
    return np.where((classes == 0)[..., None], over, half).astype(np.uint8)


def _edges(classes: np.ndarray) -> np.ndarray:
    """Where a pixel's neighbour above, below, left or right is of another class; the frame of the picture is no end. bool (H, W)."""
    near = np.pad(classes, 1, mode="edge")
    sides = (near[:-2, 1:-1], near[2:, 1:-1], near[1:-1, :-2], near[1:-1, 2:])
    return np.logical_or.reduce([side != classes for side in sides])


def legend(labels: Sequence[str]) -> str:
    """HTML: each name behind a square of its class's colour, in the order of the classes; empty names are left out."""
    marks = [
        tag("span", tag("span", "■ ", style="color:rgb({},{},{})".format(*palette()[i])), escape(label))
        for i, label in enumerate(labels)
        if label
    ]
    return tag("div", " &emsp; ".join(marks))


def png(classes: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(classes)).save(file, "PNG")
    return file.getvalue()
