"""A verb's function is its command line: positional parameters are arguments, keyword-only ones are flags.

    def train(data: str, *, target: str | None = None, set: list[str] = ()): ...
    luban train DATA --target COL --set train.epochs=5 --set size=nano

Help texts come from the catalogue: `cli.train`, `cli.train.target`, or `cli.flag.seed` for flags of every verb. Imports
nothing but the standard library's lightest, so that `luban --help` costs no more than starting Python.
"""

from __future__ import annotations

import os

from luban.errors import Problem, RequestError, problem, raise_all
from luban.messages import known, say, spoken, together
from luban.wrapping import cells, padded, wrapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


class Flag:
    """One parameter of a verb: what it is called on the command line and how its text is read."""

    def __init__(self, name: str, kind: str, default: Any, positional: bool):
        self.name, self.default, self.positional = name, default, positional
        self.kind = kind.replace(" | None", "")
        self.label = name.upper() if positional else "--" + name.strip("_").replace("_", "-")
        self.required = positional and default is ...
        self.many = self.kind.startswith("list")

    def read(self, text: str) -> Any:
        inner = self.kind[5:-1] if self.many else self.kind
        if inner in ("int", "float"):
            try:
                return int(text) if inner == "int" else float(text)
            except ValueError:
                raise RequestError(
                    problem("cli.bad_value", place=self.label, found=text, want=spoken("want.", inner))
                ) from None
        return text


class Verb:
    """A function as a command."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.name = function, function.__name__.strip("_")
        code, defaults = function.__code__, function.__defaults__ or ()
        hints, keywords = function.__annotations__, function.__kwdefaults__ or {}
        positional = code.co_varnames[: code.co_argcount]
        padded = (...,) * (len(positional) - len(defaults)) + defaults
        flags = [Flag(n, hints.get(n, "str"), d, True) for n, d in zip(positional, padded)]
        names = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        flags += [Flag(n, hints.get(n, "str"), keywords.get(n), False) for n in names]
        self.flags = flags

    def parse(self, words: Sequence[str], common: Sequence[Flag]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arguments of the function and of the common flags. Raises RequestError with every mistake."""
        by_label = {f.label: f for f in (*common, *self.flags) if not f.positional}  # a verb's own flag comes first
        waiting = [f for f in self.flags if f.positional]
        found: dict[str, Any] = {}
        problems: list[Problem] = []
        words = list(words)
        while words:
            word = words.pop(0)
            try:
                if word.startswith("--") and len(word) > 2:
                    label, equals, text = word.partition("=")
                    self._flag(by_label, label, text if equals else None, words, found)
                elif waiting and waiting[0].many:
                    found.setdefault(waiting[0].name, []).append(word)
                elif waiting:
                    flag = waiting.pop(0)
                    found[flag.name] = flag.read(word)
                else:
                    problems.append(problem("cli.extra_word", found=word, verb=self.name))
            except RequestError as e:
                problems += e.problems
        lacking = [f for f in self.flags if f.required and f.name not in found]
        problems += [problem("cli.lacking", name=None, what=f.label, verb=self.name) for f in lacking]
        raise_all(RequestError, problems)
        mine = {f.name for f in self.flags}
        return {k: v for k, v in found.items() if k in mine}, {f.name: found.get(f.name, f.default) for f in common}

    def _flag(
        self, known_flags: dict[str, Flag], label: str, text: str | None, words: list[str], found: dict[str, Any]
    ) -> None:
        flag = known_flags.get(label)
        if flag is None:
            raise RequestError(problem("cli.no_flag", name=label, allowed=sorted(known_flags)))
        if flag.kind == "bool":
            found[flag.name] = True
            return
        if flag.kind == "file":  # a value may follow or not
            found[flag.name] = (
                text if text is not None else words.pop(0) if words and not words[0].startswith("-") else "-"
            )
            return
        if text is None:
            if not words:
                raise RequestError(problem("cli.no_value", place=label))
            text = words.pop(0)
        if flag.many:
            found.setdefault(flag.name, []).extend(
                flag.read(t) for t in (text.split(",") if "=" not in text else [text])
            )
        else:
            found[flag.name] = flag.read(text)

    def help(self, common: Sequence[Flag]) -> str:
        needed = [f for f in self.flags if f.positional or f.default == ""]  # a flag without a default must be given
        usage = [f.label + _metavar(f) + ("..." if f.many else "") for f in needed]
        usage = [u if f.required or not f.positional else f"[{u}]" for f, u in zip(needed, usage)]
        usage = " ".join(["luban", self.name, *usage, say("cli.flags")])
        lines = [*wrap(say("cli.usage", text=usage)), "", *wrap(say(f"cli.{self.name}")), ""]
        if known(f"cli.{self.name}.example"):
            lines += ["  " + line for line in say(f"cli.{self.name}.example").splitlines()] + [""]
        own = {f.label for f in self.flags}
        if own:
            lines += [*table([(f.label + _metavar(f), self._about(f)) for f in self.flags]), ""]
        shared = [(f.label + _metavar(f), say(f"cli.flag.{f.name}")) for f in common if f.label not in own]
        return "\n".join([*lines, say("cli.common"), *table(shared)])

    def _about(self, flag: Flag) -> str:
        own = f"cli.{self.name}.{flag.name.strip('_')}"
        text = say(own if known(own) else f"cli.flag.{flag.name.strip('_')}")
        usual = not flag.positional and flag.kind != "bool" and flag.default not in (None, "", (), ...)
        return together(text, say("cli.default", value=flag.default)) if usual else text


def _metavar(flag: Flag) -> str:
    if flag.positional or flag.kind == "bool":
        return ""
    return {"int": " N", "list[int]": " N", "float": " X", "file": " [FILE]"}.get(
        flag.kind, " " + flag.name.strip("_").split("_")[-1].upper()
    )


def width() -> int:
    try:
        columns = os.get_terminal_size().columns
    except (OSError, ValueError):  # not a terminal
        columns = int(os.environ.get("COLUMNS", "100")) if os.environ.get("COLUMNS", "100").isdigit() else 100
    return min(110, max(60, columns))


def wrap(text: str, indent: str = "") -> list[str]:
    return wrapped(text, width(), indent)


def table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two columns, the right one wrapped."""
    left = min(30, max((cells(a) for a, _ in rows), default=0) + 2)
    lines = []
    for a, b in rows:
        parts = wrapped(b, max(20, width() - left - 2))
        head = "  " + padded(a, left)
        if cells(a) >= left:
            lines.append("  " + a)
            head = "  " + " " * left
        lines += [head + parts[0], *("  " + " " * left + p for p in parts[1:])]
    return lines
