"""The stamps of Tux Paint, a drawing program for children: pictures with a sentence that says what they show, in many languages."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from luban.data.samples.catalogue import Sample
from luban.data.samples.clients import deb_data, download, tar_members
from luban.data.samples.content import Content, as_csv
from luban.data.samples.language import part_of

BELOW = "usr/share/tuxpaint/stamps/"
LANGUAGES = {"caption_zh": "zh_CN", "caption_de": "de", "caption_fr": "fr"}


def tux_paint(sample: Sample, work: Path) -> Content:
    """One row a picture: its file, its caption in four languages, the first two folders that it lies in; parts by picture.

    Stamps that are drawn as SVG are left out. Most captions belong to one picture alone; of letters there are two to four drawings.
    """
    pictures: dict[str, bytes] = {}
    texts: dict[str, dict[str, str]] = {}
    for name, content in tar_members(deb_data(download(sample, sample.packages[0], work), sample), BELOW, sample):
        stem, _, ending = name.rpartition(".")
        if ending == "png":
            pictures[stem] = content
        elif ending == "txt":
            texts[stem] = _captions(content.decode())
    seen: Counter[bytes] = Counter()
    rows = []
    for stem in sorted(pictures.keys() & texts.keys()):
        seen[pictures[stem]] += 1
        if texts[stem].get("") and seen[pictures[stem]] == 1:  # the same picture is not shown twice
            kind, *rest = stem.split("/")
            captions = [texts[stem].get(""), *(texts[stem].get(code, "") for code in LANGUAGES.values())]
            rows.append((f"pictures/{stem}.png", *captions, kind, rest[0] if rest[1:] else kind, part_of(sample.name, stem)))  # fmt: skip
            yield f"pictures/{stem}.png", pictures[stem]
    yield "captions.csv", as_csv(("image", "caption", *LANGUAGES, "kind", "group", "part"), rows)


def _captions(text: str) -> dict[str, str]:
    """The English sentence, which stands first, under ""; others by language, from `de.utf8=...`."""
    first, *others = text.strip().splitlines() or [""]
    pairs = (line.partition(".utf8=") for line in others)
    return {"": first.strip()} | {code.strip(): said.strip() for code, mark, said in pairs if mark}
