"""What a sample set's function gives: name and bytes of each file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

Content = Iterable[tuple[str, bytes]]


def as_csv(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue().encode()
