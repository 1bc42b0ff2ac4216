"""Every mistake in a plain recipe, each with its place, before anything heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from luban import aliases, registry
from luban.errors import Problem, problem
from luban.messages import say, spoken
from luban.part import BORROWED, JOINT, SHARE, mark_of, named
from luban.scale import mistakes
from luban.settings import SIZES
from luban.space import Space
from luban.yaml_file import Lines

FORMAT = 1
KEYS = (
    "luban",
    "data",
    "inputs",
    "outputs",
    "frame",
    "size",
    "model",
    "fusion",
    "stages",
    "scale",
    "seed",
    "tune",
    "curve",
)
DATA_KEYS = ("rows", "format", "missing", "decimal", "split", "clean")


JOINTLY = {  # settings of an input that is read jointly; see `luban.columns.joining`
    "type": "object",
    "properties": {
        "of": {"type": "string"},
        "overlap": {"type": "integer", "minimum": 0},
        "window": {"type": "integer", "minimum": 8},
    },
    "required": ["of"],
    "additionalProperties": False,
}
APART = ("pair", "match", "masked")  # fusions that want every text by itself


class Check:
    """Finds every mistake in a plain recipe. Without a file, places are dotted paths."""

    def __init__(self, lines: Lines | None = None):
        self.lines = lines

    def place(self, path: tuple[Any, ...]) -> str:
        dotted = ".".join(str(p) for p in path)
        return (f"{self.lines.place(path)} {dotted}".strip()) if self.lines else dotted

    def recipe(self, plain: Any) -> list[Problem]:
        if not isinstance(plain, Mapping):
            return [problem("recipe.not_mapping", place=self.place(()))]
        version = plain.get("luban")
        if version is None:
            return [problem("recipe.no_version", place=self.place(()), version=FORMAT)]
        if version != FORMAT:
            return [problem("recipe.version", place=self.place(("luban",)), found=version, known=FORMAT)]
        return list(self._everything(plain))

    def _everything(self, plain: Mapping[str, Any]) -> Iterator[Problem]:
        yield from self._keys(plain, KEYS, ())
        yield from self._data(plain.get("data"))
        columns = {}
        for side in ("inputs", "outputs"):
            parts = plain.get(side)
            if parts is None:
                continue
            if not isinstance(parts, Mapping):
                yield problem("recipe.want_mapping", place=self.place((side,)))
                continue
            for name, value in parts.items():
                yield from self._part("columns", value, (side, name))
                columns[name] = (
                    side,
                    value
                    if isinstance(value, str)
                    else next(iter(value or {}), None)
                    if isinstance(value, Mapping)
                    else None,
                )
        if isinstance(plain.get("inputs"), Mapping) and isinstance(plain.get("outputs"), Mapping):
            for name in set(plain["inputs"]) & set(plain["outputs"]):
                yield problem("recipe.both_sides", place=self.place(("outputs", name)), column=name)
        fusion = plain.get("fusion")
        if plain.get("outputs") and (fusion == "match" or (isinstance(fusion, Mapping) and "match" in fusion)):
            yield problem("recipe.match_outputs", place=self.place(("outputs",)))
        yield from self._alongs(plain)
        yield from self._jointly(plain)
        yield from self._ahead(plain)
        yield from self._long(plain)
        yield from self._model(plain.get("model"), columns)
        yield from self._one(plain, "frame", "frames")
        yield from self._one(plain, "fusion", "fusions")
        if plain.get("size") is not None and plain["size"] not in SIZES:
            yield problem("recipe.bad_value", place=self.place(("size",)), name=str(plain["size"]), allowed=SIZES)
        if plain.get("seed") is not None:
            yield from self.value(plain["seed"], {"type": "integer", "minimum": 0}, ("seed",))
        yield from self._stages(plain.get("stages"))
        yield from self._scale(plain.get("scale"))
        yield from self._searches(plain)

    def _searches(self, plain: Mapping[str, Any]) -> Iterator[Problem]:
        found = [p for k in registry.SEARCH for p in self.value(plain.get(k), registry.schema("search", k), (k,))]
        yield from found
        if not found and (plain.get("tune") or plain.get("curve")):
            yield from Space(plain).problems(self)

    def _data(self, data: Any) -> Iterator[Problem]:
        if data is None:
            return
        if not isinstance(data, Mapping):
            yield problem("recipe.want_mapping", place=self.place(("data",)))
            return
        yield from self._keys(data, DATA_KEYS, ("data",))
        shapes = {
            "rows": {"type": "string"},
            "format": {"type": "string"},
            "missing": {"type": "array", "items": {"type": "string"}},
            "decimal": {"enum": [".", ","]},
            "split": registry.schema("data", "split"),
            "clean": registry.schema("data", "clean"),
        }
        for key, shape in shapes.items():
            if data.get(key) is not None:
                yield from self.value(data[key], shape, ("data", key))

    def _jointly(self, plain: Mapping[str, Any]) -> Iterator[Problem]:
        """Fusions that are about each text by itself; inputs that are not read before a text as others are, where no fusion puts them there."""
        fusion, _ = named(plain.get("fusion"))
        model = plain.get("model") if isinstance(plain.get("model"), Mapping) else {}
        columns = {n: (s, kind) for s in ("inputs", "outputs") for n, (kind, _) in self._types(plain.get(s)).items()}
        joint = {n: self._lent_by(v[JOINT]) for n, v in model.items() if isinstance(v, Mapping) and JOINT in v}
        writers = [] if mark_of("fusions", fusion, "x-ahead") else self._writers(model, columns)
        for name, of in joint.items():
            place = ("model", name, JOINT)
            if fusion in APART:
                yield problem("joint.fusion", place=self.place(place), name=name, fusion=fusion)
            others = [n for n, (side, _) in columns.items() if side == "inputs" and joint.get(n) != of]
            if of in writers and columns.get(name) == ("inputs", "text") and others:
                yield problem("joint.mixed", place=self.place(place[:2]), name=name, output=of, others=others)

    def _ahead(self, plain: Mapping[str, Any]) -> Iterator[Problem]:
        """A fusion whose positions stand in front of the text that is written: there is one, written by Luban's own Transformer, and an input."""
        fusion, _ = named(plain.get("fusion"))
        if not mark_of("fusions", fusion, "x-ahead"):
            return
        names = {side: self._types(plain.get(side)) for side in ("inputs", "outputs")}
        texts = [n for n, (kind, _) in names["outputs"].items() if mark_of("columns", kind, "x-head") == "text"]
        if not texts or not names["inputs"]:
            yield problem("prefix.nothing", place=self.place(("fusion",)), fusion=fusion)
        model = plain.get("model") if isinstance(plain.get("model"), Mapping) else {}
        for name in texts:
            head = named(model.get(name))[0] or "text"
            if mark_of("heads", head, "x-joins") is False:
                fitting = [n for n in registry.names("heads") if mark_of("heads", n, "x-joins")]
                yield problem(
                    "prefix.head", place=self.place(("model", name)), head=head, fusion=fusion, allowed=fitting
                )

    def _long(self, plain: Mapping[str, Any]) -> Iterator[Problem]:
        """`long` is about texts that are read; windows need a text by itself, and answers that several can be one of."""
        names = {side: self._types(plain.get(side)) for side in ("inputs", "outputs")}
        frame, _ = named(plain.get("frame"))
        model = plain.get("model") if isinstance(plain.get("model"), Mapping) else {}
        joint = {n: self._lent_by(v[JOINT]) for n, v in model.items() if isinstance(v, Mapping) and JOINT in v}
        together = {m for pair in joint.items() for m in pair if pair[1] in names["inputs"]}
        fitting = [k for k in registry.names("columns") if mark_of("columns", k, "x-pools")]
        alone = [n for n, (kind, _) in names["outputs"].items() if kind not in fitting]
        for side, name, kind, how in ((s, n, k, v.get("long")) for s in names for n, (k, v) in names[s].items()):
            place = self.place((side, name, kind, "long"))
            if how in ("split", "refuse") and (side == "outputs" or frame == "pack"):
                yield problem("long.not_read", place=place, name=name)
            elif how == "split" and name in together:
                yield problem("long.joint", place=place, name=name)
            elif how == "split" and alone:
                yield problem("long.outputs", place=place, outputs=alone, allowed=fitting)

    def _alongs(self, plain: Mapping[str, Any]) -> Iterator[Problem]:
        """Inputs that can be none, outputs that are `of:` no input, and encoders that give no state for each position."""
        names = {side: self._types(plain.get(side)) for side in ("inputs", "outputs")}
        for name, (kind, _) in names["inputs"].items():
            if kind in registry.names("columns") and not registry.schema("columns", kind)["x-encoder"]:
                fitting = [k for k in registry.names("columns") if registry.schema("columns", k)["x-encoder"]]
                yield problem("recipe.no_input", place=self.place(("inputs", name)), kind=kind, allowed=fitting)
        for name, (kind, settings) in names["outputs"].items():
            wanted = mark_of("columns", kind, "x-of_form")
            if not wanted:
                continue
            fitting = [n for n, (k, _) in names["inputs"].items() if mark_of("columns", k, "x-form") == wanted]
            of = settings.get("of")
            if names["inputs"] and of not in fitting and (of or len(fitting) != 1):
                place = self.place(("outputs", name, kind, "of") if of else ("outputs", name))
                told = problem(f"column.of.{wanted}", place=place, name=str(of), allowed=fitting)
                yield (
                    told
                    if of is not None
                    else problem("column.of.none", place=place, count=len(fitting), allowed=fitting)
                )
                continue
            of = of or next(iter(fitting), None)
            if not mark_of("columns", kind, "x-along"):
                continue
            model = plain.get("model") if isinstance(plain.get("model"), Mapping) else {}
            encoder, _ = named(model.get(of))
            if encoder in registry.names("encoders") and not registry.schema("encoders", encoder).get("x-sequences"):
                fitting = [n for n in registry.names("encoders") if registry.schema("encoders", n).get("x-sequences")]
                place = self.place(("model", of))
                yield problem("tags.one_vector", place=place, encoder=encoder, output=name, allowed=fitting)

    def _types(self, parts: Any) -> dict[str, tuple[str | None, Mapping[str, Any]]]:
        return {n: named(v) for n, v in parts.items()} if isinstance(parts, Mapping) else {}

    def _model(self, model: Any, columns: Mapping[str, Any]) -> Iterator[Problem]:
        if model is None:
            return
        if not isinstance(model, Mapping):
            yield problem("recipe.want_mapping", place=self.place(("model",)))
            return
        for name, value in model.items():
            path = ("model", name)
            if columns and name not in columns and name not in registry.COLUMNS:
                yield problem("recipe.no_such_column", place=self.place(path), name=name, allowed=tuple(columns))
                continue
            side, kind = columns.get(name, ("inputs", name))
            room = "heads" if side == "outputs" else "encoders"
            if room == "encoders" and isinstance(value, Mapping) and list(value) in ([SHARE], [JOINT]):
                yield from self._share(name, *value.items(), model, columns, path)
                continue
            yield from self._part(room, value, path)
            yield from self._suits(room, value, kind, path)

    def _share(
        self, name: str, asked: tuple[str, Any], model: Mapping[str, Any], columns: Mapping[str, Any], path: Any
    ) -> Iterator[Problem]:
        """Another input of the same type, with an encoder of its own; of those that are read jointly a sequence of ids."""
        how, value = asked
        if how == JOINT and isinstance(value, Mapping):
            yield from self.value(value, JOINTLY, (*path, how))
        of = value.get("of") if how == JOINT and isinstance(value, Mapping) else value
        borrows = lambda n: list(v) if isinstance(v := model.get(n), Mapping) else []  # noqa: E731
        own = lambda n: not {*borrows(n)} & {*BORROWED}  # noqa: E731
        lent = {h for n in model if n != name for h in borrows(n) if h in BORROWED and self._lent_by(model[n][h]) == of}
        side, kind = columns.get(name, ("", ""))
        form = registry.schema("columns", kind)["x-form"] if kind in registry.names("columns") else ""
        several = form == "ids" if how == JOINT else form not in ("", "scalar", "index")
        if how == JOINT and of in (writers := self._writers(model, columns)) and (side, kind) == ("inputs", "text"):
            if isinstance(value, Mapping) and len(value) > 1:  # it has no windows
                yield problem("joint.whole", place=self.place((*path, how)), name=name, output=of)
            return
        allowed = [n for n, found in columns.items() if several and n != name and found == (side, kind) and own(n)]
        if of not in allowed or lent - {how}:
            allowed += writers if how == JOINT and kind == "text" else []
            yield problem(f"recipe.no_{how}", place=self.place((*path, how)), name=str(of), allowed=allowed)
        elif how == JOINT and mark_of("encoders", encoder := named(model.get(of))[0], "x-sequences") is False:
            fitting = [n for n in registry.names("encoders") if registry.schema("encoders", n).get("x-sequences")]
            place = self.place(("model", of))
            yield problem("joint.one_vector", place=place, encoder=encoder, inputs=[of, name], allowed=fitting)

    @staticmethod
    def _lent_by(value: Any) -> Any:
        """The column that `share` or `joint` names, by itself or among settings."""
        return value.get("of") if isinstance(value, Mapping) else value

    def _writers(self, model: Mapping[str, Any], columns: Mapping[str, Any]) -> list[str]:
        """The texts whose networks read others before they write."""
        heads = {n: named(model.get(n))[0] or "text" for n, found in columns.items() if found == ("outputs", "text")}
        return [n for n, head in heads.items() if mark_of("heads", head, "x-joins")]

    def _suits(self, room: str, value: Any, kind: str | None, path: tuple[Any, ...]) -> Iterator[Problem]:
        """An encoder made for text cannot read an image."""
        name = value if isinstance(value, str) else next(iter(value), None) if isinstance(value, Mapping) else None
        if name in registry.names(room) and kind in registry.names("columns"):
            form = registry.schema("columns", kind)["x-form" if room == "encoders" else "x-head"]
            accepts = registry.schema(room, name).get("x-accepts")
            if accepts and form not in accepts:
                fitting = [n for n in registry.names(room) if form in registry.schema(room, n).get("x-accepts", [form])]
                yield problem("recipe.does_not_suit", place=self.place(path), what=name, kind=kind, allowed=fitting)

    def _one(self, plain: Mapping[str, Any], key: str, room: str) -> Iterator[Problem]:
        if plain.get(key) is not None:
            yield from self._part(room, plain[key], (key,))

    def _stages(self, stages: Any) -> Iterator[Problem]:
        if stages is None:
            return
        if not isinstance(stages, list):
            yield problem("recipe.want_list", place=self.place(("stages",)))
            return
        for i, stage in enumerate(stages):
            yield from self._part("stages", stage, ("stages", i))

    def _scale(self, scale: Any) -> Iterator[Problem]:
        if scale is None:
            return
        wrong = list(self.value(scale, registry.schema("run", "scale"), ("scale",)))
        yield from wrong
        if not wrong:
            yield from (p.at(self.place(("scale", p.place))) for p in mistakes(scale))

    def _part(self, room: str, value: Any, path: tuple[Any, ...]) -> Iterator[Problem]:
        if isinstance(value, Mapping) and len(value) == 1:
            ((name, settings),) = value.items()
        else:
            name, settings = value, None
        if not isinstance(name, str):
            yield problem("recipe.want_part", place=self.place(path), found=repr(value)[:60])
        elif name not in registry.names(room):
            yield problem(
                "recipe.unknown_part", place=self.place(path), name=name, room=room, allowed=registry.names(room)
            )
        elif settings is not None or registry.schema(room, name).get("required"):
            yield from self.value(settings or {}, registry.schema(room, name), (*path, name))

    def _keys(self, found: Mapping[str, Any], known: tuple[str, ...], path: tuple[Any, ...]) -> Iterator[Problem]:
        for key in found:
            if key not in known:
                yield problem("recipe.unknown_key", place=self.place((*path, key)), name=str(key), allowed=known)

    def value(self, value: Any, schema: Mapping[str, Any], path: tuple[Any, ...]) -> Iterator[Problem]:
        """Mistakes of one value against one schema; None always means "the default"."""
        if value is None or not schema:
            return
        if "x-part" in schema:
            yield from self._part(schema["x-part"], value, path)
        elif "anyOf" in schema:
            found = [list(self.value(value, s, path)) for s in schema["anyOf"]]
            if all(found):
                yield min(found, key=len)[0] if len(found) == 1 else self._wrong(value, schema, path)
        elif "enum" in schema:
            if value not in schema["enum"] or isinstance(value, bool) != isinstance(schema["enum"][0], bool):
                yield problem("recipe.bad_value", place=self.place(path), name=str(value), allowed=schema["enum"])
        elif schema.get("type") == "object":
            yield from self._object(value, schema, path)
        elif schema.get("type") == "array":
            if not isinstance(value, (list, tuple)):
                yield self._wrong(value, schema, path)
                return
            for i, item in enumerate(value):
                yield from self.value(item, schema.get("items", {}), (*path, i))
        elif not _is(value, schema.get("type")) or not _inside(value, schema):
            yield self._wrong(value, schema, path)

    def _object(self, value: Any, schema: Mapping[str, Any], path: tuple[Any, ...]) -> Iterator[Problem]:
        if not isinstance(value, Mapping):
            yield self._wrong(value, schema, path)
            return
        known, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
        for key, item in value.items():
            if key in known:
                yield from self.value(item, known[key], (*path, key))
            elif extra is False:
                yield self._unknown(key, known, path)
            elif isinstance(extra, Mapping):
                yield from self.value(item, extra, (*path, key))
        for key in schema.get("required", ()):
            if key not in value:
                yield problem("recipe.missing_key", place=self.place(path), key=key)

    def _unknown(self, key: Any, known: Mapping[str, Any], path: tuple[Any, ...]) -> Problem:
        place = self.place((*path, key))
        if path[:1] == ("stages",) and path[-1] == "train" and key in aliases.SETTINGS:  # else it would be read as ours
            return problem("recipe.two_names", place=place, one=str(key), other=aliases.SETTINGS[key])
        return problem("recipe.unknown_key", place=place, name=str(key), allowed=tuple(known))

    def _wrong(self, value: Any, schema: Mapping[str, Any], path: tuple[Any, ...]) -> Problem:
        return problem("recipe.wrong_value", place=self.place(path), found=repr(value)[:60], want=wanted(schema))


def wanted(schema: Mapping[str, Any]) -> str:
    """What a schema allows, in a few characters: `integer >= 1`, `auto | number`."""
    if "anyOf" in schema:
        return " | ".join(wanted(s) for s in schema["anyOf"] if s.get("type") != "null")
    if "enum" in schema:
        return " | ".join(str(v) for v in schema["enum"])
    kind = str(schema.get("x-said") or schema.get("type", "any"))
    if kind == "array":
        return f"[{wanted(schema.get('items', {}))}, ...]"
    signs = ((">=", "minimum"), (">", "exclusiveMinimum"), ("<=", "maximum"))
    bounds = " ".join(f"{sign} {schema[key]:g}" for sign, key in signs if key in schema)
    return say("want.bounded", kind=spoken("want.", kind), bounds=bounds) if bounds else spoken("want.", kind)


def _is(value: Any, kind: str | None) -> bool:
    if kind is None:
        return True
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, {"string": str, "boolean": bool, "null": type(None)}.get(kind, object))


def _inside(value: Any, schema: Mapping[str, Any]) -> bool:
    if isinstance(value, str):
        return "pattern" not in schema or re.search(schema["pattern"], value) is not None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    low, high, above = schema.get("minimum"), schema.get("maximum"), schema.get("exclusiveMinimum")
    return value == value and not (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    )
