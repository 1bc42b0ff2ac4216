"""Whether a model is judged on rows that it was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np

from luban.messages import say


def seen_rows(bundle: Any, data: Any, rows: np.ndarray) -> dict[str, Any]:
    """How many of these rows the model was trained on: a count, or None where its fingerprints were dropped."""
    trained = bundle.tables.get("trained")
    if trained is None:
        return {"trained_on": None}
    metadata = {k.decode(): v.decode() for k, v in trained.schema.metadata.items()}
    names = metadata["columns"].split("\n")
    if any(n not in data.table.column_names for n in names):
        return {"trained_on": None}
    hashes = data.rows.take(rows).select(names).row_hashes(bytes.fromhex(metadata["key"]))
    known = set(trained["hash"].to_pylist())
    return {"trained_on": sum(h in known for h in hashes)}


def warn_seen(report: Any) -> None:
    count = report.numbers["trained_on"]
    if count is None:
        report.note("info", say("evaluate.cannot_tell_seen"))
    elif count:
        report.note("bad", say("evaluate.seen", count=count, rows=report.numbers["rows"]))
