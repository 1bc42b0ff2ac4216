"""What is planned: a recipe, or a described shape, as a network to build, batches to count and a number of updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luban.asking import Ask, is_recipe, recipe_from
from luban.bundle import build_network
from luban.columns.base import Column, Ragged, make, together
from luban.columns.examples import Examples, Pairs
from luban.columns.fitting import fit_columns
from luban.columns.kept import encode_kept
from luban.data.prepare import prepare
from luban.data.samples import SAMPLES
from luban.errors import RequestError, shortened
from luban.messages import say
from luban.nn.tokens import Batch
from luban.planning import shape as shapes
from luban.recipe import Recipe
from luban.training.batches import batch_for, epochs_for, order, tokens_for
from luban.training.loop import Plan

SAMPLE = 20_000  # training rows that are encoded to learn how long they are
FEWEST, MOST = 64, 4096  # rows that are made up where there are none: a batch, if it may be
NEARLY = 0.95
UNANSWERED = ("match", "masked", "skip_gram")  # fusions that learn without an output
ROWS = 10_000  # rows that a plan counts with where nothing says how many


@dataclass
class Subject:
    """`positions`: of one example, on average with its padding, and `longest`, at most; 0 where nothing is a sequence."""

    title: str
    build: Callable[[], Any]
    batch: Callable[..., Batch]  # (examples, longest) -> tensors without content
    plan: Plan
    steps: int
    rows: int
    validation: int
    precision: str
    update: int  # examples of an update, on average
    most: int  # examples of the update that takes the most memory
    positions: float = 0.0
    longest: int = 0
    assumed: list[str] = field(default_factory=list)
    examples: Examples | None = None  # some training rows, or rows made up, to time
    host_bytes: float = 0.0  # the encoded rows
    accumulate: int = 1
    recompute: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the train stage

    @property
    def epochs(self) -> float:
        return self.steps * self.update / max(1, self.rows)

    def grown(self, examples: int) -> Subject:
        """The same run with so many examples in an update."""
        by = examples / self.update
        of_update = {"batch": math.ceil(self.plan.batch * by), "tokens": math.ceil(self.plan.tokens * by)}
        steps = self.steps if self.settings.get("steps") else math.ceil(self.steps / by)
        most = math.ceil(self.most * by)
        return replace(self, update=examples, most=most, steps=steps, plan=replace(self.plan, **of_update))


def of_shape(sizes: Mapping[str, int], recipe: Recipe, devices: int = 1) -> Subject:
    """A language model of these sizes, trained with the `train` settings of a recipe."""
    length = sizes["length"]
    with torch.device("meta"):
        count = sum(p.numel() for p in shapes.decoder(sizes).parameters())
    tokens = sizes.get("tokens") or shapes.PER_PARAMETER * count
    settings, assumed = _settings(recipe), []
    if "tokens" not in sizes:
        assumed.append(say("plan.assume_tokens", tokens=f"{tokens:,}", each=shapes.PER_PARAMETER))
    if not isinstance(settings["batch"], int):
        settings["batch"] = max(devices, next(t for most, t in shapes.UPDATES if count <= most) // length)
        assumed.append(say("plan.assume_batch", batch=settings["batch"], tokens=f"{settings['batch'] * length:,}"))
    rows = -(-tokens // length)
    plan = _plan(
        {**settings, "batch": settings["batch"] * settings["accumulate"], "tokens": 0, "epochs": 1}, recipe.seed
    )

    def batch(examples: int, longest: bool = True) -> Batch:
        pair = torch.zeros(examples, length, dtype=torch.long), torch.ones(examples, length, dtype=torch.bool)
        return Batch({"tokens": pair}, {"tokens": pair}, examples)

    title = say("plan.shape_title", **{n: sizes[n] for n in shapes.NEEDED})
    return Subject(
        title, lambda: shapes.decoder(sizes), batch, plan, -(-rows // plan.batch), rows, 0, settings["precision"], plan.batch, plan.batch,
        positions=length, longest=length, assumed=assumed, **_scaling(settings),
    )  # fmt: skip


def of_recipe(source: Any, ask: Ask, rows: int | None = None) -> Subject:
    """What a recipe, or data and a target, ask for. Data that cannot be read are stood in for by the recipe's settings.

    Raises RecipeError, DataError, RequestError where neither says what the network reads.
    """
    recipe, readable = _recipe(source, ask)
    if readable:
        recipe, found, _ = recipe_from(source, ask)
        return _with_data(recipe.resolved(), found, rows)
    reads, answers = recipe.inputs or recipe.writes, recipe.outputs or recipe.fusion.type in UNANSWERED
    if not (reads and answers):
        raise RequestError("plan.no_columns", path=str(recipe.data.get("rows") or source))
    return _without_data(recipe.resolved(), rows)


def _recipe(source: Any, ask: Ask) -> tuple[Recipe, bool]:
    """The recipe as it stands, and whether its rows can be read."""
    name = str(source) if isinstance(source, (str, Path)) else ""
    if not (name.endswith((".yaml", ".yml")) or is_recipe(source)):
        return Recipe(), True  # data: what cannot be read is told by who reads it
    if name:
        recipe = Recipe.load(name, tuple(ask.changes))
    else:
        recipe = source if isinstance(source, Recipe) else Recipe.of(source, changes=tuple(ask.changes))
    rows = recipe.data.get("rows")
    places = [Path(rows), Path(name).parent / rows] if rows else []
    return recipe, bool(rows) and (rows in SAMPLES or any(p.exists() for p in places))


def _with_data(recipe: Recipe, found: Any, rows: int | None) -> Subject:
    data = prepare(recipe, found)
    columns = fit_columns(recipe, data)
    training = data.part("train")
    some = training[np.linspace(0, len(training) - 1, min(SAMPLE, len(training))).astype(int)]
    framed = data.framed(some, recipe.frame)
    examples = encode_kept(columns, tuple(recipe.inputs), tuple(recipe.outputs), framed)
    each = len(examples) / max(1, len(framed))  # of a packed text there are many
    count, judged = round((rows or len(training)) * each), round(len(data.part("validation")) * each)
    return _subject(recipe, columns, examples, count, judged, [])


def _without_data(recipe: Recipe, rows: int | None) -> Subject:
    """Columns as their settings allow them at most, and rows made up."""
    parts = {**recipe.inputs, **recipe.outputs}
    columns = together({n: make(n, p.type, dict(p.settings)).supposed() for n, p in parts.items()})
    split = recipe.data["split"]
    count = rows or ROWS
    training = max(1, round(count * (1 - split["validation"] - split["test"])))
    asked = _settings(recipe)["batch"]
    examples = _made_up(
        recipe, columns, max(FEWEST, min(MOST, asked if isinstance(asked, int) else batch_for(training)))
    )
    assumed = [say("plan.assume_columns")]
    if rows is None:
        assumed.append(say("plan.assume_rows", rows=f"{count:,}"))
    return _subject(recipe, columns, examples, training, round(count * split["validation"]), assumed)


def _made_up(recipe: Recipe, columns: Mapping[str, Column], count: int) -> Examples:
    random = np.random.default_rng(0)

    def one(column: Column) -> Any:
        if column.form == "span":
            return np.sort(random.integers(0, columns[column.of].state["longest"], (count, 2)), axis=1)
        if column.form == "boxes":
            return _made_up_boxes(random, column, columns[column.of].hw, count)
        if column.along:
            length = columns[column.of].state["longest"]
            return Ragged(random.integers(1, column.size, count * length, np.int32), np.arange(count + 1) * length)
        if column.form == "ids":
            length = column.state["longest"]
            return Ragged(random.integers(2, column.size, count * length, np.int32), np.arange(count + 1) * length)
        if column.form == "grid":
            return random.integers(0, 256, (count, column.size, *column.hw), np.uint8)
        if column.form == "mask":
            return random.integers(0, column.size, (count, *columns[column.of].hw), np.uint8)
        if column.drawn:
            return np.arange(count)
        if column.form == "frames":
            return random.integers(0, 256, (count, column.frames, column.size, *column.hw), np.uint8)
        if column.form == "index":
            return random.integers(1, column.size, count)
        return random.normal(size=count).astype(np.float32)

    inputs, targets = ({n: one(columns[n]) for n in side} for side in (recipe.inputs, recipe.outputs))
    return Examples(columns, inputs, targets, np.arange(count), count)


def _made_up_boxes(random: Any, column: Any, side: tuple[int, int], count: int) -> Ragged:
    """As many in each image as it may have: (class, x0, y0, x1, y1), in its upper left quarter and beyond."""
    total = count * column.state["crowded"]
    corner, size = random.uniform(0, 0.5, (total, 2)), random.uniform(0.1, 0.5, (total, 2))
    scale = np.array([side[1], side[0]])
    rows = np.column_stack([random.integers(1, column.size + 1, total), corner * scale, (corner + size) * scale])
    return Ragged(rows.astype(np.float32), np.arange(count + 1) * column.state["crowded"])


def _subject(
    recipe: Recipe, columns: dict[str, Column], examples: Examples, rows: int, validation: int, assumed: list[str]
) -> Subject:
    settings = _settings(recipe)
    pieces = settings["accumulate"]
    batch = settings["batch"] if isinstance(settings["batch"], int) else max(1, batch_for(rows) // pieces)
    with torch.device("meta"):
        network = build_network(recipe, columns)
    epochs = epochs_for(rows, recipe.size, network) if settings["epochs"] == "auto" else settings["epochs"]
    tokens = tokens_for(examples, batch) if settings["tokens"] == "auto" else settings["tokens"]
    of_update = {"batch": batch * pieces, "tokens": tokens * pieces}
    plan = _plan({**settings, **of_update, "epochs": epochs}, recipe.seed)
    look = _look(examples, plan)
    update = plan.batch if rows <= plan.batch or not look.longest else round(look.update)
    size = sum(e.flat.nbytes if isinstance(e, Ragged) else e.nbytes for e in examples.inputs.values())
    return Subject(
        title=say("plan.recipe_title", task=recipe.task(), inputs=shortened(recipe.inputs), outputs=list(recipe.outputs)),
        build=lambda: build_network(recipe, columns),
        batch=lambda count, longest=True: _hollow(examples, count, look.longest if longest else look.mean),
        plan=plan, steps=settings["steps"] or epochs * -(-rows // update), rows=rows, validation=validation,
        precision=settings["precision"], update=update, most=look.most or update, positions=sum(look.mean.values()),
        longest=sum(look.longest.values()), assumed=assumed, examples=examples,
        host_bytes=size * rows / max(1, len(examples)), **_scaling(settings),
    )  # fmt: skip


def _settings(recipe: Recipe) -> dict[str, Any]:
    return dict(recipe.with_stage_default("train").resolved().stage("train").settings)


def _plan(settings: Mapping[str, Any], seed: int) -> Plan:
    """The loop's own settings; it trains in fp32 on the processor here, as nothing is computed."""
    known = {f.name for f in fields(Plan)} - {"patience", "device", "precision", "compile", "rate"}
    return replace(Plan(1, 1, 1e-3), **{k: v for k, v in settings.items() if k in known}, seed=seed)


def _scaling(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "accumulate": settings["accumulate"],
        "recompute": settings["recompute"],
        "settings": settings,
    }


@dataclass(frozen=True)
class Look:
    """How long rows are, per input that is a sequence: in a batch on average, and in the one that takes the most memory."""

    mean: dict[str, int] = field(default_factory=dict)
    longest: dict[str, int] = field(default_factory=dict)
    update: float = 0.0  # examples of a batch on average
    most: int = 0  # of the one that takes the most


def _look(examples: Examples, plan: Plan) -> Look:
    lengths = {n: examples.reached(n) for n, e in examples.inputs.items() if isinstance(e, Ragged)}
    if not lengths:
        return Look()
    batches = order(examples, min(plan.batch, len(examples)), plan.seed, 0, tokens=plan.tokens)
    padded = {n: np.array([each[b].max() for b in batches]) for n, each in lengths.items()}
    counts = np.array([len(b) for b in batches])
    area = sum(padded.values()) * counts
    large = np.flatnonzero(area >= NEARLY * area.max())  # of batches as large as any, the one with the longest rows
    worst = large[np.argmax(sum(padded.values())[large])]
    mean = {n: max(1, round(float((p * counts).sum() / counts.sum()))) for n, p in padded.items()}
    return Look(mean, {n: int(p[worst]) for n, p in padded.items()}, float(counts.mean()), int(counts[worst]))


def _hollow(examples: Examples, count: int, lengths: Mapping[str, int]) -> Batch:
    """A batch with the shapes and types of real rows; its content does not matter."""
    real = Batch.of(examples.arrays(np.zeros(2, np.int64)))

    def like(x: Tensor, name: str = "") -> Tensor:
        rest = list(x.shape[1:])
        if name in lengths and rest:
            rest[0] = lengths[name]
        return torch.ones(count, *rest, dtype=x.dtype)

    blocks = [(names, like(x), like(mask)) for names, x, mask in real.inputs.blocks]
    others = {n: (like(x, n), like(mask, n)) for n, (x, mask) in real.inputs.others.items()}
    of = lambda c: (getattr(c, "of", None) or "") if c.ragged else ""  # noqa: E731
    alike = lambda n: n if n in lengths else of(examples.columns[n])  # noqa: E731
    targets = {n: (like(x, alike(n)), like(mask, alike(n))) for n, (x, mask) in real.targets.items()}
    return Batch(Pairs(blocks, others), targets, count)
