"""Whether a model is judged on rows that it was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np

from luban.messages import say


def which_seen(bundle: Any, data: Any, rows: np.ndarray) -> np.ndarray | None:
    """Which of these rows the model was trained on, bool (N,); None where its fingerprints were dropped or do not fit."""
    trained = bundle.tables.get("trained")
    if trained is None:
        return None
    metadata = {k.decode(): v.decode() for k, v in trained.schema.metadata.items()}
    names = metadata["columns"].split("\n")
    if any(n not in data.table.column_names for n in names):
        return None
    hashes = data.rows.take(rows).select(names).row_hashes(bytes.fromhex(metadata["key"]))
    known = set(trained["hash"].to_pylist())
    return np.array([h in known for h in hashes], bool)


def seen_rows(bundle: Any, data: Any, rows: np.ndarray) -> dict[str, Any]:
    """How many of these rows the model was trained on: a count, or None where its fingerprints were dropped."""
    found = which_seen(bundle, data, rows)
    return {"trained_on": None if found is None else int(found.sum())}


def warn_seen(report: Any) -> None:
    count = report.numbers["trained_on"]
    if count is None:
        report.note("info", say("evaluate.cannot_tell_seen"))
    elif count:
        report.note("bad", say("evaluate.seen", count=count, rows=report.numbers["rows"]))
