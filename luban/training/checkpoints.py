"""Checkpoints of a run: `checkpoints/step-N/`, a new folder each, manifest last, at least two kept, no pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from luban import files
from luban.console import tell
from luban.errors import BundleError

KEEP = 2
KIND = "checkpoint"
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

Tensors = dict[str, dict[str, Tensor]]  # {file: {name: tensor}}


def save(
    folder: Path, step: int, tensors: Tensors, state: dict[str, Any], *, good: bool = True,
    ready: Mapping[str, tuple[Path, str]] | None = None,
) -> None:  # fmt: skip
    """Save tensors and a JSON state as checkpoint `step`; those beyond the newest `KEEP` go afterwards.

    `ready`: {name: (path, SHA-256)} of files that are on the same disk already and move in. One that is not `good` (the run looks as if it diverges) does not drive out the newest that are.
    Raises DiskError where the disk is full or fails: what was saved before is still there, nothing half is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(state, indent=1, ensure_ascii=False) + "\n"
    needed = len(text) + sum(t.nbytes + 128 for content in tensors.values() for t in content.values())
    with files.room_for(folder, needed):
        files.sweep(folder)
        for other in _steps(folder):
            if _number(other) > step:  # of another run, or damaged: this run would have begun from there
                _remove(other)
        new = folder / f".step-{step}.{os.getpid()}.tmp"
        try:
            new.mkdir()
            known = {f"{n}.safetensors": files.put(new / f"{n}.safetensors", pieces(c)) for n, c in tensors.items()}
            known["state.json"] = files.put(new / "state.json", text)
            for name, (path, digest) in (ready or {}).items():
                os.replace(path, new / name)
                known[name] = digest
            if not good:
                known["suspect"] = files.put(new / "suspect", "")
            files.seal(new, KIND, known, known)
            files.replace_folder(new, folder / f"step-{step}")
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
    _prune(folder)


def newest(
    folder: Path, *, good: bool = False, before: int | None = None, load: Callable[[Path], Tensors] | None = None
) -> tuple[Tensors, dict[str, Any]] | None:
    """The newest checkpoint that verifies (a good one, of an earlier step than `before`), None where there is none.

    `load` reads the tensors of a folder; all of them by default.
    """
    for path in _steps(folder):
        if (good and (path / "suspect").exists()) or (before is not None and _number(path) >= before):
            continue
        try:
            files.open_sealed(path, KIND)
            return (load or _everything)(path), json.loads((path / "state.json").read_text(encoding="utf-8"))
        except (BundleError, SafetensorError, OSError, ValueError, RecursionError) as e:
            tell("checkpoint.damaged", step=_number(path), reason=str(e)[:300])
    return None


def _everything(path: Path) -> Tensors:
    return {p.name.removesuffix(".safetensors"): load_file(p) for p in sorted(path.glob("*.safetensors"))}


def clear(folder: Path) -> None:
    """A run that begins anew: what an earlier one left is not to be taken for its own."""
    for path in _steps(folder):
        _remove(path)


def pieces(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    """The bytes of a safetensors file, one tensor after the other, so that a large one is never in memory twice."""
    order = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))  # wide types first: all stay aligned
    header, start = {}, 0
    for name in order:
        t = tensors[name]
        header[name] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [start, start + t.nbytes]}
        start += t.nbytes
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        yield tensors[name].detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data


def _prune(folder: Path) -> None:
    """The newest `KEEP` stay, and as many good ones: what the newest of them led to is not known when it is saved."""
    every = _steps(folder)
    good = [p for p in every if not (p / "suspect").exists()]
    for old in every[KEEP:]:
        if old not in good[:KEEP]:
            _remove(old)


def _remove(path: Path) -> None:
    """First the name, then the files: half of a checkpoint is never to be seen."""
    gone = path.with_name(f".{path.name}.gone.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(OSError):
        os.replace(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    """Newest first, after replacements that were interrupted have been ended."""
    if not folder.is_dir():
        return []
    for old in folder.glob(".step-*.old"):
        files.recover(folder / old.name[1 : -len(".old")])
    found = [p for p in folder.glob("step-*") if p.name[5:].isdecimal() and p.name.isascii()]
    return sorted(found, key=_number, reverse=True)


def _number(path: Path) -> int:
    return int(path.name[5:])
