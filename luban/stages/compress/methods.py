"""The ways to a smaller network, each a plain function that gives a changed copy and the edits that led there.

Pruning by magnitude: Han et al. 2015, "Learning both Weights and Connections". Channels are ranked by the size of what
they are made of times the size of what reads them (Li et al. 2017, "Pruning Filters for Efficient ConvNets", both sides).
Distillation: Hinton et al. 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luban import machine, registry
from luban.bundle import Bundle, build_network
from luban.columns.examples import Examples
from luban.console import tell
from luban.errors import RequestError, Unsupported, problem
from luban.messages import say
from luban.nn import calibration, channels, static
from luban.nn.edits import replay
from luban.nn.grouped import in_groups
from luban.nn.lora import LORA
from luban.nn.quantized import Quantized, stand_in
from luban.nn.tokens import Batch
from luban.part import BORROWED, Part
from luban.recipe import MUON, Recipe
from luban.settings import SIZES
from luban.training import growing, shares, teaching
from luban.training.batches import batch_for, epochs_for, epochs_of, patience_for
from luban.training.choices import Choices
from luban.training.loop import History, Plan, fit
from luban.training.objectives import Distillation, supervised
from luban.training.precision import refuse
from luban.training.random import rng, seed_torch
from luban.training.steps import plain

CALIBRATED = 64  # rows of a batch that is calibrated with
CALM = 0.1  # of the first rate, for training with rounded weights
BLOCK = 16  # channels that vector units take at once: with others left over, fewer channels are hardly faster
COURSE = (
    "schedule",
    "warmup",
    "clip_value",
    "clip_weights",
    "ema",
    "layer_decay",
    "progressive",
    "keep",
    "on_divergence",
)  # of a student's recipe
WITHIN = ("hidden", "kv_heads")  # sizes within a Transformer that mean nothing at another width
STILL = 10  # epochs of pictures as they are that teach a student more than as many of moved ones, by the time that both take
LEAST = 64  # weights that a layer needs for int8 to be worth its scales


def edited(bundle: Bundle, edit: dict[str, Any]) -> Bundle:
    """The Bundle with one more edit, on a network of its own."""
    network = replay(bundle.copy_network(), [edit]).eval()
    return replace(bundle, network=network, edits=[*bundle.edits, edit])


def merged(bundle: Bundle) -> Bundle:
    """With the thin layers of LoRA added into the others; the Bundle itself where there are none."""
    thin = any(isinstance(m, LORA) for m in bundle.network.modules())
    return edited(bundle, {"edit": "merge_lora"}) if thin else bundle


def quantised(bundle: Bundle, kind: str = "int8") -> Bundle:
    """Every layer that can be, with weights in eight bits, or in four and what cannot be in eight.

    Raises Unsupported where there is none.
    """
    if kind == "int4":
        layers = _layers(bundle.network, in_groups)
        edit = {"edit": "quantize_groups", "layers": layers, "zeros": True}
        bundle = edited(bundle, edit) if layers else bundle
        return bundle if layers and not _layers(bundle.network, stand_in) else quantised(bundle)
    layers = _layers(bundle.network, stand_in)
    if not layers:
        raise Unsupported("compress.nothing_to_quantise")
    return edited(bundle, {"edit": "quantize_linear", "layers": layers})


def _layers(network: nn.Module, way: Callable[[nn.Module], nn.Module | None]) -> list[str]:
    large = [(n, m) for n, m in network.named_modules() if n and sum(p.numel() for p in m.parameters()) >= LEAST]
    return [n for n, m in large if way(m) is not None]


# -- integers on both sides -------------------------------------------------------------------------------------------


def calibrated(bundle: Bundle, training: Examples, validation: Examples, rows: int, epochs: int) -> Bundle:
    """Weights and activations in eight bits, their scales from `rows` training rows; with `epochs`, trained on with both rounded.

    What cannot compute with integers gets weights of eight bits. Raises Unsupported where nothing can.
    """
    network = bundle.copy_network().eval()
    index = rng(bundle.recipe.seed, "calibration").permutation(len(training))[:rows]
    pieces = np.array_split(index, max(1, len(index) // CALIBRATED))
    found = calibration.calibrated(network, (Batch.of(training.arrays(np.sort(i))) for i in pieces))
    if not found["layers"]:
        raise Unsupported("compress.nothing_to_quantise")
    learning = static.prepared(network, **found)
    if epochs:
        plan = plan_of(bundle.recipe, len(training), epochs, CALM, learning)
        title = say("compress.rounding")
        history = fit(learning, training, validation, plan=plan, objective=supervised, title=title)
        learning = _finished(learning, history)
    edit = {"edit": "quantize_static", **found}
    result = replace(bundle, network=static.settled(learning, found["layers"]).eval(), edits=[*bundle.edits, edit])
    return quantised(result) if _layers(result.network, stand_in) else result


# -- pruning -----------------------------------------------------------------------------------------------------------


def without_channels(bundle: Bundle, share: float, batch: Batch) -> Bundle:
    """`share` of the channels of every layer that can lose some, the least important first; `left` says how many stay.

    Raises Unsupported where no layer can.
    """
    network = bundle.copy_network().eval()
    whole, cutting, edits = folded(bundle.copy_network().eval(), batch), channels.Cutting(network), []
    for group in channels.groups(network, batch):
        weight = importance(whole, group)
        count = left(len(weight), share)
        if count < len(weight):
            keep = torch.argsort(weight, descending=True, stable=True)[:count].sort().values
            edits.append({"edit": "prune_channels", **cutting.edit(group, keep)})
    if not edits:
        raise Unsupported("compress.nothing_to_prune")
    return replace(bundle, network=replay(network, edits).eval(), edits=[*bundle.edits, *edits])


def left(channels: int, share: float) -> int:
    """How many of some channels stay without `share` of them: one at least, and of many the nearest multiple of `BLOCK`."""
    count = max(1, channels - round(share * channels))
    whole = round(count / BLOCK) * BLOCK
    return whole if 0 < whole < channels and count >= BLOCK else count


def folded(network: Any, batch: Batch) -> Any:
    """The network with batch norms counted into the weights before them, which without that say nothing of a channel's size."""
    for layer, norm in calibration.norms_behind(network, batch).items():
        static.fold(network.get_submodule(layer), network.get_submodule(norm))
    return network


def importance(network: nn.Module, group: channels.Group) -> Tensor:
    """(C,): size of a channel's own weights, of all layers that give it, times the size of the columns that read it."""
    weights = [network.get_submodule(n).weight.detach().flatten(1) for n in group.layers]
    own = torch.stack([w.norm(dim=1) for w in weights]).square().sum(0).sqrt()
    read = torch.zeros_like(own)
    for name, columns in group.columns.items():
        module = network.get_submodule(name)
        if not isinstance(module, channels.NORM) and getattr(module, "groups", 1) == 1:
            by_column = module.weight.detach().transpose(0, 1).flatten(1).norm(dim=1)  # (columns,)
            read += by_column[columns].square().sum(1)
    return own * read.sqrt()


def without_weights(bundle: Bundle, share: float) -> Bundle:
    """`share` of the weights of every linear and convolution layer set to zero, the smallest first."""
    layers = channels.prunable(bundle.network)
    if not layers:
        raise Unsupported("compress.nothing_to_prune")
    return edited(bundle, {"edit": "prune_magnitude", "layers": layers, "share": share})


class KeepingZeros:
    """A training step after which every weight that was zero is zero again."""

    def __init__(self, network: nn.Module, layers: list[str]):
        modules = [network.get_submodule(n) for n in layers]
        self.held = [(m.weight, m.weight.detach() != 0) for m in modules if not isinstance(m, Quantized)]

    def __call__(self, state: Any, batch: Batch, objective: Any) -> Any:
        numbers = plain(state, batch, objective)
        with torch.no_grad():
            for weight, kept in self.held:
                weight.mul_(kept)
        return numbers


def healed(bundle: Bundle, training: Examples, validation: Examples, epochs: int) -> Bundle:
    """Trained on for some epochs at a third of the first rate; weights that an edit set to zero stay zero."""
    network = bundle.copy_network()
    layers = [n for e in bundle.edits if e["edit"] == "prune_magnitude" for n in e["layers"]]
    step = KeepingZeros(network, [n for n in layers if _there(network, n)]) if layers else plain
    plan = plan_of(bundle.recipe, len(training), epochs, 1 / 3, network)
    history = fit(
        network, training, validation, plan=plan, objective=supervised, step=step, title=say("compress.healing")
    )
    return replace(bundle, network=_finished(network, history))


def _finished(network: Any, history: History) -> Any:
    """On the processor, ready to answer. A stop that was asked for stops the stage, too: half a student is no result."""
    if history.stopped == "signal":
        raise KeyboardInterrupt
    return network.cpu().eval()


def _there(network: nn.Module, name: str) -> bool:
    return any(n == name and hasattr(m, "weight") for n, m in network.named_modules())


# -- distilling --------------------------------------------------------------------------------------------------------


def distilled(
    bundle: Bundle,
    training: Examples,
    validation: Examples,
    target: str,
    *,
    epochs: int,
    share: float,
    temperature: float,
) -> Bundle:
    """A smaller network that learns the answers of this one; `target` is a size or the path of a recipe."""
    recipe = student_recipe(bundle.recipe, target)
    seed_torch(recipe.seed, "weights")
    student = build_network(recipe, bundle.columns)
    _tell_larger(bundle, replace(bundle, recipe=recipe, network=student, edits=[]), target)
    teacher = bundle.copy_network().to(machine.device())
    known, training = once_asked(teacher, recipe, training, epochs, student)
    objective = Distillation(teacher, share=share, temperature=temperature, kept=known)
    plan = course_of(recipe, training, epochs, student, objective)
    history = fit(student, training, validation, plan=plan, objective=objective, title=say("compress.distilling"))
    return replace(bundle, recipe=recipe, network=_finished(student, history), edits=[])


def once_asked(
    teacher: Any, recipe: Recipe, training: Examples, epochs: int, student: Any
) -> tuple[teaching.Answers | None, Examples]:
    """What the teacher says of every training row, and the examples that the student sees with that: nothing in them is moved.

    None, and the examples as they were, where the teacher has to be asked in each update: for updates that end within an epoch, for too many bytes of
    answers, for examples of which each epoch shows another part, and for more than `STILL` epochs of what augmentation moves, which then is worth more than the time.
    """
    settings, plan = (
        (recipe.stage("train") or Part("train")).settings,
        plan_of(recipe, len(training), epochs, 1.0, student),
    )
    steps = 0 if epochs else settings.get("steps") or 0
    length = steps * plan.batch * (settings.get("accumulate") or 1) / len(training) if steps else plan.epochs
    shown = teaching.unmoved(training) if plan.augment else training
    able = length >= 1 and not training.redrawn and (length <= STILL or shown is training)
    asked = settings.get("precision") or "auto"
    known = teaching.ask(teacher.eval(), training, plan.device, asked) if able else None
    kind = "always" if known is None else "once" if shown is training else "still"
    tell(f"compress.asked.{kind}", rows=f"{len(training):,}", epochs=STILL)
    return (None, training) if known is None else (known, shown)


def _tell_larger(teacher: Bundle, student: Bundle, target: str) -> None:
    if student.parameters() >= teacher.parameters():
        counts = {"student": f"{student.parameters():,}", "teacher": f"{teacher.parameters():,}"}
        tell("compress.larger", name=target, **counts)


def student_recipe(recipe: Recipe, target: str) -> Recipe:
    """The recipe with another size, or with the model of another recipe; inputs and outputs stay.

    Raises RequestError for a size that does not exist, or where the other recipe has other columns.
    """
    if recipe.fusion.type == "own":
        raise Unsupported("compress.own_network")
    if target in SIZES:
        return resized(recipe, target)
    if not target.endswith((".yaml", ".yml")) and not Path(target).is_file():
        raise RequestError(problem("compress.no_size", name=target, allowed=SIZES))
    other = Recipe.load(target)
    types = lambda r: {n: p.type for n, p in {**r.inputs, **r.outputs}.items()}  # noqa: E731
    if (other.inputs or other.outputs) and types(other) != types(recipe):
        raise RequestError("compress.other_columns", path=target, found=types(other), want=types(recipe))
    if left := _of_the_model(recipe, other):
        tell("compress.columns_kept", path=target, settings=left)
    train = other.stage("train") or Part("train")
    changed = replace(recipe, model=other.model, fusion=other.fusion, size=other.size)
    return changed.with_stage(train).resolved()


def _of_the_model(recipe: Recipe, other: Recipe) -> list[str]:
    """What the student's recipe says otherwise of columns and frame, which are the model's: both must read and answer alike."""
    sides = [({**r.inputs, **r.outputs}, r.frame) for r in (other, recipe)]
    (said, frame), (known, own) = sides
    left = [f"{n}.{k}: {v}" for n, p in said.items() for k, v in p.settings.items() if known[n].settings.get(k) != v]
    told = frame.type != "row" and (
        frame.type != own.type or any(own.settings.get(k) != v for k, v in frame.settings.items())
    )
    return [*left, *([f"frame: {frame.plain()}"] if told else [])]


def resized(recipe: Recipe, size: str) -> Recipe:
    """Every setting that follows the dial at its value for another size; all others stay as they are."""
    model = {n: _undialled("heads" if n in recipe.outputs else "encoders", p) for n, p in recipe.model.items()}
    train = _begun_anew(recipe.stage("train") or Part("train"))
    fusion = _undialled("fusions", recipe.fusion)
    return replace(recipe, model=model, fusion=fusion, size=size).with_stage(train).resolved()


def _undialled(room: str, part: Part) -> Part:
    """Without the settings that follow the dial; what has no sizes, as a pretrained encoder, by what it is distilled into."""
    if part.type in BORROWED:
        return part
    if student := registry.schema(room, part.type).get("x-student"):
        return Part(student)
    schema = registry.schema(room, part.type)["properties"]
    follows = WITHIN if {"width", "heads"} <= schema.keys() else ()
    kept = {k: v for k, v in part.settings.items() if "x-size" not in schema.get(k, {}) and k not in follows}
    return Part(part.type, kept)


def _begun_anew(train: Part) -> Part:
    """Without what follows the dial, was found for the teacher's network or means its parts. An update stays as large as it
    was, and Muon's rate as it is: it does not follow the width.
    """
    bare = _undialled("stages", train).settings
    kept = {k: v for k, v in bare.items() if k not in ("rates", "freeze", "lora", "precision", "compile")}
    muon = Part.of(kept.get("optimizer") or "adamw").type == MUON["optimizer"]
    same = ("batch", "rate") if muon else ("batch",)
    return Part("train", kept | {k: train.settings[k] for k in same if train.settings.get(k) is not None})


def course_of(recipe: Recipe, training: Examples, epochs: int, network: Any, objective: Any) -> Plan:
    """How a student trains: as the train stage would train it alone, its own number of updates, schedule and precision;
    `epochs`: instead of that number. Raises RequestError for parts in `rates` that it has not, Unsupported for a precision.
    """
    plan = plan_of(recipe, len(training), epochs, 1.0, network)
    settings = {k: v for k, v in (recipe.stage("train") or Part("train")).settings.items() if v is not None}
    rates = shares.usual(network, settings.get("rates", {}))
    shares.check(network, rates)
    course = {k: settings[k] for k in COURSE if k in settings}
    growing.check(network, training, course.get("progressive", ()))
    plan = replace(plan, rates=rates, **course)
    choices = Choices(network, training, objective, plan, settings.get("tokens", "auto"))
    asked = settings.get("precision", "auto")
    refuse(asked, plan.device)
    choices.precision(asked)
    pieces, plan = settings.get("accumulate", 1), choices.plan
    plan = replace(plan, batch=plan.batch * pieces, tokens=plan.tokens * pieces, accumulate=pieces)
    if epochs or not settings.get("steps"):
        return plan
    steps = settings["steps"]
    length = epochs_of(steps, training, plan.batch, plan.seed, plan.tokens)
    patience = plan.patience if isinstance(settings.get("patience"), int) else patience_for(length)
    return replace(plan, steps=steps, epochs=length, patience=patience)


def plan_of(recipe: Recipe, rows: int, epochs: int, factor: float = 1.0, network: Any = None) -> Plan:
    """The train stage's own settings, for some epochs (0 = as many as it would train for)."""
    settings = dict((recipe.stage("train") or Part("train")).settings)
    dial = registry.schema("stages", "train")["properties"]
    value = lambda key: settings.get(key) if settings.get(key) is not None else dial[key]["x-size"][recipe.size]  # noqa: E731
    given = lambda key, auto: value(key) if isinstance(value(key), int) else auto  # noqa: E731
    epochs = epochs or given("epochs", epochs_for(rows, recipe.size, network))
    return Plan(
        epochs=epochs,
        rates=shares.usual(network, {}) if hasattr(network, "groups") else {},
        batch=given("batch", batch_for(rows)),
        tokens=tokens if isinstance(tokens := settings.get("tokens"), int) else 0,
        rate=(rate if isinstance(rate := value("rate"), (int, float)) else dial["rate"]["x-size"][recipe.size])
        * factor,
        optimizer=settings.get("optimizer") or "adamw",
        weight_decay=settings.get("weight_decay", 0.01),
        clip=settings.get("clip", 1.0),
        patience=given("patience", patience_for(epochs)),
        augment=settings.get("augment", True),
        seed=recipe.seed,
        device=machine.device(),
    )
