"""compress: a smaller model, and what it is worth beside the one it came from."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from luban.bundle import Bundle
from luban.columns.kept import encode_kept
from luban.console import tell
from luban.data.prepare import prepare
from luban.data.samples import SAMPLES
from luban.errors import DataError, RequestError, Unsupported, need
from luban.evaluation.seen import seen_rows
from luban.messages import say
from luban.nn.quantized import Quantized, Stored
from luban.settings import Count, Fraction, Natural, Positive, Range
from luban.stages.compress import methods
from luban.stages.compress.compare import compared, refuse, sample
from luban.stages.compress.page import page

CALIBRATE = 512  # training rows that `aware` alone is calibrated with


def compress(
    bundle: Bundle,
    data: Any,
    *,
    distill: str | None = None,
    prune: Annotated[float, Range(low=0, high=0.99)] | None = None,
    kind: Literal["structured", "magnitude"] = "structured",
    quantize: Literal["int8", "int4"] | None = None,
    calibrate: Natural = 0,
    aware: Natural = 0,
    accept: Fraction = 0.01,
    epochs: Natural = 0,
    healing: Natural = 3,
    share: Fraction = 0.7,
    temperature: Positive = 2.0,
    explain: Natural = 32,
    resamples: Count = 500,
    seed: Natural | None = None,
) -> Bundle:
    """Distil, then prune, then quantise, whatever of it is asked for (int8 when nothing is); measured before and after.

    `distill`: a size or the path of a recipe, learned for `epochs` (0 = the `steps` or epochs of its train stage) as its `train` says (rate, schedule,
    averaged weights ...; mixed examples and LoRA left out), `share` of the loss against the teacher's answers at `temperature`. `prune`: share of channels (`structured`: really smaller layers) or of
    weights (`magnitude`: zeros, which only pack better), then `healing` epochs of training on. `explain`: rows whose
    explanations are compared. `quantize`: int8, or int4 where weights are most of the file (one scale for 32 weights). `calibrate`: training rows that
    the scales of activations are learned from, 0 = weights alone: an engine then computes with integers (`export`); `aware`: epochs of
    training with both rounded (quantisation-aware). Such a model is refused where, on validation rows, it loses more than
    `accept` of the main metric, or answers no faster. `seed`: of what is trained and resampled, the recipe's unless given. `data` of a
    file are split as the recipe says where that file was trained on or something is to be learned from it; without data
    and without the training rows only sizes are known.
    Raises RequestError, DataError without rows to learn from, Unsupported where the network cannot be changed so.
    """
    if bundle.recipe.fusion.type == "masked":
        raise Unsupported("compress.masked")
    if (distill is not None or prune is not None) and "divergence" in getattr(bundle.network, "lacks", ()):
        raise Unsupported("compress.no_loss", outputs=list(bundle.outputs))
    if distill is not None and bundle.recipe.prefers:
        raise Unsupported("compress.prefers")
    if prune is not None and any(
        isinstance(m, Stored) and not isinstance(m, Quantized) for m in bundle.network.modules()
    ):
        raise Unsupported("compress.four_bits_pruned")
    own, bundle, began = bundle, bundle.seeded(seed), time.process_time()
    data = (
        own_rows(own)
        if data is None
        else _split(own, data, distill is not None or prune is not None or bool(calibrate or aware))
    )
    if distill is None and prune is None and quantize is None:
        quantize = "int8"
    result, done = methods.merged(bundle), []
    if distill is not None:
        result = methods.distilled(bundle, *_learning(bundle, data, "distill"), str(distill), epochs=epochs, share=share, temperature=temperature)  # fmt: skip
        done.append(say("compress.did.distill", target=distill))
    if prune is not None:
        result, sentence = _pruned(result, data, prune, kind, healing)
        done += sentence
    if calibrate or aware:
        quantize = _integers(quantize)
        before = result
        examples = _learning(result, data, "quantize")
        result = methods.calibrated(result, *examples, calibrate or CALIBRATE, aware)
        refuse(before, result, data, examples, accept)
        done.append(say("compress.did.calibrate", rows=min(calibrate or CALIBRATE, len(examples[0]))))
        done += [say("compress.did.aware", epochs=aware)] if aware else []
    elif quantize is not None:
        result = methods.quantised(result, quantize)
        done.append(say("compress.did.quantize" if quantize == "int8" else "compress.did.groups"))
    spent = round(time.process_time() - began, 3)
    tell("compress.measuring")
    zeros = prune is not None and kind == "magnitude" and distill is None and quantize is None
    found = compared(bundle, result, data, explain=explain, resamples=resamples, zeros=zeros)
    report = page(say("compress.title", task=bundle.recipe.task()), done, found)
    settings = {"distill": distill, "prune": prune, "kind": kind if prune is not None else None, "quantize": quantize}
    settings |= {"calibrate": calibrate or None, "aware": aware or None}
    entry = {"settings": {k: v for k, v in settings.items() if v is not None}, "parameters": result.parameters()}
    entry["cpu_seconds"] = spent  # of what was done, the measuring apart
    recipe = replace(result.recipe, seed=own.recipe.seed)
    return replace(result, recipe=recipe).with_report(report).with_history("compress", **entry)


def _integers(quantize: str | None) -> str:
    """What `calibrate` and `aware` ask for. Raises RequestError for four bits, MissingExtra without what makes the file that is timed."""
    if quantize == "int4":
        raise RequestError("compress.calibrate_four_bits")
    for module in ("onnx", "onnxscript", "onnxruntime"):
        need(module, "export")
    return "int8"


def own_rows(bundle: Bundle) -> Any:
    """The rows that the recipe names, when they are still there; else None."""
    named = bundle.recipe.data.get("rows")
    return prepare(bundle.recipe) if named and (named in SAMPLES or Path(named).exists()) else None


def _split(bundle: Bundle, data: Any, learns: bool) -> Any:
    """Rows with answers, split as for training, where something is to be learned from them or was already: the rows
    trained on are again those to learn from, and not those to be measured on."""
    if data.splits is not None or not {*bundle.outputs} <= {*data.table.column_names}:
        return data
    seen = seen_rows(bundle, data, np.arange(data.table.num_rows))["trained_on"]
    return prepare(bundle.recipe, data.rows) if learns or seen else data


def _pruned(bundle: Bundle, data: Any, share: float, kind: str, healing: int) -> tuple[Bundle, list[str]]:
    if kind == "magnitude":
        result = methods.without_weights(bundle, share)
    else:
        if data is None or not len(data.held_out()[1]):
            raise DataError("compress.no_rows", what="prune")
        result = methods.without_channels(bundle, share, sample(bundle, data))
    done = [say(f"compress.did.{kind}", share=f"{share:.0%}")]
    if healing and data is not None and len(data.part("train")):
        result = methods.healed(result, *_learning(result, data, "prune"), healing)
        done.append(say("compress.did.healing", epochs=healing))
    elif healing:
        done.append(say("compress.no_healing"))
    return result, done


def _learning(bundle: Bundle, data: Any, what: str) -> tuple[Any, Any]:
    """Training and validation examples. Raises DataError where there is nothing to learn from."""
    if data is None or not len(data.part("train")):
        raise DataError("compress.no_rows", what=what)
    framed = (data.framed(p, bundle.recipe.frame) for p in ("train", "validation"))
    training, validation = (encode_kept(bundle.columns, bundle.inputs, bundle.outputs, f) for f in framed)
    return training, validation
