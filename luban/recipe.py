"""The recipe: what the user asks for. Names and settings, no torch, no numpy.

    luban: 1
    data: {rows: shop.parquet, split: {validation: 0.1, test: 0.1, by: customer}}
    inputs: {review: text, stars: number, photo: image}
    outputs: {returned: category}
    size: small
    model: {review: bilstm, photo: {cnn: {channels: [32, 64], kernel: 3}}, returned: {category: {hidden: [64]}}}
    stages:
      - train: {epochs: 5}
      - evaluate: {slices: [stars]}

Everything that can be named is a `Part`: a name, or a name with settings. Settings are checked against
`schema.json`, which is generated from signatures, so a setting is written once. All mistakes are told at once,
each with file and line, before anything heavy is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luban import aliases, registry
from luban.errors import Problem, RecipeError, problem, raise_all
from luban.scale import mistakes
from luban.settings import SIZES
from luban.space import Space
from luban.yaml_file import Lines, dump, parse, read

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


UNTOLD = ("masked", "skip_gram")  # fusions that learn what texts hold themselves, without answers
DEFAULT = (Part("train"), Part("evaluate"))  # the stages of a recipe that names none


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
# Settings that say how a text becomes tokens.
CUTTING = ("tokens", "vocabulary", "least", "lower", "normalise", "whitespace", "tokens_of")
APART = ("pair", "match", "masked")  # fusions that want every text by itself
KINDS = {"category": "classification", "number": "regression", "labels": "multi-label-classification"}
TASKS = {
    "tags": "token-classification",
    "span": "question-answering",
    "boxes": "object-detection",
    "mask": "image-segmentation",
}
WRITTEN = {  # of an output that is a text, by what is read
    "": "text-generation",
    "text": "text2text-generation",
    "image": "image-to-text",
    "image-text": "image-text-to-text",
    "video": "video-to-text",
    "video-text": "video-text-to-text",
}
# Adam without momentum, weights that are averaged and not decayed, one rate to the end (Zhang et al. 2019; Karras et al. 2020).
RIVALS = {
    "optimizer": {"adam": {"beta1": 0.0, "beta2": 0.99}},
    "rate": 4e-4,
    "schedule": "constant",
    "ema": 0.999,
    "weight_decay": 0.0,
}
NOISE = "noise"  # the input that is added where an output is made from noise
MUON = {"optimizer": "muon", "rate": 0.01}
READER = {  # the encoder of a text that another text is written from, by the recipe's size
    "nano": {"width": 128, "layers": 2, "positions": "rotary"},
    "small": {"width": 256, "layers": 4, "positions": "rotary"},
    "base": {"width": 512, "layers": 6, "heads": 8, "positions": "rotary"},
}


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. Frozen: a change makes a new one. `load`, `of` raise RecipeError with every mistake."""

    data: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Part] = field(default_factory=dict)
    outputs: Mapping[str, Part] = field(default_factory=dict)
    frame: Part = Part("row")
    size: str = "small"
    model: Mapping[str, Part] = field(default_factory=dict)
    fusion: Part = Part("concat")
    stages: tuple[Part, ...] = ()
    scale: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    tune: Mapping[str, Any] = field(default_factory=dict)
    curve: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, changes: tuple[str, ...] = ()) -> Recipe:
        """A recipe from a YAML file, with `--set` changes like `train.epochs=5` applied."""
        plain, lines = read(path)
        return cls.of(plain, lines, changes)

    @classmethod
    def of(cls, plain: Any, lines: Lines | None = None, changes: tuple[str, ...] = ()) -> Recipe:
        """A recipe from plain data (what YAML or JSON hold)."""
        plain = _with_own_names(plain)
        raise_all(RecipeError, _two_names(changes))
        for change in changes:
            plain = _with_own_names(_changed(plain, change))
        raise_all(RecipeError, Check(lines).recipe(_asked(plain)))
        plain = _asked(plain)
        return cls(
            data=plain.get("data") or {},
            inputs={k: Part.of(v) for k, v in (plain.get("inputs") or {}).items()},
            outputs={k: Part.of(v) for k, v in (plain.get("outputs") or {}).items()},
            frame=Part.of(plain.get("frame") or "row"),
            size=plain.get("size") or "small",
            model={k: Part.of(v) for k, v in (plain.get("model") or {}).items()},
            fusion=Part.of(plain["fusion"]) if plain.get("fusion") else usual_fusion(plain.get("outputs") or {}),
            stages=tuple(Part.of(s) for s in plain.get("stages") or ()),
            scale=plain.get("scale") or {},
            seed=plain.get("seed") or 0,
            tune=plain.get("tune") or {},
            curve=plain.get("curve") or {},
        )

    def plain(self) -> dict[str, Any]:
        """As plain data, ready for YAML; `Recipe.of(recipe.plain()) == recipe`."""
        return {
            "luban": FORMAT,
            "data": dict(self.data),
            "inputs": {k: p.plain() for k, p in self.inputs.items()},
            "outputs": {k: p.plain() for k, p in self.outputs.items()},
            "frame": self.frame.plain(),
            "size": self.size,
            "model": {k: p.plain() for k, p in self.model.items()},
            "fusion": self.fusion.plain(),
            "stages": [p.plain() for p in self.stages],
            "scale": dict(self.scale),
            "seed": self.seed,
        } | {k: dict(v) for k, v in (("tune", self.tune), ("curve", self.curve)) if v}

    def yaml(self) -> str:
        return dump(self.plain())

    def stage(self, name: str) -> Part | None:
        return next((s for s in self.stages if s.type == name), None)

    def with_stage(self, part: Part) -> Recipe:
        """The same recipe with that stage's settings replaced, or the stage added at the end."""
        kept = [part if s.type == part.type else s for s in self.stages]
        return replace(self, stages=tuple(kept if self.stage(part.type) else [*kept, part]))

    def with_stage_default(self, name: str) -> Recipe:
        """The same recipe, with that stage where it names none; `resolved` gives it the settings that the stage would have."""
        return self if self.stage(name) else self.with_stage(Part(name))

    def task(self) -> str:
        """The usual name of the task that this recipe describes, as Hugging Face names it."""
        if self.fusion.type in ("match", "skip_gram"):
            return "feature-extraction"
        kinds = {p.type for p in self.inputs.values() if not drawn(p)}
        answers = [p.type for p in self.outputs.values()]
        answer = "text" if self.writes else answers[0] if answers else ""
        if self.draws:
            how = "text-to-" if "text" in kinds else "" if kinds else "unconditional-"
            return how + (answer if "text" in kinds else f"{answer}-generation")
        read = [k for k in ("image", "video", "text") if k in kinds]
        if not answer:
            return "fill-mask"
        if answer == "text":
            return WRITTEN.get("-".join(read), "any-to-any")
        if answer in TASKS:
            return TASKS[answer]
        if read == ["image", "text"] and answer == "category" and "question" in self.inputs:
            return "visual-question-answering"
        if read and len(kinds) > 1:
            return "multimodal-" + KINDS.get(answer, answer)
        return f"{read[0] if read else 'tabular'}-" + KINDS.get(answer, answer)

    def resolved(self) -> Recipe:
        """Every default written out; what follows `size` gets its figure; cleaning of cells becomes the columns' own."""
        columns = lambda parts: {n: fill("columns", p, self.size) for n, p in parts.items()}  # noqa: E731
        brought = {n: self._with_lent(n, self._with_brought(n, self._as_read(n))) for n in self.inputs}
        frame = fill("frames", self.frame, self.size)
        clean = self.data.get("clean") or {}
        inputs = columns({n: _cleaning(_packed(p, frame), clean) for n, p in brought.items()})
        outputs = columns({n: _written(self._with_own(n, p), frame) for n, p in self.along().items()})
        own = self.fusion.type == "own"  # a module of one's own stands for the encoders
        lent = [n for n in inputs if self.shared(n) or self.before(n)]
        encoders = {n: fill("encoders", self.encoder(n), self.size) for n in inputs if n not in lent}
        encoders = {n: p for n, p in encoders.items() if not (self.draws and drawn(inputs[n]))}
        model = {} if own else encoders | {n: self.model[n] for n in lent}
        model |= {n: fill("heads", self.head(n), self.size) for n in outputs}
        return replace(
            self,
            data=dict(self.data)
            | {key: _filled("data", key, self.data.get(key) or {}, self.size) for key in ("split", "clean")},
            inputs=inputs,
            outputs=outputs,
            frame=frame,
            model=model,
            fusion=fill("fusions", self.fusion, self.size),
            stages=tuple(fill("stages", self.learning(s), self.size) for s in self.stages),
            scale=_filled("run", "scale", self.scale, self.size),
        )

    def along(self) -> dict[str, Part]:
        """The outputs; one that is `of:` an input knows which, where only one can be meant."""
        forms = {n: registry.schema("columns", p.type).get("x-form") for n, p in self.inputs.items()}
        told = {}
        for name, part in self.outputs.items():
            wanted = registry.schema("columns", part.type).get("x-of_form")
            fitting = [n for n, form in forms.items() if form == wanted]
            alone = wanted and not part.settings.get("of") and len(fitting) == 1
            told[name] = Part(part.type, {**part.settings, "of": fitting[0]}) if alone else part
        return told

    def encoder(self, name: str) -> Part:
        """The encoder of an input: named for the column, else for its type, else the type's own default."""
        name = self.shared(name) or name
        if self.before(name):
            return self.model[name]
        kind = self.inputs[name].type
        usual = Part(registry.schema("columns", kind)["x-encoder"])
        if (self.writes or self.together(name)) and registry.schema("columns", kind)["x-form"] == "ids":
            usual = Part("transformer", READER[self.size])  # a state for every token, for a decoder to read
        if self.writes and usual.type == "cnn" and registry.schema("columns", kind)["x-form"] == "grid":
            usual = Part("cnn", {"dense": []})  # a state for every place, likewise
        if self.fusion.type == "skip_gram":
            usual = Part("bag")  # its table are the vectors
        return self.model.get(name) or self.model.get(kind) or usual

    @property
    def writes(self) -> bool:
        """Whether an output is a text, written token by token."""
        return any(writes(p) for p in self.outputs.values())

    @property
    def draws(self) -> bool:
        """Whether an output is made from noise."""
        return any(draws(p) for p in self.outputs.values())

    @property
    def read(self) -> dict[str, Part]:
        """The inputs and outputs that data must have."""
        return {n: p for n, p in {**self.inputs, **self.outputs}.items() if not drawn(p)}

    @property
    def prefers(self) -> bool:
        """Whether an output is a pair of answers, the better one to be preferred."""
        return any("x-fields" in registry.schema("columns", p.type) for p in self.outputs.values())

    def shared(self, name: str) -> str | None:
        """The input whose encoder this one shares, and with it what its column has learned."""
        of = self._lender(name)
        return of if of in self.inputs else None

    def before(self, name: str) -> str | None:
        """The output that this input is read before, in one sequence, by the network that writes it."""
        of = self._lender(name)
        return of if of in self.outputs else None

    def _lender(self, name: str) -> str | None:
        part = self.model.get(name)
        return part.settings["of"] if part is not None and part.type in BORROWED else None

    def joined(self, name: str) -> str | None:
        """The input that this one is read with in one sequence."""
        return self.shared(name) if name in self.model and self.model[name].type == JOINT else None

    def together(self, name: str) -> list[str]:
        """The inputs that are read in one sequence behind this one, in their order."""
        return [n for n in self.inputs if self.joined(n) == name]

    def _as_read(self, name: str) -> Part:
        """The column of an input; one that shares an encoder has the other's settings, read jointly a length of its own.

        One that is read before a text is cut into tokens as that is.
        """
        own, of = self.inputs[name], self.shared(name)
        if written := self.before(name):
            theirs = _written(self._with_own(written, self.outputs[written]), self.frame).settings
            return Part(
                own.type,
                {k: theirs[k] for k in CUTTING if k in theirs}
                | {k: v for k, v in own.settings.items() if k not in CUTTING},
            )
        if of is None:
            return own
        kept = {
            k: own.settings[k]
            for k in ("length", "keep", "long")
            if self.joined(name) and own.settings.get(k) is not None
        }
        return Part(self.inputs[of].type, {**self.inputs[of].settings, **kept})

    def _with_brought(self, name: str, column: Part) -> Part:
        """The column of an input with what its encoder brings: a pretrained one its tokenizer."""
        part: Part | None = None if self.fusion.type == "own" or self.before(name) else self.encoder(name)
        while part is not None:
            schema = registry.schema("encoders", part.type)
            key, inner = schema.get("x-brings"), part.settings.get("over")
            if key and column.settings.get(key) is None:
                return Part(column.type, {**column.settings, key: part.settings.get("name")})
            part = Part.of(inner) if inner is not None else None
        return column

    def _with_lent(self, name: str, column: Part) -> Part:
        """The column of an input with what an output that is `of:` it asks of it, such as an image that no object is cut off from."""
        lent: dict[str, Any] = {}
        for part in self.along().values():
            if part.settings.get("of") == name:
                lent |= registry.schema("columns", part.type).get("x-lends") or {}
        told = {k: v for k, v in column.settings.items() if v is not None}
        return Part(column.type, lent | told) if lent else column

    def _with_own(self, name: str, column: Part) -> Part:
        """The column of an output with what its head brings: a pretrained one its tokenizer."""
        part = self.head(name)
        key = registry.schema("heads", part.type).get("x-brings")
        if key is None or column.settings.get(key) is not None:
            return column
        return Part(column.type, {**column.settings, key: part.settings.get("name")})

    def head(self, name: str) -> Part:
        return self.model.get(name) or Part(registry.schema("columns", self.outputs[name].type)["x-head"])

    def maps(self, name: str) -> bool:
        """Whether the head of an output reads an encoder's feature maps, not its Tokens."""
        return registry.schema("heads", self.head(name).type).get("x-reads") == "maps"

    def learning(self, stage: Part) -> Part:
        """Networks that write, or say hidden words, learn several times faster by Muon; a network with a rival learns otherwise.
        What a recipe names comes first.
        """
        if stage.type == "train" and self.draws:
            return Part("train", {**RIVALS, **{k: v for k, v in stage.settings.items() if v is not None}})
        named = any(stage.settings.get(k) is not None for k in MUON)
        if stage.type != "train" or named or not (self.writes or self.fusion.type == "masked"):
            return stage
        return Part("train", {**stage.settings, **MUON})

    def _repr_html_(self) -> str:
        import html

        return f"<pre>{html.escape(self.yaml())}</pre>"


def fill(room: str, part: Part, size: str) -> Part:
    """A part with every default written out."""
    return Part(part.type, _filled(room, part.type, part.settings, size))


def _filled(room: str, name: str, given: Mapping[str, Any], size: str) -> dict[str, Any]:
    return _defaults(registry.schema(room, name), given, size)


def _defaults(settings: Mapping[str, Any], given: Mapping[str, Any], size: str) -> dict[str, Any]:
    result = {}
    for key, schema in settings["properties"].items():
        value = given.get(key)
        if value is None:
            value = schema["x-size"][size] if "x-size" in schema else schema.get("default")
        if value is not None and "x-part" in schema:
            value = fill(schema["x-part"], Part.of(value), size).plain()
        if isinstance(value, Mapping) and "properties" in schema:
            value = _defaults(schema, value, size)
        if value is not None:
            result[key] = value
    return result


def _cleaning(part: Part, clean: Mapping[str, Any]) -> Part:
    """An input's column with what `data.clean` asks of its cells as settings, so that served cells go the same road.

    What the column's own settings say comes first.
    """
    normalise = clean.get("normalise") or {}
    asked = {
        "missing": (clean.get("missing") or {}).get(part.type),
        "outliers": clean.get("outliers"),
        "normalise": normalise.get("unicode"),
        "lower": normalise.get("lower"),
        "whitespace": normalise.get("whitespace"),
    }
    known = registry.schema("columns", part.type)["properties"]
    own = {k: v for k, v in part.settings.items() if v is not None}
    given = {k: v for k, v in asked.items() if k in known and v in known[k].get("enum", (True, False))}
    return Part(part.type, given | own)


def _written(part: Part, frame: Part) -> Part:
    """An output's column with the defaults that it has there; packed texts are as long as what is learned at once."""
    usual = dict(registry.schema("columns", part.type).get("x-output") or {})
    return _packed(Part(part.type, usual | {k: v for k, v in part.settings.items() if v is not None}), frame)


def _packed(part: Part, frame: Part) -> Part:
    if (
        frame.type != "pack"
        or part.settings.get("length")
        or "length" not in registry.schema("columns", part.type)["properties"]
    ):
        return part
    return Part(part.type, {**part.settings, "length": frame.settings["length"]})


def drawn(part: Part) -> bool:
    """Whether a column needs no cells in the data: noise."""
    return bool(registry.schema("columns", part.type).get("x-drawn"))


def draws(part: Part) -> bool:
    """Whether a column is made from noise where it is an output."""
    head = registry.schema("columns", part.type).get("x-head")
    return bool(head) and bool(registry.schema("heads", head).get("x-draws"))


def writes(part: Part) -> bool:
    """Whether a column is written token by token."""
    return registry.schema("columns", part.type).get("x-head") == "text"


def _asked(plain: Any) -> Any:
    """The plain recipe with what goes without saying."""
    spelled = isinstance(plain, Mapping) and isinstance(plain.get("model"), Mapping)
    plain = {**plain, "model": {n: _spelled(v) for n, v in plain["model"].items()}} if spelled else plain
    return _with_noise(_with_joint(plain))


def _spelled(value: Any) -> Any:
    """An encoder as `{NAME: {SETTING: VALUE}}` that was written short, `NAME:VALUE`; those inside of it too."""
    if isinstance(value, str):
        name, colon, rest = value.partition(":")
        short = _mark_of("encoders", name, "x-short") if colon else None
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
    kind = lambda v: Check._named(v)[0]  # noqa: E731
    heads = [_mark_of("columns", kind(v), "x-head") for v in outputs.values()]
    made = any(head and _mark_of("heads", head, "x-draws") for head in heads)
    if not made or NOISE in inputs or any(_mark_of("columns", kind(v), "x-drawn") for v in inputs.values()):
        return plain
    return {**plain, "inputs": {**inputs, NOISE: NOISE}}


def _with_joint(plain: Any) -> Any:
    """The plain recipe; a text that an answer is a stretch of is read jointly with the one other text, where nothing is said."""
    if not isinstance(plain, Mapping) or plain.get("fusion"):
        return plain
    inputs, outputs, model = (plain.get(k) or {} for k in ("inputs", "outputs", "model"))
    if not all(isinstance(side, Mapping) for side in (inputs, outputs, model)):
        return plain
    kind = lambda v: Check._named(v)[0]  # noqa: E731
    texts = [n for n, v in inputs.items() if _mark_of("columns", kind(v), "x-form") == "ids"]
    for value in outputs.values():
        of = Check._named(value)[1].get("of")
        others = [n for n in texts if n != of]
        free = of in texts and of not in model and len(others) == 1
        if _mark_of("columns", kind(value), "x-joint") and free and kind(model.get(others[0])) not in BORROWED:
            return {**plain, "model": {**model, of: {JOINT: others[0]}}}
    return plain


def _mark_of(room: str, name: Any, mark: str) -> Any:
    """What a thing says of itself, False where it does not; None for a name that is none."""
    return registry.schema(room, name).get(mark, False) if name in registry.names(room) else None


def usual_fusion(outputs: Any) -> Part:
    """The fusion of a recipe that names none: a text is written from every position of the inputs."""
    found = [writes(Part.of(p)) for p in outputs.values()]
    return Part("memory" if found == [True] else "join" if any(found) else "concat")


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
        fusion, _ = self._named(plain.get("fusion"))
        model = plain.get("model") if isinstance(plain.get("model"), Mapping) else {}
        columns = {n: (s, kind) for s in ("inputs", "outputs") for n, (kind, _) in self._types(plain.get(s)).items()}
        joint = {n: self._lent_by(v[JOINT]) for n, v in model.items() if isinstance(v, Mapping) and JOINT in v}
        writers = [] if _mark_of("fusions", fusion, "x-ahead") else self._writers(model, columns)
        for name, of in joint.items():
            place = ("model", name, JOINT)
            if fusion in APART:
                yield problem("joint.fusion", place=self.place(place), name=name, fusion=fusion)
            others = [n for n, (side, _) in columns.items() if side == "inputs" and joint.get(n) != of]
            if of in writers and columns.get(name) == ("inputs", "text") and others:
                yield problem("joint.mixed", place=self.place(place[:2]), name=name, output=of, others=others)

    def _ahead(self, plain: Mapping[str, Any]) -> Iterator[Problem]:
        """A fusion whose positions stand in front of the text that is written: there is one, written by Luban's own Transformer, and an input."""
        fusion, _ = self._named(plain.get("fusion"))
        if not _mark_of("fusions", fusion, "x-ahead"):
            return
        names = {side: self._types(plain.get(side)) for side in ("inputs", "outputs")}
        texts = [n for n, (kind, _) in names["outputs"].items() if _mark_of("columns", kind, "x-head") == "text"]
        if not texts or not names["inputs"]:
            yield problem("prefix.nothing", place=self.place(("fusion",)), fusion=fusion)
        model = plain.get("model") if isinstance(plain.get("model"), Mapping) else {}
        for name in texts:
            head = self._named(model.get(name))[0] or "text"
            if _mark_of("heads", head, "x-joins") is False:
                fitting = [n for n in registry.names("heads") if _mark_of("heads", n, "x-joins")]
                yield problem(
                    "prefix.head", place=self.place(("model", name)), head=head, fusion=fusion, allowed=fitting
                )

    def _long(self, plain: Mapping[str, Any]) -> Iterator[Problem]:
        """`long` is about texts that are read; windows need a text by itself, and answers that several can be one of."""
        names = {side: self._types(plain.get(side)) for side in ("inputs", "outputs")}
        frame, _ = self._named(plain.get("frame"))
        model = plain.get("model") if isinstance(plain.get("model"), Mapping) else {}
        joint = {n: self._lent_by(v[JOINT]) for n, v in model.items() if isinstance(v, Mapping) and JOINT in v}
        together = {m for pair in joint.items() for m in pair if pair[1] in names["inputs"]}
        fitting = [k for k in registry.names("columns") if _mark_of("columns", k, "x-pools")]
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
            wanted = _mark_of("columns", kind, "x-of_form")
            if not wanted:
                continue
            fitting = [n for n, (k, _) in names["inputs"].items() if _mark_of("columns", k, "x-form") == wanted]
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
            if not _mark_of("columns", kind, "x-along"):
                continue
            model = plain.get("model") if isinstance(plain.get("model"), Mapping) else {}
            encoder, _ = self._named(model.get(of))
            if encoder in registry.names("encoders") and not registry.schema("encoders", encoder).get("x-sequences"):
                fitting = [n for n in registry.names("encoders") if registry.schema("encoders", n).get("x-sequences")]
                place = self.place(("model", of))
                yield problem("tags.one_vector", place=place, encoder=encoder, output=name, allowed=fitting)

    def _types(self, parts: Any) -> dict[str, tuple[str | None, Mapping[str, Any]]]:
        return {n: self._named(v) for n, v in parts.items()} if isinstance(parts, Mapping) else {}

    @staticmethod
    def _named(value: Any) -> tuple[str | None, Mapping[str, Any]]:
        """Name and settings of a part that may be anything yet."""
        if isinstance(value, Mapping) and len(value) == 1:
            ((name, settings),) = value.items()
            return (name if isinstance(name, str) else None), settings if isinstance(settings, Mapping) else {}
        return (value if isinstance(value, str) else None), {}

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
        elif how == JOINT and _mark_of("encoders", encoder := self._named(model.get(of))[0], "x-sequences") is False:
            fitting = [n for n in registry.names("encoders") if registry.schema("encoders", n).get("x-sequences")]
            place = self.place(("model", of))
            yield problem("joint.one_vector", place=place, encoder=encoder, inputs=[of, name], allowed=fitting)

    @staticmethod
    def _lent_by(value: Any) -> Any:
        """The column that `share` or `joint` names, by itself or among settings."""
        return value.get("of") if isinstance(value, Mapping) else value

    def _writers(self, model: Mapping[str, Any], columns: Mapping[str, Any]) -> list[str]:
        """The texts whose networks read others before they write."""
        heads = {
            n: self._named(model.get(n))[0] or "text" for n, found in columns.items() if found == ("outputs", "text")
        }
        return [n for n, head in heads.items() if _mark_of("heads", head, "x-joins")]

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
    text = str(schema.get("x-said") or schema.get("type", "any"))
    if text == "array":
        return f"[{wanted(schema.get('items', {}))}, ...]"
    for sign, key in ((">=", "minimum"), (">", "exclusiveMinimum"), ("<=", "maximum")):
        if key in schema:
            text += f" {sign} {schema[key]:g}"
    return text


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


def _with_own_names(plain: Any) -> Any:
    """The plain recipe; settings of its train stages that have names from another trainer have ours."""
    if not (isinstance(plain, Mapping) and isinstance(plain.get("stages"), list)):
        return plain
    return {**plain, "stages": [aliases.stage(s) for s in plain["stages"]]}


def _two_names(changes: tuple[str, ...]) -> Iterator[Problem]:
    """Settings that two changes name differently: the later one would win in silence."""
    seen: dict[str, str] = {}
    for change in changes:
        stage, _, name = change.partition("=")[0].partition(".")
        if stage == "train" and seen.setdefault(aliases.SETTINGS.get(name, name), name) != name:
            yield problem("recipe.two_names", place="--set", one=name, other=seen[aliases.SETTINGS.get(name, name)])


def _changed(plain: Any, change: str) -> Any:
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
