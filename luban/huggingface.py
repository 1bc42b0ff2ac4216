"""Models in the Hugging Face layout that are Luban's own networks: a folder, a GGUF file or a name on the hub becomes a Bundle.

The tokenizer goes into the text column, the weights into our Transformer; nothing of the folder is executed, and the
`transformers` library is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from luban.bundle import Bundle, build_network
from luban.columns.base import make
from luban.console import tell
from luban.data import gguf, models
from luban.errors import BundleError, RequestError, problem, shortened
from luban.nn import families
from luban.recipe import Recipe

MANIFEST, CONFIG = "MANIFEST.json", "config.json"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
PACK = 1024  # tokens learned at once where a language model goes on learning


def opened(source: str | Path) -> Bundle:
    """The saved model in a folder, or what `imported` makes of a checkpoint in one, of a GGUF file or of a sample model.

    Raises BundleError, DataError.
    """
    folder, name = Path(source), str(source)
    checkpoint = (folder / CONFIG).is_file() and not (folder / MANIFEST).exists()
    if checkpoint or gguf.is_one(name) or (name in models.MODELS and not folder.exists()):
        return imported(name)
    return Bundle.load(source)


def imported(name: str, column: str = "text") -> Bundle:
    """The Bundle of a GPT-2, Llama (Mistral, Qwen2, SmolLM2) or BERT checkpoint: a folder, a GGUF file, a sample model, a name on the hub.

    A decoder writes the text `column`; a BERT reads it and says hidden words. Weights are stored in float32. Another causal
    network of `transformers` comes in as it is (head `pretrained`).
    Raises Unsupported for another kind of network, DataError for a tokenizer that is not the network's, BundleError with
    all weights that lack, are too many or have another shape, or the first that is no number, RequestError for pickles.
    """
    folder = models.found(name)
    config = json_of(folder / CONFIG)
    if foreign(config):
        return _whole(name, column, config)
    kind = families.family(config, name)
    reads = kind is families.BERT
    window, settings = families.window(config), kind.settings(config)
    side = {"tokens_of": name, "length": window if reads else window - 1, "tokens": "bpe"}
    plain: dict[str, Any] = {"luban": 1, "size": "base"}
    if reads:
        plain |= {"inputs": {column: {"text": side | {"lower": False, "normalise": False}}}}
        plain |= {"fusion": {"masked": {"epsilon": settings["epsilon"]}}}
    else:
        plain |= {"outputs": {column: {"text": side}}, "frame": {"pack": {"length": min(PACK, window)}}}
    asked = Recipe.of(plain).resolved()
    text = make(column, "text", dict({**asked.inputs, **asked.outputs}[column].settings)).supposed()
    if reads:
        settings["pooling"] = text.state["pooling"]
    recipe, columns = Recipe.of(plain | {"model": {column: {kind.part: settings}}}).resolved(), {column: text}
    with torch.device("meta"):  # what the config asks for is held against what is there before any of it is made
        wanted = {k: t.shape for k, t in weights_of(build_network(recipe, columns)).items()}
    weights = tensors(folder, name)
    finite({k: t for k, t in weights.items() if not k.endswith(kind.useless)}, name)
    found, guesses = families.read(kind, config, wanted, weights, str(folder))
    network = build_network(recipe, columns)
    _put(network, found)
    tell("import.done", path=name, count=len(weights))
    _tell_tokens(text, name)
    if reads and not guesses:
        tell("import.no_guess", name=name)
    bundle = Bundle(recipe, {column: replace(text)}, network.eval())  # the column knows no folder any more
    return bundle.with_history("import", source=name, type=config["model_type"], tensors=len(weights))


def foreign(config: Mapping[str, Any]) -> bool:
    """Whether it is a kind of causal network that only `transformers` has. That is not needed to say no."""
    kind = config.get("model_type")
    if kind in families.FAMILIES or not isinstance(kind, str) or find_spec("transformers") is None:
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as writers

    return kind in writers and not config.get("is_encoder_decoder")


def _whole(name: str, column: str, config: Mapping[str, Any]) -> Bundle:
    """A checkpoint's own network (head `pretrained`) as a Bundle."""
    side = {"tokens_of": name, "tokens": "bpe"}
    plain = {
        "luban": 1, "size": "base", "model": {column: {"pretrained": {"name": name}}}, "frame": {"pack": {"length": PACK}},
    }  # fmt: skip
    most = Recipe.of(plain | {"outputs": {column: {"text": side | {"length": families.FURTHEST}}}}).resolved()
    text = make(column, "text", dict(most.outputs[column].settings)).supposed()
    window = min(text.state.get("window") or families.FURTHEST, families.FURTHEST)
    pack = {"frame": {"pack": {"length": min(PACK, window)}}}
    recipe = Recipe.of(plain | pack | {"outputs": {column: {"text": side | {"length": window - 1}}}}).resolved()
    source, text = text.source, make(column, "text", dict(recipe.outputs[column].settings)).learned(**text.state)
    object.__setattr__(text, "_source", source)
    network = build_network(recipe, {column: text})
    finite(network.writer.state_dict(), name)
    count = len(network.writer.state_dict())
    tell("import.done", path=name, count=count)
    _tell_tokens(text, name)
    bundle = Bundle(recipe, {column: replace(text)}, network.eval())
    return bundle.with_history("import", source=name, type=config["model_type"], tensors=count)


def finite(weights: Mapping[str, Tensor], place: str) -> None:
    """Raises BundleError with the first tensor that holds something else than finite numbers."""
    bad = (n for n, t in weights.items() if t.is_floating_point() and not torch.isfinite(t).all())
    if (first := next(bad, None)) is not None:
        raise BundleError(problem("import.not_finite", place=place, tensor=first))


def _tell_tokens(text: Any, name: str) -> None:
    """Say that the network knows ids which its tokenizer has no token for: nothing stands in the text where one is written."""
    count = text.tokenizer.get_vocab_size(with_added_tokens=True)
    if count < text.size:
        tell("import.fewer_tokens", name=name, tokens=count, rows=text.size)


def parts_of(network: Any) -> dict[str, nn.Module]:
    """What holds the weights, by the names that `families` knows: a decoder by itself, or an encoder and what guesses."""
    if getattr(network, "masked", None):
        return {"encoder.": network.encoders[0], "guess.": network.fusion[0]}
    return {"": network.writer}


def weights_of(network: Any) -> dict[str, Tensor]:
    return {prefix + k: t for prefix, part in parts_of(network).items() for k, t in part.state_dict().items()}


def _put(network: Any, found: Mapping[str, Tensor]) -> None:
    for prefix, part in parts_of(network).items():
        mine = {k.removeprefix(prefix): t for k, t in found.items() if k.startswith(prefix)}
        part.load_state_dict(mine, strict=bool(mine))


# -- files -------------------------------------------------------------------------------------------------------------


def tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint, one file or many. Raises RequestError where there is only a pickle, BundleError."""
    there = {f.name: f for f in folder.glob("*.safetensors")}
    if (folder / INDEX).is_file():
        named = json_of(folder / INDEX).get("weight_map")
        wanted = sorted(set(map(str, named.values()))) if isinstance(named, Mapping) else []
        if lacking := [n for n in wanted if n not in there]:
            raise BundleError("bundle.file_missing", path=str(folder), file=lacking[0])
        there = {n: there[n] for n in wanted}
    elif "model.safetensors" in there:
        there = {"model.safetensors": there["model.safetensors"]}
    if not there:
        found = sorted(f.name for pattern in PICKLES for f in folder.glob(pattern))
        raise RequestError(problem("model.no_safetensors", place=str(folder), name=name, found=shortened(found) or "-"))
    result: dict[str, Tensor] = {}
    for file in there.values():
        try:
            result |= load_file(file)
        except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as e:
            raise BundleError("import.unreadable", path=str(file), reason=str(e).strip()[:200]) from e
    return result


def json_of(path: Path) -> dict[str, Any]:
    """Raises BundleError for anything but a mapping."""
    if not path.is_file():
        raise BundleError("bundle.file_missing", path=str(path.parent), file=path.name)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise BundleError("bundle.unreadable", path=str(path), reason=str(e)[:200]) from e
    if not isinstance(value, dict):
        raise BundleError("bundle.unreadable", path=str(path), reason=type(value).__name__)
    return value
