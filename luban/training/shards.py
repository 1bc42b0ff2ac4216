"""Checkpoints whose tensors lie in several files, one a rank; any number of ranks goes on from them.

    step-N/
      model.0.safetensors  model.1.safetensors ...     the rows of each rank; tensors that are not cut are rank 0's
      shards.json    {"world": 2, "files": {"model": {NAME: {"rows": [[first, count], ...]}}}}
      state.json, MANIFEST.json                        as in every checkpoint

`torch.distributed.checkpoint` does as much, but its `.metadata` is a pickle, which Luban neither writes nor reads.
A tensor is cut along its first dimension. Reading takes from each file only the rows that are asked for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from luban import files
from luban.errors import DiskError
from luban.training import checkpoints

INDEX = "shards.json"
ENDING = ".safetensors"
Tensors = dict[str, dict[str, Tensor]]


class Piece(NamedTuple):
    """Rows of a whole tensor: how many it has, the first one here, how many are here."""

    whole: int
    first: int
    count: int


Cut = Callable[[str, str], Piece | None]  # (file, name of a tensor) -> this rank's rows, None for all


def save(
    ranks: Any, folder: Path, step: int, tensors: Tensors, state: dict[str, Any], cut: Cut, good: bool = True
) -> None:
    """Every rank writes its rows, the first one seals them with the state; a rank that cannot write spoils it for all.

    Raises DiskError in the first rank where the disk is full or fails: what was saved before is still there.
    """
    staged = folder / f".ranks-{step}"
    if ranks.first:
        for old in folder.glob(".ranks-*"):
            shutil.rmtree(old, ignore_errors=True)
        staged.mkdir(parents=True)
    ranks.wait()
    failed: DiskError | None = None
    try:
        with files.room_for(staged, sum(t.nbytes for content in tensors.values() for t in content.values())):
            files.write_json(staged / f"{ranks.rank}.json", _write(ranks, staged, tensors, cut))
    except DiskError as e:
        failed = e
    if ranks.total([float(failed is not None)])[0]:
        if ranks.first:
            shutil.rmtree(staged, ignore_errors=True)
            raise failed or DiskError("disk.failed_elsewhere", path=str(staged))
        return
    if ranks.first:
        parts = [json.loads((staged / f"{r}.json").read_text()) for r in range(ranks.world)]
        ready = {name: (staged / name, digest) for part in parts for name, digest in part["files"].items()}
        index = json.dumps({"world": ranks.world, "files": _index([p["rows"] for p in parts])})
        ready[INDEX] = (staged / INDEX, files.put(staged / INDEX, index))
        try:
            checkpoints.save(folder, step, {}, state, ready=ready, good=good)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _write(ranks: Any, staged: Path, tensors: Tensors, cut: Cut) -> dict[str, Any]:
    """{"files": {name: SHA-256}, "rows": {file: {tensor: [first, count]}}} of this rank; what is not cut is the first's."""
    known: dict[str, Any] = {"files": {}, "rows": {}}
    for file, content in tensors.items():
        pieces = {n: cut(file, n) for n in content}
        mine = {n: t for n, t in content.items() if pieces[n] is not None or ranks.first}
        name = f"{file}.{ranks.rank}{ENDING}"
        known["files"][name] = files.put(staged / name, checkpoints.pieces(mine))
        known["rows"][file] = {n: [p.first, p.count] if (p := pieces[n]) else None for n in mine}
    return known


def _index(rows: list[dict[str, dict[str, list[int] | None]]]) -> dict[str, Any]:
    """{file: {tensor: {"rows": [[first, count] of each rank]}}}; without rows it is rank 0's alone."""
    return {
        file: {n: {"rows": [r[file][n] for r in rows]} if first is not None else {} for n, first in content.items()}
        for file, content in rows[0].items()
    }


def load(path: Path, cut: Cut = lambda file, name: None) -> Tensors:
    """The tensors of a checkpoint that was verified: {file: {name: the rows that `cut` asks for}}, sharded or not.

    Raises KeyError, ValueError, OSError, SafetensorError where the index and the files do not fit together.
    """
    if not (path / INDEX).is_file():
        return {p.name.removesuffix(ENDING): _some(p, cut) for p in sorted(path.glob(f"*{ENDING}"))}
    index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    return {
        file: _joined([path / f"{file}.{r}{ENDING}" for r in range(int(index["world"]))], file, names, cut)
        for file, names in index["files"].items()
    }


def _some(path: Path, cut: Cut) -> dict[str, Tensor]:
    file = path.name.removesuffix(ENDING)
    with safe_open(path, "pt") as source:
        return {n: _rows(source, n, cut(file, n)) for n in source.keys()}  # noqa: SIM118


def _rows(source: Any, name: str, piece: Piece | None) -> Tensor:
    if piece is None:
        return source.get_tensor(name)
    return source.get_slice(name)[piece.first : piece.first + piece.count]


def _joined(paths: list[Path], file: str, names: dict[str, Any], cut: Cut) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {n: [] for n in names}
    for rank, path in enumerate(paths):
        with safe_open(path, "pt") as source:
            for name, about in names.items():
                if "rows" not in about:
                    found[name] += [source.get_tensor(name)] if rank == 0 else []
                    continue
                first, count = about["rows"][rank]
                piece = cut(file, name)
                low, high = (piece.first, piece.first + piece.count) if piece else (0, first + count)
                low, high = max(low, first) - first, min(high, first + count) - first
                if high > low or (rank == 0 and not count):
                    found[name].append(source.get_slice(name)[low:high])
                elif not found[name] and rank == len(paths) - 1:  # a rank with no rows of it
                    found[name].append(source.get_slice(name)[0:0])
    return {n: parts[0] if len(parts) == 1 else torch.cat(parts) for n, parts in found.items()}
