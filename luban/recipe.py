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

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luban import registry
from luban.changes import changed, two_names, with_our_names, with_the_usual
from luban.checking import FORMAT, Check
from luban.errors import RecipeError, raise_all
from luban.part import BORROWED, JOINT, Part
from luban.yaml_file import Lines, dump, read

UNTOLD = ("masked", "skip_gram")  # fusions that learn what texts hold themselves, without answers


# Settings that say how a text becomes tokens.
CUTTING = ("tokens", "vocabulary", "least", "lower", "normalise", "whitespace", "tokens_of")
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
        plain = with_our_names(plain)
        raise_all(RecipeError, two_names(changes))
        for change in changes:
            plain = with_our_names(changed(plain, change))
        raise_all(RecipeError, Check(lines).recipe(with_the_usual(plain)))
        plain = with_the_usual(plain)
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


def usual_fusion(outputs: Any) -> Part:
    """The fusion of a recipe that names none: a text is written from every position of the inputs."""
    found = [writes(Part.of(p)) for p in outputs.values()]
    return Part("memory" if found == [True] else "join" if any(found) else "concat")
