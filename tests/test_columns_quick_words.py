"""The quick road of plain ASCII words gives the ids of the library, for every text; what is not plain never takes it."""

import itertools
import random
import re

import pytest

from luban.columns import tokenizer
from luban.columns.base import make

TRAINING = ["Don't stop the O'Neil's dog_9 at 3.14, OK? a b c x1 it's''s 'quoted' don`t"] * 2
ASCII = [chr(i) for i in range(128)]
NEAR = [chr(i) for low, high in tokenizer.WESTERN for i in range(low, high + 1)]
KNOWN = [c for c in NEAR if tokenizer.western(c)]


def texts() -> list[str]:
    dice = random.Random(0)
    pairs = ["".join(p) for p in itertools.product(ASCII, repeat=2)]
    hard = ["".join(p) for p in itertools.product("a'_9 .\x1c\x0b\x00B-", repeat=3)]
    found = [*pairs, *hard, *("".join(dice.choices(ASCII, k=dice.randint(1, 40))) for _ in range(2000)), ""]
    found += [
        form.replace("?", c)
        for c in KNOWN
        for form in ("?", "a?b ? ?? A?'?b", "?’?'a ’? 9?_?", " ?\x1c?\n?", "?\u0301")
    ]
    mixed = [*KNOWN, *"aZ 9'’_-." * 40]
    found += ["".join(dice.choices(mixed, k=dice.randint(1, 40))) for _ in range(4000)]
    return [t for t in found if tokenizer.western(t)]


def test_most_of_latin_and_cyrillic_is_known_and_what_changes_its_parts_is_not():
    assert {*"éüßøŁžąЖя–—“”’„…€£«»¿\u00a0ﬁ"} - {*KNOWN, "ﬁ"} == set() and len(KNOWN) > 550
    assert not any(map(tokenizer.western, "ﬁ½²İŉ´‿狗\u0301αका"))  # more than one character, marks, other scripts


def fitted(**settings):
    return make("t", "text", {"tokens": "words", "least": 1, **settings}).fit(TRAINING)


def library(column, asked):
    return [e.ids for e in column.tokenizer.encode_batch_fast(asked, add_special_tokens=False)]


@pytest.mark.parametrize("settings", [{}, {"lower": False}, {"normalise": False}, {"lower": False, "normalise": False}])
def test_the_ids_are_the_librarys(settings):
    column, asked = fitted(**settings), texts()
    quick = tokenizer.quick(column.state["tokenizer"])
    assert [quick(t) for t in asked] == library(column, asked)


def test_mixed_texts_keep_their_places():
    column = fitted()
    asked = ["the dog", "l’été ﬁx the dog", "", "狗 dog", "Don't stop", "a\u00a0b"]
    assert [column.encode(t).tolist() for t in asked] == [i or [0] for i in library(column, asked)]


def test_control_another_pattern_is_seen(monkeypatch):
    """White space as Python has it without `re.ASCII` includes four control characters."""
    column, asked = fitted(), texts()
    monkeypatch.setattr(tokenizer, "ASCII_WORD", re.compile(r"\w+(?:'\w+)*|[^\w\s]"))
    quick = tokenizer.quick(column.state["tokenizer"])
    assert [quick(t) for t in asked] != library(column, asked)


def test_control_characters_that_are_not_known_would_differ():
    """Half numbers are letters to Python and none to the library."""
    column, asked = fitted(), ["a½b", "x² y"]
    quick = tokenizer.quick(fitted(normalise=False).state["tokenizer"])
    column = fitted(normalise=False)
    assert [quick(t) for t in asked] != library(column, asked) and not any(map(tokenizer.western, asked))


@pytest.mark.parametrize("tokens", ["characters", "bpe"])
def test_other_tokenizers_have_no_quick_road(tokens):
    assert tokenizer.quick(fitted(tokens=tokens).state["tokenizer"]) is None


def test_a_tokenizer_with_a_step_of_its_own_has_none():
    plain = fitted().state["tokenizer"]
    for change in (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "StripAccents"}]}},
        {"pre_tokenizer": {**plain["pre_tokenizer"], "pattern": {"Regex": r"\w+"}}},
        {"model": {**plain["model"], "type": "BPE"}},
    ):
        assert tokenizer.quick(plain | change) is None
