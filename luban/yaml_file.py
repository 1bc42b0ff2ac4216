"""YAML as recipes use it: plain mappings, lists and scalars, each with the line it stands on.

Refused, before anything is built: aliases and anchors (332 bytes of them make 10^9 leaves), tags, duplicate keys,
depth over 20, more than 1 MB. Scalars follow YAML 1.2: `no` and `on` are words, `1_000` and `0o7` too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from luban.errors import Problem, RecipeError, problem, raise_all

LARGEST, DEEPEST = 1_000_000, 20
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT, _FLOAT = re.compile(r"[-+]?\d+"), re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}


class Lines:
    """Where each value stands: `lines["stages", 0, "train"] -> 12`."""

    def __init__(self, file: str):
        self.file, self.at = file, {}

    def place(self, path: tuple[Any, ...]) -> str:
        while path and path not in self.at:
            path = path[:-1]
        return f"{self.file}:{self.at.get(path, 1)}"


def read(path: str | Path) -> tuple[Any, Lines]:
    """A YAML file as plain Python and the line of each value. Raises RecipeError."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise RecipeError("yaml.too_large", path=str(path), limit=LARGEST)
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise RecipeError("yaml.unreadable", path=str(path), reason=e.strerror or str(e)) from e
    except UnicodeDecodeError as e:
        raise RecipeError("yaml.not_utf8", path=str(path), byte=e.start) from e
    return parse(text, str(path))


def parse(text: str, file: str = "recipe") -> tuple[Any, Lines]:
    """As `read`, from text."""
    lines = Lines(file)
    try:
        _refuse_dangerous(text, file)
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        raise RecipeError("yaml.syntax", place=place, reason=getattr(e, "problem", None) or str(e)) from e
    problems: list[Problem] = []
    value = _build(node, (), lines, problems) if node else None
    raise_all(RecipeError, problems)
    return value, lines


def _refuse_dangerous(text: str, file: str) -> None:
    if len(text) > LARGEST:
        raise RecipeError("yaml.too_large", path=file, limit=LARGEST)
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        place = f"{file}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise RecipeError("yaml.alias", place=place)
        if getattr(event, "tag", None) not in (None, "!"):
            raise RecipeError("yaml.tag", place=place, tag=event.tag)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise RecipeError("yaml.too_deep", place=place, limit=DEEPEST)


def _build(node: yaml.Node, path: tuple[Any, ...], lines: Lines, problems: list[Problem]) -> Any:
    lines.at[path] = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, i), lines, problems) for i, item in enumerate(node.value)]
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else str(key_node.start_mark.line)
        if key in result:
            problems.append(problem("yaml.duplicate", place=f"{lines.file}:{key_node.start_mark.line + 1}", key=key))
        result[key] = _build(value_node, (*path, key), lines, problems)
        lines.at[(*path, key)] = key_node.start_mark.line + 1
    return result


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    if node.style:  # quoted or block: always words
        return text
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INT.fullmatch(text) and not re.match(r"[-+]?0\d", text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) and not re.match(r"[-+]?0\d", text) else text


def dump(value: Any) -> str:
    """Plain data as YAML that `parse` reads back to the same; short lists and mappings stay on one line."""
    return yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=110, default_flow_style=None)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = dumper.represent_scalar("tag:yaml.org,2002:str", text)
    # quote what this reader would take for something else (YAML 1.1 and 1.2 disagree about `1e5`, `0o7`)
    if _INT.fullmatch(text) or _FLOAT.fullmatch(text) or text.lower() in _WORDS:
        plain.style = "'"
    return plain


def _represent_float(dumper: yaml.SafeDumper, number: float) -> yaml.Node:
    if number != number or number in (float("inf"), float("-inf")):
        return dumper.represent_scalar("tag:yaml.org,2002:str", repr(number), style="'")
    text = repr(number)  # YAML 1.1, which the dumper goes by, takes 1e-05 for a word and would write a tag before it
    text = text if "." in text else text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(str, _represent_str)
_Dumper.add_representer(float, _represent_float)
