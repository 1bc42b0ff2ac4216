"""Checkpoints of a run: `checkpoints/step-N/`, a new folder each, manifest last, at least two kept, no pickle."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from luban import files
from luban.errors import BundleError

KEEP = 2


def save(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Save {file: {name: tensor}} and a JSON state as checkpoint `step`; older ones beyond `KEEP` go afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    for other in _steps(folder):
        if _number(other) > step:  # of another run, or damaged: this run would have begun from there
            shutil.rmtree(other, ignore_errors=True)
    new = folder / f".step-{step}.{os.getpid()}.tmp"
    new.mkdir()
    try:
        for name, content in tensors.items():
            save_file({k: v.detach().contiguous().cpu() for k, v in content.items()}, new / f"{name}.safetensors")
        files.write_json(new / "state.json", state)
        files.seal(new, "checkpoint")
        files.replace_folder(new, folder / f"step-{step}")
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    for old in _steps(folder)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """The newest checkpoint that verifies, None where there is none."""
    for path in _steps(folder):
        try:
            manifest = files.open_sealed(path, "checkpoint")
            tensors = {
                n[: -len(".safetensors")]: load_file(path / n) for n in manifest["files"] if n.endswith(".safetensors")
            }
            return tensors, json.loads((path / "state.json").read_text(encoding="utf-8"))
        except (BundleError, SafetensorError, OSError, ValueError, RecursionError):
            continue
    return None


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
