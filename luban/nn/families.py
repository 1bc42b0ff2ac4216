"""Networks that others published in the Hugging Face layout and that are Luban's own Transformer: GPT-2, Llama, BERT.

A family says how a config.json becomes settings and back, and which of its tensors ours are made of. One table serves both
ways: `read` puts a checkpoint's tensors into ours, `written` makes a checkpoint of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luban.errors import BundleError, Problem, Unsupported, problem, raise_all, shortened
from luban.messages import listed

Config = Mapping[str, Any]
Weights = Mapping[str, Tensor]
Table = list[
    tuple[str, tuple[str, ...]]
]  # a module of ours, and the ones whose tensors stand in it one below the other
LAYER = "{i}"
FURTHEST = 1 << 17  # positions that are made room for
LLAMA3 = {"factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor"}


@dataclass(frozen=True)
class Family:
    """One kind of network. `part`: its name in a recipe; `prefixes`: what stands before every name, sometimes;
    `transposed`: linear maps are stored (in, out); `useless`: tensors that hold no weight; `architecture`: of an export.
    """

    part: str
    settings: Callable[[Config], dict[str, Any]]
    config: Callable[[Any], dict[str, Any]]
    table: Table
    prefixes: tuple[str, ...]
    useless: tuple[str, ...]
    architecture: str
    transposed: bool = False


# -- config.json -> settings -------------------------------------------------------------------------------------------


def _refused(config: Config, wrong: Mapping[str, bool]) -> None:
    """Raises Unsupported with every setting that our network has no counterpart for."""
    found = [k for k, other in wrong.items() if other]
    if found:
        said = listed(f"{k}: {config.get(k)}"[:80] for k in found)
        raise Unsupported("family.differs", type=str(config.get("model_type"))[:60], settings=said)


def _count(config: Config, key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
        raise BundleError("family.bad_count", key=key, found=repr(value)[:60])
    return value


def _llama(c: Config) -> dict[str, Any]:
    width, heads = _count(c, "hidden_size"), _count(c, "num_attention_heads")
    rope = dict(c.get("rope_parameters") or c.get("rope_scaling") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaled = kind == "llama3" and all(isinstance(rope.get(k), (int, float)) for k in LLAMA3.values())
    wrong = {
        "hidden_act": c.get("hidden_act", "silu") != "silu",
        "head_dim": c.get("head_dim") not in (None, width / heads),
        "num_attention_heads": width % heads != 0 or (width // heads) % 2 != 0,
        "num_key_value_heads": heads % _count(c, "num_key_value_heads", heads) != 0,
        "rope_scaling" if c.get("rope_scaling") else "rope_parameters": kind not in ("default", "llama3")
        or (kind == "llama3" and not scaled),
        "partial_rotary_factor": c.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0))
        not in (None, 1.0),
    }
    _refused(c, wrong)
    qwen = c["model_type"] == "qwen2"
    biases = bool(c.get("attention_bias")) or bool(c.get("mlp_bias"))
    original = rope.get("original_max_position_embeddings", c.get("max_position_embeddings"))
    return {
        "width": width,
        "layers": _count(c, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": _count(c, "num_key_value_heads", heads) % heads,
        "hidden": _count(c, "intermediate_size"),
        "base": float(c.get("rope_theta") or rope.get("rope_theta") or 10_000.0),
        "epsilon": float(c.get("rms_norm_eps", 1e-6)),
        "bias": biases and not qwen,
        "qkv_bias": qwen,
        "tied": bool(c.get("tie_word_embeddings", False)),
    } | ({"scaling": {k: float(rope[v]) for k, v in LLAMA3.items()} | {"original": float(original)}} if scaled else {})


def _gpt2(c: Config) -> dict[str, Any]:
    width, heads = _count(c, "n_embd"), _count(c, "n_head")
    _refused(c, {
        "activation_function": c.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"),
        "n_head": width % heads != 0,
        "scale_attn_weights": c.get("scale_attn_weights", True) is not True,
        "scale_attn_by_inverse_layer_idx": bool(c.get("scale_attn_by_inverse_layer_idx")),
        "add_cross_attention": bool(c.get("add_cross_attention")),
    })  # fmt: skip
    return {
        "width": width,
        "layers": _count(c, "n_layer"),
        "heads": heads,
        "hidden": _count(c, "n_inner", 4 * width),
        "epsilon": float(c.get("layer_norm_epsilon", 1e-5)),
        "tied": bool(c.get("tie_word_embeddings", True)),
    }


def _bert(c: Config) -> dict[str, Any]:
    width, heads = _count(c, "hidden_size"), _count(c, "num_attention_heads")
    _refused(c, {
        "hidden_act": c.get("hidden_act", "gelu") != "gelu",
        "num_attention_heads": width % heads != 0,
        "position_embedding_type": c.get("position_embedding_type", "absolute") not in (None, "absolute"),
        "is_decoder": bool(c.get("is_decoder")),
        "tie_word_embeddings": c.get("tie_word_embeddings", True) is not True,
    })  # fmt: skip
    return {
        "width": width,
        "layers": _count(c, "num_hidden_layers"),
        "heads": heads,
        "hidden": _count(c, "intermediate_size", 4 * width),
        "epsilon": float(c.get("layer_norm_eps", 1e-12)),
    }


# -- settings -> config.json -------------------------------------------------------------------------------------------


def _llama_config(s: Any) -> dict[str, Any]:
    """s: a `Shape`, its `hidden` worked out."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": s.base}
    if s.scaling:
        rope |= {"rope_type": "llama3", **{v: s.scaling[k] for k, v in LLAMA3.items()}}
        rope["original_max_position_embeddings"] = int(s.scaling["original"])
    common = {
        "hidden_size": s.width,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads or s.heads,
        "intermediate_size": s.hidden,
        "hidden_act": "silu",
        "rms_norm_eps": s.epsilon,
        "max_position_embeddings": s.length,
        "rope_theta": s.base,  # where older readers look
        "rope_parameters": rope,
    } | ({"rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"}} if s.scaling else {})
    if s.qkv_bias and not s.bias:
        return {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **common, "use_sliding_window": False}
    return {"model_type": "llama", **common, "attention_bias": s.bias, "mlp_bias": s.bias}


def _gpt2_config(s: Any) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_embd": s.width,
        "n_layer": s.layers,
        "n_head": s.heads,
        "n_inner": s.hidden,
        "n_positions": s.length,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": s.epsilon,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), s.dropout),
    }


def _bert_config(s: Any) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "hidden_size": s.width,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "intermediate_size": s.hidden,
        "hidden_act": "gelu",
        "layer_norm_eps": s.epsilon,
        "max_position_embeddings": s.length,
        "type_vocab_size": 1,
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), s.dropout),
    }


# -- the tables --------------------------------------------------------------------------------------------------------


def _stack(ours: str, theirs: str, pairs: Mapping[str, str]) -> Table:
    """The modules of one layer."""
    return [(f"{ours}.{LAYER}.{k}", tuple(f"{theirs}.{LAYER}.{n}" for n in v.split("|"))) for k, v in pairs.items()]


LLAMA = Family(
    "llama", _llama, _llama_config,
    [
        ("embedding", ("model.embed_tokens",)),
        ("layers.norm", ("model.norm",)),
        ("out", ("lm_head",)),
        *_stack("layers.layers", "model.layers", {
            "before": "input_layernorm",
            "attention.inner": "self_attn.q_proj|self_attn.k_proj|self_attn.v_proj",
            "attention.outer": "self_attn.o_proj",
            "between": "post_attention_layernorm",
            "dense.inner": "mlp.gate_proj|mlp.up_proj",
            "dense.outer": "mlp.down_proj",
        }),
    ],
    ("", "model."), ("rotary_emb.inv_freq",), "LlamaForCausalLM",
)  # fmt: skip
GPT2 = Family(
    "gpt", _gpt2, _gpt2_config,
    [
        ("embedding", ("transformer.wte",)),
        ("layers.positions", ("transformer.wpe.weight",)),
        ("layers.norm", ("transformer.ln_f",)),
        ("out", ("lm_head",)),
        *_stack("layers.layers", "transformer.h", {
            "before": "ln_1",
            "attention.inner": "attn.c_attn",
            "attention.outer": "attn.c_proj",
            "between": "ln_2",
            "dense.inner": "mlp.c_fc",
            "dense.outer": "mlp.c_proj",
        }),
    ],
    ("", "transformer."), (".attn.bias", ".attn.masked_bias"), "GPT2LMHeadModel", transposed=True,
)  # fmt: skip
BERT = Family(
    "bert", _bert, _bert_config,
    [
        ("encoder.form.table", ("bert.embeddings.word_embeddings",)),
        ("encoder.layers.positions", ("bert.embeddings.position_embeddings.weight",)),
        ("encoder.layers.before", ("bert.embeddings.LayerNorm",)),
        ("guess.change.0", ("cls.predictions.transform.dense",)),
        ("guess.change.2", ("cls.predictions.transform.LayerNorm",)),
        ("guess.bias", ("cls.predictions.bias",)),
        *_stack("encoder.layers.layers", "bert.encoder.layer", {
            "attention.inner": "attention.self.query|attention.self.key|attention.self.value",
            "attention.outer": "attention.output.dense",
            "before": "attention.output.LayerNorm",
            "dense.inner": "intermediate.dense",
            "dense.outer": "output.dense",
            "between": "output.LayerNorm",
        }),
    ],
    ("", "bert."), ("embeddings.position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
    "BertForMaskedLM",
)  # fmt: skip
HEADS = {"text": LLAMA, "llama": LLAMA, "gpt": GPT2}  # what a recipe calls them
FAMILIES = {"gpt2": GPT2, "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "bert": BERT}
TYPES = "bert.embeddings.token_type_embeddings.weight"  # BERT: which of two texts; ours reads one, so the first row is added
BESIDE = ("bert.pooler.", "cls.seq_relationship.")  # what a BERT was also trained with, and no task needs


def family(config: Config, name: str) -> Family:
    """Raises Unsupported for a kind of network that is none of ours."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise Unsupported("family.unknown", name=name, type=str(kind)[:60], known=list(FAMILIES))
    return FAMILIES[kind]


def window(config: Config) -> int:
    """Positions that the network looks back on."""
    most = _count(config, "n_positions" if config["model_type"] == "gpt2" else "max_position_embeddings")
    slides = config["model_type"] == "mistral" or config.get("use_sliding_window") is True
    most = min(most, _count(config, "sliding_window", most)) if slides else most
    return most if config["model_type"] in ("gpt2", "bert") else min(most, FURTHEST)


# -- weights -----------------------------------------------------------------------------------------------------------


def read(
    kind: Family, config: Config, wanted: Mapping[str, torch.Size], weights: Weights, place: str
) -> tuple[dict[str, Tensor], bool]:
    """Our tensors, by the names and shapes that our network wants; whether what guesses hidden words was among them.

    Raises BundleError with the names of all that lack, are too many or have another shape.
    """
    left, found, lacking, problems = _named(kind, weights), {}, [], []
    guesses = any(k.startswith("cls.predictions.transform") for k in left)
    for ours, shape in wanted.items():
        if ours.startswith("guess.") and not guesses:
            continue
        theirs = _theirs(kind, ours)
        if ours.endswith("bias") and _without_bias(config, ours):
            found[ours] = torch.zeros(shape)
            continue
        if gone := [n for n in theirs if n not in left]:
            lacking += gone
            continue
        parts = [left.pop(n) for n in theirs]
        turned = kind.transposed and parts[0].ndim == 2 and "layers.layers" in ours
        tensor = parts[0] if len(parts) == 1 else _below(parts)
        found[ours] = tensor.T if turned and tensor is not None else tensor  # type: ignore[assignment]
        if tensor is None or found[ours].shape != shape:
            said = [
                " x ".join(map(str, s)) or "()" for s in ((tensor if tensor is not None else parts[0]).shape, shape)
            ]
            problems.append(problem("import.shape", place=place, tensor=theirs[0], found=said[0], want=said[1]))
    if kind is BERT and (types := left.pop(TYPES, None)) is not None and not problems and not lacking:
        found["encoder.layers.positions"] = found["encoder.layers.positions"] + types[:1]
    extra = [n for n in left if not n.startswith(BESIDE)]
    if kind is not BERT and "out.weight" not in wanted:
        extra = [n for n in extra if n != "lm_head.weight"]  # tied: the embedding once more
    said: list[Problem] = [problem("import.lacking", place=place, names=shortened(lacking))] if lacking else []
    said += [problem("import.extra", place=place, names=shortened(sorted(extra)))] if extra else []
    raise_all(BundleError, [*said, *problems])
    return {k: t.to(torch.float32).contiguous().clone() for k, t in found.items()}, guesses


def written(kind: Family, ours: Weights, shape: Any) -> dict[str, Tensor]:
    """A checkpoint's tensors of ours. `shape`: the `Shape` of the network."""
    found = {}
    kv = (shape.kv_heads or shape.heads) * shape.width // shape.heads
    for name, tensor in ours.items():
        theirs = _theirs(kind, name)
        if kind.transposed and tensor.ndim == 2 and "layers.layers" in name:
            tensor = tensor.T
        sizes = [shape.width, kv, kv] if len(theirs) == 3 else [len(tensor) // len(theirs)] * len(theirs)
        found |= dict(zip(theirs, tensor.split(sizes)))
    if kind is BERT:
        found[TYPES] = torch.zeros(1, shape.width)
    if kind is GPT2 and not shape.bias:  # theirs always has them
        bare = {k.removesuffix("weight"): t for k, t in found.items() if ".h." in k or "ln_f" in k}
        found |= {f"{k}bias": torch.zeros(t.shape[-1]) for k, t in bare.items()}
    if kind is LLAMA and shape.qkv_bias and not shape.bias:
        found = {k: t for k, t in found.items() if not k.endswith("o_proj.bias")}
    return {k: t.detach().cpu().contiguous().clone() for k, t in found.items()}


def _without_bias(config: Config, ours: str) -> bool:
    """Whether the checkpoint has no bias where ours has one: of Llama's kind it may be in some places only."""
    if config.get("model_type") not in ("llama", "mistral"):
        return False
    return not config.get("attention_bias" if ".attention." in ours else "mlp_bias")


def _below(parts: list[Tensor]) -> Tensor | None:
    """Tensors one below the other; None where they do not fit."""
    return torch.cat(parts) if len({p.shape[1:] for p in parts}) == 1 else None


def _theirs(kind: Family, ours: str) -> tuple[str, ...]:
    """The names in a checkpoint of one of our tensors."""
    module, _, leaf = ours.rpartition(".")
    for name, theirs in kind.table:
        if name == ours:
            return theirs
        head, layer, tail = name.partition(LAYER)
        inside = module[len(head) :].partition(".")
        if (not layer and name == module) or (layer and module.startswith(head) and inside[2] == tail[1:]):
            return tuple(f"{t.replace(LAYER, inside[0])}.{leaf}" for t in theirs)
    raise KeyError(ours)


def _named(kind: Family, weights: Weights) -> dict[str, Tensor]:
    """A checkpoint's tensors with the names that the table has, whatever stands before them; without the useless ones."""
    first = kind.table[0][1][0]
    prefix = next((p for p in kind.prefixes if any(n.startswith(first.removeprefix(p)) for n in weights)), "")
    whole = ("lm_head.", "cls.")
    named = {n if n.startswith(whole) else prefix + n: t for n, t in weights.items()}
    return {n: t for n, t in named.items() if not n.endswith(kind.useless)}
