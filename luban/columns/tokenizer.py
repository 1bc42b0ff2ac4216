"""Tokenizers of text columns, in the format of the `tokenizers` library (tokenizer.json).

Normalisation is part of the tokenizer, so what trains is what serves. The vocabulary begins with padding (0) and unknown
(1); neither is a special token of the library, so no text that a user types can become one.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from luban.errors import BundleError

PADDING, UNKNOWN = 0, 1
PAD, UNK = "⟨pad⟩", "⟨unk⟩"  # no cutter below gives a token with both a bracket and a letter in it
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD = rf"[{UNSPACED}]|[\w&&[^{UNSPACED}]]+(?:['’][\w&&[^{UNSPACED}]]+)*|[^\w\s]"
ASCII_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]", re.ASCII)  # what WORD is there
WESTERN_WORD = re.compile(
    r"\w+(?:['’]\w+)*|[^\w\s]|[\x1c-\x1f]"
)  # and there; Python counts four more controls as blanks
WESTERN = (
    (0xA0, 0x24F),
    (0x400, 0x45F),
    (0x2010, 0x205E),
    (0x20A0, 0x20BF),
)  # Latin, Cyrillic, punctuation, currencies


def train(
    texts: Sequence[str],
    tokens: str,
    *,
    vocabulary: int,
    least: int,
    lower: bool,
    normalise: bool,
    whitespace: bool = False,
    exact: bool = False,
) -> dict[str, Any]:
    """A tokenizer.json learned from texts, as plain data. tokens: `characters`, `words` or `bpe` (byte-level).

    `exact`: no blank is put in front of a text, so that what is decoded is what was encoded (bpe).
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bpe = tokens == "bpe"
    made = Tokenizer(models.BPE() if bpe else models.WordLevel({UNK: 0}, unk_token=UNK))
    steps: list[Any] = [normalizers.NFKC()] if normalise else []
    steps += [normalizers.Lowercase()] if lower else []
    steps += [normalizers.Replace(Regex(r"\s+"), " ")] if tokens == "characters" or whitespace else []
    made.normalizer = normalizers.Sequence(steps)
    if bpe:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=not exact)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=max(vocabulary, len(alphabet)),
            min_frequency=least,
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        )
    else:
        cut = "." if tokens == "characters" else WORD
        made.pre_tokenizer = pre_tokenizers.Split(Regex(cut), "removed", invert=True)
        if tokens == "characters":
            made.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(vocab_size=vocabulary, min_frequency=least, show_progress=False)
    made.train_from_iterator(texts, trainer)
    plain = _with_own_ids(json.loads(made.to_str()))
    if len(plain["model"]["vocab"]) <= 2 and least > 1:  # so few texts that nothing comes twice
        return train(
            texts,
            tokens,
            vocabulary=vocabulary,
            least=1,
            lower=lower,
            normalise=normalise,
            whitespace=whitespace,
            exact=exact,
        )
    return plain


def _with_own_ids(plain: dict[str, Any]) -> dict[str, Any]:
    """Padding and unknown first, then the learned tokens in their order."""
    learned = sorted(plain["model"]["vocab"].items(), key=lambda item: item[1])
    plain["model"]["vocab"] = {w: i for i, w in enumerate([PAD, UNK, *(w for w, _ in learned if w not in (PAD, UNK))])}
    plain["added_tokens"] = []
    return plain


def load(plain: dict[str, Any], control: bool = False) -> Any:
    """The tokenizer that was saved. Raises BundleError where the file holds something else.

    `control`: it has control tokens, which a text that holds their names does not get.
    """
    from tokenizers import Tokenizer

    try:
        made = Tokenizer.from_str(json.dumps(plain))
        made.encode_special_tokens = control
        return made
    except BaseException as e:  # the library raises a bare Exception for a file that it cannot read
        if type(e) not in (Exception, ValueError, TypeError):
            raise
        raise BundleError("bundle.bad_column", reason=str(e)[:200]) from e


def quick(plain: dict[str, Any]) -> Callable[[str], list[int]] | None:
    """Text that is `western` -> its ids, several times as fast as the library; None where the tokenizer is not one of our
    words.

    In ASCII composing changes nothing, lower case is one letter for one, and no script goes without spaces.
    """
    steps = [s.get("type") for s in (plain.get("normalizer") or {}).get("normalizers", ())]
    cutter, model = plain.get("pre_tokenizer") or {}, plain["model"]
    own = cutter.get("pattern") == {"Regex": WORD} and cutter.get("behavior") == "Removed" and cutter.get("invert")
    if (
        not own
        or model.get("type") != "WordLevel"
        or not {*steps} <= {"NFKC", "Lowercase"}
        or plain.get("added_tokens")
    ):
        return None
    lower, composed, ids = "Lowercase" in steps, "NFKC" in steps, _Known(model["vocab"]).__getitem__

    def cut(text: str) -> list[int]:
        word = ASCII_WORD if text.isascii() else WESTERN_WORD
        text = unicodedata.normalize("NFKC", text) if composed else text
        return list(map(ids, word.findall(text.lower() if lower else text)))

    return cut


def western(text: str) -> bool:
    """Whether a text holds only characters that Python and the library compose, make small and cut alike."""
    return text.isascii() or not _strange().search(text)


@cache
def _strange() -> re.Pattern[str]:
    """Letters without marks of their own, decimal digits, punctuation that joins nothing, symbols and blanks are not strange."""
    known = ("Lu", "Ll", "Lo", "Nd", "Zs", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So")
    there = {chr(i) for low, high in WESTERN for i in range(low, high + 1) if unicodedata.category(chr(i)) in known}

    def stays(c: str) -> bool:
        return all(d.isascii() or d in there for d in (*unicodedata.normalize("NFKC", c), *c.lower()))

    return re.compile(rf"[^\x00-\x7f{''.join(map(re.escape, sorted(filter(stays, there))))}]")


class _Known(dict[str, int]):
    def __missing__(self, word: str) -> int:
        return UNKNOWN


def words(plain: dict[str, Any]) -> list[str]:
    """The vocabulary by id."""
    vocabulary = plain["model"]["vocab"]
    return sorted(vocabulary, key=vocabulary.get)
