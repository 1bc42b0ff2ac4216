"""Checkpoints of a run: `checkpoints/step-N/`, a new folder each, manifest last, at least two kept, no pickle."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from luban import files
from luban.errors import BundleError

KEEP = 2


def save(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Save {file: {name: tensor}} and a JSON state as checkpoint `step`; older ones beyond `KEEP` go afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
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
        except BundleError:
            continue
    return None


def _steps(folder: Path) -> list[Path]:
    """Newest first."""
    found = [p for p in folder.glob("step-*") if p.name[5:].isdigit()] if folder.is_dir() else []
    return sorted(found, key=lambda p: -int(p.name[5:]))
