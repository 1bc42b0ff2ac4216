"""A model as a folder in the Hugging Face layout, which `transformers` opens and vLLM or llama.cpp serve.

    config.json             the network
    generation_config.json  which tokens begin and end what it writes
    model.safetensors       its weights, in float32
    tokenizer.json          how text is cut, and tokenizer_config.json which tokens stand for what

The folder appears only when `transformers` has answered from it as the model does: the same ids for a text, the same logits,
and for a model that writes the same text where the likeliest token is always taken. One that reads a text before it writes
(`model: {long: {joint: short}}`) is a language model there: what its tokenizer makes of the text ends with the token that begins the answer.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from luban import files
from luban.bundle import Bundle
from luban.columns import templates
from luban.errors import ExportMismatch, RequestError, Unsupported, need, problem, raise_all, shortened
from luban.huggingface import parts_of
from luban.messages import say
from luban.nn import families
from luban.nn.encoders.pretrained import _quiet as quiet
from luban.nn.lora import merge_lora
from luban.nn.quantized import Stored
from luban.nn.transformer import Transformer

CLOSE = 1e-4  # of the logits' own size, at least of 1
LENGTHS = (1, 2, 7, 33)
TOKENS = 12  # that are written to compare
END = "<|endoftext|>"
SAID = ("Fox: 12 dogs, 3.5 €", "Überall 日本語 и ещё: 3.14!", " a\n\n b\tc ")


def to_huggingface(bundle: Bundle, out: str, texts: tuple[str, ...] = ()) -> tuple[Path, float]:
    """Write the folder; the largest difference of a logit. `texts`: real ones that it is held against, too.

    Raises Unsupported for a network that the layout has no name for, ExportMismatch where the answers differ, MissingExtra.
    """
    need("transformers", "transformers")
    bundle = replace(bundle, network=merge_lora(bundle.copy_network()).cpu().eval())
    kind = _family(bundle)
    final = Path(out).resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    content = _content(bundle, kind)
    if other := sorted(f.name for f in final.glob("*") if f.name not in content):
        raise RequestError("files.foreign", path=out, files=shortened(other))
    temporary = files.near(final, f"{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        for name, data in content.items():
            files.write(temporary / name, data)
        with quiet():
            worst = passes(bundle, temporary, (*SAID, *texts))
        final.mkdir(exist_ok=True)
        for name in content:
            os.replace(temporary / name, final / name)
        files.sync(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Path(out), worst


def _family(bundle: Bundle) -> families.Family:
    """Raises Unsupported for a network that is no decoder by itself and no BERT that says hidden words."""
    recipe = bundle.recipe
    if recipe.writes and len(recipe.outputs) == 1 and (not recipe.inputs or _reader(bundle)):
        kind = families.HEADS.get(recipe.head(bundle.outputs[0]).type)
    else:
        read = recipe.fusion.type == "masked" and len(recipe.inputs) == 1
        kind = families.BERT if read and recipe.encoder(bundle.inputs[0]).type == "bert" else None
    if kind is None:
        where = say("export.no_graph" if recipe.writes else "export.graph")
        raise Unsupported("export.no_family", task=recipe.task(), inputs=list(bundle.inputs) or "-", instead=where)
    return kind


def _reader(bundle: Bundle) -> Any:
    """The column of the one text that is read before another is written; None where there is none."""
    alone = len(bundle.inputs) == 1 and bundle.recipe.before(bundle.inputs[0])
    return bundle.columns[bundle.inputs[0]] if alone else None


def _text(bundle: Bundle) -> Any:
    """The column of the text that the network writes, or knows."""
    return bundle.columns[(*bundle.outputs, *bundle.inputs)[0]]


# -- what is written ---------------------------------------------------------------------------------------------------


def _content(bundle: Bundle, kind: families.Family) -> dict[str, bytes]:
    column, reader = _text(bundle), _reader(bundle)
    layers = _layers(bundle.network)
    hidden = layers.layers[0].dense.outer.in_features  # of a network whose layers were made smaller, too
    shape = replace(layers.shape, hidden=hidden)
    weights = families.written(kind, _weights(bundle.network), shape)
    tokenizer, named, ids = _tokenizer(column, reads=reader is not None)
    config = {"architectures": [kind.architecture], **kind.config(shape), "vocab_size": column.size, **ids}
    config |= {"tie_word_embeddings": kind is families.BERT or "lm_head.weight" not in weights, "dtype": "float32"}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": shape.length, **named}
    about |= {"clean_up_tokenization_spaces": False}
    if column.ends and reader is None and (chat := _chat(column, tokenizer)):
        about["chat_template"] = chat
    found = {
        "config.json": config,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": about,
    } | ({} if kind is families.BERT else {"generation_config.json": ids | {"eos_token_id": sorted(column.stops)}})
    plain = {n: json.dumps(v, ensure_ascii=False, indent=1).encode() for n, v in found.items()}
    return plain | {"model.safetensors": save(weights, {"format": "pt"})}


def _weights(network: Any) -> dict[str, Tensor]:
    """The weights by our names, those stored as integers multiplied out."""
    found: dict[str, Tensor] = {}
    for prefix, part in parts_of(network).items():
        for name, module in part.named_modules():
            own = dict(module.named_parameters(recurse=False))
            own = {"weight": module.weight, "bias": module.bias} if isinstance(module, Stored) else own
            found |= {f"{prefix}{name}{'.' if name else ''}{k}": t for k, t in own.items() if t is not None}
    return found


def _tokenizer(column: Any, reads: bool) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """tokenizer.json, the names of its control tokens, and their ids.

    A tokenizer learned here has no control tokens, so that nobody can type one; there the end gets a name.
    """
    plain = json.loads(json.dumps(column.state["tokenizer"]))
    vocabulary = plain["model"]["vocab"]
    words = vocabulary if isinstance(vocabulary, dict) else {w: i for i, (w, _) in enumerate(vocabulary)}
    words = words | {t["content"]: t["id"] for t in plain.get("added_tokens", ())}
    known = {i: w for w, i in words.items()}
    ids = {"pad_token_id": column.pad}
    if column.ends:
        if column.end not in known:
            end = END
            while end in words:
                end = f"<{end}>"
            known[column.end] = end
            token = {"id": column.end, "content": end, "special": True}
            plain["added_tokens"] = [
                *plain.get("added_tokens", ()),
                token | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            ]
        if reads or not (column.state.get("bare") or plain.get("post_processor")):
            plain["post_processor"] = _begun(known[column.begin], column.begin, behind=reads)
        ids |= {"bos_token_id": column.begin, "eos_token_id": column.end}
    marks = {"pad_token": column.pad, "bos_token": ids.get("bos_token_id"), "eos_token": ids.get("eos_token_id")}
    if "silent" not in column.state:
        marks |= {"unk_token": column.state.get("unk", 1)}
    if not column.ends:
        marks |= {"mask_token": int(column.nothing(np.zeros(1, np.int64)))}
    return plain, {k: known[i] for k, i in marks.items() if i in known}, ids


def _chat(column: Any, tokenizer: dict[str, Any]) -> str | None:
    """The template of conversations that the model answers to, in Jinja; None where it has none, or a mark has no name."""
    if not column.state.get("chat"):
        return None
    named = {t["id"]: t["content"] for t in tokenizer.get("added_tokens", ())}
    return templates.jinja(column.state["chat"], named)


def _begun(token: str, i: int, behind: bool) -> dict[str, Any]:
    """A text begins with that token, or ends with it (`behind`), as `tokenizers` writes it."""
    first, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    more = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [text, first] if behind else [first, text],
        "pair": [text, more, first] if behind else [first, text, more],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}},
    }


# -- what it is held against -------------------------------------------------------------------------------------------


def passes(bundle: Bundle, folder: Path, texts: tuple[str, ...]) -> float:
    """The largest difference between a logit of the folder and of the model. Raises ExportMismatch."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    column, reader, network = _text(bundle), _reader(bundle), bundle.engine.network
    load = {"local_files_only": True, "trust_remote_code": False}
    kind = AutoModelForCausalLM if column.ends else AutoModelForMaskedLM
    theirs = kind.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **load).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, **load)
    begun = column.prompt if column.ends else column.encode
    if reader is not None:
        begun = lambda t: np.array([*(reader.whole().encode(t) if t.strip() else ()), column.begin])  # noqa: E731
    most = _layers(network).shape.length
    wrong = []
    for text in texts:
        mine, other = begun(text).tolist()[:most], tokenizer(text)["input_ids"][:most]
        if mine != other:
            wrong.append(problem("export.other_ids", text=text[:40], found=other[:12], want=mine[:12]))
    raise_all(ExportMismatch, wrong[:3])
    if column.ends and reader is None and tokenizer.chat_template:
        _same_talk(column, tokenizer, texts)
    rng, worst = np.random.default_rng(0), 0.0
    with torch.inference_mode():
        for length in (n for n in LENGTHS if n <= most):
            ids = torch.as_tensor(rng.integers(0, column.size, (2, length)))
            want, found = logits(network, ids), theirs(ids).logits
            worst = max(worst, float((want - found).abs().max() / max(1.0, float(want.abs().max()))))
    if not worst <= CLOSE:
        raise ExportMismatch("export.other_logits", difference=f"{worst:.2g}", most=CLOSE)
    for text in texts[:2] if column.ends else ():
        _same_text(bundle, theirs, tokenizer, text[: max(1, most // 8)], min(TOKENS, most // 4))
    return worst


def _same_talk(column: Any, tokenizer: Any, texts: tuple[str, ...]) -> None:
    """Conversations of these texts are the same ids by the folder's template."""
    for text in texts:
        talk = [{"role": r, "content": text.strip()} for r in ("user", "assistant", "user")]
        whole = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        mine, other = column.chat(talk).tolist(), tokenizer(whole, add_special_tokens=False)["input_ids"]
        if mine != other:
            raise ExportMismatch(problem("export.other_ids", text=text[:40], found=other[:12], want=mine[:12]))


def _layers(network: nn.Module) -> Any:
    return next(m for m in network.modules() if isinstance(m, Transformer))


def logits(network: Any, ids: Tensor) -> Tensor:
    """Of every position, (B, T, V), without padding."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    if hasattr(network, "writer"):
        return network.writer.continued(network.writer.embedding(ids), mask)
    encoder, guess = network.encoders[0], network.fusion[0]
    return guess.logits(encoder(encoder.embed(ids, mask), mask).x)


def _same_text(bundle: Bundle, theirs: Any, tokenizer: Any, text: str, count: int) -> None:
    given = tokenizer(text, return_tensors="pt")["input_ids"]
    whole = theirs.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False,
    )[0, given.shape[1] :]  # fmt: skip
    found = tokenizer.decode(whole, skip_special_tokens=True)
    want = bundle.generate(text, tokens=count, temperature=0)
    if found != want:
        raise ExportMismatch("export.other_text", text=text[:40], found=repr(found)[:80], want=repr(want)[:80])
