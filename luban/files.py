"""Folders that are whole or not there: files first, a hashed manifest last, everything synced.

Format of MANIFEST.json: {"format": 1, "luban": version, "kind": ..., "files": {name: sha256}}.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from luban.errors import BundleError

FORMAT = 1
MANIFEST = "MANIFEST.json"


def sync(path: Path) -> None:
    """fsync of a file or folder."""
    flags = os.O_RDONLY
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return  # Windows cannot open folders
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def write(path: Path, data: bytes | str) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, kind: str, files: Iterable[str] | None = None) -> None:
    """Write the manifest of a folder whose files are all there."""
    from luban import __version__

    names = sorted(
        files if files is not None else (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    )
    names = [n.replace(os.sep, "/") for n in names if n != MANIFEST]
    for name in names:
        sync(folder / name)
    write_json(
        folder / MANIFEST,
        {"format": FORMAT, "luban": __version__, "kind": kind, "files": {n: digest(folder / n) for n in names}},
    )
    sync(folder)


def open_sealed(folder: Path, kind: str, *, whole: bool = True) -> dict[str, Any]:
    """The manifest of a folder, after every file has been held against it.

    Raises BundleError: no manifest, another kind or format, a file missing, changed, or leading out of the folder.
    """
    if not folder.is_dir():
        raise BundleError("bundle.not_a_folder", path=str(folder))
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError("bundle.no_manifest", path=str(folder))
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files, format = dict(manifest["files"]), manifest["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise BundleError("bundle.bad_manifest", path=str(folder), reason=str(e)[:200]) from e
    if manifest.get("kind") != kind:
        raise BundleError("bundle.other_kind", path=str(folder), kind=str(manifest.get("kind")), want=kind)
    if format != FORMAT:
        raise BundleError(
            "bundle.other_format", path=str(folder), found=str(format), known=FORMAT, version=str(manifest.get("luban"))
        )
    if whole:
        for name, want in files.items():
            _hold(folder, name, want)
    return manifest


def _hold(folder: Path, name: str, want: str) -> None:
    file = inside(folder, name)
    if not file.is_file():
        raise BundleError("bundle.file_missing", path=str(folder), file=name)
    if digest(file) != want:
        raise BundleError("bundle.file_changed", path=str(folder), file=name)


def inside(folder: Path, name: str) -> Path:
    """folder/name, refused where it would lead out of the folder, through `..`, an absolute path or a link."""
    path = folder / name
    if (
        not isinstance(name, str)
        or "\\" in name
        or "\0" in name
        or Path(name).is_absolute()
        or ".." in Path(name).parts
    ):
        raise BundleError("bundle.path_out", path=str(folder), file=str(name))
    step = folder
    for part in Path(name).parts:
        step = step / part
        if step.is_symlink():
            raise BundleError("bundle.path_out", path=str(folder), file=name)
    return path


def replace_folder(new: Path, final: Path) -> None:
    """Put a finished folder in the place of another; a crash leaves one of the two under its name or `.old`."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(new, final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed writer left: dot-files and dot-folders that end in .tmp."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
