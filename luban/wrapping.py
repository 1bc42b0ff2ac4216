"""Lines of a terminal: how many cells a text takes, filled up to so many, or broken into lines of so many.

A Chinese, Japanese or Korean character takes two cells and a line may end behind it; a mark that belongs to what stands before it begins no
line, and an opening one ends none (Unicode Standard Annexes 11 and 14, what is needed of them).
"""

from __future__ import annotations

import re
import unicodedata

BEHIND = "，。、；：！？）》】」』”’…—%％"  # begins no line
AHEAD = "（《【「『“‘"  # ends no line


def cells(text: str) -> int:
    return len(text) if text.isascii() else sum(map(_cells, text))


def padded(text: str, width: int, right: bool = False) -> str:
    """With blanks on its right, or on its left where it stands on the `right`."""
    blanks = " " * max(0, width - cells(text))
    return blanks + text if right else text + blanks


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of at most `width` cells, the indent included; a word that is longer is broken."""
    lines, line, room = [], "", max(2, width - cells(indent))
    for piece in _pieces(text):
        if line and cells(line) + cells(piece.rstrip()) > room:
            lines.append(line.rstrip())
            line = ""
        line += piece if line or piece.strip() else ""
        while cells(line.rstrip()) > room:
            count = _fitting(line, room)
            lines.append(line[:count])
            line = line[count:]
    return [indent + each for each in [*lines, line.rstrip()] if each] or [indent]


def _pieces(text: str) -> list[str]:
    """What is not parted: a word with the blanks behind it, or a wide character, each with the marks that belong to it."""
    found: list[str] = []
    for part in re.findall(r"[^\s]+\s*|\s+", " ".join(text.split())):
        ahead = ""
        for letter in part:
            wide, glued = _cells(letter) == 2, letter in BEHIND or letter == " "
            if letter in AHEAD:
                ahead += letter
            elif found and not ahead and not _ended(found) and (glued or not (wide or _cells(found[-1][-1]) == 2)):
                found[-1] += letter
            else:
                found.append(ahead + letter)
                ahead = ""
        if ahead:
            found.append(ahead)
    return found


def _ended(found: list[str]) -> bool:
    return found[-1].endswith(" ")


def _fitting(line: str, room: int) -> int:
    """Letters of a line that there is not room for whole: as many as fit, one at least, and no mark parted from what it belongs to."""
    count, used = 0, 0
    for letter in line:
        used += _cells(letter)
        if used > room and count:
            break
        count += 1
    while count > 1 and (line[count] in BEHIND or line[count - 1] in AHEAD):
        count -= 1
    return count


def _cells(letter: str) -> int:
    if unicodedata.east_asian_width(letter) in "WF":
        return 2
    return 0 if unicodedata.combining(letter) else 1
