"""A column of categories: one of a known set of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np

from luban.columns.base import Answer, Column, text_of, to_list
from luban.errors import DataError
from luban.settings import Count, Fraction, Natural

CANDIDATES = 5
MANY = 1000  # labels that a plan counts with where nothing bounds them
LISTED = 100  # labels that a schema spells out
TINY = 1e-30  # the least probability that a logit is made of


@dataclass(frozen=True)
class Category(Column):
    """x is an int64 scalar: 1 + the label's number; 0 is missing or never seen in training.

    `missing` most_frequent: a missing cell is the commonest label of the training rows (the first of several).
    """

    least: Count = field(default=1, kw_only=True)  # rows that a label needs to be known
    most: Natural = field(default=1000, kw_only=True)  # labels kept, the commonest first; 0 = all
    unknown: Fraction = field(
        default=0.01, kw_only=True
    )  # training rows whose label is hidden, so that 0 means something
    missing: Literal["keep", "most_frequent"] = field(default="keep", kw_only=True)

    type: ClassVar[str] = "category"
    encoder: ClassVar[str] = "mlp"
    form: ClassVar[str] = "index"
    head: ClassVar[str] = "category"
    pools: ClassVar[bool] = True

    def fit(self, values: Iterable[Any]) -> Self:
        """Learns the labels, in alphabetical (or numerical) order. Raises DataError when no value is present."""
        counts = Counter()
        for value, count in _counted(values):
            if isinstance(value, (list, dict)):
                raise DataError("column.not_a_category", name=self.name, value=str(value)[:60])
            if (label := text_of(value)) is not None and label != "":
                counts[label] += count
        if not counts:
            raise DataError("column.all_missing", name=self.name)
        kept = [label for label, n in counts.most_common(self.most or None) if n >= self.least]
        labels = sorted(kept, key=_order)
        return self.learned(labels=labels, counts=[counts[label] for label in labels])

    def supposed(self) -> Self:
        """`most` labels (1,000 where all are kept)."""
        count = self.most or MANY
        return self.learned(labels=[f"{i:04d}" for i in range(count)], counts=[1] * count)

    @property
    def size(self) -> int:
        return len(self.labels) + 1

    @property
    def labels(self) -> list[str]:
        return self.state["labels"]

    def number_of(self, value: Any) -> int:
        """1 + the position of the label; 0 when missing or unknown."""
        index = self.__dict__.get("_index")
        if index is None:
            index: dict[str | None, int] = {label: i for i, label in enumerate(self.labels, 1)}
            if self.missing == "most_frequent":
                counts = self.state["counts"]
                index[None] = index[""] = 1 + counts.index(max(counts))
            object.__setattr__(self, "_index", index)
        return index.get(text_of(value), 0)

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        if isinstance(value, (list, dict)):
            raise DataError("column.not_a_category", name=self.name, value=str(value)[:60])
        return np.int64(self.number_of(value))[()]

    def encode_all(self, values: Any, of: Any = None) -> np.ndarray:
        if hasattr(values, "dictionary_encode") and "string" in str(
            values.type
        ):  # Arrow: look up each distinct word once
            coded = values.combine_chunks() if hasattr(values, "combine_chunks") else values
            coded = coded.dictionary_encode()
            table = np.array([self.number_of(w) for w in (*coded.dictionary.to_pylist(), None)], np.int64)
            return table[coded.indices.fill_null(len(table) - 1).to_numpy(zero_copy_only=False)]
        return np.array([self.encode(v) for v in to_list(values)], np.int64)

    def collate(self, items: Any) -> tuple[np.ndarray, np.ndarray]:
        x = np.asarray(items, np.int64)
        return x, x > 0

    def probabilities(self, array: np.ndarray) -> np.ndarray:
        """Head output (N, K) logits, or (N, 1) the one logit of the last of two labels -> (N, K) probabilities.

        Divided by the temperature that calibration may have set (Guo et al. 2017).
        """
        z = np.asarray(array, np.float64) / self.state.get("temperature", 1.0)
        if z.shape[-1] == 1:
            z = np.concatenate([np.zeros_like(z), z], axis=-1)
        z = np.exp(z - z.max(axis=-1, keepdims=True))
        return z / z.sum(axis=-1, keepdims=True)

    def pooled(self, o: np.ndarray) -> np.ndarray:
        """The mean of the windows' probabilities, as the logits that decode to it."""
        p = np.log(np.maximum(self.probabilities(o).mean(0), TINY)) * self.state.get("temperature", 1.0)
        return p[1:] - p[:1] if np.asarray(o).shape[-1] == 1 else p

    def decode(self, array: np.ndarray, mask: np.ndarray | None = None) -> Answer:
        return self.decode_all(np.asarray(array)[None])[0]

    def decode_all(self, array: Any, mask: np.ndarray | None = None, of: Any = None) -> list[Answer]:
        p = self.probabilities(array)
        order = np.argsort(-p, axis=1, kind="stable")[:, :CANDIDATES]
        labels = self.labels
        answers = []
        for row, best in zip(p, order):
            candidates = tuple((labels[i], float(row[i])) for i in best)
            answers.append(Answer(candidates[0][0], candidates[0][1], candidates))
        return answers

    def augment(self, x: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
        return np.where(rng.random(x.shape) < self.unknown, 0, x), None

    def features(self, values: Any) -> Any:
        """One-hot (N, K + 1), the last one for missing and unknown."""
        from scipy.sparse import csr_matrix

        ids = self.encode_all(values)
        width = len(self.labels) + 1
        return csr_matrix((np.ones(len(ids), np.float32), (np.arange(len(ids)), (ids - 1) % width)), (len(ids), width))

    def schema(self) -> dict[str, Any]:
        few = {"examples": [max(zip(self.state["counts"], self.labels))[1]]}
        if len(self.labels) <= LISTED:
            few["x-labels"] = self.labels  # a hint, not a limit: an unseen label is answered as unknown
        return {"type": ["string", "number", "boolean", "null"]} | few


def _counted(values: Any) -> Iterable[tuple[Any, int]]:
    """Distinct values in the order in which they come first, and how often each comes."""
    if hasattr(values, "value_counts") and str(values.type) in ("string", "large_string"):
        found = values.value_counts()
        return zip(found.field("values").to_pylist(), found.field("counts").to_pylist())
    return ((v, 1) for v in to_list(values))


def _order(label: str) -> tuple[int, float, str]:
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)
