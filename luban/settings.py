"""A signature is a schema: the types that settings are annotated with, and how they become JSON Schema.

    def __init__(self, column, *, width: Annotated[int, Dial(32, 64, 256)] = None, dropout: Fraction = 0.1)

says everything about a setting once: its type, its range, its default, what `size` does to it.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

SIZES = ("nano", "small", "base")
DEVICE = r"auto|cpu|mps|cuda(:[0-9]+)?"


@dataclass(frozen=True)
class Range:
    """Allowed numbers; the low end is excluded when `above` is given instead of `low`."""

    low: float | None = None
    high: float | None = None
    above: float | None = None

    def schema(self) -> dict[str, Any]:
        pairs = (("minimum", self.low), ("maximum", self.high), ("exclusiveMinimum", self.above))
        return {k: v for k, v in pairs if v is not None}


@dataclass(frozen=True)
class Named:
    """The setting is itself a part: a name out of that registry, with or without settings."""

    room: str

    def schema(self) -> dict[str, Any]:
        return {"x-part": self.room}


@dataclass(frozen=True)
class Group:
    """The setting is a mapping, whose keys are the settings of a function."""

    of: Callable[..., Any]

    def schema(self) -> dict[str, Any]:
        return schema_of(self.of)


@dataclass(frozen=True)
class Dial:
    """The default follows the recipe's `size`."""

    nano: Any
    small: Any
    base: Any

    def schema(self) -> dict[str, Any]:
        return {"x-size": {s: getattr(self, s) for s in SIZES}}


@dataclass(frozen=True)
class Pattern:
    """Text of a certain form; `said` is the form as people read it."""

    regex: str
    said: str

    def schema(self) -> dict[str, Any]:
        return {"pattern": f"^({self.regex})$", "x-said": self.said}


@dataclass(frozen=True)
class File:
    """The path of a file that must be there, relative to the recipe's own folder."""

    def schema(self) -> dict[str, Any]:
        return {"format": "path"}


@dataclass(frozen=True)
class Model:
    """A pretrained model: a folder, relative to the recipe's own folder, a sample model, or a name on the hub."""

    def schema(self) -> dict[str, Any]:
        return {"format": "model"}


@dataclass(frozen=True)
class Weights:
    """Published weights: a file, relative to the recipe's own folder, a folder with one, a sample model, or a name on the hub."""

    def schema(self) -> dict[str, Any]:
        return {"format": "weights"}


Device = Annotated[str, Pattern(DEVICE, "auto | cpu | cuda | cuda:N | mps")]
MOST_BEAMS = 64  # beginnings of a text that a search keeps
Beams = Annotated[int, Range(low=1, high=MOST_BEAMS)]
Count = Annotated[int, Range(low=1)]
Natural = Annotated[int, Range(low=0)]
Fraction = Annotated[float, Range(low=0, high=1)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(low=0)]

_PLAIN = {
    int: "integer",
    float: "number",
    bool: "boolean",
    str: "string",
    dict: "object",
    list: "array",
    type(None): "null",
}


def schema_of(function: Any, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """The JSON Schema of a function's (or class's) keyword-only settings."""
    target = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(target, include_extras=True)
    properties, required = {}, []
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or name in skip:
            continue
        properties[name] = type_schema(hints.get(name, str))
        if parameter.default is parameter.empty:
            required.append(name)
        elif "x-size" not in properties[name]:
            properties[name]["default"] = (
                list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            )
    return {"type": "object", "properties": properties, "additionalProperties": False} | (
        {"required": required} if required else {}
    )


def type_schema(hint: Any) -> dict[str, Any]:
    """The JSON Schema of one annotation: plain types, Literal, unions, lists, Annotated with Range or Dial."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        schema = type_schema(arguments[0])
        for mark in arguments[1:]:
            schema |= mark.schema()
        return schema
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [type_schema(a) for a in arguments]}
    if origin in (list, tuple):
        return {"type": "array", "items": type_schema(arguments[0])} if arguments else {"type": "array"}
    if origin is dict:
        return {"type": "object", "additionalProperties": type_schema(arguments[1])}
    return {"type": _PLAIN[hint]} if hint in _PLAIN else {}
