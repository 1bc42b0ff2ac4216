"""The tokenizer in a GGUF file as a tokenizer.json, in plain data: byte-level BPE (`gpt2`) or SentencePiece's BPE (`llama`).

A GGUF holds the vocabulary and the merges, but only the name of the rules by which a text is cut before (`tokenizer.ggml.pre`).
What the names stand for is fixed by llama.cpp (src/llama-vocab.cpp); a name that is not known here is refused, for a text
that is cut otherwise gives ids that the network never saw together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luban.errors import DataError, Unsupported, problem

NORMAL, CONTROL, USER = 1, 3, 4  # kinds of tokens
KINDS = ("gpt2", "llama")
PARTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = ("gpt-2", "mpt", "olmo", "jais", "phi-2")  # the expression of GPT-2, which `tokenizers` has built in
DIGITS = ("smollm", "starcoder", "refact", "codeshell", "exaone")  # each digit by itself before that
LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral")
QWEN2 = ("qwen2", "deepseek-r1-qwen", "stablelm2")
RULES = (*GPT2, *DIGITS, *LLAMA3, *QWEN2)
BLANK = "▁"  # how SentencePiece writes it
Values = Mapping[str, Any]


def tokenizer(values: Values, path: str) -> dict[str, Any]:
    """A tokenizer.json. Raises Unsupported for a kind or rules that are not known, DataError for a vocabulary that is none."""
    kind, pieces = values.get("tokenizer.ggml.model"), tokens(values, path)
    if kind not in KINDS:
        raise Unsupported(problem("gguf.tokenizer", place=path, name=str(kind)[:60], allowed=KINDS))
    made = _bytes(values, path, pieces) if kind == "gpt2" else _pieces(values, path, pieces)
    control = [
        {
            "id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": of == CONTROL,
        }
        for i, (t, of) in enumerate(zip(pieces, _kinds(values, path, pieces))) if of in (CONTROL, USER)
    ]  # fmt: skip
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": control, **made}


def tokens(values: Values, path: str) -> list[str]:
    """The vocabulary, by id."""
    found = values.get("tokenizer.ggml.tokens")
    if not _texts(found) or not found or len(set(found)) != len(found):
        raise _wrong("tokens", found, path)
    return found


def named(values: Values, kind: str, count: int) -> int | None:
    """The id of a token such as `bos`, where the file names one of its tokens."""
    found = values.get(f"tokenizer.ggml.{kind}_token_id")
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < count else None


def begins(values: Values) -> bool:
    """Whether `bos` stands before every text; where the file does not say, as llama.cpp has it."""
    usual = values.get("tokenizer.ggml.model") == "llama" or values.get("tokenizer.ggml.pre") in LLAMA3
    return bool(values.get("tokenizer.ggml.add_bos_token", usual))


def _bytes(values: Values, path: str, pieces: list[str]) -> dict[str, Any]:
    rules = values.get("tokenizer.ggml.pre")
    if rules not in RULES:
        raise Unsupported(problem("gguf.rules", place=path, name=str(rules)[:60], allowed=RULES))
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": rules in GPT2 + DIGITS}
    steps: list[dict[str, Any]] = [level]
    if rules in DIGITS:
        steps = [{"type": "Digits", "individual_digits": True}, level]
    elif rules in LLAMA3 + QWEN2:
        cut = PARTS.format(digits=r"\p{N}{1,3}" if rules in LLAMA3 else r"\p{N}")
        steps = [{"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}, level]
    merges = values.get("tokenizer.ggml.merges")
    if not _texts(merges) or any(m.count(" ") != 1 for m in merges):
        raise _wrong("merges", merges, path)
    return {
        "normalizer": {"type": "NFC"} if rules == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": _around(values, pieces),
        "decoder": level,
        "model": _bpe(values, path, pieces, [m.split(" ") for m in merges], ignore_merges=rules in LLAMA3),
    }


def _pieces(values: Values, path: str, pieces: list[str]) -> dict[str, Any]:
    kinds, scores = _kinds(values, path, pieces), values.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(pieces):
        raise _wrong("scores", scores, path)
    ids = {
        t: i for i, (t, of) in enumerate(zip(pieces, kinds)) if of in (NORMAL, USER)
    }  # no control token is ever merged
    pairs = sorted(
        (-scores[i], len(t[:at]), ids[t[:at]], t[:at], t[at:])
        for t, i in ids.items() for at in range(1, len(t)) if t[:at] in ids and t[at:] in ids
    )  # fmt: skip
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]  # fmt: skip
    before = values.get("tokenizer.ggml.add_space_prefix", True)
    if before:
        blank = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": BLANK}, blank]}
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": blank,
        "pre_tokenizer": None,
        "post_processor": _around(values, pieces),
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": _bpe(values, path, pieces, [[a, b] for *_, a, b in pairs], byte_fallback=True, fuse_unk=True),
    }


def _bpe(values: Values, path: str, pieces: list[str], merges: list[list[str]], **more: bool) -> dict[str, Any]:
    ids, unknown = {t: i for i, t in enumerate(pieces)}, named(values, "unknown", len(pieces))
    if strange := next((m for m in merges if not {*m, "".join(m)} <= ids.keys()), None):
        raise _wrong("merges", strange, path)
    fallback = pieces[unknown] if unknown is not None and "byte_fallback" in more else None
    plain = {"type": "BPE", "dropout": None, "unk_token": fallback, "continuing_subword_prefix": None}
    usual = {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return plain | usual | more | {"vocab": ids, "merges": merges}


def _around(values: Values, pieces: list[str]) -> dict[str, Any] | None:
    """What puts `bos` before a text and `eos` after it, where the file asks for it."""
    begin = named(values, "bos", len(pieces)) if begins(values) else None
    end = named(values, "eos", len(pieces)) if values.get("tokenizer.ggml.add_eos_token") else None
    if begin is None and end is None:
        return None
    special = lambda i, of: [] if i is None else [{"SpecialToken": {"id": pieces[i], "type_id": of}}]  # noqa: E731
    text = lambda name, of: [*special(begin, of), {"Sequence": {"id": name, "type_id": of}}, *special(end, of)]  # noqa: E731
    known = {pieces[i]: {"id": pieces[i], "ids": [i], "tokens": [pieces[i]]} for i in (begin, end) if i is not None}
    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": known,
    }


def _kinds(values: Values, path: str, pieces: list[str]) -> list[int]:
    found = values.get("tokenizer.ggml.token_type", [NORMAL] * len(pieces))
    if not isinstance(found, list) or len(found) != len(pieces):
        raise _wrong("token_type", found, path)
    return found


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _wrong(key: str, found: Any, path: str) -> DataError:
    return DataError(problem("gguf.bad_value", place=path, key=f"tokenizer.ggml.{key}", found=repr(found)[:80]))
