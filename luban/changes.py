"""From what somebody wrote to the plain recipe that is checked: what goes without saying, other trainers' names, `--set`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from luban import aliases, registry
from luban.checking import KEYS
from luban.errors import Problem, RecipeError, problem
from luban.part import BORROWED, DEFAULT, JOINT, Part, mark_of, named
from luban.yaml_file import parse

NOISE = "noise"  # the input that is added where an output is made from noise


def with_the_usual(plain: Any) -> Any:
    """The plain recipe with what goes without saying."""
    spelled = isinstance(plain, Mapping) and isinstance(plain.get("model"), Mapping)
    plain = {**plain, "model": {n: _spelled(v) for n, v in plain["model"].items()}} if spelled else plain
    return _with_noise(_with_joint(plain))


def _spelled(value: Any) -> Any:
    """An encoder as `{NAME: {SETTING: VALUE}}` that was written short, `NAME:VALUE`; those inside of it too."""
    if isinstance(value, str):
        name, colon, rest = value.partition(":")
        short = mark_of("encoders", name, "x-short") if colon else None
        return {name: {short: rest}} if short else value
    if not (isinstance(value, Mapping) and len(value) == 1):
        return value
    ((name, settings),) = value.items()
    if name not in registry.names("encoders") or not isinstance(settings, Mapping):
        return value
    shapes = registry.schema("encoders", name)["properties"]
    inner = {k: _spelled(v) for k, v in settings.items() if shapes.get(k, {}).get("x-part") == "encoders"}
    return {name: {**settings, **inner}}


def _with_noise(plain: Any) -> Any:
    """The plain recipe; where an output is made from noise and no input is, there is one of that name."""
    if not isinstance(plain, Mapping):
        return plain
    inputs, outputs = (plain.get(k) or {} for k in ("inputs", "outputs"))
    if not (isinstance(inputs, Mapping) and isinstance(outputs, Mapping)):
        return plain
    kind = lambda v: named(v)[0]  # noqa: E731
    heads = [mark_of("columns", kind(v), "x-head") for v in outputs.values()]
    made = any(head and mark_of("heads", head, "x-draws") for head in heads)
    if not made or NOISE in inputs or any(mark_of("columns", kind(v), "x-drawn") for v in inputs.values()):
        return plain
    return {**plain, "inputs": {**inputs, NOISE: NOISE}}


def _with_joint(plain: Any) -> Any:
    """The plain recipe; a text that an answer is a stretch of is read jointly with the one other text, where nothing is said."""
    if not isinstance(plain, Mapping) or plain.get("fusion"):
        return plain
    inputs, outputs, model = (plain.get(k) or {} for k in ("inputs", "outputs", "model"))
    if not all(isinstance(side, Mapping) for side in (inputs, outputs, model)):
        return plain
    kind = lambda v: named(v)[0]  # noqa: E731
    texts = [n for n, v in inputs.items() if mark_of("columns", kind(v), "x-form") == "ids"]
    for value in outputs.values():
        of = named(value)[1].get("of")
        others = [n for n in texts if n != of]
        free = of in texts and of not in model and len(others) == 1
        if mark_of("columns", kind(value), "x-joint") and free and kind(model.get(others[0])) not in BORROWED:
            return {**plain, "model": {**model, of: {JOINT: others[0]}}}
    return plain


def with_our_names(plain: Any) -> Any:
    """The plain recipe; settings of its train stages that have names from another trainer have ours."""
    if not (isinstance(plain, Mapping) and isinstance(plain.get("stages"), list)):
        return plain
    return {**plain, "stages": [aliases.stage(s) for s in plain["stages"]]}


def two_names(changes: tuple[str, ...]) -> Iterator[Problem]:
    """Settings that two changes name differently: the later one would win in silence."""
    seen: dict[str, str] = {}
    for change in changes:
        stage, _, name = change.partition("=")[0].partition(".")
        if stage == "train" and seen.setdefault(aliases.SETTINGS.get(name, name), name) != name:
            yield problem("recipe.two_names", place="--set", one=name, other=seen[aliases.SETTINGS.get(name, name)])


def changed(plain: Any, change: str) -> Any:
    """`--set KEY=VALUE`: KEY is a dotted path; a stage's or top-level key's settings come first."""
    path, equals, text = change.partition("=")
    if not equals or not isinstance(plain, Mapping):
        raise RecipeError("recipe.set_form", found=change)
    value, _ = parse(text, "--set")
    keys = path.split(".")
    plain = dict(plain)
    if keys[0] in registry.STAGES:
        asked = plain.get("stages")
        stages = [*DEFAULT] if asked is None else [Part.of(s) if isinstance(s, (str, Mapping)) else s for s in asked]
        part = next((s for s in stages if s.type == keys[0]), None)
        new = _put({}, keys[1:], value)
        new = aliases.renamed(new) if keys[0] == "train" else new
        new = Part(keys[0], _merged(dict(part.settings if part else {}), new))
        plain["stages"] = [(new if s is part else s).plain() for s in stages] + ([] if part else [new.plain()])
        return plain
    if keys[0] not in KEYS:
        raise RecipeError(problem("recipe.unknown_key", place="--set", name=keys[0], allowed=(*KEYS, *registry.STAGES)))
    return _put(plain, keys, value)


def _merged(target: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping of one value put into another."""
    result = dict(target)
    for key, value in change.items():
        inner = result.get(key)
        deeper = isinstance(value, Mapping) and isinstance(inner, Mapping)
        result[key] = _merged(dict(inner), value) if deeper else value
    return result


def _put(target: dict[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    if not keys:
        raise RecipeError("recipe.set_form", found=str(value))
    if len(keys) == 1:
        return {**target, keys[0]: value}
    inner = target.get(keys[0])
    return {**target, keys[0]: _put(dict(inner) if isinstance(inner, Mapping) else {}, keys[1:], value)}
