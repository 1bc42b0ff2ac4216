"""Tiny pretrained checkpoints in the Hugging Face layout, made offline: random weights, a tokenizer learned from a few texts."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch

TEXTS = ["one two three four five six seven eight nine ten", "the film was good", "the film was bad , not good"] * 4
FAMILIES = ("bert", "roberta", "distilbert", "modernbert", "electra", "t5")
NAMES = {
    "wordpiece": "[PAD] [UNK] [CLS] [SEP] [MASK]",
    "bpe": "<s> <pad> </s> <unk> <mask>",
    "unigram": "<pad> </s> <unk>",
    "bytes": "<|endoftext|> <|im_start|> <|im_end|>",
}
DECODERS = {  # of networks that write: their configuration, and what differs from the family's usual
    "gpt2": ("GPT2Config", {}),
    "llama": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama-groups": ("LlamaConfig", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-biases": ("LlamaConfig", {"num_key_value_heads": 1, "attention_bias": True}),
    "llama-3.1": (
        "LlamaConfig",
        {"num_key_value_heads": 2, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }},
    ),
    "mistral": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": 40}),
    "phi": ("PhiConfig", {"partial_rotary_factor": 0.5}),
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 16}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
}  # fmt: skip


def tokenizer(kind, size=90):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = NAMES[kind].split()
    settings = {"vocab_size": size, "special_tokens": special, "show_progress": False}
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer, one, two = trainers.WordPieceTrainer(**settings), "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    elif kind == "bpe":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(**{**settings, "vocab_size": 300}, initial_alphabet=alphabet)
        one, two = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
    elif kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(**{**settings, "vocab_size": 300}, initial_alphabet=alphabet)
        one = two = ""
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer, one, two = trainers.UnigramTrainer(**settings, unk_token="<unk>"), "$A </s>", "$A </s> $B </s>"
    made.train_from_iterator(TEXTS, trainer)
    ids = [(t, made.token_to_id(t)) for t in special]
    if one:
        made.post_processor = processors.TemplateProcessing(single=one, pair=two, special_tokens=ids)
    return made


def make(family, folder):
    """A checkpoint of a family in `folder`; large first weights, so that a wrong mask shows."""
    import transformers

    kind = {"roberta": "bpe", "t5": "unigram", "marian": "unigram"}.get(family, "wordpiece")
    made, folder = tokenizer(kind), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made.enable_truncation(5)  # as published ones have, and the column must not heed
    made.save(str(folder / "tokenizer.json"))
    size, special = made.get_vocab_size(), NAMES[kind].split()
    pad = made.token_to_id("[PAD]" if kind == "wordpiece" else "<pad>")
    names = {
        f"{n}_token": t for n in ("pad", "unk", "mask") if (t := next((s for s in special if n in s.lower()), None))
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"model_max_length": 10**30}))
    common = {"vocab_size": size, "pad_token_id": pad, "initializer_range": 0.3}
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    small |= {"max_position_embeddings": 104} | common
    narrow = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 104} | common
    settings = {
        "bert": ("BertConfig", small),
        "roberta": ("RobertaConfig", small),
        "distilbert": ("DistilBertConfig", narrow),
        "electra": ("ElectraConfig", small | {"embedding_size": 8}),
        "modernbert": (
            "ModernBertConfig",
            small
            | {"cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
            | {"local_attention": 8, "global_attn_every_n_layers": 2},
        ),
        "t5": (
            "T5Config",
            {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "initializer_factor": 1.0} | common,
        ),
        "marian": (  # as the published ones: scaled embeddings, a text that is written begins with padding
            "MarianConfig",
            {
                "d_model": 16,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_attention_heads": 2,
                "decoder_attention_heads": 2,
            }
            | {
                "encoder_ffn_dim": 24,
                "decoder_ffn_dim": 24,
                "max_position_embeddings": 104,
                "scale_embedding": True,
                "init_std": 0.3,
            }
            | {"decoder_start_token_id": pad, "eos_token_id": made.token_to_id("</s>"), "forced_eos_token_id": None}
            | common,
        ),
    }
    name, asked = settings[family]
    torch.manual_seed(0)
    kinds = {"t5": "T5ForConditionalGeneration", "marian": "MarianMTModel", "bert": "BertForMaskedLM"}
    config = getattr(transformers, name)(**asked)
    whole = kinds.get(family)
    model = getattr(transformers, whole)(config) if whole else transformers.AutoModel.from_config(config)
    model.save_pretrained(folder)
    return folder


FOREIGN = ("phi", "qwen3")  # of those the ones that Luban has no network of its own for


def make_decoder(family, folder, rows=310, **settings):
    """A network that writes, with a byte-level tokenizer; its vocabulary has `rows` ids, more than the tokenizer."""
    import transformers

    made, folder = tokenizer("bytes"), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    about = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    kind, own = DECODERS[family]
    common = {"vocab_size": rows, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if family == "gpt2":
        small = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 40}
    else:
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
        small |= {"max_position_embeddings": 64}
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, kind)(**common | small | own | settings)
    )
    for p in model.parameters():  # biases and norms, too, so that a lost one shows
        torch.nn.init.normal_(p, p.mean().item() if p.ndim == 1 else 0, 0.2)
    model.save_pretrained(folder)
    return folder


@cache
def decoder(family="llama"):
    """One of each in this process."""
    return str(make_decoder(family, Path(mkdtemp(prefix="luban-tiny-")) / family))


@cache
def folder(family="bert"):
    """One of each family in this process."""
    return str(make(family, Path(mkdtemp(prefix="luban-tiny-")) / family))
