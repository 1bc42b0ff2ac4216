"""A column of labels: any number of a known set of words for each row (multi-label). An output only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from luban.columns.base import Answer, Column, text_of, to_list
from luban.errors import DataError
from luban.messages import listed
from luban.settings import Count, Fraction

SEPARATORS = (";", "|", ",")  # between the labels of a cell of text; the first that stands in the training rows
TINY = 1e-12  # how near to none and to all a probability comes that a logit is made of


@dataclass(frozen=True)
class Labels(Column):
    """x is (K,) of 0 and 1, one for each label in alphabetical order; -1 everywhere where the cell is missing.

    A cell is a list of labels, or a text with `separator` between them. An empty list says: none of them. Labels of fewer than
    `least` training rows are left out. `threshold`: probability from which on a label is answered.
    """

    separator: str | None = field(default=None, kw_only=True)
    least: Count = field(default=1, kw_only=True)
    threshold: Fraction = field(default=0.5, kw_only=True)

    type: ClassVar[str] = "labels"
    form: ClassVar[str] = "labels"
    encoder: ClassVar[str] = ""
    head: ClassVar[str] = "labels"
    pools: ClassVar[bool] = True

    def fit(self, values: Iterable[Any]) -> Self:
        """Learns the labels and how often each stands. Raises DataError where no row has one."""
        cells = to_list(values)
        texts = [v for v in cells if isinstance(v, str)]
        found = next((s for s in SEPARATORS if any(s in t for t in texts)), SEPARATORS[0])
        learned = self.learned(separator=self.separator or found)
        counts = Counter(label for v in cells for label in set(learned.names(v) or ()))
        kept = sorted(label for label, n in counts.items() if n >= self.least)
        if not kept:
            raise DataError("column.all_missing", name=self.name)
        rows = sum(v is not None for v in cells)
        return learned.learned(labels=kept, counts=[counts[label] for label in kept], rows=rows)

    def supposed(self) -> Self:
        """Ten labels."""
        return self.learned(separator=SEPARATORS[0], labels=[f"{i:02}" for i in range(10)], counts=[1] * 10, rows=10)

    @property
    def labels(self) -> list[str]:
        return self.state["labels"]

    @property
    def size(self) -> int:
        return len(self.labels)

    def names(self, value: Any) -> list[str] | None:
        """The labels of a cell as they stand there; None where it is missing. Raises DataError for another kind of value."""
        if value is None or (isinstance(value, float) and value != value):
            return None
        if isinstance(value, (list, tuple, np.ndarray)):
            if any(isinstance(v, (list, dict)) for v in value):
                raise DataError("column.not_labels", name=self.name, value=str(value)[:60])
            return [text for v in value if (text := (text_of(v) or "").strip())]
        if isinstance(value, (dict, bytes)):
            raise DataError("column.not_labels", name=self.name, value=str(value)[:60])
        return [w for part in text_of(value).split(self.state["separator"]) if (w := part.strip())]

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        found = self.names(value)
        if found is None:
            return np.full(self.size, -1, np.float32)
        return np.isin(self.labels, found).astype(np.float32)

    def encode_all(self, values: Any, of: Any = None) -> np.ndarray:
        items = [self.encode(v) for v in to_list(values)]
        return np.stack(items) if items else np.zeros((0, self.size), np.float32)

    def collate(self, items: Any) -> tuple[np.ndarray, np.ndarray]:
        """(B, K), mask (B,)."""
        x = np.asarray(items, np.float32).reshape(-1, self.size)
        return x, x[:, 0] >= 0

    def chances(self, array: np.ndarray) -> np.ndarray:
        """Head output (N, K) logits -> (N, K), each label by itself."""
        return 1 / (1 + np.exp(-np.clip(np.asarray(array, np.float64), -500, 500)))

    def pooled(self, o: np.ndarray) -> np.ndarray:
        """The mean of the windows' probabilities of each label, as the logits that decode to it."""
        p = np.clip(self.chances(o).mean(0), TINY, 1 - TINY)
        return np.log(p / (1 - p))

    def decode(self, array: np.ndarray, mask: np.ndarray | None = None) -> Answer:
        """The labels answered; `probability` that it is just these, `candidates` the likeliest labels."""
        p = self.chances(array)
        there = p >= self.threshold
        order = np.argsort(-p, kind="stable")
        value = [self.labels[i] for i in np.flatnonzero(there)]
        best = tuple((self.labels[i], float(p[i])) for i in order[:5])
        return Answer(value, float(np.prod(np.where(there, p, 1 - p))), best)

    def numbered(self, array: np.ndarray) -> np.ndarray:
        """The likeliest label of each row, as the one to be explained."""
        return np.asarray(array).argmax(1)

    def spread(self, shown: np.ndarray, x: np.ndarray) -> np.ndarray:
        return shown[..., None]

    def features(self, values: Any) -> Any:
        """(N, K): 1 where a label stands."""
        from scipy.sparse import csr_matrix

        return csr_matrix(self.encode_all(values) > 0, dtype=np.float32)

    def schema(self) -> dict[str, Any]:
        return {
            "type": ["array", "string", "null"],
            "items": {"enum": self.labels[:100]},
            "examples": [self.labels[:1]],
        }

    def render(self, value: Any, weights: Sequence[float] | None = None) -> str:
        return super().render(listed(self.names(value) or []), weights)
