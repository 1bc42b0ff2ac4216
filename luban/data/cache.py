"""Arrays kept between runs: a folder for each content, memory-mapped, no pickle.

    arrays = kept(key_of(...), {"rows": ...}, write)

`encoded/KEY/` holds one raw little-endian file an array, `header.json` {key, about, arrays: {name: [file, dtype, shape]}} and
the hashed manifest, written last; the folder is made beside and renamed when it is whole. KEY is the hash of all that the
arrays depend on and stands in the header too, so that what belongs to other rows is never taken for these.

Two processes: the second waits for the first and uses what it made. Killed at any write: what is left has a temporary name
and is swept by the next one. Damaged (a length, the header, the manifest; every byte with `verify`): made again, said.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from luban import files
from luban.console import tell
from luban.data.blocks import home
from luban.errors import BundleError, RequestError

VERSION = 1  # of what is written; it is part of every key
KIND = "cache"
LIMIT = (
    20.0  # GiB that all of it may take; the longest unused goes first. `LUBAN_CACHE_GIB` sets another, 0 keeps nothing
)
WAIT = 0.2  # seconds between looks at a folder that another process makes

Arrays = dict[str, np.ndarray]


class Writer:
    """Files that arrays are added to, block after block."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.open: dict[str, tuple[Any, np.dtype, tuple[int, ...]]] = {}
        self.rows: dict[str, int] = {}

    def add(self, name: str, array: np.ndarray) -> None:
        """More rows of one array: the first call fixes its type and the shape of a row."""
        array = np.ascontiguousarray(array)
        if name not in self.open:
            file = open(self.folder / f"{len(self.open)}.bin", "wb")  # noqa: SIM115
            self.open[name] = (file, array.dtype.newbyteorder("<"), array.shape[1:])
            self.rows[name] = 0
        file, dtype, shape = self.open[name]
        if array.shape[1:] != shape:
            raise ValueError(f"{name}: {array.shape[1:]} after {shape}")
        file.write(array.astype(dtype, copy=False).data.cast("B") if array.size else b"")
        self.rows[name] += len(array)

    def header(self) -> dict[str, Any]:
        return {
            name: [Path(file.name).name, dtype.str, [self.rows[name], *shape]]
            for name, (file, dtype, shape) in self.open.items()
        }

    def close(self) -> None:
        for file, _, _ in self.open.values():
            file.close()


def key_of(*parts: Any) -> str:
    """The name of a content: a hash of JSON."""
    text = json.dumps([VERSION, *parts], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def limit() -> int:
    """Bytes that all kept arrays may take; 0 where nothing is kept."""
    try:
        return int(float(os.environ.get("LUBAN_CACHE_GIB") or LIMIT) * 2**30)
    except ValueError:
        tell("cache.bad_limit", value=os.environ["LUBAN_CACHE_GIB"][:40], used=LIMIT)
        return int(LIMIT * 2**30)


def folder() -> Path:
    return home() / "encoded"


def kept(key: str, about: dict[str, Any], write: Callable[[Writer], None]) -> Arrays:
    """The arrays of `key`, mapped read-only; made by `write` where they are not there or not whole.

    Raises OSError where they cannot be written.
    """
    place = folder() / key
    with _waited(place):
        found = _found(place, key)
        if found is not None:
            tell("cache.used", path=str(place))
        else:
            _make(place, key, about, write)
            found = opened(place, key)
        with suppress(OSError):
            os.utime(place)
    trim(place)
    return found


@contextmanager
def _waited(place: Path) -> Iterator[None]:
    """The folder is this process's alone; while another one makes it, this one waits, and says so once."""
    told = False
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(files.held(place))
                break
            except RequestError:
                if not told:
                    tell("cache.waiting", path=str(place))
                told = True
                time.sleep(WAIT)
        yield


def _found(place: Path, key: str) -> Arrays | None:
    """What is there, None where nothing is; what is damaged goes, and is told."""
    if not place.exists():
        return None
    try:
        return opened(place, key)
    except (BundleError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        tell("cache.damaged", path=str(place), reason=str(e)[:200])
        shutil.rmtree(place)
        return None


def opened(place: Path, key: str, *, verify: bool = False) -> Arrays:
    """The arrays of a folder. `verify` reads every byte. Raises BundleError, ValueError, OSError for what is not whole."""
    manifest = files.open_sealed(place, KIND, whole=verify)
    if files.digest(files.inside(place, "header.json")) != manifest["files"].get("header.json"):
        raise BundleError("bundle.file_changed", path=str(place), file="header.json")
    header = json.loads((place / "header.json").read_text(encoding="utf-8"))
    if header["key"] != key:
        raise BundleError("cache.other_data", path=str(place), found=str(header["key"])[:12], want=key[:12])
    return {n: _map(place, *where) for n, where in header["arrays"].items()}


def _map(place: Path, name: str, dtype: str, shape: list[int]) -> np.ndarray:
    path, kind = files.inside(place, name), np.dtype(dtype)
    if kind.hasobject:
        raise ValueError(dtype)
    want = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if path.stat().st_size != want:
        raise BundleError("bundle.file_changed", path=str(place), file=name)
    if want == 0:
        return np.zeros(shape, kind)
    return np.asarray(np.memmap(path, kind, "r", shape=tuple(shape)))


def _make(place: Path, key: str, about: dict[str, Any], write: Callable[[Writer], None]) -> None:
    new = files.near(place, f"{os.getpid()}.tmp")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    writer = Writer(new)
    try:
        write(writer)
        writer.close()
        files.write_json(new / "header.json", {"key": key, "about": about, "arrays": writer.header()})
        files.seal(new, KIND)
        files.replace_folder(new, place)
    except BaseException:
        writer.close()
        shutil.rmtree(new, ignore_errors=True)
        raise


def trim(keep: Path | None = None) -> None:
    """Folders that were not used for longest go until the rest is within the limit; so does what killed processes left."""
    if not folder().is_dir():
        return
    for left in folder().glob(".*.tmp"):
        with suppress(RequestError, OSError), files.held(folder() / left.name[1:].split(".")[0]):
            pass  # holding it sweeps it; where somebody writes it, it is held
    there = sorted((p for p in folder().iterdir() if not p.name.startswith(".")), key=lambda p: p.stat().st_mtime)
    total = sum(map(size, there))
    for path in there:
        if total <= limit():
            return
        if path == keep:
            continue
        with suppress(RequestError, OSError), files.held(path):
            total -= size(path)
            shutil.rmtree(path, ignore_errors=True)


def size(path: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
