"""From the bytes of a request to rows, strictly: what is not right is refused with its place."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luban.data.json_lines import strict
from luban.data.rows import BadRow
from luban.errors import Problem, problem
from luban.stages.serve.refusal import Refusal

LARGEST = 3.4e38  # float32, what networks compute in, ends there
_JSON = re.compile(r"application/json\s*(;\s*charset\s*=\s*\"?utf-8\"?\s*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """What a request asks for: its rows, and the settings beside them."""

    rows: list[Any]
    settings: dict[str, Any]


def check_head(headers: Mapping[str, str]) -> int:
    """The bytes that a body is said to have, 0 where nothing is said. Raises Refusal for what need not be read."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "serve.encoded_body", found=headers["content-encoding"][:40])
    kind = headers.get("content-type", "")
    if not _JSON.fullmatch(kind.strip()):
        raise Refusal(415, "serve.content_type", found=kind[:80])
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise Refusal(400, "serve.bad_length", found=length[:40], close=True)
    return int(length)


def too_large(most: int, close: bool = True) -> Refusal:
    return Refusal(413, "serve.body_too_large", limit=most, close=close)


def parse(body: bytes, inputs: Sequence[str], most: int, settings: Sequence[str] = ()) -> Asked:
    """`{"rows": [{...}, ...]}`, or one row `{...}`. `settings`: keys that may stand beside `rows`. Raises Refusal."""
    try:
        found = strict(body)
    except BadRow as e:
        raise Refusal(400, e.id, place="body", **e.values) from e
    if not isinstance(found, dict):
        raise Refusal(422, "serve.want_object", place="body", found=_kind(found))
    if "rows" not in found or ("rows" in inputs and not isinstance(found["rows"], list)):
        return Asked([found], {})
    rows = found.pop("rows")
    unknown = next((k for k in found if k not in settings), None)
    if unknown is not None:
        raise Refusal(422, "serve.unknown_key", place="body", name=unknown[:80], allowed=("rows", *settings))
    if not isinstance(rows, list):
        raise Refusal(422, "serve.want_list", place="rows", found=_kind(rows))
    if not 1 <= len(rows) <= most:
        raise Refusal(422, "serve.count", place="rows", found=len(rows), limit=most)
    return Asked(rows, found)


def check(
    row: Any, number: int, inputs: Sequence[str], outputs: Sequence[str], free: Collection[str] = ()
) -> Problem | None:
    """What is wrong with the names and numbers of a row; an output's own name may stand in it, a `free` input may not."""
    place = f"rows[{number}]"
    if not isinstance(row, dict):
        return problem("serve.row_no_object", place=place, found=_kind(row))
    for name, value in row.items():
        if name not in inputs and name not in outputs:
            return problem("serve.unknown_column", place=place, name=name[:80], allowed=inputs)
        if isinstance(value, (int, float)) and not -LARGEST <= value <= LARGEST:
            return problem("serve.number_too_large", place=f"{place}.{name}", limit=LARGEST)
    for name in inputs:
        if name not in row and name not in free:
            return problem("data.value_absent", place=f"{place}.{name}", name=name)
    return None


def _kind(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
