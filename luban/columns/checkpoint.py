"""What a column takes from a pretrained checkpoint in the Hugging Face layout: its tokenizer, and what its network is like.

tokenizer.json         how text is cut
tokenizer_config.json  which tokens stand for padding and for a hidden word, and how many positions there are
config.json            the network, as `transformers` describes it
1_Pooling/config.json  how a sentence model makes one vector of a text
generation_config.json which tokens begin and end a text that is written
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luban.columns import templates
from luban.columns import tokenizer as tokenizers
from luban.data import models
from luban.errors import DataError, problem

ENDLESS = 1_000_000  # "no limit", as tokenizer_config.json writes it
HIDDEN = ("mask_token", "unk_token")  # what stands where nothing is, the better one first
USUAL = {
    "mask_token": ("[MASK]", "<mask>"),
    "unk_token": ("[UNK]", "<unk>"),
    "pad_token": ("[PAD]", "<pad>"),
    "eos_token": ("</s>", "<|endoftext|>"),
}  # where no file names them
POOLS = {"pooling_mode_cls_token": "first", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
REACH = {
    "roberta": 2,
    "xlm-roberta": 2,
    "camembert": 2,
    "mpnet": 2,
    "longformer": 2,
}  # positions that no token ever has
UNTYPED = "\ue000\ufffe\ue000"  # a noncharacter between private ones


@dataclass(frozen=True)
class Checkpoint:
    """`state`: what a text column keeps of it; `written`: what one that is written keeps otherwise; `folder`: where its
    weights are. `written` is empty where no token ends a text.
    """

    folder: Path
    state: dict[str, Any]
    written: dict[str, Any]


def read(name: str, column: str) -> Checkpoint:
    """The checkpoint of a folder, a sample model or the hub.

    Raises DataError where it is nowhere, lacks a file, or its tokenizer has tokens that its network does not know.
    """
    folder = models.found(name)
    plain = _file(folder, "tokenizer.json", name)
    config = _file(folder, "config.json", name)
    about = _optional(folder, "special_tokens_map.json") | _optional(folder, "tokenizer_config.json")
    plain |= {"truncation": None, "padding": None}  # the column cuts and pads
    made = tokenizers.load(plain)
    ids = made.get_vocab(with_added_tokens=True)
    size, known = max(ids.values()) + 1, _number(config, "vocab_size")
    if known is not None and size > known:
        raise DataError(problem("model.tokens_differ", place=column, name=name, tokens=size, rows=known))
    before, between, after = _frame(made)
    state = {
        "size": size,
        "pad": _id(about, ids, "pad_token", config.get("pad_token_id") or 0),
        "hide": next((i for kind in HIDDEN if (i := _id(about, ids, kind, None)) is not None), size - 1),
        "before": before,
        "between": between,
        "after": after,
        "types": any(made.encode("a", "a").type_ids),  # whether a second text is told apart from the first
        "window": _window(config, about),
        "config": config,
        "pooling": _pooling(folder),
        "tokenizer": _plain_text_only(plain),
    }
    return Checkpoint(folder, state, _written(folder, config, about, made, (before, after), known or size))


def _frame(made: Any) -> tuple[list[int], list[int], list[int]]:
    """Ids of the control tokens before a text, between two and after the last: of BERT [CLS], [SEP], [SEP]."""
    inside = made.encode("a", add_special_tokens=False).ids
    count = max(1, len(inside))

    def around(ids: list[int]) -> list[int]:
        return [i for i in range(len(ids) - count + 1) if ids[i : i + count] == inside]

    one, two = made.encode("a").ids, made.encode("a", "a").ids
    first, both = around(one), around(two)
    if not inside or not first or len(both) < 2:
        return [], [], []
    before, after = one[: first[0]], one[first[0] + count :]
    return before, two[both[0] + count : both[-1]], after


def _written(
    folder: Path,
    config: dict[str, Any],
    about: dict[str, Any],
    made: Any,
    frame: tuple[list[int], list[int]],
    rows: int,
) -> dict[str, Any]:
    """What begins and ends a text that the network writes; `silent` are its control tokens, which are no part of a text.

    `bare`: a text that was begun is read as it is, nothing stands before it; `behind`: what is written begins behind it, with the token
    that its tokenizer puts there (a text that is read before another is written). The network has `rows` ids, some perhaps of no token.
    Raises DataError where the checkpoint begins or ends texts with an id that is none of its tokenizer's.
    """
    before, after = frame
    ids, said = made.get_vocab(with_added_tokens=True), _optional(folder, "generation_config.json")
    asked = next((e for e in (said.get("eos_token_id"), config.get("eos_token_id")) if e is not None), [])
    named = _id(about, ids, "eos_token", None)
    given = [d.get(k) for d in (said, config) for k in ("bos_token_id", "eos_token_id")]
    marks = [i for v in given for i in (v if isinstance(v, list) else [v])]
    if gone := [i for i in marks if _is_id(i, rows) and i not in ids.values()]:
        raise DataError(problem("model.no_such_token", place=str(folder), id=gone[0]))
    stops = [int(i) for i in (asked if isinstance(asked, list) else [asked]) if _is_id(i, rows)]
    end = named if named is not None else next(iter(stops), None)
    if end is None:
        return {}
    starts = (config.get("decoder_start_token_id"), before[-1] if before else None, said.get("bos_token_id"))
    begin = next((i for i in (*starts, config.get("bos_token_id")) if _is_id(i, rows)), end)
    control = made.get_added_tokens_decoder()
    source, marks = _template(folder, about), {t.content: i for i, t in control.items() if t.special}
    words = {f"{kind}_token": _word(about, f"{kind}_token") for kind in ("bos", "eos", "unk", "pad")}
    chat = templates.derived(source, words, marks, begin) or templates.known(source, ids, begin)
    return {
        "size": rows, "begin": begin, "end": end, "stops": sorted({end, *stops}), "bare": not before, "before": [],
        "behind": not before and after == [begin],
        "after": [end], "chat": chat, "silent": sorted(i for i, t in control.items() if t.special),
    }  # fmt: skip


def _template(folder: Path, about: dict[str, Any]) -> str:
    """The checkpoint's template of conversations: a program in Jinja, "" where there is none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    found = about.get("chat_template")
    if isinstance(found, list):
        found = next((t.get("template") for t in found if isinstance(t, dict) and t.get("name") == "default"), "")
    return found if isinstance(found, str) else ""


def _is_id(value: Any, rows: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < rows


def _plain_text_only(plain: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer whose model never cuts a control token out of text that a user typed.

    The model of a Unigram tokenizer holds them among its pieces, as likely as any, so there they get names that no text has;
    WordPiece and BPE cannot make them.
    """
    model = plain.get("model", {})
    if model.get("type") != "Unigram":
        return plain
    control = {t["content"] for t in plain.get("added_tokens", ()) if t.get("special")}
    vocabulary = [[UNTYPED + piece if piece in control else piece, score] for piece, score in model["vocab"]]
    added = [t for t in plain.get("added_tokens", ()) if not t.get("special")]
    return plain | {"model": model | {"vocab": vocabulary}, "added_tokens": added}


def _window(config: dict[str, Any], about: dict[str, Any]) -> int | None:
    """The most positions that a text may have, control tokens included; None where nothing limits them."""
    reach = _number(config, "max_position_embeddings") or _number(config, "n_positions")
    if config.get("relative_attention_num_buckets") and not config.get("max_position_embeddings"):
        reach = None  # T5: positions are told by distance
    if reach is not None:
        reach -= REACH.get(str(config.get("model_type")), 0)
    said = _number(about, "model_max_length")
    limits = [n for n in (reach, said) if n is not None and 0 < n < ENDLESS]
    return min(limits, default=None)


def _pooling(folder: Path) -> str:
    asked = _optional(folder, "1_Pooling/config.json")
    return next((kind for key, kind in POOLS.items() if asked.get(key) is True), "mean")


def _id(about: dict[str, Any], ids: dict[str, int], kind: str, fallback: int | None) -> int | None:
    named = about.get(kind)
    named = named.get("content") if isinstance(named, dict) else named
    return next((ids[t] for t in (named, *USUAL[kind]) if t in ids), fallback)


def _word(about: dict[str, Any], kind: str) -> str:
    named = about.get(kind)
    named = named.get("content") if isinstance(named, dict) else named
    return named if isinstance(named, str) else ""


def _number(plain: dict[str, Any], key: str) -> int | None:
    value = plain.get(key)
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value else None


def _file(folder: Path, file: str, name: str) -> dict[str, Any]:
    if not (folder / file).is_file():
        raise DataError(problem(f"model.no_{file.removesuffix('.json')}", place=str(folder), name=name))
    return _json(folder / file)


def _optional(folder: Path, file: str) -> dict[str, Any]:
    return _json(folder / file) if (folder / file).is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(problem("model.unreadable", place=str(path), reason=str(e)[:200])) from e
    if not isinstance(value, dict):
        raise DataError(problem("model.unreadable", place=str(path), reason=type(value).__name__))
    return value
