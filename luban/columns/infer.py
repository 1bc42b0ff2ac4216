"""Which type each column most likely has, with the reason, so that the guess can be shown and overruled.

Only names of types are decided here; no cell is changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from luban.console import tell
from luban.data.blocks import some
from luban.data.images import ENDINGS, VIDEOS
from luban.data.rows import Rows
from luban.data.same import missing
from luban.errors import DataError, problem
from luban.messages import say

LOOKED = 200_000  # rows by which a type is told, evenly spaced; fewer where they are wide
NUMBERS = 0.995  # share of the cells that must be numbers
CLASSES = 20  # distinct whole numbers up to which a target is taken for classes
FEW = 50  # distinct words up to which a column is a category whatever its length
ALONG = 0.8  # share of the rows in which each word must have its tag
LONG = 30  # characters on average from which strings are texts
_NUMBER = r"^\s*[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?\s*$"
_DATE = r"^\s*\d{4}-\d{1,2}-\d{1,2}([ T]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?\s*$"
_TAGS = r"^\s*(O|[BIMELSU]-\S+)(\s+(O|[BIMELSU]-\S+))*\s*$"
_CODE = r"^[A-Za-z0-9_\-./#]{1,40}$"
_ID_NAME = re.compile(
    r"(^|[_\W])(id|uuid|guid|key|index|rowid|row_number|编号|序号)$|^(id|unnamed|column_1$)", re.IGNORECASE
)
_CJK = "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]"
_TALK = r'^\s*\[\s*\{\s*"(role|content|from|value)"\s*:'
_BOXES = r'^\s*\[\s*(\]|\{\s*"(label|category|box|bbox|id|crowd|iscrowd|area)"\s*:)'
_MASK_NAME = re.compile(r"(^|[_\W])(masks?|segmentation)$", re.IGNORECASE)
_PARTS = {"train", "training", "validation", "valid", "val", "dev", "test"}


@dataclass(frozen=True)
class Inferred:
    """`type`: number, category, text, image, tags or boxes (of a target), or skip. `reason`: one sentence. `settings`: for the column."""

    type: str
    reason: str
    settings: dict[str, Any] = field(default_factory=dict)


def infer(rows: Rows, *, target: str | None = None) -> dict[str, Inferred]:
    """The likely type of every column. A target is never skipped. Raises DataError for an unknown target."""
    if target is not None and target not in rows.columns:
        raise DataError(problem("data.no_such_column", place=rows.source, name=target, allowed=rows.columns))
    looked = some(rows.table, LOOKED)
    if len(rows) > looked:
        tell("infer.sampled", count=looked, rows=len(rows))
        rows = rows.take(np.linspace(0, len(rows) - 1, looked).astype(np.int64))
    found = {name: _column(name, rows.table[name], name == target) for name in rows.columns}
    if (
        target is not None
        and found[target].type == "tags"
        and _listed(rows.table[target].type)
        and not _along(rows, target)
    ):
        found[target] = _because("labels", "infer.labels")
    return found


def _listed(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _along(rows: Rows, target: str) -> bool:
    """Whether some other column has a word, or a character, for each entry of the lists of this one."""
    wanted = pc.fill_null(pc.list_value_length(rows.table[target]), 0)
    for name in (n for n in rows.columns if n != target):
        column = rows.table[name]
        if _listed(column.type):
            counts = [pc.list_value_length(column)]
        elif pa.types.is_string(column.type):
            words = pc.split_pattern_regex(pc.utf8_trim_whitespace(column), r"\s+")
            counts = [pc.list_value_length(words), pc.utf8_length(column)]
        else:
            continue
        for count in counts:
            same = pc.equal(pc.cast(count, pa.int64()), pc.cast(wanted, pa.int64()))
            if pc.mean(pc.fill_null(same, False).cast(pa.float64())).as_py() > ALONG:
                return True
    return False


def types(inferred: Mapping[str, Inferred]) -> dict[str, str]:
    """Names and types of the columns that are not skipped."""
    return {n: i.type for n, i in inferred.items() if i.type != "skip"}


def _column(name: str, column: pa.ChunkedArray, target: bool) -> Inferred:
    kind = column.type
    if isinstance(kind, pa.FixedShapeTensorType) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _because("image", "infer.pixels")
    cells = column.filter(pa.array(~missing(column)))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        words = pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
        return _because("tags", "infer.tags") if target else _because("text" if words else "skip", "infer.lists")
    if not len(cells):
        return _because("category" if target else "skip", "infer.all_missing")
    distinct = pc.count_distinct(cells).as_py()
    if distinct == 1 and not target:
        return _because("skip", "infer.constant", value=str(cells[0].as_py())[:40])
    if pa.types.is_boolean(kind):
        return _because("category", "infer.truth")
    if pa.types.is_temporal(kind):
        return _because("skip", "infer.time")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _number(name, cells.cast(pa.float64(), safe=False), distinct, target)
    if not pa.types.is_string(kind):
        return _because("skip", "infer.unknown", type=str(kind))
    return _strings(name, cells, distinct, target)


def _because(kind: str, id: str, settings: dict[str, Any] | None = None, **values: Any) -> Inferred:
    return Inferred(kind, say(id, **values), settings or {})


def _number(name: str, cells: pa.ChunkedArray, distinct: int, target: bool) -> Inferred:
    values = cells.to_numpy()
    whole = bool(np.isfinite(values).all() and (values == np.rint(values)).all())
    if target:
        compact = whole and distinct <= CLASSES and values.max() - values.min() <= 2 * CLASSES
        if compact and len(values) >= 2 * distinct:
            return _because("category", "infer.number_classes", count=distinct)
        return _because("number", "infer.target_number", count=distinct)
    if whole and distinct == len(values) > 20 and (_ID_NAME.search(name) or _counts_up(values)):
        return _because("skip", "infer.identifier", count=distinct)
    return _because("number", "infer.numbers")


def _counts_up(values: np.ndarray) -> bool:
    """1, 2, 3 ...: a row number."""
    return bool((np.diff(values) == 1).all())


def _strings(name: str, cells: pa.ChunkedArray, distinct: int, target: bool) -> Inferred:
    count = len(cells)
    if _share(cells, r"(?i)\.(" + "|".join(e[1:] for e in ENDINGS) + r")\s*$") > 0.9:
        if _MASK_NAME.search(name) and not target:
            return _because("skip", "infer.mask")
        return _because("image", "infer.image_paths")
    if _share(cells, r"(?i)\.(" + "|".join(e[1:] for e in VIDEOS) + r")\s*$") > 0.9:
        return _because("video", "infer.video_paths")
    shaped = pc.fill_null(pc.match_substring_regex(cells, _NUMBER), False)
    share = pc.mean(shaped.cast(pa.float64())).as_py()
    if share >= NUMBERS:
        if _share(cells, r"^\s*0\d") > 0.005:
            return _because("category", "infer.leading_zeros", example=_first(cells, r"^\s*0\d"))
        plain = pc.replace_substring(pc.utf8_trim_whitespace(cells.filter(shaped)), ",", ".")
        plain = pc.replace_substring_regex(plain, r"^\+", "")
        settings = {"decimal": ","} if _share(cells, ",") > 0.005 else {}
        inferred = _number(name, plain.cast(pa.float64()), distinct, target)
        return Inferred(inferred.type, inferred.reason, settings if inferred.type == "number" else {})
    if _share(cells, _DATE) >= 0.99 and not target:
        return _because("skip", "infer.time")
    if not target and {v.lower() for v in pc.unique(cells.slice(0, 1000)).to_pylist()} <= _PARTS and distinct <= 3:
        return _because("skip", "infer.parts")
    return _words(name, cells, distinct, count, share, target)


def _words(name: str, cells: pa.ChunkedArray, distinct: int, count: int, numbers: float, target: bool) -> Inferred:
    if target and _share(cells, _TAGS) >= 0.99 and _share(cells, r"[BIMELSU]-\S") > 0.01 and _share(cells, " ") > 0.5:
        return _because("tags", "infer.tags")
    length = pc.mean(pc.utf8_length(cells)).as_py()
    spaced = _share(cells, r"\S\s+\S")
    chinese = _share(cells, _CJK)
    if _share(cells, _BOXES) > 0.99 and _share(cells, r"\{") > 0:
        return _because("boxes" if target else "skip", "infer.boxes")
    if target and _share(cells, _TALK) > 0.99:
        return _because("chat", "infer.talks")
    if target:
        return _because("category", "infer.classes", count=distinct)
    if distinct == count > 20 and _share(cells, _CODE) > 0.99 and length <= 40:
        return _because("skip", "infer.identifier", count=distinct)
    few = distinct <= FEW or distinct <= 0.05 * count
    if few and length < LONG and distinct < 0.5 * max(count, 2) + 2:
        if numbers > 0.5:
            return _because("category", "infer.not_all_numbers", percent=round(100 * numbers), count=distinct)
        return _because("category", "infer.words", count=distinct)
    if chinese > 0.3 and distinct > 0.3 * count:
        return _because("text", "infer.chinese")
    if length >= LONG or (spaced > 0.5 and distinct > 0.5 * count):
        return _because("text", "infer.texts", length=round(length), count=distinct)
    return _because("category", "infer.words", count=distinct)


def _share(cells: pa.ChunkedArray, pattern: str) -> float:
    return pc.mean(pc.match_substring_regex(cells, pattern).cast(pa.float64())).as_py()


def _first(cells: pa.ChunkedArray, pattern: str) -> str:
    return cells.filter(pc.match_substring_regex(cells, pattern))[0].as_py()[:40]
