"""A column of boxes around the objects of the image that it is `of:` (object detection). An output only.

What the network sees are pixels of its own picture, after the same geometry as the image's. How boxes are written in data:
`luban.data.boxes`. How candidates become boxes, for every engine: `luban.columns.suppression`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np

from luban.columns.base import Answer, Column, Ragged, to_list
from luban.columns.drawn import likely
from luban.columns.geometry import Placement, areas, clipped, overlaps
from luban.columns.suppression import candidates, suppressed
from luban.data import boxes
from luban.data.boxes import Region
from luban.data.rows import BadRow
from luban.errors import BundleError, DataError, RequestError, problem
from luban.markup import escape, tag
from luban.messages import listed, say
from luban.settings import Count, Fraction

SEEN = 0.1  # share of a box that must be in the network's picture to be learned
SAME = 0.5  # overlap from which on two boxes are of the same thing
WIDTH = 5  # numbers of a box: class, x0, y0, x1, y1
CORNERS = 4  # numbers before the logits of a candidate
TOLD = 3  # boxes of an answer in a table


@dataclass(frozen=True)
class Found(Answer):
    """The boxes of one image. `places`: of each the candidate and class that it is, as `score` takes them; `surest`: of each class the
    candidate that is likeliest to be one, answered or not, and its place.
    """

    places: tuple[int, ...] = ()
    surest: tuple[tuple[int, dict[str, Any]], ...] = ()


@dataclass(frozen=True)
class Boxes(Column):
    """x is (n, 5): class from 1, x0, y0, x1, y1 in pixels of the network's picture; the class negative where a region is neither learned nor
    judged (crowd, difficult); one row of class 0 where the truth is missing, none where nothing is there.

    `of`: the image column, which then is brought to size by `pad`, so that no object is cut off, unless it says otherwise. `score`:
    probability from which on a box is answered. `nms`: boxes of one class that overlap more than this (intersection over union) are one.
    `most`: boxes of an image.
    """

    of: str | None = field(default=None, kw_only=True)
    score: Fraction = field(default=0.05, kw_only=True)
    nms: Fraction = field(default=0.5, kw_only=True)
    most: Count = field(default=100, kw_only=True)
    image_column: Any = field(default=None, kw_only=True, compare=False, repr=False)  # see `beside`

    type: ClassVar[str] = "boxes"
    form: ClassVar[str] = "boxes"
    of_form: ClassVar[str] = "grid"
    lends: ClassVar[dict[str, Any]] = {"shape": "pad", "largest": 256}
    encoder: ClassVar[str] = ""
    head: ClassVar[str] = "fcos"
    ragged: ClassVar[bool] = True

    def beside(self, others: Mapping[str, Column]) -> Self:
        return replace(self, image_column=others.get(self.of or ""))

    def fit(self, values: Iterable[Any], of: Any = None) -> Self:
        """Learns the classes, and how many boxes each has. Raises DataError where no row has a box."""
        found = [self.regions(v) for v in to_list(values)]
        counts = Counter(r.label for regions in found for r in regions or () if not r.crowd)
        if not counts:
            raise DataError(
                "column.all_missing" if not any(f is not None for f in found) else "boxes.none", name=self.name
            )
        labels = sorted(counts)
        return self.learned(
            labels=labels,
            counts=[counts[k] for k in labels],
            rows=sum(f is not None for f in found),
            crowded=max(len(f or ()) for f in found),
        )

    def supposed(self) -> Self:
        """Five classes, up to 10 boxes an image."""
        return self.learned(labels=[f"{i:02}" for i in range(5)], counts=[1] * 5, rows=5, crowded=10)

    def check(self) -> None:
        if not self.labels or not all(isinstance(k, str) for k in self.labels):
            raise BundleError("bundle.bad_column", reason=str(self.labels)[:80])

    @property
    def labels(self) -> list[str]:
        return self.state["labels"]

    @property
    def size(self) -> int:
        return len(self.labels)

    # -- raw value <-> array -----------------------------------------------------------------------------------------------
    def regions(self, value: Any) -> list[Region] | None:
        """The regions of a cell; [] where nothing is there, None where the truth is missing. Raises DataError."""
        try:
            return boxes.plain(value)
        except BadRow as e:
            raise DataError(e.id, column=self.name, of=self.of or "", **e.values) from e

    def truth(self, value: Any, of: Any = None) -> list[Region] | None:
        """What is there, in pixels of the image itself; None where that is not known."""
        return self.regions(value)

    def placement(self, of: Any) -> Placement:
        """How the image `of` stands in the network's picture. Raises DataError where there is no image column."""
        if self.image_column is None:
            raise DataError("boxes.no_image", name=self.name, of=self.of or "")
        return self.image_column.placement(of)

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        """float32 (n, 5). A class that training never saw is left out; so is a box of which less than a tenth is seen."""
        regions = self.regions(value)
        if regions is None:
            return np.zeros((1, WIDTH), np.float32)
        known = [r for r in regions if r.label in self.labels]
        if not known:
            return np.zeros((0, WIDTH), np.float32)
        place = self.placement(of)
        try:
            known = boxes.inside(known, place.source)
        except BadRow as e:
            raise DataError(e.id, column=self.name, of=self.of or "", **e.values) from e
        kinds = [(self.labels.index(r.label) + 1) * (-1 if r.crowd else 1) for r in known]
        corners = np.array([r.box for r in known], np.float64)
        corners[:, 2:] += corners[:, :2]
        corners = place.there(corners)
        seen = clipped(corners, place.target)
        kept = areas(seen) > SEEN * areas(corners)
        return np.column_stack([kinds, seen])[kept].astype(np.float32)

    def encode_all(self, values: Any, of: Any = None) -> Ragged:
        cells = to_list(values)
        pictures = [None] * len(cells) if of is None else of if isinstance(of, np.ndarray) else to_list(of)
        items = [self.encode(v, p) for v, p in zip(cells, pictures)]
        return Ragged.of(items) if items else Ragged(np.zeros((0, WIDTH), np.float32), np.zeros(1, np.int64))

    def collate(self, items: Any) -> tuple[np.ndarray, np.ndarray]:
        """(B, M, 5), mask (B, M): where a row is, also the one that says that the truth is missing; M is 1 at least."""
        items = items if isinstance(items, Ragged) else Ragged.of(list(items))
        lengths = items.lengths
        mask = np.arange(int(lengths.max(initial=1))) < lengths[:, None]
        x = np.zeros((*mask.shape, WIDTH), np.float32)
        x[mask] = items.flat.reshape(-1, WIDTH)
        return x, mask

    def follow(self, x: np.ndarray, change: Any) -> np.ndarray:
        """Moved and mirrored like the pictures (`luban.columns.image.Move`), cut at the edges; what leaves becomes a row of zeros."""
        height, width = self.image_column.hw
        moved = x[..., 1:] + np.stack([change.dx, change.dy, change.dx, change.dy], 1)[:, None].astype(x.dtype)
        mirrored = np.stack([width - moved[..., 2], moved[..., 1], width - moved[..., 0], moved[..., 3]], -1)
        moved = np.where(change.flip[:, None, None], mirrored, moved)
        seen = clipped(moved, (height, width))
        there = (x[..., :1] != 0) & (areas(seen) > SEEN * areas(moved))[..., None]
        return np.where(there, np.concatenate([x[..., :1], seen], -1), 0).astype(x.dtype)

    def followed(self, x: np.ndarray, mask: np.ndarray, change: Any) -> tuple[np.ndarray, np.ndarray]:
        moved = self.follow(x, change)
        return moved, mask & ((moved[..., 0] != 0) | (x[..., 0] == 0))

    # -- what the network says ---------------------------------------------------------------------------------------------
    def decode(self, array: np.ndarray, mask: np.ndarray | None = None, of: Any = None) -> Found:
        """A row of the head (N, 4 + K), x0, y0, x1, y1 in pixels of the network's picture and logits, -> boxes, the surest first.

        In pixels of the image `of`, without it of the network's picture. `probability`: of the surest box, None where there is none; NaN
        where a number of the network's is none.
        """
        array = np.asarray(array, np.float32)
        place = self.placement(of) if of is not None else None
        size = place.source if place else self.image_column.hw if self.image_column is not None else None
        if not np.isfinite(array).all():
            return Found([], float("nan"))

        def own(rows: np.ndarray) -> np.ndarray:
            corners = array[rows, :CORNERS].astype(np.float64)
            corners = place.back(corners) if place else corners
            return clipped(corners, size) if size else corners

        found = candidates(array[:, CORNERS:], self.score)
        found = suppressed(found, own(found.rows), self.nms, self.most)
        places = found.rows * self.size + found.kinds
        value = [self._told(c, k, s) for c, k, s in zip(found.corners, found.kinds, found.scores)]
        first = array[:, CORNERS:].argmax(0) if len(array) else np.zeros(0, np.int64)
        logits = np.clip(array[first, CORNERS + np.arange(len(first))].astype(np.float64), -500, 500)
        each = zip(first.tolist(), own(first), 1 / (1 + np.exp(-logits)))
        surest = tuple((n * self.size + k, self._told(c, k, s)) for k, (n, c, s) in enumerate(each))
        return Found(value, value[0]["score"] if value else None, places=tuple(places.tolist()), surest=surest)

    def _told(self, corners: np.ndarray, kind: int, score: float) -> dict[str, Any]:
        x0, y0, x1, y1 = corners.tolist()
        box = [round(n, 2) for n in (x0, y0, x1 - x0, y1 - y0)]
        return {"label": self.labels[kind], "box": box, "score": float(score)}

    def decode_all(self, array: Any, mask: np.ndarray | None = None, of: Any = None) -> list[Answer]:
        pictures = [None] * len(array) if of is None else of if isinstance(of, np.ndarray) else to_list(of)
        return [self.decode(a, None, p) for a, p in zip(array, pictures)]

    def numbered(self, array: np.ndarray) -> np.ndarray:
        """(B,): of the surest candidate n and its class k, n x K + k."""
        logits = np.asarray(array)[:, :, CORNERS:]
        return logits.reshape(len(logits), -1).argmax(1).astype(np.int64)

    def fixed(self, answer: Answer, target: Any = None, of: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Which box of an answer is explained, as `score` takes it (see `numbered`), and the box itself with label and score.

        `target`: None for the surest box, a class for its surest, `CLASS@2` for its second. Where none is answered, the candidate that
        is the surest to be one. Raises RequestError for what is no class, and where `CLASS@2` is not among the boxes answered.
        """
        wanted, _, place = (str(target or "")).partition("@")
        if (wanted and wanted not in self.labels) or (place and not (place.isdecimal() and int(place))):
            raise RequestError(
                problem("explain.no_such_class", name=str(target), output=self.name, allowed=self.labels)
            )
        found: Found = answer  # type: ignore[assignment]
        fitting = [(n, v) for n, v in zip(found.places, found.value) if wanted in ("", v["label"])]
        if place and int(place) > len(fitting):
            there = [f"{wanted}@{i}" for i in range(1, len(fitting) + 1)]
            raise RequestError(problem("explain.no_such_one", target=str(target), count=len(fitting), allowed=there))
        unanswered = [(n, v) for n, v in found.surest if wanted in ("", v["label"])]
        if not (fitting or unanswered):
            return np.array(0, np.int64), {"label": wanted or self.labels[0], "box": None, "score": None}
        chosen, box = fitting[int(place or 1) - 1] if fitting else max(unanswered, key=lambda one: one[1]["score"])
        return np.array(chosen, np.int64), box

    def agree(self, first: Answer, second: Answer) -> float:
        """F1 of the likely boxes of one answer against those of the other, of the same class and with an overlap of 0.5; 1 where both have none."""
        mine, theirs = likely(first.value), likely(second.value)
        free, same = list(theirs), 0
        for one in mine:
            rivals = [v for v in free if v["label"] == one["label"]]
            shared = overlaps(_corners([one]), _corners(rivals)) if rivals else np.zeros(0)
            if len(shared) and shared.max() >= SAME:
                free.remove(rivals[int(shared.argmax())])
                same += 1
        return 2 * same / (len(mine) + len(theirs)) if mine or theirs else 1.0

    def spread(self, shown: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.asarray(shown)[..., None, None]

    # -- what others see of it -----------------------------------------------------------------------------------------------
    def features(self, values: Any) -> Any:
        """(N, K): how many boxes of each class there are."""
        from scipy.sparse import csr_matrix

        found = [Counter(r.label for r in self.regions(v) or ()) for v in to_list(values)]
        return csr_matrix(
            [[float(c[k]) for k in self.labels] for c in found] or np.zeros((0, self.size)), dtype=np.float32
        )

    def schema(self) -> dict[str, Any]:
        box = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
        one = {"type": "object", "properties": {"label": {"enum": self.labels[:100]}, "box": box}}
        return {"type": ["array", "string", "null"], "items": one, "examples": [[]]}

    def render(self, value: Any, weights: Sequence[float] | None = None) -> str:
        """One line a box; drawn into its picture: `luban.columns.drawn`."""
        regions = self.regions(value) or ()
        lines = (f"{r.label} {' '.join(f'{n:g}' for n in r.box)}" for r in regions)
        return super().render(listed(lines, "; "), weights)

    def legible(self, answer: Answer) -> str:
        """The first boxes, the surest first."""
        told = listed(map(_said, answer.value[:TOLD]), "; ") or say("boxes.nothing")
        rest = len(answer.value) - TOLD
        return say("boxes.more", boxes=told, count=rest) if rest > 0 else told

    def named(self, answer: Answer, explained: Mapping[str, Any]) -> str:
        return _said(explained) if explained in answer.value else say("boxes.unanswered", box=_said(explained))

    def marked(self, drawn: str, answer: Answer, explained: Mapping[str, Any], of: Any) -> str:
        """The picture as the network sees it with the box over it, in yellow."""
        if explained["box"] is None:
            return drawn
        place = self.placement(of)
        height, width = place.target
        ((x0, y0, x1, y1),) = clipped(place.there(_corners([explained])), place.target)
        shape = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "fill": "none", "vector_effect": "non-scaling-stroke"}  # fmt: skip
        frame = [tag("rect", **shape, stroke=c, stroke_width=w) for c, w in (("#000000", 5), ("#ffd400", 2.5))]
        size, over = "position:absolute;inset:0;width:100%;height:100%", {"viewBox": f"0 0 {width} {height}"}
        mark = tag("svg", tag("title", escape(_said(explained))), *frame, **over, style=size)
        return tag("div", drawn, mark, style="position:relative;display:inline-block;line-height:0")


def _said(one: Mapping[str, Any]) -> str:
    if one["box"] is None:
        return one["label"]
    x, y, width, height = (f"{n:.0f}" for n in one["box"])
    return say("boxes.said", label=one["label"], score=f"{one['score']:.2f}", x=x, y=y, width=width, height=height)


def _corners(found: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """x0, y0, x1, y1 (n, 4)."""
    corners = np.array([v["box"] for v in found], np.float64)
    corners[:, 2:] += corners[:, :2]
    return corners
