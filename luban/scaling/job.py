"""A train stage as a folder: what a process needs that has only the folder, and what it gives back.

job.json            {recipe, columns, edits, history, settings, scale, console, rows}
rows.arrow          the prepared table, mapped into memory by every rank instead of being read and cleaned again
rows.npz            line numbers, and the row numbers of each split
start.safetensors   weights to start from, where there are any
result/             the trained Bundle, written by rank 0
outcome.json        a mistake that every rank would make again
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from luban import console, errors, files
from luban.bundle import Bundle, build_network
from luban.columns.base import from_json, together
from luban.data.prepare import Data
from luban.data.rows import Rows
from luban.data.splits import Splits
from luban.errors import LubanError, Problem, Unsupported, WorkError
from luban.recipe import Recipe

RESULT, OUTCOME = "result", "outcome.json"


def write(folder: Path, bundle: Bundle, data: Data, settings: dict[str, Any], scale: dict[str, Any]) -> None:
    """Raises Unsupported for a network that no recipe can build."""
    if bundle.recipe.fusion.type == "own":
        raise Unsupported("scale.own_module")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OUTCOME).unlink(missing_ok=True)
    rows = data.rows
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, rows.table.schema) as writer:
        writer.write_table(rows.table)
    np.savez(folder / "rows.npz", lines=rows.lines, **data.splits.parts())
    if bundle.network is not None:
        from safetensors.torch import save_file

        save_file(
            {k: v.contiguous().cpu() for k, v in bundle.network.state_dict().items()}, folder / "start.safetensors"
        )
    plain = {
        "recipe": bundle.recipe.plain(),
        "columns": [c.to_json() for c in bundle.columns.values()],
        "edits": bundle.edits,
        "history": json.loads(json.dumps(bundle.history, default=str)),
        "settings": settings,
        "scale": scale,
        "console": console.settings(),
        "rows": {"source": rows.source, "root": rows.root and str(rows.root)},
    }
    files.write_json(folder / "job.json", plain)


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "job.json").read_text(encoding="utf-8"))


def read(folder: Path) -> tuple[Bundle, Data]:
    """What every rank begins with."""
    plain = about(folder)
    recipe = Recipe.of(plain["recipe"])
    columns = together({c.name: c for c in map(from_json, plain["columns"])})
    bundle = Bundle(recipe, columns, edits=plain["edits"], history=plain["history"])
    if (folder / "start.safetensors").is_file():
        from safetensors.torch import load_file

        bundle.network = build_network(recipe, columns, bundle.edits)
        bundle.network.load_state_dict(load_file(folder / "start.safetensors"))
    table = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow"))).read_all()
    with np.load(folder / "rows.npz") as arrays:
        found = {name: arrays[name] for name in arrays.files}
    source, root = plain["rows"]["source"], plain["rows"]["root"]
    rows = Rows(table, found.pop("lines"), source, root and Path(root), rows_in=len(table))
    return bundle, Data(rows, Splits(**found), recipe)


def finish(folder: Path, trained: Bundle) -> None:
    trained.save(folder / RESULT)


def result(folder: Path, bundle: Bundle) -> Bundle | None:
    """What the ranks made of `bundle`; None where they did not come so far. Raises what every rank would raise again."""
    if (folder / OUTCOME).is_file():
        raise _error(json.loads((folder / OUTCOME).read_text(encoding="utf-8")))
    if not (folder / RESULT / files.MANIFEST).is_file():
        return None
    trained = Bundle.load(folder / RESULT)
    return replace(
        trained,
        tables={**bundle.tables, **trained.tables},
        reports={**bundle.reports, **trained.reports},
        path=bundle.path,
    )


def fail(folder: Path, error: LubanError) -> None:
    """Leave word of a mistake that no restart would mend."""
    files.write_json(folder / OUTCOME, error.to_json())


def _error(plain: dict[str, Any]) -> LubanError:
    kind = getattr(errors, plain["error"], WorkError)
    return kind(
        *(Problem(p["id"], p["place"], p["values"], tuple(p["allowed"]), p["nearest"]) for p in plain["problems"])
    )
