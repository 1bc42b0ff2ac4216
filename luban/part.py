"""What a recipe is made of: a name out of a registry, with its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luban import registry

SHARE = "share"  # model: {hypothesis: {share: premise}}: the encoder of another input, the same weights
JOINT = "joint"  # model: {passage: {joint: question}}: read in one sequence with another input, by its encoder; or with a text that is written
BORROWED = (SHARE, JOINT)


@dataclass(frozen=True)
class Part:
    """A name out of a registry with its settings: `bilstm`, or `{bilstm: {hidden: 64}}`."""

    type: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> Any:
        if self.type in BORROWED and len(self.settings) == 1:
            return {self.type: self.settings["of"]}
        settings = {k: v for k, v in self.settings.items() if v is not None}
        return {self.type: settings} if settings else self.type

    @classmethod
    def of(cls, value: Any) -> Part:
        """From what stands in a recipe; assumes that it was checked."""
        if isinstance(value, Part):
            return value
        if isinstance(value, str):
            return cls(value)
        ((name, settings),) = value.items()
        return cls(name, {"of": settings} if name in BORROWED and not isinstance(settings, Mapping) else settings or {})


DEFAULT = (Part("train"), Part("evaluate"))  # the stages of a recipe that names none


def named(value: Any) -> tuple[str | None, Mapping[str, Any]]:
    """Name and settings of a part that may be anything yet."""
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, settings),) = value.items()
        return (name if isinstance(name, str) else None), settings if isinstance(settings, Mapping) else {}
    return (value if isinstance(value, str) else None), {}


def mark_of(room: str, name: Any, mark: str) -> Any:
    """What a thing says of itself, False where it does not; None for a name that is none."""
    return registry.schema(room, name).get(mark, False) if name in registry.names(room) else None
