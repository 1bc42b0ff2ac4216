"""train: a recipe and its data -> a Bundle with a trained network."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from luban import machine, scale
from luban.bundle import Bundle, build_network
from luban.columns.base import Column
from luban.columns.fitting import fit_columns, sampled
from luban.columns.kept import encode_kept
from luban.console import tell
from luban.data.blocks import pieces
from luban.data.prepare import taken
from luban.data.rows import row_hashes
from luban.errors import Unsupported, raise_all
from luban.files import write
from luban.messages import say
from luban.nn.fusion import Concat
from luban.nn.networks.adversarial import both
from luban.part import Part
from luban.recipe import fill
from luban.settings import Count, Device, Dial, Fraction, Group, Named, Natural, NonNegative, Positive, Range
from luban.training import checkpoints, growing, shares
from luban.training.adapters import adapt, known_parts, trained
from luban.training.alternating import Alternating
from luban.training.batches import (
    batch_for,
    epochs_for,
    epochs_of,
    order,
    padding,
    patience_for,
)
from luban.training.choices import Choices, settled
from luban.training.compiling import probe
from luban.training.divided import unfit
from luban.training.loop import History, Plan, fit
from luban.training.objectives import balanced, mixed
from luban.training.precision import refuse
from luban.training.random import seed_torch
from luban.training.ranks import here
from luban.training.recompute import recomputed
from luban.training.sinks import needed, tracked

MEASURED = ("batch", "rate", "precision", "compile")  # a resumed run keeps what was found when it began
UPDATE = (
    "optimizer", "weight_decay", "clip", "clip_value", "clip_weights", "ema", "freeze", "rates", "layer_decay", "augment", "progressive", "device"
)  # fmt: skip
COURSE = ("steps", "schedule", "warmup", "keep", "checkpoint_seconds", "on_divergence", "loader_workers")
ALONE = {
    "accumulate": 1,
    "balance": "fixed",
    "cutmix": 0.0,
    "mixup": 0.0,
    "lora": None,
    "recompute": False,
}  # with a rival
BESIDE = ("adversary", "lora", "mixup", "cutmix", "balance", "track", "recompute", "validate")  # no part of a Plan


def train(
    bundle: Bundle,
    data: Any,
    *,
    epochs: Annotated[Count | Literal["auto"], Dial("auto", "auto", "auto")] = None,
    steps: Natural = 0,
    batch: Annotated[Count | Literal["auto", "find"], Dial("auto", "auto", "auto")] = None,
    tokens: Natural | Literal["auto"] = "auto",
    optimizer: Annotated[dict | str, Named("optimizers")] = "adamw",
    rate: Annotated[Positive | Literal["find"], Dial(nano=3e-3, small=2e-3, base=1e-3)] = None,
    weight_decay: NonNegative = 0.01,
    schedule: Annotated[dict | str, Named("schedules")] = "cosine",
    warmup: Fraction = 0.05,
    clip: NonNegative = 1.0,
    clip_value: NonNegative = 0.0,
    clip_weights: NonNegative = 0.0,
    accumulate: Count = 1,
    ema: Annotated[float, Range(low=0, high=0.999999)] = 0.0,
    freeze: list[str] = (),
    rates: dict[str, NonNegative] = None,
    layer_decay: Annotated[float, Range(above=0, high=1)] = 1.0,
    patience: Annotated[Natural | Literal["auto"], Dial("auto", "auto", "auto")] = None,
    keep: Literal["best", "last"] = "best",
    validate: Natural = 0,
    augment: bool = True,
    progressive: list[Annotated[float, Range(above=0, high=1)]] = (),
    mixup: NonNegative = 0.0,
    cutmix: NonNegative = 0.0,
    balance: Literal["fixed", "learnt"] = "fixed",
    lora: Annotated[dict, Group(adapt)] = None,
    adversary: Annotated[dict, Group(Alternating)] = None,
    device: Device = "auto",
    precision: Literal["auto", "fp32", "tf32", "medium", "bf16", "fp16"] = "auto",
    compile: Literal["auto", "off", "on"] = "auto",
    recompute: bool = False,
    checkpoint_seconds: NonNegative = 60.0,
    on_divergence: Literal["skip", "slower", "stop"] = "skip",
    loader_workers: Natural = 0,
    track: list[Literal["tensorboard", "mlflow"]] = (),
    out: str | None = None,
    resume: bool = False,
) -> Bundle:
    """Fit the columns on the training rows, build the network, train it.

    `epochs` auto follows `size` and the number of rows (`epochs_for`); `steps` > 0 trains for that many updates instead.
    `tokens`: what a batch holds at most, counted as examples x the longest of them; 0 = always `batch` examples, auto = as
    much as `batch` examples of average length where inputs have lengths.
    `validate`: validation rows that are looked at after each epoch, evenly spaced; 0 = all.
    `patience`: epochs without a better validation loss before it stops; 0 = never, auto = a sixth of them. `clip`: largest
    gradient norm, `clip_value`: largest entry of a gradient, `clip_weights`: largest weight; 0 = none.
    `accumulate`: an update is made of so many batches (of `batch` examples; auto: a batch is cut in so many).
    `ema`: decay of the average of the weights that is judged and kept, 0 = none, such as 0.999.
    `freeze`: parts that do not learn, `rates`: factors on the rate by part, `layer_decay`: and for every layer further down,
    see `luban.training.shares`; parts are inputs, outputs, `fusion` (`module`: one's own). A pretrained encoder has a small
    factor of its own, unless `rates` or `lora` is given.
    `out`: folder for checkpoints, one at the latest `checkpoint_seconds` after the last (0: after every update). `lora`: only thin layers beside those of a model that has learned already (`--from`), see `adapt`.
    `progressive`: shares of the side that grids are trained at, one after the other for an equal part of the epochs, such as
    [0.5, 1.0]; see `luban.training.growing`.
    `mixup`, `cutmix`: how strongly examples are mixed in pairs (0 = not), see `Mixed`; of several ranks each mixes its own
    share of a batch. `balance`: several outputs count by
    their heads' `weight` (`fixed`), or as `Balance` learns.
    `batch` and `rate` find, `precision` and `compile` auto: what trials on a copy of the network come to, see `finders`.
    `on_divergence`: what follows a loss or gradient that is none, see `luban.training.guard`: leave its batch out, go on
    at a tenth of the rate, or stop.
    `recompute`: layers of a stack compute their activations again in the backward pass instead of keeping them: less memory
    for a third more work (activation checkpointing), the same result.
    `track`: where the numbers also go, see `luban.training.sinks`.
    `loader_workers`: threads that make batches while earlier ones are trained on; what is learned stays the same.
    Raises DataError where the rows cannot be what the recipe says, Diverged where the guard gives up.
    """
    asked = {k: v for k, v in locals().items() if k not in ("bundle", "data")}
    asked |= {
        "device": machine.device(device),
        "freeze": [*freeze],
        "rates": rates or {},
        "track": [*track],
        "progressive": [*progressive],
    }
    began = time.monotonic()
    needed(track, out)
    folder = Path(out) / "checkpoints" if out else None
    asked |= settled(folder if resume else None, {k: asked[k] for k in MEASURED})
    refuse(asked["precision"], asked["device"])
    probe(asked["compile"], asked["device"])
    columns = bundle.columns or fit_columns(bundle.recipe, data)
    data = _taken(data, columns, out)
    parts = [data.framed(p, bundle.recipe.frame) for p in ("train", "validation")]
    parts[1] = parts[1].some(validate) if validate else parts[1]
    training, validation = (encode_kept(columns, bundle.inputs, bundle.outputs, framed) for framed in parts)
    network = bundle.network if bundle.network is not None else new_network(bundle.recipe.resolved(), columns, bundle)
    adapters = adapt(network, known_parts(bundle, network), bundle.recipe.seed, **lora) if lora is not None else None
    asked["rates"] = shares.usual(network, asked["rates"]) if adapters is None else asked["rates"]
    shares.check(network, asked["freeze"], asked["rates"])
    growing.check(network, training, asked["progressive"])
    for name, behind in (training.held if asked["augment"] else {}).items():
        tell("train.no_turns", input=name, outputs=behind)
    if hasattr(network, "refer") and not hasattr(network, "rivals"):  # to what it is now it will be compared
        network.refer()
    objective, step = _how(network, columns, bundle, asked)
    if here().world > 1:
        raise_all(Unsupported, unfit(network, scale.chosen(bundle.recipe.scale)["strategy"]))
    choices, chosen, batches = _choose(bundle.recipe, network, training, validation, objective, asked)
    beside = {k: asked[k] for k in BESIDE}
    recipe = _with_choices(bundle, chosen | beside)
    plan = Plan(**chosen | _whole(chosen), seed=recipe.seed)
    here().same("data", [len(training), len(validation)], *(c.to_json() for c in columns.values()))
    here().same("weights", *network.state_dict().values())
    sinks = tracked(asked["track"] if here().first else (), out, chosen, recipe.yaml())
    less = recomputed(network) if recompute else nullcontext()
    with sinks, less, balanced(objective, network, balance) as (objective, weights):
        history = fit(
            network, training, validation, plan=plan, objective=objective, folder=folder, resume=resume,
            data=data.rows.fingerprint() if folder else "", title=say("train.title"), **step,
            begun=lambda: _begin(folder, recipe, resume=resume),
        )  # fmt: skip
    if hasattr(network, "forget"):
        network.forget()
    seconds = round(history.earlier.get("seconds", 0.0) + time.monotonic() - began, 3)
    _tell(history, _drops(network), weights, seconds, chosen["precision"])
    if history.pieces:  # memory was not enough for more at once: what was found stands in the recipe
        chosen |= {"batch": -(-plan.batch // history.pieces), "accumulate": history.pieces}
        recipe = _with_choices(bundle, chosen | beside)
    entry = {"trained_parameters": _learning(network, asked["freeze"]), "batches": batches}
    entry |= {"balance": weights} if weights else {}
    network, edits = adapters.finished(network, bundle.edits) if adapters else (network, bundle.edits)
    result = replace(
        bundle, recipe=recipe, columns=columns, network=network.to("cpu"), edits=edits, metrics=history.epochs
    )
    for page in filter(None, (choices.page(), step["step"].page() if step else None)):
        result = result.with_report(page)
    result.tables = {**bundle.tables, "trained": fingerprints(data)} if here().first else bundle.tables
    entry |= {} if bundle.columns else {"learned_from": sampled(columns, data.framed("train", recipe.frame))}
    entry |= _entry(data, network, history)
    return result.with_history("train", settings=chosen | beside, **entry, seconds=seconds)


def _taken(data: Any, columns: Mapping[str, Column], out: str | None) -> Any:
    """The data without the rows that a column refuses, said; they join the others of the quarantine."""
    found = taken(data, columns)
    if count := len(found.rows.quarantine) - len(data.rows.quarantine):
        reason = next(q.reason for q in found.rows.quarantine if q not in data.rows.quarantine)
        tell("train.refused", count=count, reason=reason)
        if out and here().first:
            Path(out).mkdir(parents=True, exist_ok=True)
            found.rows.save_quarantine(Path(out) / "quarantine.csv")
    return found


def _how(
    network: Any, columns: Mapping[str, Column], bundle: Bundle, asked: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """What is minimised, and how an update is made where that is not the plain way. Raises Unsupported, RequestError where the network does not learn so."""
    adversary = asked["adversary"] or {}
    if not hasattr(network, "rivals"):
        if asked["adversary"]:
            raise Unsupported("gan.no_rival")
        mix = {k: asked[k] for k in ("mixup", "cutmix")}
        return mixed(network, [columns[n] for n in bundle.inputs], **mix), {}
    odd = {k: asked[k] for k in ALONE if asked[k] != ALONE[k] and asked[k] not in (None, ())}
    if asked["rate"] == "find":
        odd["rate"] = "find"
    if odd:
        raise Unsupported("gan.not_so", settings=[f"{k}: {v}" for k, v in odd.items()])
    asked["compile"] = "off" if asked["compile"] == "auto" else asked["compile"]
    seed_torch(bundle.recipe.seed, "rival")
    network.refer()
    settings = {k: v for k, v in adversary.items() if v is not None}
    asked["adversary"] = settings or None
    return both, {"step": Alternating(network, dict(columns), bundle.recipe.seed, **settings)}


def _choose(
    recipe: Any, network: Any, training: Any, validation: Any, objective: Any, asked: Mapping[str, Any]
) -> tuple[Choices, dict[str, Any], dict[str, Any]]:
    """What `auto` and `find` come to, each knowing those before it; every setting of the run; what its batches are like."""
    accumulate, seed = asked["accumulate"], recipe.seed
    update = {k: asked[k] for k in UPDATE}
    usual = asked["batch"] if isinstance(asked["batch"], int) else max(1, batch_for(len(training)) // accumulate)
    first = Plan(epochs=1, batch=usual, rate=1.0, seed=seed, **update)
    choices = Choices(network, training, objective, first, asked["tokens"])
    precision, batch = choices.precision(asked["precision"]), choices.batch(asked["batch"])
    found = {"batch": batch, "tokens": choices.plan.tokens, "accumulate": accumulate}
    whole = _whole(found)
    choices.plan = replace(choices.plan, accumulate=accumulate, **whole)
    epochs = epochs_for(len(training), recipe.size, network) if asked["epochs"] == "auto" else asked["epochs"]
    if asked["steps"]:
        epochs = epochs_of(asked["steps"], training, whole["batch"], seed, whole["tokens"])
    patience = patience_for(epochs) if asked["patience"] == "auto" else asked["patience"]
    chosen = {
        "epochs": epochs, **found, "rate": choices.rate(asked["rate"]), "patience": patience if len(validation) else 0,
        **{k: asked[k] for k in COURSE}, **update,
    }  # fmt: skip
    batches = _told(training, order(training, whole["batch"], seed, 0, tokens=whole["tokens"]), whole["tokens"])
    updates = asked["steps"] or epochs * batches["count"]
    return choices, chosen | {"precision": precision, "compile": choices.compile(asked["compile"], updates)}, batches


def _whole(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`batch` and `tokens` of an update, all that it accumulates."""
    return {k: settings[k] * settings["accumulate"] for k in ("batch", "tokens")}


def _begin(folder: Path | None, recipe: Any, *, resume: bool) -> None:
    """The folder of checkpoints, with what a resumed run goes on with."""
    if folder and here().first:
        if not resume:
            checkpoints.clear(folder)
        write(folder / "recipe.yaml", recipe.yaml())


def _tell(history: History, drops: bool, weights: Mapping[str, float], seconds: float, precision: str) -> None:
    tell("train.done", epochs=len(history.epochs), seconds=f"{seconds:.1f}", best=history.best + 1, precision=precision)
    _tell_diagnosis(history, drops)
    if weights:
        tell("balance.learnt", weights=[f"{n} {w:.3g}" for n, w in weights.items()])


def _learning(network: Any, frozen: list[str]) -> int:
    """How many numbers were trained."""
    held = shares.freeze(network, frozen)
    try:
        return trained(network)
    finally:
        shares.thaw(network, held)


def _told(training: Any, batches: list[Any], tokens: int) -> dict[str, Any]:
    """What the batches of the first epoch are like, said where examples have lengths."""
    sizes = [len(b) for b in batches]
    found = {"count": len(batches), "least": min(sizes, default=0), "most": max(sizes, default=0)}
    if training.lengths() is None:
        return found
    found["padding"] = round(padding(training, batches), 3)
    tell("train.batches" if tokens else "train.batches_fixed", **found, tokens=tokens)
    return found


def _with_choices(bundle: Bundle, chosen: dict[str, Any]) -> Any:
    """The recipe with every choice written back."""
    return bundle.recipe.with_stage(fill("stages", Part("train", chosen), bundle.recipe.size)).resolved()


def _entry(data: Any, network: Any, history: History) -> dict[str, Any]:
    """What the line of history says."""
    return {
        "rows": {p: len(data.part(p)) for p in ("train", "validation", "test")},
        "ledger": {"in": data.rows.rows_in, "used": data.table.num_rows, "quarantined": len(data.rows.quarantine)},
        "parameters": sum(p.numel() for p in network.parameters()),
        "best_epoch": history.best + 1,
        "stopped": history.stopped,
        "signal": history.signal,
        "steps": history.step,
        "diagnosis": diagnosis(history, _drops(network)),
        "incidents": history.incidents,
        **({"earlier": {k: round(v, 3) for k, v in history.earlier.items()}} if history.earlier else {}),
        **({"ranks": here().world} if here().world > 1 else {}),
    }


def new_network(recipe: Any, columns: dict[str, Column], bundle: Bundle) -> Any:
    seed_torch(recipe.seed, "weights")
    return build_network(recipe, columns, bundle.edits)


def _drops(network: Any) -> bool:
    """Whether an answer passes the dropout of a `concat`: those that are read off maps or positions go round it."""
    if not isinstance(getattr(network, "fusion", None), Concat):
        return False
    return len(network.encoders) > 1 or any(at is None for at in getattr(network, "places", (None,)))


def _tell_diagnosis(history: History, drops: bool) -> None:
    found = diagnosis(history, drops)
    if found:
        gap, train, validation = (f"{found[k]:.3g}" for k in ("gap", "train_loss", "validation_loss"))
        tell("train.diagnosis", gap=gap, train=train, validation=validation, remedy=say(found["remedy"]))


def diagnosis(history: History, drops: bool = True) -> dict[str, Any]:
    """Does it over-fit? The gap between validation and training loss at the best epoch and at the end, and a remedy.

    `remedy` is a sentence id: more epochs when the loss still falls, early stopping, dropout where the network `drops`, a smaller network.
    """
    epochs = [e for e in history.epochs if "validation_loss" in e]
    if len(epochs) < 2:
        return {}
    best, last = epochs[history.best if history.best < len(epochs) else -1], epochs[-1]
    gap = last["validation_loss"] - last["loss"]
    rise = last["validation_loss"] - best["validation_loss"]
    relative = gap / max(abs(last["loss"]), 1e-3)
    earlier = epochs[len(epochs) * 2 // 3 - 1]  # a rate that fades to nothing makes the very last steps small ones
    falling = best is last and earlier["validation_loss"] > last["validation_loss"] * 1.01
    if falling and history.stopped == "done":
        remedy = "train.remedy.longer"
    elif rise > 0.1 * best["validation_loss"] and relative > 0.5:
        remedy = "train.remedy.smaller"
    elif relative > 0.5:
        remedy = "train.remedy.dropout" if drops else "train.remedy.rows"
    else:
        remedy = "train.remedy.none"
    return {
        "gap": gap,
        "rise": rise,
        "train_loss": last["loss"],
        "validation_loss": last["validation_loss"],
        "remedy": remedy,
    }


def fingerprints(data: Any) -> Any:
    """Keyed hashes of the rows trained on, so that `evaluate` can tell when it is shown them again. Personal."""
    import pyarrow as pa

    key = os.urandom(16)
    names = sorted(data.recipe.read) if data.recipe else data.table.column_names
    parts = pieces(data.table.select(names), data.part("train"))
    hashes = pa.chunked_array([pa.array(row_hashes(part, key), pa.string()) for part in parts], pa.string())
    return pa.table({"hash": hashes}).replace_schema_metadata(
        {"personal": "true", "key": key.hex(), "columns": "\n".join(names)}
    )
