"""Folders that are whole or not there: files first, a hashed manifest last, everything synced.

Format of MANIFEST.json: {"format": 1, "luban": version, "kind": ..., "files": {name: sha256}}. Nothing else may lie in
such a folder, except names that begin with a dot and those that `BESIDE` lists, and nothing reads those as a part of it.

How a folder takes another's place, and what a crash leaves: (1) the old one becomes `.NAME.old`, (2) the new one gets
the name, (3) what lay beside the old one's files moves over, (4) `.NAME.old` goes. `recover` ends what was begun.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from luban.console import tell
from luban.errors import BundleError, DiskError, RequestError
from luban.messages import say

FORMAT = 1
MANIFEST = "MANIFEST.json"
REPORT = "report.html"  # made anew from the reports whenever a Bundle changes, so that it does not move over
# What may lie in a folder of a kind beside the files of its manifest: what a run, a report, an export or an
# explanation leaves there, and what a file manager drops.
BESIDE = {
    "bundle": (
        "checkpoints",
        "run.log",
        "quarantine.csv",
        REPORT,
        "model.onnx",
        "explain",
        "tensorboard",
        "mlflow.db",
        "Thumbs.db",
        "desktop.ini",
    ),
}
WAIT = 10.0  # seconds that a reader gives another process to end its replacement
_held: set[Path] = set()  # folders that this process holds


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
UNABLE = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}  # of a disk that cannot sync a folder; EIO is another matter


def sync(path: Path) -> None:
    """fsync of a file or folder. Raises OSError where the disk could not keep it."""
    folder = path.is_dir()
    if os.name == "nt" and folder:
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if not folder or e.errno not in UNABLE:
            raise
    finally:
        os.close(descriptor)


def put(path: Path, data: bytes | str | Iterable[Any]) -> str:
    """Write a new file, piece by piece, and sync it; its SHA-256, so that it need not be read again for a manifest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for piece in [data.encode() if isinstance(data, str) else data] if isinstance(data, (bytes, str)) else data:
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def write(path: Path, data: bytes | str) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = near(path, f"{os.getpid()}.tmp")
    try:
        put(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # what went wrong first is what is to be told
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def room_for(folder: Path, needed: int) -> Iterator[None]:
    """About `needed` bytes are written into `folder`. Raises DiskError in words, before it begins where it can."""
    there = next((p for p in (folder, *folder.parents) if p.is_dir()), Path("."))
    try:
        if shutil.disk_usage(there).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        yield
    except OSError as e:
        words = {"path": str(e.filename or folder), "needed": f"{needed:,}", "reason": e.strerror or str(e)}
        if e.errno in FULL:
            limit = "" if e.errno == errno.ENOSPC else say("disk.limit")
            free = f"{shutil.disk_usage(there).free:,}"
            raise DiskError("disk.full", **words | {"path": str(folder), "free": free, "limit": limit}) from e
        raise DiskError("disk.failed", **words) from e


def write_json(path: Path, value: Any) -> None:
    write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, kind: str, files: Iterable[str] | None = None, known: Mapping[str, str] | None = None) -> None:
    """Write the manifest of a folder whose files are all there. `known`: files that `put` wrote, and their SHA-256."""
    from luban import __version__

    known = known or {}
    names = sorted(
        files if files is not None else (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    )
    names = [n.replace(os.sep, "/") for n in names if n != MANIFEST]
    for name in names:
        if name not in known:
            sync(folder / name)
    for inner in sorted({(folder / n).parent for n in names} - {folder}):
        sync(inner)
    hashes = {n: known.get(n) or digest(folder / n) for n in names}
    write_json(folder / MANIFEST, {"format": FORMAT, "luban": __version__, "kind": kind, "files": hashes})
    sync(folder)


def open_sealed(folder: Path, kind: str, *, whole: bool = True) -> dict[str, Any]:
    """The manifest of a folder, after every file has been held against it.

    Raises BundleError: no manifest, another kind or format, a file missing, changed, leading out of the folder, or
    there without being in the manifest (see `BESIDE` for what may be).
    """
    if not folder.is_dir():
        raise BundleError("bundle.not_a_folder", path=str(folder))
    path = inside(folder, MANIFEST)
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
        for name in _found(folder, BESIDE.get(kind, ())):
            if name not in files:
                raise BundleError("bundle.file_extra", path=str(folder), file=name)
    return manifest


def _found(folder: Path, beside: Iterable[str] = ()) -> Iterator[str]:
    """Names of all files in a folder, apart from the manifest, dot-names and what may lie beside."""
    for root, folders, names in os.walk(folder):
        here = Path(root)
        top = here == folder
        folders[:] = [n for n in folders if not n.startswith(".") and not (top and n in beside)]
        links = [n for n in folders if (here / n).is_symlink()]
        for name in (*names, *links):
            if not name.startswith(".") and not (top and (name in beside or name == MANIFEST)):
                yield (here / name).relative_to(folder).as_posix()


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


# -- one folder in the place of another --------------------------------------------------------------------------------


def near(folder: Path, ending: str) -> Path:
    """A name beside a folder that belongs to it: `.NAME.ENDING`, shortened where it would be too long for a disk."""
    name = folder.name
    if len(os.fsencode(name)) > 200:
        name = f"{name[:40]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return folder.with_name(f".{name}.{ending}")


def replace_folder(new: Path, final: Path) -> None:
    """Put a sealed folder in the place of another; what lies beside the other's files moves over."""
    recover(final)
    if final.exists():
        os.replace(final, near(final, "old"))
    os.replace(new, final)
    sync(final.parent)
    recover(final)


def recover(final: Path) -> None:
    """End a replacement that was begun: `.NAME.old` is put back, or gives over what the new folder lacks and goes."""
    old = near(final, "old")
    if not old.is_dir() or old.is_symlink():
        return
    if not final.exists():
        os.replace(old, final)
        sync(final.parent)
        return
    written = _written(old)
    for path in list(old.iterdir()):
        if path.name not in written and path.name != REPORT and not os.path.lexists(final / path.name):
            os.replace(path, final / path.name)
    sync(final)  # before the old folder goes: what moved must not be lost with it
    gone = near(final, "gone.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(old, gone)
    sync(final.parent)
    shutil.rmtree(gone, ignore_errors=True)


def recovered(folder: Path) -> Path:
    """Where to read a folder: itself, after an interrupted replacement was ended, or `.NAME.old` on a read-only disk."""
    old, began = near(folder, "old"), time.monotonic()
    while old.is_dir() and time.monotonic() - began < WAIT:
        try:
            with held(folder):
                break
        except RequestError:  # another process is at it this moment
            time.sleep(0.02)
        except OSError:
            break
    return folder if folder.exists() or not old.is_dir() else old


def _written(folder: Path) -> set[str]:
    """First parts of the names in a folder's manifest, its own included."""
    try:
        return {MANIFEST, *(n.split("/")[0] for n in json.loads((folder / MANIFEST).read_text("utf-8"))["files"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {MANIFEST}


def refuse_foreign(folder: Path, kind: str) -> None:
    """Nobody's files are overwritten: raises RequestError where a folder holds what Luban did not write."""
    if folder.is_symlink() or folder.is_file():
        raise RequestError("files.not_a_folder", path=str(folder))
    known = {*_written(folder), *BESIDE.get(kind, ())} if (folder / MANIFEST).is_file() else set(BESIDE.get(kind, ()))
    foreign = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    foreign = [n for n in foreign if n not in known and not n.startswith(".")]
    if foreign:
        raise RequestError("files.foreign", path=str(folder), files=foreign[:4])


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Only one process at a time writes a folder. Ends what a killed one began, sweeps what it left.

    Raises RequestError where another process holds it. Holding it twice in one process is fine.
    """
    folder = folder.resolve()
    if folder in _held:
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = near(folder, "lock")
    descriptor = _locked(lock, folder)
    _held.add(folder)
    try:
        recover(folder)
        sweep(folder.parent, near(folder, "").name)
        if folder.is_dir():
            sweep(folder)
        yield
    finally:
        _held.discard(folder)
        try:
            with suppress(OSError):
                lock.unlink()
        finally:
            os.close(descriptor)


def _locked(lock: Path, folder: Path) -> int:
    """An open, locked file; it is the one of that name, not one that its last holder has just removed."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(descriptor)
            if os.fstat(descriptor).st_ino == os.stat(lock).st_ino:
                return descriptor
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            raise RequestError("files.busy", path=str(folder)) from None
        except FileNotFoundError:
            pass  # removed in between
        except (ImportError, OSError) as e:
            tell("files.no_lock", path=str(folder), reason=getattr(e, "strerror", None) or str(e))
            return descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Raises BlockingIOError or PermissionError where another process holds it, another OSError where disks cannot."""
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:  # Windows
        from msvcrt import LK_NBLCK, locking

        locking(descriptor, LK_NBLCK, 1)
    else:
        flock(descriptor, LOCK_EX | LOCK_NB)


def sweep(folder: Path, prefix: str = ".") -> None:
    """Remove what a killed writer left: `.NAME.PROCESS.tmp` and `.NAME.gone.tmp`."""
    left = re.compile(re.escape(prefix) + (r".*\." if prefix == "." else "") + r"(\d+|gone)\.tmp", re.DOTALL)
    for path in list(folder.iterdir()):
        if left.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
