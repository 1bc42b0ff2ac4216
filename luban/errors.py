"""The errors a user can meet, as one tree.

    LubanError                 every error that Luban raises on purpose
    ├── RequestError           what was asked for is wrong; nothing has started        (exit code 2)
    │   ├── RecipeError        an unknown key, a bad value, a missing file in a recipe
    │   ├── DataError          the data cannot be what the recipe says
    │   ├── BundleError        a folder that is not a Bundle, is damaged, foreign or hostile
    │   └── Unsupported        this network, column or machine lacks what the stage needs
    ├── MissingExtra           an optional library is not installed                    (exit code 2)
    ├── Stopped                a signal ended the work; it goes on where it stands      (exit code 128 + signal)
    └── WorkError              the work itself failed after it had started             (exit code 1)
        ├── Diverged           loss or gradients stopped being finite
        ├── RanksDiffer        processes that train together do not hold the same data or weights
        ├── RankLost           one of them ended, and no restart was left


        ├── OutOfMemory        even the smallest piece of a batch does not fit
        ├── DiskError          a full or failing disk; what was saved before is still there
        └── ExportMismatch     an exported model does not answer like the original

Each error holds one or more `Problem`s, so that all mistakes are told at once. Sentences live in
`luban/messages`, never here. Imports nothing heavy.
"""

from __future__ import annotations

from luban.messages import listed, say

TYPE_CHECKING = False  # `typing` and `dataclasses` cost as much as the rest of `luban --help`
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

LONGEST = 12  # lines that an error may fill on a terminal
TIED = {  # built for one torch each; broken, they break what imports them: what goes with each
    "torchvision": ("torchvision", "timm"),
    "torchaudio": ("torchaudio",),
}
NAMED = 5  # of a list in a sentence


class Problem:
    """One mistake: which sentence, where, and what would have been right.

    `allowed` and `nearest` become the tail of the sentence ("Did you mean ...? Allowed: ...").
    """

    __slots__ = ("allowed", "id", "nearest", "place", "values")

    def __init__(
        self,
        id: str,
        place: str = "",
        values: dict[str, Any] | None = None,
        allowed: tuple[str, ...] = (),
        nearest: str | None = None,
    ):
        self.id, self.place, self.values, self.allowed, self.nearest = id, place, values or {}, allowed, nearest

    def at(self, place: str) -> Problem:
        """The same mistake at another place."""
        return Problem(self.id, place, self.values, self.allowed, self.nearest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Problem) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.id, self.place, str(self)))

    def __repr__(self) -> str:
        return f"Problem({self.id!r}, {str(self)!r})"

    def __str__(self) -> str:
        long = {k: shortened(v, NAMED) for k, v in self.values.items() if _several(v) and not 0 < len(v) <= NAMED}
        text = say(self.id, **self.values | long)
        if self.place:
            text = say("error.at", place=self.place, text=text)
        if self.nearest:
            text += say("error.nearest", nearest=self.nearest)
        if self.allowed:
            text += say("error.allowed", allowed=shortened(self.allowed))
        return text

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "place": self.place,
            "message": str(self),
            "values": {k: _plain(v) for k, v in self.values.items()},
            "allowed": list(self.allowed),
            "nearest": self.nearest,
        }


def _several(value: Any) -> bool:
    return isinstance(value, (list, tuple, set, frozenset))


def _plain(value: Any) -> Any:
    """As JSON; a list stays one, so that the sentence is the same where the mistake is told again."""
    if _several(value):
        return [_plain(v) for v in value]
    return value if isinstance(value, (int, float, bool)) else str(value)


def problem(
    id: str, /, *, place: str = "", name: str | None = None, allowed: Iterable[str] = (), **values: Any
) -> Problem:
    """A `Problem`; where `name` is a misspelling of one of `allowed`, the nearest one is found."""
    allowed = tuple(str(a) for a in allowed)
    if name is not None:
        values.setdefault("name", name)
    return Problem(id, place, values, allowed, nearest(name, allowed) if name is not None else None)


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The most similar of `allowed`, or None when none is close."""
    import difflib

    by_lower = {a.lower(): a for a in allowed}
    found = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def shortened(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    return listed(names[:most]) + (say("error.more", count=len(names) - most) if len(names) > most else "")


class LubanError(Exception):
    """Base of all. `problems` tells everything that is wrong; `str()` is at most twelve lines."""

    exit_code = 1

    def __init__(self, *problems: Problem | str, **values: Any):
        """Either ready `Problem`s, or one sentence id and the values that fill it."""
        if len(problems) == 1 and isinstance(problems[0], str):
            problems = (problem(problems[0], **values),)
        self.problems: tuple[Problem, ...] = tuple(p for p in problems if isinstance(p, Problem))
        super().__init__(self.problems)

    @property
    def id(self) -> str:
        return self.problems[0].id

    def __str__(self) -> str:
        lines = [line for p in self.problems for line in str(p).splitlines()]
        if len(lines) > LONGEST:
            hidden = len(lines) - LONGEST + 1
            lines = [*lines[: LONGEST - 1], say("error.more_lines", count=hidden)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {"error": type(self).__name__, "problems": [p.to_json() for p in self.problems]}


class RequestError(LubanError):
    exit_code = 2


class RecipeError(RequestError): ...


class DataError(RequestError): ...


class BundleError(RequestError): ...


class Unsupported(RequestError): ...


class MissingExtra(LubanError):
    exit_code = 2


class Stopped(LubanError):
    """`number`: the signal."""

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return 128 + int(self.problems[0].values["number"])


class WorkError(LubanError):
    exit_code = 1


class Diverged(WorkError): ...


class RanksDiffer(WorkError): ...


class RankLost(WorkError): ...


class OutOfMemory(WorkError): ...


class DiskError(WorkError): ...


class ExportMismatch(WorkError): ...


def raise_all(kind: type[LubanError], problems: Iterable[Problem]) -> None:
    """Raise `kind` with every problem, or nothing when there is none."""
    problems = tuple(problems)
    if problems:
        raise kind(*problems)


def need(module: str, extra: str) -> Any:
    """Import an optional library, or say in one sentence how to install it.

    Raises MissingExtra. A library that is installed but cannot load (RuntimeError, OSError: a
    torchvision built for another torch) is told apart from one that is absent.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as e:
        if e.name and e.name.split(".")[0] == module.split(".")[0]:
            raise MissingExtra("extra.missing", module=module, extra=extra) from e
        raise MissingExtra("extra.broken", module=module, extra=extra, reason=str(e)) from e
    except (RuntimeError, OSError) as e:
        reason = str(e)
        if tied := next((name for name in TIED if name in reason), None):
            raise MissingExtra(
                "extra.tied", module=module, tied=tied, remove=" ".join(TIED[tied]), reason=reason
            ) from e
        raise MissingExtra("extra.broken", module=module, extra=extra, reason=reason) from e
