"""The encoder of a pretrained checkpoint, through the `transformers` library."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from luban.console import tell
from luban.errors import BundleError, RequestError, Unsupported, need, problem, shortened
from luban.nn.tokens import Encoder, Tokens
from luban.nn.transformer import seen
from luban.settings import Model, Natural

EXTRA = "transformers"
CODE = (  # settings of a config.json that fetch or run code of others, or tell how somebody else computed
    "auto_map", "custom_pipelines", "quantization_config", "attn_implementation", "_attn_implementation",
    "_attn_implementation_autoset", "_attn_implementation_internal", "experts_implementation", "_name_or_path", "dtype",
    "torch_dtype", "transformers_version", "architectures", "return_dict", "use_return_dict", "output_hidden_states",
    "output_attentions", "torchscript", "pruned_heads", "is_decoder", "add_cross_attention", "use_cache",
    "use_kernels", "reference_compile", "deterministic_flash_attn",
)  # fmt: skip
ENCODERS = "MODEL_FOR_TEXT_ENCODING_MAPPING"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


class Pretrained(Encoder):
    """Use with few rows of a language that a checkpoint knows. Instead: `transformer` or `cnn` with many rows, or where
    answers must be cheap.

    BERT, RoBERTa, DistilBERT, MiniLM, ModernBERT, ELECTRA, the encoder of T5 ...: `name` is a folder in the Hugging Face
    layout, a sample model (`luban datasets`) or a name on the hub; weights come from safetensors only. Its tokenizer
    cuts the text. `pooling` auto: as its authors pool (a sentence model says so), else mean. `freeze`: the embeddings
    and so many layers from below stay as they are, or `all`. ids (B, T) -> Tokens (B, T, D).
    """

    accepts = ("ids",)
    brings = "tokens_of"  # the column's setting that `name` is also put into
    student = "transformer"  # what it is distilled into where only a size is asked for
    deep = True
    sequences = True
    plenty = 400  # rows from which on fewer epochs do
    share = 0.015  # of the rate: 2e-3 for new layers is 3e-5 for these

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        name: Annotated[str, Model()],
        pooling: Literal["auto", "first", "last", "mean", "max", "attention"] = "auto",
        freeze: Natural | Literal["all"] = 0,
    ):
        super().__init__()
        column = columns[0]
        config = column.state.get("config")
        if not isinstance(config, Mapping) or column.tokens_of != name:
            raise RequestError(problem("model.other_tokens", place=column.name, name=name, found=str(column.tokens_of)))
        source = column.source if torch.get_default_device().type != "meta" else None
        self.model = loaded(source, config, name) if source else built(config, name)
        self.scale = _scale(self.model)
        self.learned = source is not None  # its weights are worth keeping: LoRA may stand beside them
        if hasattr(self.model, "pooler"):
            self.model.pooler = None
        self.size = int(self.model.config.hidden_size)
        self.pooling = column.state.get("pooling", "mean") if pooling == "auto" else pooling
        types = getattr(self.model.config, "type_vocab_size", 0) or 0
        self.typed = (
            bool(column.state.get("types"))
            and types > 1
            and "token_type_ids" in inspect.signature(self.model.forward).parameters
        )
        for part in _lowest(self.model, freeze):
            part.requires_grad_(False)

    def spell_out(self) -> None:
        """Before the network is written down for another runtime: distances that are added to the attention (T5) cannot be traced
        through the fused kernel for every length, so the attention is spelled out. The answers are the same.
        """
        if any(getattr(m, "has_relative_attention_bias", False) for m in self.model.modules()):
            self.model.set_attn_implementation("eager")

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.model.get_input_embeddings()(x)
        return h if self.scale == 1 else h * self.scale

    def forward(self, embedded: Tensor, mask: Tensor, types: Tensor | None = None) -> Tokens:
        """`types` (B, T): which of two texts a position belongs to, for a network that is `typed`."""
        told = {} if types is None else {"token_type_ids": types}
        return Tokens(self.model(inputs_embeds=embedded, attention_mask=seen(mask).long(), **told)[0], mask)


# -- the network of a checkpoint ---------------------------------------------------------------------------------------


def built(config: Mapping[str, Any], name: str, room: str = ENCODERS) -> nn.Module:
    """The network that a config.json describes, untrained; `room`: the library's list of networks that do what is wanted.

    Raises Unsupported for one that is not in it, MissingExtra.
    """
    kind, plain = _kind(config, name, room)
    with _quiet():
        model = kind._from_config(plain, attn_implementation=_attention(kind), dtype=torch.float32)
        return _evenly(model) if room == ENCODERS else model


def loaded(folder: Path, config: Mapping[str, Any], name: str, room: str = ENCODERS) -> nn.Module:
    """The same with the weights of a folder. Raises RequestError where they are no safetensors, or some are missing."""
    if not any(folder.glob("*.safetensors")):
        found = sorted(f.name for pattern in PICKLES for f in folder.glob(pattern))
        raise RequestError(problem("model.no_safetensors", place=str(folder), name=name, found=shortened(found)))
    kind, plain = _kind(config, name, room)
    try:
        with _quiet():
            model, about = kind.from_pretrained(
                folder, config=plain, use_safetensors=True, local_files_only=True, trust_remote_code=False,
                output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32, attn_implementation=_attention(kind),
            )  # fmt: skip
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        raise RequestError(problem("model.bad_weights", place=str(folder), name=name, reason=reason)) from e
    made = {
        n.removeprefix("model.") for n in getattr(kind, "_keys_to_ignore_on_load_missing", None) or ()
    }  # fixed positions of Marian
    lacking = [k for k in about["missing_keys"] if k.removeprefix("model.") not in made and not k.startswith("pooler.")]
    wrong = sorted(map(_shaped, about["mismatched_keys"]))
    if lacking or wrong:
        values = {"lacking": shortened(sorted(lacking)) or "-", "wrong": shortened(wrong) or "-"}
        raise RequestError(problem("model.weights_differ", place=str(folder), name=name, **values))
    if extra := sorted(about["unexpected_keys"]):
        tell("model.extra", name=name, count=len(extra), names=shortened(extra))
    return _evenly(model) if room == ENCODERS else model


def _shaped(key: Any) -> str:
    """A weight that does not fit: its name, the shape in the file, the shape that the network has."""
    if not isinstance(key, tuple):
        return str(key)
    found, wanted = (" x ".join(map(str, shape)) or "()" for shape in key[1:3])
    return f"{key[0]} ({found}; {wanted})"


def _kind(config: Mapping[str, Any], name: str, room: str) -> tuple[Any, Any]:
    """The class of a network that `transformers` itself has, and its configuration, free of what names code of others."""
    need("transformers", EXTRA)
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    type_ = config.get("model_type")
    if not isinstance(type_, str) or type_ not in CONFIG_MAPPING:
        raise Unsupported("model.unknown_type", name=name, type=str(type_)[:60])
    try:
        plain = CONFIG_MAPPING[type_](**{k: v for k, v in config.items() if k not in CODE and k != "model_type"})
    except Exception as e:  # the library checks a configuration with errors of its own, which have no common class
        raise BundleError("model.bad_config", name=name, reason=f"{type(e).__name__}: {e}"[:200]) from e
    plain.use_cache = False
    rooms = [getattr(modeling_auto, r) for r in ((ENCODERS, "MODEL_MAPPING") if room == ENCODERS else (room,))]
    known = next((m for m in rooms if type(plain) in m), None)
    kind = known[type(plain)] if known is not None else None
    kind = kind[0] if isinstance(kind, tuple) else kind
    if room != ENCODERS and kind is None:
        raise Unsupported("model.no_writer", name=name, type=type_)
    if kind is None or "inputs_embeds" not in inspect.signature(kind.forward).parameters:
        raise Unsupported("model.no_encoder", name=name, type=type_)
    return kind, plain


def _attention(kind: Any) -> str:
    return "sdpa" if getattr(kind, "_supports_sdpa", False) else "eager"


def _evenly(model: nn.Module) -> nn.Module:
    """The encoder half where there are two."""
    if getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "decoder"):
        return model.get_encoder()
    return model


@torch.no_grad()
def _scale(model: nn.Module) -> float:
    """What embeddings are multiplied by before the encoder sees them (Marian, Pegasus), where it does not do so itself with
    those that it is given."""
    asked = getattr(model, "embed_scale", 1.0)
    table = model.get_input_embeddings()
    if not isinstance(asked, (int, float)) or asked == 1 or table.weight.is_meta:
        return 1.0
    was, ids = model.training, torch.arange(min(3, table.weight.shape[0]), device=table.weight.device)[None]
    model.eval()
    whole, given = model(input_ids=ids)[0], model(inputs_embeds=table(ids))[0]
    model.train(was)
    return 1.0 if torch.allclose(whole, given, atol=1e-5) else float(asked)


def _lowest(model: nn.Module, freeze: int | str) -> list[nn.Module]:
    """The embeddings and the first layers, or everything."""
    if freeze == "all":
        return [model]
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and any(True for _ in m.parameters())]
    if not freeze or not stacks:
        return []
    layers = max(stacks, key=len)
    inside = {id(p) for layer in layers for p in layer.parameters()}
    below = [m for m in model.children() if not any(id(p) in inside for p in m.parameters()) and m is not model]
    embeddings = [m for m in below if any(isinstance(n, nn.Embedding) for n in m.modules())]
    return [*embeddings, model.get_input_embeddings(), *layers[:freeze]]


class _quiet(warnings.catch_warnings):
    """The library's advice to its own users, and its progress bars, reach nobody here."""

    def __enter__(self) -> Any:
        from transformers.utils import logging

        entered = super().__enter__()
        warnings.simplefilter("ignore")
        self.before = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        return entered

    def __exit__(self, *about: Any) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self.before[0])
        if self.before[1]:
            logging.enable_progress_bar()
        super().__exit__(*about)
