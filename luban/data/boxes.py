"""Boxes around objects in an image: every way of writing them brought into one.

A cell is a list of `{"label": "cat", "box": [x, y, width, height]}` in pixels of the image as it is looked at, x and y of the upper left corner
(COCO's convention; `bbox` and `category` are read, too), or that list as JSON. `"crowd": true` (COCO's `iscrowd`) and `"difficult": true`
(Pascal VOC) mark a region that is neither learned nor judged. `"area"`: the pixels of the object itself where that is known, as COCO's outlines
tell it; scores by size go by it, otherwise by width times height. An empty list says that nothing is there; an empty cell says nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from luban.data.images import size_of
from luban.data.rows import BadRow, Rows
from luban.errors import DataError, problem

LABELS, BOXES = ("label", "category"), ("box", "bbox")
PASSED = ("crowd", "iscrowd", "difficult", "ignore")
AREA = 1e18  # square pixels that no image has
ROUNDING = 0.01  # pixels that a box may stick out without being cut: shares of a side are rounded


class Region(NamedTuple):
    """One object: its class and x, y, width, height in pixels. `crowd`: neither learned nor judged. `area`: of the object in pixels, None
    where nobody told it.
    """

    label: str
    box: tuple[float, float, float, float]
    crowd: bool = False
    area: float | None = None

    @property
    def pixels(self) -> float:
        """How large it is: its area, without one that of its box."""
        return self.box[2] * self.box[3] if self.area is None else self.area

    def plain(self) -> dict[str, Any]:
        more = {"crowd": True} if self.crowd else {}
        more |= {} if self.area is None else {"area": self.area}
        return {"label": self.label, "box": list(self.box), **more}


def plain(value: Any) -> list[Region] | None:
    """A cell as its regions; [] = nothing is there; None = empty. Raises BadRow."""
    if value is None or value == "" or (isinstance(value, float) and value != value):
        return None
    found = _json(value) if isinstance(value, str) else value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(found, Mapping):
        found = _listed(found)
    if not isinstance(found, (list, tuple)):
        raise BadRow("boxes.not_boxes", value=str(value)[:60])
    return [_region(v) for v in found]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _listed(columns: Mapping[str, Any]) -> Any:
    """`{"label": [...], "box": [...]}`, as Hugging Face's `datasets` have them, object by object; None for another shape."""
    lists = {k: v for k, v in columns.items() if isinstance(v, (list, tuple))}
    if not lists or len({len(v) for v in lists.values()}) != 1:
        return None
    return [dict(zip(lists, values)) for values in zip(*lists.values())]


def _region(value: Any) -> Region:
    if not isinstance(value, Mapping):
        raise BadRow("boxes.not_boxes", value=str(value)[:60])
    label, box = (next((value[k] for k in keys if k in value), None) for keys in (LABELS, BOXES))
    label = str(label) if isinstance(label, int) and not isinstance(label, bool) else label
    if not isinstance(label, str) or not label.strip():
        raise BadRow("boxes.no_label", value=json.dumps(dict(value), ensure_ascii=False, default=str)[:80])
    numbers = list(box) if isinstance(box, (list, tuple, np.ndarray)) else []
    if len(numbers) != 4 or not all(map(_finite, numbers)):
        raise BadRow("boxes.not_a_box", value=str(box)[:60], label=label[:40])
    x, y, width, height = (float(n) for n in numbers)
    if width <= 0 or height <= 0:
        raise BadRow("boxes.empty", value=str(box)[:60], label=label[:40])
    crowd = any(value.get(k) not in (None, False, 0, "0") for k in PASSED)
    return Region(label.strip(), (x, y, width, height), crowd, _area(value.get("area"), label))


def _area(value: Any, label: str) -> float | None:
    if value is None:
        return None
    if not _finite(value, AREA) or value < 0:
        raise BadRow("boxes.not_an_area", value=str(value)[:60], label=label[:40])
    return float(value)


def _finite(value: Any, most: float = 1e9) -> bool:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return number and abs(value) < most and math.isfinite(value)


def inside(regions: Sequence[Region], size: tuple[int, int]) -> list[Region]:
    """Regions cut at the edges of an image of `size` (H, W). Raises BadRow for one that lies outside."""
    height, width = size
    found = []
    for r in regions:
        x, y, w, h = r.box
        if min(x, y) >= -ROUNDING and x + w <= width + ROUNDING and y + h <= height + ROUNDING:
            found.append(r)
            continue
        x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
        if x1 <= x0 or y1 <= y0:
            raise BadRow("boxes.outside", value=str(list(r.box)), label=r.label[:40], width=width, height=height)
        found.append(r._replace(box=(x0, y0, x1 - x0, y1 - y0)))
    return found


def text_of(regions: Sequence[Region]) -> str:
    return json.dumps([r.plain() for r in regions], ensure_ascii=False)


def boxed(rows: Rows, name: str, of: str) -> Rows:
    """The column `name` as JSON, every box within its image of the column `of`; rows where that cannot be go aside.

    Boxes that stick out are cut, and that is told. Raises DataError where no row is right.
    """
    cells, pictures = rows.column(name).to_pylist(), rows.column(of)
    files = pictures.to_pylist() if pa.types.is_string(pictures.type) or pa.types.is_binary(pictures.type) else [None] * len(cells)  # fmt: skip
    reasons: dict[int, tuple[str, dict[str, Any]]] = {}
    values: list[str | None] = []
    cut = 0
    for i, (cell, file) in enumerate(zip(cells, files)):
        try:
            found = plain(cell)
            size = size_of(file) if found else None
            kept = inside(found, size) if found and size else found
        except BadRow as e:
            reasons[i] = (e.id, {"column": name, "of": of, **e.values})
            continue
        cut += kept != found
        values.append(None if kept is None else text_of(kept))
    if reasons and len(reasons) == len(rows):
        id, more = reasons[min(reasons)]
        raise DataError(problem(id, place=rows.place(min(reasons)), **more))
    result = rows.drop_each(reasons).having(name, pa.array(values, pa.string()))
    return result.noted(problem("boxes.cut", place=rows.source, column=name, of=of, count=cut)) if cut else result


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """A column of lists of records with boxes as JSON, one text a row; None for anything else."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    inside = kind.value_type if lists else kind
    fields = {f.name for f in inside} if pa.types.is_struct(inside) else set()
    if not fields & {*BOXES} or not fields & {*LABELS}:
        return None
    texts = [v if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])
