"""Every sentence that a user can read, by id.

`say("recipe.unknown_key", key="epoch")` looks the id up in the catalogue of the chosen language
(`en.json`, `zh.json`), falls back to English, and fills in the values. Code holds ids only.

A word that code and files hold (`test`, `majority`, `checkpoint`) stays what it is for machines; a hole `{part:part.}` of a
sentence says it as `part.test` has it, see `spoken`.

The language is that of `--lang`, else `LUBAN_LANG`, else `LANG`. The language `pseudo` wraps each
sentence in ⟦ ⟧; a test uses it to prove that no text goes round the catalogue.
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LANGUAGES = ("en", "zh")
_chosen: str | None = None


def set_language(language: str | None) -> None:
    """Choose the language of this process; None goes back to the environment."""
    global _chosen
    _chosen = language


def language() -> str:
    wanted = _chosen or os.environ.get("LUBAN_LANG") or os.environ.get("LANG") or "en"
    if wanted == "pseudo":
        return wanted
    wanted = wanted[:2].lower()
    return wanted if wanted in LANGUAGES else "en"


_read: dict[str, dict[str, str]] = {}


def catalogue(lang: str) -> dict[str, str]:
    if lang not in _read:
        with open(os.path.join(os.path.dirname(__file__), f"{lang}.json"), encoding="utf-8") as file:
            _read[lang] = json.load(file)
    return _read[lang]


def say(id: str, /, **values: Any) -> str:
    """The sentence `id` with its values filled in. Control characters in values are made visible."""
    lang = language()
    text = (catalogue(lang).get(id) if lang in LANGUAGES else None) or catalogue("en")[id]
    text = text.format(**{k: _Value(v) for k, v in values.items()})
    return f"⟦{text}⟧" if lang == "pseudo" else text


def known(id: str) -> bool:
    return id in catalogue("en")


class _Value:
    """What fills a hole; where the hole's format is the beginning of ids, as a word of Luban's own."""

    def __init__(self, value: Any):
        self.value = value

    def __format__(self, form: str) -> str:
        if not form.endswith("."):
            return format(shown(self.value), form)
        several = isinstance(self.value, (list, tuple))
        return str(shown([spoken(form, v) for v in self.value])) if several else spoken(form, self.value)


def spoken(room: str, word: Any) -> str:
    """A word of Luban's own as a person reads it: `spoken("part.", "test")`. One that has no sentence stays as it is."""
    return say(f"{room}{word}") if known(f"{room}{word}") else str(shown(word))


def listed(values: Any, mark: str = ", ") -> str:
    """Names one after another, parted as the language has it; `mark`: a comma, or "; " where commas are inside of them."""
    return ({", ": "、", "; ": "；"}[mark] if language() == "zh" else mark).join(str(shown(v)) for v in values)


def together(*sentences: str) -> str:
    """Sentences one after another; those of Chinese stand without a blank."""
    return ("" if language() == "zh" else " ").join(sentences)


def shown(value: Any) -> Any:
    if isinstance(value, (list, tuple, set, frozenset)):
        return listed(value) or "-"  # a sentence has no hole where nothing is
    if isinstance(value, str):  # a newline in a column name must not forge a line of the log
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)
    return value
