"""Writing HTML, SVG and Markdown so that no value of the user's can become markup.

`tag` builds an element from attributes and *finished* children; raw text goes through `escape` first.
"""

from __future__ import annotations

import html
import math
import unicodedata
from html.parser import HTMLParser
from typing import Any

RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
VOID = {"img", "meta", "br", "hr"}
ALLOWED = {
    *("svg", "g", "path", "line", "rect", "circle", "polyline", "polygon", "text", "tspan", "title", "defs", "stop"),
    *("clippath", "lineargradient", "div", "span", "p", "b", "i", "em", "strong", "code", "pre", "br", "hr", "small"),
    *("sub", "sup", "mark", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "caption", "figure", "a"),
    *("figcaption", "img", "h1", "h2", "h3", "h4", "h5", "h6", "details", "summary"),
}


def visible(text: Any) -> str:
    """One line of text: control characters, line breaks and direction marks are written out, not obeyed."""
    return "".join(c if _plain(c) else repr(c)[1:-1] for c in str(text))


def _plain(c: str) -> bool:
    return c.isprintable() or c == "\u200d" or unicodedata.category(c) == "Zs"


def escape(text: Any) -> str:
    """`text` as it may stand in HTML, inside an element or a quoted attribute, on one line."""
    return html.escape(visible(text), quote=True)


def tag(name: str, /, *children: str, **attributes: Any) -> str:
    """An element. `class_` is class, `stroke_width` is stroke-width; None and False leave an attribute out."""
    given = "".join(f' {_name(k)}="{escape(v)}"' for k, v in attributes.items() if v is not None and v is not False)
    if name in VOID:
        return f"<{name}{given}>"
    return f"<{name}{given}>{''.join(children)}</{name}>"


def _name(attribute: str) -> str:
    return attribute.rstrip("_").replace("_", "-")


def number(value: Any, digits: int = 4) -> str:
    """A number for people: `digits` significant ones, whole numbers in full, a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–" if value is None or math.isnan(value) else ("∞" if value > 0 else "−∞")
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e7):
        return f"{int(value):,}".replace("-", "−")
    size = abs(value)
    text = (
        f"{value:.{digits}g}"
        if 1e-4 <= size < 10**digits
        else (f"{value:,.0f}" if 1 <= size < 1e7 else f"{value:.{digits - 1}e}")
    )
    head, _, exponent = text.replace("-", "−").partition("e")
    head = head.rstrip("0").rstrip(".") if "." in head and exponent else head
    return f"{head}×10{str(int(exponent.replace('−', '-'))).translate(RAISED)}" if exponent else head


def markdown(text: Any) -> str:
    """`text` as it may stand in a line or a table cell of Markdown."""
    text = html.escape(visible(text), quote=False)
    return "".join("\\" + c if c in "\\`*_[]|#~" else c for c in text)


BROAD = frozenset("mwMWQO@%<>=+~&—…≤≥×")  # as wide as they are high in common sans-serif fonts


def width_of(text: str, size: float) -> float:
    """Roughly how wide `text` is at font size `size`; East Asian characters are twice as wide as Latin ones."""
    return size * sum(map(_em, text))


def _em(letter: str) -> float:
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    return 0.86 if letter in BROAD else 0.65 if letter.isdigit() or letter.isupper() else 0.58


def fitted(text: Any, room: float, size: float) -> str:
    """`text` on one line, cut with an ellipsis where it is wider than `room`. Reads no more letters than there is room for."""
    text, left = _shown(text, room, size), room - width_of("…", size)
    if width_of(text, size) <= room:
        return text
    count = 0
    for letter in text:
        left -= width_of(letter, size)
        if left < 0:
            break
        count += 1
    return text[:count].rstrip() + "…"


def _shown(text: Any, room: float, size: float) -> str:
    """`text` as it is written out, or the beginning of it that is surely wider than `room`: no letter is under half an em wide."""
    return visible(str(text)[: 2 * math.ceil(max(0.0, room) / size) + 2])


def harmless(fragment: str) -> bool:
    """Whether a fragment read from a file is drawing and text only: no script, handler, style sheet, form or outside address."""
    reader = _Reader()
    reader.feed(fragment)
    reader.close()
    return reader.fine


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.fine = True

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fine = self.fine and tag in ALLOWED and all(_harmless_attribute(k, v or "") for k, v in attrs)

    def handle_decl(self, decl: str) -> None:
        self.fine = False

    def unknown_decl(self, data: str) -> None:
        self.fine = False

    def handle_pi(self, data: str) -> None:
        self.fine = False

    def handle_comment(self, data: str) -> None:
        self.fine = False


def _harmless_attribute(name: str, value: str) -> bool:
    value = "".join(value.split()).lower()
    if name.startswith("on") or name in ("srcdoc", "srcset", "formaction", "action"):
        return False
    if name in ("src", "href", "xlink:href"):
        return value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#"))
    return "url(" not in value.replace("url(#", "") and "javascript:" not in value and "expression(" not in value
