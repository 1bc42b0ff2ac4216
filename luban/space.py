"""The space that a search draws settings from: `tune.search` in a recipe, checked against `schema.json`. No torch.

    tune:
      search:
        train.rate: [1e-4, 1e-2, log]                 # a range, drawn evenly in its logarithm
        train.weight_decay: [0, 0.1, linear]          # a range, drawn evenly
        size: [nano, small]                           # choices
        model.review: [cnn, {bilstm: {layers: 2}}]    # an encoder, with settings where wanted
        model.review.hidden: [32, 64, 128]            # drawn where the chosen encoder has such a setting
        model.text.dropout: [0.0, 0.5, linear]        # all inputs of a type that have no encoder of their own

Names may also be nested (`train: {rate: [...]}`). Settings of the data are not searched: every trial sees the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luban import registry
from luban.errors import Problem, problem
from luban.settings import SIZES

if TYPE_CHECKING:
    from luban.checking import Check
    from luban.recipe import Recipe

SCALES = ("log", "linear")
HEADS = ("train", "model", "inputs", "size", "fusion")  # what a name may begin with
FIXED = ("out", "resume", "device", "track", "checkpoint_seconds")  # settings of train that change nothing learned
# Whether more is better, by kind of answer; `loss`, the validation loss over all outputs, is there for every kind.
HIGHER = {
    "category": {
        "accuracy": True, "balanced_accuracy": True, "precision_macro": True, "recall_macro": True, "f1_macro": True, "f1_micro": True, "f1_weighted": True,
        "precision": True, "recall": True, "f1": True, "roc_auc": True, "average_precision": True,
        "log_loss": False, "ece": False, "brier": False,
    },
    "match": {"recall_1": True, "recall_5": True, "recall_10": True, "mrr": True},
    "number": {"r2": True, "mse": False, "rmse": False, "mae": False, "median_absolute_error": False},
    "labels": {"f1_micro": True, "f1_macro": True, "precision_micro": True, "recall_micro": True, "exact_match": True, "hamming_loss": False, "map_macro": True},
    "hidden": {"accuracy": True, "perplexity": False},
    "text": {"chrf": True, "bleu": True, "rouge_l": True, "exact_match": True, "word_error_rate": False, "bits_per_byte": False, "perplexity": False},
    "image": {"frechet": False, "recognised": True, "precision": True, "recall": True},
    "mask": {"mean_iou": True, "accuracy": True},
    "tags": {"f1": True, "precision": True, "recall": True, "f1_macro": True, "accuracy": True},
    "span": {"exact_match": True, "f1": True, "has_answer_exact_match": True, "has_answer_f1": True, "no_answer_accuracy": True},
}  # fmt: skip


@dataclass(frozen=True)
class Dimension:
    """One setting that is searched: choices, or a range (`scale` log or linear; `whole`: whole numbers only).

    `within`: the parts that have this setting, where the part itself is searched too (by its own dimension's path).
    """

    path: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    scale: str = ""
    whole: bool = False
    part: str = ""
    within: tuple[str, ...] = ()

    def labels(self) -> tuple[Any, ...]:
        """The choices as plain values: what is a list or a mapping as its JSON."""
        return tuple(map(label, self.choices))

    def value(self, drawn: Any) -> Any:
        """What stands in a recipe for a drawn label or number."""
        return self.choices[self.labels().index(drawn)] if self.choices else drawn

    def holds(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and (not self.whole or value == int(value))

    def active(self, values: Mapping[str, Any]) -> bool:
        return not self.part or self.part not in values or _type(values[self.part]) in self.within

    def said(self) -> str:
        return ", ".join(map(str, self.labels())) if self.choices else f"{self.low:g} – {self.high:g} ({self.scale})"


def label(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value, sort_keys=True)


def _type(value: Any) -> str:
    return value if isinstance(value, str) else next(iter(value), "")


def flat(search: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """(dotted name, value, keys that lead to it) of every setting in a search that may be nested."""
    for key, value in search.items():
        keys = (*above, str(key))
        if isinstance(value, Mapping):
            yield from flat(value, keys)
        else:
            yield ".".join(keys), value, keys


class Space:
    """The columns and parts of a plain recipe, and which settings may be searched in it."""

    def __init__(self, plain: Mapping[str, Any]):
        self.plain, self.search = plain, dict((plain.get("tune") or {}).get("search") or {})
        self.sides = {s: _kinds(plain.get(s)) for s in ("inputs", "outputs")}
        self.named = {path: value for path, value, _ in flat(self.search)}

    def columns(self) -> dict[str, str]:
        return {**self.sides["inputs"], **self.sides["outputs"]}

    def places(self, path: str) -> tuple[list[tuple[str, Mapping[str, Any]]], Problem | None]:
        """What a name stands for: (part, schema of the setting) for every part it may belong to; or what is wrong."""
        head, _, rest = path.partition(".")
        if head not in HEADS:
            return [], problem("tune.no_such_setting", name=path, allowed=HEADS)
        if head == "size":
            return ([("", {"enum": list(SIZES)})], None) if not rest else ([], self._unknown(path, ("size",)))
        if head == "train":
            return self._of_parts(path, "stages", ("train",), rest, FIXED)
        if head == "fusion":
            return (
                self._of_parts(path, "fusions", self._fusions(), rest)
                if rest
                else ([("", {"x-part": "fusions"})], None)
            )
        return self._of_column(path, head, rest)

    def _fusions(self) -> tuple[str, ...]:
        given = self.named.get("fusion") or [self.plain.get("fusion") or "concat"]
        return tuple(_type(g) for g in given) if isinstance(given, list) else ()

    def _of_column(self, path: str, head: str, rest: str) -> tuple[list[Any], Problem | None]:
        known = (
            {**dict.fromkeys(registry.names("columns"), ""), **self.columns()}
            if head == "model"
            else self.sides["inputs"]
        )
        name = max((n for n in known if rest == n or rest.startswith(n + ".")), key=len, default="")
        if not name:
            if not self.sides["inputs"]:
                return [], None  # the columns are not known yet; the recipe is checked again when they are
            return [], self._unknown(path, [f"{head}.{n}" for n in known])
        setting = rest[len(name) + 1 :]
        if head == "inputs":
            return self._of_parts(path, "columns", (known[name],), setting)
        room = "heads" if name in self.sides["outputs"] else "encoders"
        if not setting:
            return [("", {"x-part": room})], None
        return self._of_parts(path, room, self._parts_of(name, room), setting)

    def _parts_of(self, name: str, room: str) -> tuple[str, ...]:
        """The encoders (or heads) that may stand at a column or a type: searched ones, else the recipe's."""
        searched = self.named.get(f"model.{name}")
        if isinstance(searched, list):
            return tuple(_type(s) for s in searched if isinstance(s, (str, Mapping)))
        kind = self.columns().get(name, name)
        model = self.plain.get("model") or {}
        given = model.get(name) or (model.get(kind) if room == "encoders" else None)
        return (
            _type(given) if given else registry.schema("columns", kind)["x-head" if room == "heads" else "x-encoder"],
        )

    def _of_parts(
        self, path: str, room: str, parts: tuple[str, ...], setting: str, without: tuple[str, ...] = ()
    ) -> tuple[list[Any], Problem | None]:
        found, allowed = [], []
        for part in (p for p in parts if p in registry.names(room)):
            known = {k: s for k, s in registry.schema(room, part)["properties"].items() if k not in without}
            allowed += [k for k in known if k not in allowed]
            found += [(part, known[setting])] if setting in known else []
        before = path[: len(path) - len(setting)] if setting else path + "."
        return found, None if found or not allowed else self._unknown(path, [before + k for k in allowed])

    @staticmethod
    def _unknown(path: str, allowed: Any) -> Problem:
        return problem("tune.no_such_setting", name=path, allowed=allowed)

    # -- checking ----------------------------------------------------------------------------------------------------
    def problems(self, check: Check) -> Iterator[Problem]:
        """Every mistake in `tune.search`, `tune.metric` and `curve.metric`."""
        yield from self._metric(check, "tune")
        yield from self._metric(check, "curve")
        for path, value, keys in flat(self.search):
            where = ("tune", "search", *keys)
            found, wrong = self.places(path)
            if wrong:
                yield wrong.at(check.place(where))
            elif found:
                yield from self._value(check, value, found, where)

    def _value(self, check: Check, value: Any, found: list[Any], where: tuple[Any, ...]) -> Iterator[Problem]:
        if not isinstance(value, (list, tuple)) or not value:
            yield problem("tune.want_choices", place=check.place(where), found=repr(value)[:60])
            return
        ranged = is_range(value)
        numeric = any(_numeric(s) for _, s in found)
        if ranged and not numeric:
            yield problem("tune.no_range", place=check.place(where), found=repr(value)[:60])
            return
        if (ranged and not value[0] < value[1]) or (ranged and value[2] == "log" and value[0] <= 0):
            yield problem("tune.bad_range", place=check.place(where), found=repr(value)[:60])
            return
        for i, item in enumerate(value[:2] if ranged else value):
            each = [list(check.value(item, schema, (*where, i))) for _, schema in found]
            if item is None or all(each):
                yield (each[0] or [problem("tune.want_choices", place=check.place(where), found=repr(value)[:60])])[0]

    def _metric(self, check: Check, key: str) -> Iterator[Problem]:
        metric, outputs = (self.plain.get(key) or {}).get("metric"), self.sides["outputs"]
        allowed = [m for m in metrics_of(outputs) if key == "tune" or m != "loss"]  # rows are paired by a metric
        if isinstance(metric, str) and outputs and metric not in allowed:
            yield problem("tune.no_metric", place=check.place((key, "metric")), name=metric, allowed=allowed)

    # -- the dimensions ----------------------------------------------------------------------------------------------
    def dimensions(self) -> list[Dimension]:
        """The search as dimensions, parts before their settings; assumes that it was checked."""
        found = []
        for path, value, _ in flat(self.search):
            places, _ = self.places(path)
            parts = tuple(p for p, _ in places)
            part = path.rpartition(".")[0] if path.count(".") > 1 or path.startswith("fusion.") else ""
            part = part if part in self.named else ""
            if is_range(value):
                whole = all(_whole(s) for _, s in places)
                low, high = (int(v) if whole else float(v) for v in value[:2])
                found.append(Dimension(path, (), low, high, value[2], whole, part, parts))
            else:
                distinct = [v for i, v in enumerate(value) if v not in value[:i]]
                found.append(Dimension(path, tuple(distinct), part=part, within=parts))
        names = {d.path for d in found}
        return sorted(found, key=lambda d: d.part in names and bool(d.part))


def metrics_of(outputs: Mapping[str, str]) -> list[str]:
    """What a search may be judged by: `auto`, `loss`, a metric of the only output, or OUTPUT.METRIC."""
    one = len(outputs) == 1
    found = [m if one else f"{n}.{m}" for n, kind in outputs.items() for m in HIGHER.get(kind, {})]
    return [
        "auto",
        "loss",
        *found,
        *([f"{n}.{m}" for n, k in outputs.items() for m in HIGHER.get(k, {})] if one else []),
    ]


def is_range(value: Any) -> bool:
    """[low, high, log] or [low, high, linear]."""
    number = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)  # noqa: E731
    return isinstance(value, (list, tuple)) and len(value) == 3 and value[2] in SCALES and all(map(number, value[:2]))


def _numeric(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") in ("number", "integer") or any(map(_numeric, schema.get("anyOf", ())))


def _whole(schema: Mapping[str, Any]) -> bool:
    kinds = [s.get("type") for s in schema.get("anyOf", (schema,))]
    return "integer" in kinds and "number" not in kinds


def _kinds(parts: Any) -> dict[str, str]:
    found = parts.items() if isinstance(parts, Mapping) else ()
    return {
        str(n): k for n, p in found if isinstance(k := _type(p) if p else "", str) and k in registry.names("columns")
    }


def default_search(recipe: Recipe) -> dict[str, Any]:
    """What is searched where the recipe does not say: how fast it learns, how it is held back, and how large it is.

    The rate within a factor of ten of the default, decay, the recipe's size and the one beside it, and the dropout of
    encoders that read sequences or pictures (those of plain numbers share one network, which would be torn apart).
    """
    rate = recipe.with_stage_default("train").resolved().stage("train").settings["rate"]
    if not isinstance(rate, (int, float)):  # to be found by a trial of its own
        rate = registry.schema("stages", "train")["properties"]["rate"]["x-size"][recipe.size]
    at = SIZES.index(recipe.size)
    search: dict[str, Any] = {
        "train.rate": [rate / 10, rate * 10, "log"],
        "train.weight_decay": [1e-4, 0.3, "log"],
        "size": list(SIZES[max(0, at - 1) : max(2, at + 1)]),
    }
    for name, part in recipe.inputs.items():
        encoder = recipe.encoder(name).type
        flat_form = registry.schema("columns", part.type).get("x-form") in ("scalar", "index")
        if not flat_form and "dropout" in registry.schema("encoders", encoder)["properties"]:
            search[f"model.{name if name in recipe.model else part.type}.dropout"] = [0.0, 0.5, "linear"]
    return search


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with drawn settings in their places, parts before settings of parts."""
    columns = {**dict.fromkeys(registry.names("columns")), **recipe.inputs, **recipe.outputs}
    for path in sorted(values, key=lambda p: p.count(".")):
        recipe = _with_value(recipe, path, values[path], columns)
    return recipe


def _with_value(recipe: Recipe, path: str, value: Any, columns: Mapping[str, Any]) -> Recipe:
    from luban.part import Part

    head, _, rest = path.partition(".")
    if head == "size":
        return replace(recipe, size=value)
    if head == "train":
        stage = recipe.stage("train") or Part("train")
        stage = recipe.learning(stage) if rest == "rate" else stage  # a drawn rate is one for the usual optimiser
        return recipe.with_stage(Part("train", {**stage.settings, rest: value}))
    if head == "fusion":
        old = recipe.fusion
        return replace(recipe, fusion=Part(old.type, {**old.settings, rest: value}) if rest else Part.of(value))
    name = max((n for n in columns if rest == n or rest.startswith(n + ".")), key=len)
    setting = rest[len(name) + 1 :]
    if head == "inputs":
        old = recipe.inputs[name]
        return replace(recipe, inputs={**recipe.inputs, name: Part(old.type, {**old.settings, setting: value})})
    new = Part.of(value) if not setting else _with_setting(recipe, name, setting, value)
    return replace(recipe, model={**recipe.model, name: new})


def _with_setting(recipe: Recipe, name: str, setting: str, value: Any) -> Any:
    from luban.part import Part

    if name in recipe.outputs:
        old = recipe.head(name)
    elif name in recipe.inputs:
        old = recipe.encoder(name)
    else:
        old = recipe.model.get(name) or Part(registry.schema("columns", name)["x-encoder"])
    return Part(old.type, {**old.settings, setting: value})


def value_at(recipe: Recipe, path: str) -> Any:
    """What stands at a searched name in a recipe, defaults included; None where nothing single does."""
    head, _, rest = path.partition(".")
    full = recipe.with_stage_default("train").resolved()
    if head == "size":
        return full.size
    if head == "train":
        return full.stage("train").settings.get(rest)
    if head == "fusion":
        return full.fusion.settings.get(rest) if rest else full.fusion.plain()
    columns = {**recipe.inputs, **recipe.outputs}
    name = max((n for n in columns if rest == n or rest.startswith(n + ".")), key=len, default="")
    if not name:  # a type: the first input of it speaks
        kind = rest.partition(".")[0]
        mine = next((n for n, p in recipe.inputs.items() if p.type == kind and n not in recipe.model), None)
        return value_at(recipe, f"{head}.{mine}{rest[len(kind) :]}") if mine else None
    setting = rest[len(name) + 1 :]
    part = full.inputs[name] if head == "inputs" else full.model.get(name)
    return part and (part.settings.get(setting) if setting else part.type)
