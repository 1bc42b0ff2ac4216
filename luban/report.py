"""A Report: what a stage found, as numbers for machines and as a page for people.

The numbers go to JSON; the blocks (headings, text, notes, tables, plots) go to Markdown, to one self-contained HTML file
and to notebooks. Whatever a user wrote (column names, classes, cells) is escaped. `Plot.svg` and `Html.html` are markup made
by Luban's own code; read back from a file, they are kept only where they hold nothing but drawing and text, and the page
forbids scripts and every outside address on top (a Content-Security-Policy).
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from html import unescape
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

from luban.command import width
from luban.errors import BundleError
from luban.markup import escape, harmless, markdown, number, tag, visible
from luban.messages import language, say
from luban.wrapping import cells, padded, wrapped

FORMAT = 1
LEVELS = ("info", "warn", "bad", "good")
NONE = "'none'"
# Width of a cell, in Latin letters: beyond the first it keeps room for its words, up to the second Chinese is not broken.
LONG, SHORT = 60, 24
SOURCES = {
    "default-src": NONE,
    "style-src": "'unsafe-inline'",
    "img-src": "data:",
    "base-uri": NONE,
    "form-action": NONE,
}
POLICY = "; ".join(f"{what} {source}" for what, source in SOURCES.items())


@dataclass
class Heading:
    text: str
    level: int = 2
    type: ClassVar[str] = "heading"


@dataclass
class Text:
    """Plain text; an empty line starts a new paragraph."""

    text: str
    type: ClassVar[str] = "text"


@dataclass
class Note:
    """One remark, coloured by level: info, warn, bad or good."""

    level: str
    text: str
    type: ClassVar[str] = "note"


@dataclass
class Table:
    """Cells are text, numbers, None, or `{"value", "low", "high"}`. `align` is one of l, r, c a column; else by content."""

    title: str
    columns: list[str]
    rows: list[list[Any]]
    align: str | None = None
    type: ClassVar[str] = "table"


@dataclass
class Plot:
    """An SVG or image from `luban.plots`."""

    title: str
    svg: str
    caption: str = ""
    type: ClassVar[str] = "plot"


@dataclass
class Html:
    """A fragment made by Luban's own code (a column's `render`); never text of the user's."""

    title: str
    html: str
    caption: str = ""
    type: ClassVar[str] = "html"


@dataclass
class Details:
    """Blocks folded away behind a summary."""

    summary: str
    blocks: list[Any] = field(default_factory=list)
    type: ClassVar[str] = "details"


Block = Heading | Text | Note | Table | Plot | Html | Details
BLOCKS: dict[str, type] = {b.type: b for b in (Heading, Text, Note, Table, Plot, Html, Details)}


class Report:
    """Numbers with intervals, tables and plots of one stage.

    `kind` names the stage and the file (`evaluate`); `title` is what people read; `numbers` is anything JSON can hold,
    objects with a `to_json` and numpy scalars included; what is not finite becomes null.
    """

    def __init__(self, kind: str, title: str, numbers: dict[str, Any] | None = None):
        self.kind = kind
        self.title = title
        self.numbers: dict[str, Any] = numbers if numbers is not None else {}
        self.blocks: list[Block] = []
        self.created = datetime.now(UTC).isoformat(timespec="seconds")

    def __repr__(self) -> str:
        return f"Report(kind={self.kind!r}, blocks={len(self.blocks)}, numbers={list(self.numbers)})"

    def add(self, block: Block) -> Report:
        self.blocks.append(block)
        return self

    def heading(self, text: str, level: int = 2) -> Report:
        return self.add(Heading(text, level))

    def text(self, text: str) -> Report:
        return self.add(Text(text))

    def note(self, level: str, text: str) -> Report:
        if level not in LEVELS:
            raise ValueError(level)
        return self.add(Note(level, text))

    def table(
        self, title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]], align: str | None = None
    ) -> Report:
        return self.add(Table(title, list(columns), [list(row) for row in rows], align))

    def plot(self, title: str, svg: str, caption: str = "") -> Report:
        return self.add(Plot(title, svg, caption))

    def html(self, title: str, html: str, caption: str = "") -> Report:
        return self.add(Html(title, html, caption))

    def details(self, summary: str, blocks: Iterable[Block] | Report) -> Report:
        return self.add(Details(summary, list(blocks.blocks if isinstance(blocks, Report) else blocks)))

    def to_json(self) -> dict[str, Any]:
        return {
            "report": FORMAT,
            "kind": self.kind,
            "title": self.title,
            "created": self.created,
            "numbers": jsonable(self.numbers),
            "blocks": [_block_to_json(b) for b in self.blocks],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """A Report from what `to_json` gave. Raises KeyError, TypeError or ValueError where it is something else."""
        if data["report"] != FORMAT:
            raise ValueError(data["report"])
        report = cls(str(data["kind"]), str(data["title"]), dict(data["numbers"]))
        report.created = str(data["created"])
        report.blocks = [_block_from_json(b) for b in data["blocks"]]
        return report

    def shown(self) -> list[Block]:
        """The blocks, or one table of all numbers where nobody wrote any."""
        if self.blocks or not self.numbers:
            return self.blocks
        return [Table("", [say("report.name"), say("report.value")], list(_flat(jsonable(self.numbers))))]

    def to_markdown(self) -> str:
        return "\n\n".join([f"# {markdown(self.title)}", *(_markdown(b) for b in self.shown())]) + "\n"

    def to_text(self) -> str:
        """For a terminal: aligned tables, no markup; what needs a picture is left to the page."""
        parts = [visible(self.title), *_lines(self.shown())]
        return "\n\n".join(p for p in parts if p) + "\n"

    def to_html(self) -> str:
        """One self-contained page: no script, nothing fetched, light and dark, printable, readable on a phone."""
        head = tag("meta", charset="utf-8")
        head += tag("meta", http_equiv="Content-Security-Policy", content=POLICY)
        head += tag("meta", name="viewport", content="width=device-width, initial-scale=1")
        head += tag("title", escape(self.title)) + tag("style", _css())
        body = tag("body", tag("main", self._body()))
        return "<!DOCTYPE html>\n" + tag("html", tag("head", head), body, lang=language()[:2]) + "\n"

    def _body(self) -> str:
        blocks = self.shown()
        anchors = {id(b): f"s{i}" for i, b in enumerate(h for h in blocks if isinstance(h, Heading))}
        parts = [tag("h1", escape(self.title)), _contents([b for b in blocks if isinstance(b, Heading)], anchors)]
        parts += [_html(b, anchors) for b in blocks]
        parts.append(
            tag("footer", escape(say("report.made", kind=self.kind, time=self.created.replace("T", " ")[:19])))
        )
        return "\n".join(p for p in parts if p)

    def _repr_html_(self) -> str:
        """For notebooks: the page in a frame of its own, so that its style touches nothing else."""
        style = "width:100%;height:640px;border:1px solid #8884;border-radius:8px"
        return tag("iframe", srcdoc=self.to_html().replace("\n", " "), sandbox="", style=style)

    def save(self, folder: str | os.PathLike[str], name: str | None = None) -> Path:
        """Write `folder/NAME.json` and `folder/NAME.html` (NAME is the kind unless given); gives the HTML file's path.

        Each file appears whole or not at all.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^\w.-]+", "-", name or self.kind).lstrip(".") or "report"
        _write(
            folder / f"{stem}.json", json.dumps(self.to_json(), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
        )
        _write(folder / f"{stem}.html", self.to_html())
        return folder / f"{stem}.html"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Read a saved `.json`. Raises BundleError where it is missing or not a report."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise BundleError("report.unreadable", path=str(path), reason=f"{type(e).__name__}: {e}") from e


def combine(title: str, reports: Iterable[Report]) -> Report:
    """Several reports as one, a chapter each; their numbers stand under their kinds (`audit`, `audit_2`)."""
    whole = Report("report", title)
    for report in reports:
        name, i = report.kind, 2
        while name in whole.numbers:
            name, i = f"{report.kind}_{i}", i + 1
        whole.numbers[name] = report.numbers
        whole.heading(report.title)
        whole.blocks += [Heading(b.text, min(b.level + 1, 6)) if isinstance(b, Heading) else b for b in report.shown()]
    return whole


def jsonable(value: Any) -> Any:
    """`value` as JSON can hold it: numpy scalars and arrays, paths, `to_json`; what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(v) for v in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    for method in ("to_json", "tolist"):
        if hasattr(value, method):
            return jsonable(getattr(value, method)())
    return str(value)


def _block_to_json(block: Block) -> dict[str, Any]:
    data: dict[str, Any] = {"type": block.type}
    for f in fields(block):
        value = getattr(block, f.name)
        data[f.name] = [_block_to_json(b) for b in value] if f.name == "blocks" else jsonable(value)
    return data


def _block_from_json(data: dict[str, Any]) -> Block:
    kind = BLOCKS[data["type"]]
    values = {f.name: data[f.name] for f in fields(kind) if f.name in data}
    if kind is Details:
        values["blocks"] = [_block_from_json(b) for b in values["blocks"]]
    if kind is Note and values["level"] not in LEVELS:
        raise ValueError(values["level"])
    for name in ("svg", "html"):
        if name in values and not harmless(values[name]):
            values[name] = tag("code", escape(values[name][:200]))
    return kind(**values)


def _flat(numbers: Any, name: str = "") -> Iterable[list[Any]]:
    if isinstance(numbers, dict) and "value" not in numbers:
        for key, value in numbers.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield [name, numbers]


def _contents(headings: list[Heading], anchors: dict[int, str]) -> str:
    headings = [h for h in headings if h.level <= 3]
    if len(headings) < 3:
        return ""
    if len(headings) > 24:
        headings = [h for h in headings if h.level <= 2]
    items = [
        tag("li", tag("a", escape(h.text), href="#" + anchors[id(h)]), class_="deep" if h.level > 2 else None)
        for h in headings
    ]
    return tag("nav", tag("b", escape(say("report.contents"))), tag("ol", *items))


def _html(block: Block, anchors: dict[int, str]) -> str:
    match block:
        case Heading():
            return tag(f"h{min(max(block.level, 2), 6)}", escape(block.text), id=anchors.get(id(block)))
        case Text():
            return _paragraphs(block.text)
        case Note():
            mark = tag("b", escape(say(f"report.note_{block.level}")))
            return tag("div", mark + escape(block.text), class_=f"note {block.level}", role="note")
        case Table():
            return _table_html(block)
        case Details():
            return tag("details", tag("summary", escape(block.summary)), *(_html(b, anchors) for b in block.blocks))
        case Plot() | Html():
            title = tag("b", escape(block.title)) if block.title else ""
            drawn = tag("div", block.svg if isinstance(block, Plot) else block.html, class_="wide")
            return tag("figure", title, drawn, tag("figcaption", escape(block.caption)) if block.caption else "")


def _paragraphs(text: str) -> str:
    parts = [p for p in re.split(r"\n\s*\n", str(text).strip()) if p.strip()]
    return "\n".join(tag("p", "<br>".join(escape(line) for line in p.split("\n"))) for p in parts)


def _table_html(table: Table) -> str:
    sides = _sides(table)
    head = tag("tr", *(tag("th", escape(c), class_=s) for c, s in zip(table.columns, sides)))
    body = "\n".join(
        tag("tr", *(tag("td", _cell_html(c), class_=_class(c, s)) for c, s in zip(row, sides))) for row in table.rows
    )
    title = tag("div", escape(table.title), class_="caption") if table.title else ""
    return tag("div", title, tag("table", tag("thead", head), tag("tbody", body)), class_="wide")


def _sides(table: Table) -> list[str | None]:
    names = {"l": None, "r": "right", "c": "center"}
    if table.align:
        return [names.get(a) for a in table.align.ljust(len(table.columns), "l")]
    columns = [[jsonable(row[i]) for row in table.rows if i < len(row)] for i in range(len(table.columns))]
    return ["right" if _numeric(column) else None for column in columns]


def _numeric(column: list[Any]) -> bool:
    filled = [c for c in column if c is not None]
    return bool(filled) and all(isinstance(c, (int, float, dict)) and not isinstance(c, bool) for c in filled)


def _cell(value: Any) -> tuple[str, str]:
    """What a cell says, and its interval."""
    value = jsonable(value)
    if isinstance(value, dict) and "value" in value:
        low, high = value.get("low"), value.get("high")
        return number(value["value"]), "" if low is None or high is None else f"{number(low, 3)} – {number(high, 3)}"
    if isinstance(value, bool):
        return say("report.yes") if value else say("report.no"), ""
    if isinstance(value, (int, float)) or value is None:
        return number(value), ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), ""


def _class(cell: Any, side: str | None) -> str | None:
    """A cell of many words keeps room for them beside many columns of numbers; a few Chinese ones are not set below each other."""
    if side or not isinstance(cell, str):
        return side
    wide = cells(cell)
    return "long" if wide > LONG else "short" if wide <= SHORT and not cell.isascii() else None


def drawn_cell(drawn: str) -> str:
    """A table's cell of finished markup, with room for what it says."""
    said = "" if "<img" in drawn else unescape(re.sub(r"<[^>]*>", "", drawn))
    return tag("td", drawn, class_=_class(said, None))


def _cell_html(value: Any) -> str:
    said, interval = _cell(value)
    return escape(said) + (tag("small", escape(interval)) if interval else "")


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * min(max(block.level, 2), 6)} {markdown(block.text)}"
        case Text():
            return "\n\n".join(markdown(" ".join(p.split("\n"))) for p in re.split(r"\n\s*\n", block.text.strip()))
        case Note():
            return f"> **{markdown(say(f'report.note_{block.level}'))}** {markdown(block.text)}"
        case Table():
            return _table_markdown(block)
        case Details():
            return "\n\n".join([f"**{markdown(block.summary)}**", *(_markdown(b) for b in block.blocks)])
        case Plot() | Html():
            parts = [markdown(t) for t in (block.title, block.caption) if t]
            return "*" + say("report.figure") + "* " + ": ".join(parts)


def _table_markdown(table: Table) -> str:
    marks = {"right": "--:", "center": ":-:", None: "---"}
    lines = [[markdown(c) for c in table.columns], [marks[s] for s in _sides(table)]]
    for row in table.rows:
        lines.append([markdown(said) + (f" ({interval})" if interval else "") for said, interval in map(_cell, row)])
    title = f"**{markdown(table.title)}**\n\n" if table.title else ""
    return title + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _lines(blocks: list[Block]) -> Iterator[str]:
    """Each block for a terminal; a heading over nothing but pictures says where they are."""
    for i, block in enumerate(blocks):
        yield _terminal(block)
        under = list(takewhile(lambda b: not isinstance(b, Heading), blocks[i + 1 :]))
        if isinstance(block, Heading) and under and not any(map(_terminal, under)):
            yield say("report.on_page")


def _terminal(block: Block) -> str:
    match block:
        case Heading():
            return visible(block.text) + "\n" + "-" * cells(visible(block.text))
        case Text():
            return _wrapped(visible(block.text))
        case Note():
            return _wrapped(say("report.noted", level=say(f"report.note_{block.level}"), text=visible(block.text)))
        case Table():
            return _table_terminal(block)
        case Details():
            return "\n\n".join(filter(None, [visible(block.summary), *map(_terminal, block.blocks)]))
    return ""


def _wrapped(text: str) -> str:
    """Lines of the terminal's width, 100 at most; those under "- " stand under its words."""
    under = "  " if text.startswith("- ") else ""
    first, *more = wrapped(text, min(100, width()) - len(under))
    return "\n".join([first, *(under + line for line in more)])


def _table_terminal(table: Table) -> str:
    rows = [[visible(c) for c in table.columns]]
    rows += [
        [visible(said) + (f" ({interval})" if interval else "") for said, interval in map(_cell, r)] for r in table.rows
    ]
    wide = [max(cells(row[i]) for row in rows) for i in range(len(table.columns))]
    right = [side == "right" for side in _sides(table)]
    lines = ["  ".join(map(padded, row, wide, right)).rstrip() for row in rows]
    return "\n".join(([visible(table.title)] if table.title else []) + ["  " + line for line in lines])


@cache
def _css() -> str:
    return (Path(__file__).parent / "report.css").read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    """Atomic: a temporary file beside it, flushed to the disk, then renamed over it."""
    handle, temporary = tempfile.mkstemp(prefix=f".{visible(path.name)}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
