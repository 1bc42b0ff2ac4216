"""A GGUF checkpoint (llama.cpp's format) as a folder in the Hugging Face layout, kept in the cache by the file's SHA-256.

Networks of Llama's family: `llama` (Llama, Mistral, SmolLM2, TinyLlama) and `qwen2`. Quantised weights become the float32 numbers
that they stand for. Nothing is executed: values are data, and the template of conversations is handled like that of any folder.
"""

from __future__ import annotations

import json
import math
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from luban import files
from luban.console import tell
from luban.data import gguf_file, gguf_tokenizer
from luban.data.blocks import home
from luban.data.gguf_file import Head, Place
from luban.errors import BundleError, DataError, Problem, Unsupported, need, problem, raise_all, shortened
from luban.messages import listed

ENDING, EXTRA = ".gguf", "gguf"
FORMAT = "gguf-1"  # of what is written here: another number makes every file anew
ARCHITECTURES = ("llama", "qwen2")
PLAIN = {0: "F32", 1: "F16", 30: "BF16"}  # of ggml: what safetensors calls them; kept as they are
PIECE = 1 << 24  # numbers that are turned into float32 at once
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
FACTORS = "rope_freqs.weight"  # Llama 3.1 and later: what each rotary frequency is divided by
WHOLE = {  # a module here, in the Hugging Face layout, and the shape of its weight
    "token_embd": ("model.embed_tokens", ("rows", "width")),
    "output_norm": ("model.norm", ("width",)),
    "output": ("lm_head", ("rows", "width")),
}
LAYER = {
    "attn_norm": ("input_layernorm", ("width",)),
    "attn_q": ("self_attn.q_proj", ("width", "width")),
    "attn_k": ("self_attn.k_proj", ("keys", "width")),
    "attn_v": ("self_attn.v_proj", ("keys", "width")),
    "attn_output": ("self_attn.o_proj", ("width", "width")),
    "ffn_norm": ("post_attention_layernorm", ("width",)),
    "ffn_gate": ("mlp.gate_proj", ("hidden", "width")),
    "ffn_up": ("mlp.up_proj", ("hidden", "width")),
    "ffn_down": ("mlp.down_proj", ("width", "hidden")),
}
TURNED = {
    "attn_q": "num_attention_heads",
    "attn_k": "num_key_value_heads",
}  # stored with the pairs of each head side by side


def is_one(name: str | Path) -> bool:
    """Whether a name is that of a GGUF file, by its ending."""
    return Path(name).suffix.lower() == ENDING and not Path(name).is_dir()


def folder(path: str | Path) -> Path:
    """The checkpoint of a GGUF file, made where it is not in the cache yet.

    Raises DataError for a file that is not there or no sound GGUF, Unsupported for another kind of network or tokenizer, BundleError with
    all tensors that lack, are too many or have another shape, MissingExtra, DiskError.
    """
    path = Path(path)
    if not path.is_file():
        there = [p.name for p in path.parent.glob(f"*{ENDING}")] if path.parent.is_dir() else []
        raise DataError(problem("import.no_file", name=path.name, path=str(path), allowed=there))
    try:
        about = path.stat()
        final = home() / "models" / FORMAT / _digest(str(path.resolve()), about.st_size, about.st_mtime_ns)
        head = None if final.is_dir() else gguf_file.read(path)
    except OSError as e:
        raise DataError(problem("model.unreadable", place=str(path), reason=e.strerror or str(e))) from e
    if head is not None:
        _make(path, head, final)
    return final


@lru_cache(8)
def _digest(path: str, size: int, changed: int) -> str:
    """SHA-256 of a file that is looked at several times in one import."""
    return files.digest(Path(path))


def _make(path: Path, head: Head, final: Path) -> None:
    config = _config(head, str(path))
    found = _found(head, config, path)
    texts = {
        "config.json": config,
        "tokenizer.json": gguf_tokenizer.tokenizer(head.values, str(path)),
        **_about(head, config),
    }
    size = sum(t.size for t in found.values())
    final.parent.mkdir(parents=True, exist_ok=True)
    with (
        files.room_for(final, size),
        tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{final.name[:8]}-") as work,
    ):
        new = Path(work, "new")
        new.mkdir()
        for name, value in texts.items():
            files.put(new / name, json.dumps(value, ensure_ascii=False))
        files.put(new / "model.safetensors", _safetensors(path, found))
        if not final.is_dir():  # another process may have made the same
            os.rename(new, final)
    tell("gguf.kept", path=str(path), count=len(found), folder=str(final), megabytes=f"{size / 1e6:.0f}")


# -- config.json -------------------------------------------------------------------------------------------------------


def _config(head: Head, path: str) -> dict[str, Any]:
    kind = head.values.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise Unsupported(problem("gguf.architecture", place=path, name=str(kind)[:60], allowed=ARCHITECTURES))
    values = {k.removeprefix(f"{kind}."): v for k, v in head.values.items() if k.startswith(f"{kind}.")}

    def positive(key: str, form: type, default: Any = None) -> Any:
        value = values.get(key, default)
        if type(value) not in (int, form) or not 0 < value < 1 << 31:
            raise DataError(problem("gguf.bad_value", place=path, key=f"{kind}.{key}", found=repr(value)[:60]))
        return form(value)

    width, heads = positive("embedding_length", int), positive("attention.head_count", int)
    layers, groups = positive("block_count", int), positive("attention.head_count_kv", int, heads)
    each = positive("rope.dimension_count", int, width // heads or 1)
    usual = {"rope.scaling.type": "none", "expert_count": 0}
    usual |= dict.fromkeys(("rope.dimension_count", "attention.key_length", "attention.value_length"), width // heads)
    other = [f"{k}: {values[k]}"[:80] for k, v in usual.items() if values.get(k, v) != v]
    if width % heads or heads % groups or each % 2:
        other += [f"attention.head_count: {heads}", f"attention.head_count_kv: {groups}", f"embedding_length: {width}"]
    if other:
        raise Unsupported(problem("family.differs", place=path, type=kind, settings=listed(other)))
    if layers > len(head.tensors):
        raise DataError(problem("gguf.bad_value", place=path, key=f"{kind}.block_count", found=layers))
    embedding = head.tensors.get("token_embd.weight")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": positive("rope.freq_base", float, 10_000.0)}
    count = len(gguf_tokenizer.tokens(head.values, path))
    ids = {f"{k}_token_id": gguf_tokenizer.named(head.values, k, count) for k in ("bos", "eos")}
    return {
        "model_type": kind,
        "architectures": ["LlamaForCausalLM" if kind == "llama" else "Qwen2ForCausalLM"],
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": positive("feed_forward_length", int),
        "max_position_embeddings": positive("context_length", int),
        "rms_norm_eps": positive("attention.layer_norm_rms_epsilon", float),
        "hidden_act": "silu",
        "rope_theta": rope["rope_theta"],
        "rope_parameters": rope | _scaling(head, rope["rope_theta"], each, path),
        "attention_bias": kind == "llama" and "blk.0.attn_q.bias" in head.tensors,
        "mlp_bias": kind == "llama" and "blk.0.ffn_down.bias" in head.tensors,
        "tie_word_embeddings": "output.weight" not in head.tensors,
        "vocab_size": embedding.shape[0] if embedding else count,
        "dtype": "float32",
        **ids,
    }


def _scaling(head: Head, base: float, each: int, path: str) -> dict[str, Any]:
    """Llama 3.1's scaling, of which the file holds only what comes out of it: a factor for each frequency.

    Raises Unsupported where the factors are not those of the published settings.
    """
    if FACTORS not in head.tensors:
        return {}
    stored = _stored(Path(path), FACTORS, head.tensors[FACTORS], 0)
    found = np.frombuffer(
        b"".join(stored.pieces(np.memmap(path, np.uint8, "r"))), "<f4" if stored.type == "F32" else "<f2"
    )
    top = float(found.max(initial=1.0))
    low, high, original = LLAMA3.values()
    turns = original / (2 * math.pi * base ** (np.arange(0, each, 2) / each))  # within the original window
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    if found.shape != turns.shape or not np.allclose(found, 1 / ((1 - smooth) / top + smooth), rtol=1e-3):
        raise Unsupported(problem("family.differs", place=path, type="llama", settings=FACTORS))
    return {"rope_type": "llama3", "factor": top, **LLAMA3}


def _about(head: Head, config: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json and generation_config.json."""
    values, pieces = head.values, head.values["tokenizer.ggml.tokens"]
    kinds = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {k: gguf_tokenizer.named(values, kind, len(pieces)) for k, kind in kinds.items()}
    about = {f"{k}_token": pieces[i] for k, i in ids.items() if i is not None}
    about |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["max_position_embeddings"]}
    if isinstance(template := values.get("tokenizer.chat_template"), str):
        about["chat_template"] = template
    ends = [gguf_tokenizer.named(values, k, len(pieces)) for k in ("eos", "eot", "eom")]
    said: dict[str, Any] = {"eos_token_id": sorted({e for e in ends if e is not None})}
    said |= {f"{k}_token_id": ids[k] for k in ("bos", "pad") if ids[k] is not None}
    return {"tokenizer_config.json": about, "generation_config.json": said}


# -- weights -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A tensor in the file: `kind` of storage as the library calls it, `plain` where it is not quantised (see PLAIN), `row` bytes
    of one of its `shape[0]` rows, and of how many `heads` the rows are to be put in order (0: they are).
    """

    kind: Any
    plain: str
    shape: tuple[int, ...]
    start: int
    row: int
    heads: int

    @property
    def type(self) -> str:
        """What it is written as. A quantised number is a whole number times a scale in float16 (plus another): only float32 holds it."""
        return self.plain or "F32"

    @property
    def size(self) -> int:
        """Bytes that are written."""
        return math.prod(self.shape) * (4 if self.type == "F32" else 2)

    def pieces(self, data: np.ndarray) -> Iterator[bytes]:
        rows = self.shape[0]
        kept = data[self.start : self.start + rows * self.row].reshape(rows, self.row)
        order = np.arange(rows)
        if self.heads:
            order = in_halves(order, self.heads)
        step = max(1, PIECE // math.prod(self.shape[1:]))
        for at in range(0, rows, step):
            some = kept[order[at : at + step]]
            yield (some if self.plain else _numbers(some, self.kind).astype("<f4")).tobytes()


def in_halves(order: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as the Hugging Face layout has them: of each head the first of all rotary pairs, then the second.

    llama.cpp's converter puts the two of a pair side by side, for networks of the kind `llama` alone.
    """
    return order.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _numbers(rows: np.ndarray, kind: Any) -> np.ndarray:
    return need("gguf.quants", EXTRA).dequantize(rows, kind)


def _found(head: Head, config: Mapping[str, Any], path: Path) -> dict[str, Stored]:
    """The tensors by the names of the Hugging Face layout. Raises BundleError with all that is wrong with them."""
    wanted, place = _wanted(config), str(path)
    lacking = [n for n in wanted if n not in head.tensors]
    extra = [n for n in head.tensors if n not in wanted and n != FACTORS]
    problems: list[Problem] = [problem("import.lacking", place=place, names=shortened(lacking))] if lacking else []
    problems += [problem("import.extra", place=place, names=shortened(extra))] if extra else []
    for name, (_, shape) in wanted.items():
        if name in head.tensors and (found := head.tensors[name].shape) != shape:
            said = {k: " x ".join(map(str, s)) for k, s in (("found", found), ("want", shape))}
            problems.append(problem("import.shape", place=place, tensor=name, **said))
    raise_all(BundleError, problems)
    turned = TURNED if config["model_type"] == "llama" else {}
    heads = {n: config[turned[k]] for n in wanted if (k := n.split(".")[-2]) in turned}
    return {theirs: _stored(path, n, head.tensors[n], heads.get(n, 0)) for n, (theirs, _) in wanted.items()}


def _wanted(config: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor that the network has, by its name in a GGUF: its name in the Hugging Face layout and its shape."""
    width = config["hidden_size"]
    sizes = {"rows": config["vocab_size"], "width": width, "hidden": config["intermediate_size"]}
    sizes["keys"] = width // config["num_attention_heads"] * config["num_key_value_heads"]
    biased: tuple[str, ...] = ("attn_output",) if config["attention_bias"] else ()
    biased += ("attn_q", "attn_k", "attn_v") if config["model_type"] == "qwen2" or config["attention_bias"] else ()
    biased += ("ffn_gate", "ffn_up", "ffn_down") if config["mlp_bias"] else ()
    modules = {k: v for k, v in WHOLE.items() if k != "output" or not config["tie_word_embeddings"]}
    for i in range(config["num_hidden_layers"]):
        modules |= {f"blk.{i}.{k}": (f"model.layers.{i}.{name}", shape) for k, (name, shape) in LAYER.items()}
    wanted = {}
    for k, (name, shape) in modules.items():
        wanted[f"{k}.weight"] = (f"{name}.weight", tuple(sizes[s] for s in shape))
        if k.split(".")[-1] in biased:
            wanted[f"{k}.bias"] = (f"{name}.bias", (sizes[shape[0]],))
    return wanted


def _stored(path: Path, name: str, place: Place, heads: int) -> Stored:
    """Raises Unsupported for a storage that the library cannot turn into numbers, DataError where the data end too early."""
    gguf = need("gguf", EXTRA)
    try:
        kind = gguf.GGMLQuantizationType(place.kind)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if place.kind not in PLAIN:
            _numbers(np.zeros((1, size), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError) as e:
        raise Unsupported(problem("gguf.storage", place=str(path), tensor=name, kind=place.kind)) from e
    inner = place.shape[-1] if len(place.shape) > 1 else 1
    if inner % block:
        raise DataError(problem("gguf.bad_value", place=str(path), key=name, found=kind.name))
    row = inner // block * size
    end, there = place.start + place.shape[0] * row, path.stat().st_size
    if end > there:
        raise DataError(problem("gguf.short", place=str(path), needed=f"{end:,}", found=f"{there:,}"))
    return Stored(kind, PLAIN.get(place.kind, ""), place.shape, place.start, row, heads)


def _safetensors(path: Path, found: Mapping[str, Stored]) -> Iterator[bytes]:
    """A safetensors file, piece by piece: a large network is never in memory whole."""
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in found.items():
        head[name] = {"dtype": tensor.type, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.size]}
        at += tensor.size
    plain = json.dumps(head).encode()
    plain += b" " * (-len(plain) % 8)  # the data begin at a multiple of eight bytes
    yield struct.pack("<Q", len(plain)) + plain
    data = np.memmap(path, np.uint8, "r")
    for tensor in found.values():
        yield from tensor.pieces(data)
