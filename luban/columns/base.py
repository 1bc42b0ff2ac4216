"""What a column is: the one road between a raw value and an array, and what a person sees of it.

numpy in, numpy out; torch begins at the batch's border. A column is fitted on training rows only, what it learned
(`state`) is JSON. Shapes: B examples in a batch, T positions of one value, S segments, M masks.

A new column type overrides `fit`, `encode`, `collate` and what else differs from a plain scalar; the contract
battery in `tests/test_contract_columns.py` runs over every registered type.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from luban import registry
from luban.errors import BundleError, DataError, Unsupported

GONE = -(2**31)  # where the ids of a fixed answer have ended: below every ~id
BESIDE = ("text_column", "image_column")  # fields that hold the column that one is `of:`, see `Column.beside`
LONG = 100  # entries on average from which on a copy of each item is faster than the place of every entry


class Segments(NamedTuple):
    """What a person would point at. `index` has one entry per position of x: the segment's number, -1 for none."""

    names: list[str]
    index: np.ndarray


@dataclass(frozen=True)
class Answer:
    """One decoded output. `probability` is of `value`; `candidates` are (value, probability), best first.

    `details`: what else the answer tells, as plain JSON by name, such as the entities that a sequence of tags means.
    """

    value: Any
    probability: float | None = None
    candidates: tuple[tuple[Any, float], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ragged:
    """N arrays of different lengths as one flat array (sum of lengths, ...) and offsets (N + 1,)."""

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, items: Sequence[np.ndarray]) -> Ragged:
        lengths = np.fromiter((len(i) for i in items), np.int64, len(items))
        flat = np.concatenate(items) if items else np.zeros(0, np.int32)
        return cls(flat, np.concatenate([[0], np.cumsum(lengths)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __getitem__(self, i: Any) -> Any:
        """One item, or a Ragged of some (a slice, an array of numbers or of truth)."""
        if not isinstance(i, (int, np.integer)):
            return self.take(np.arange(len(self))[i])
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.flat[self.offsets[i] : self.offsets[i + 1]]

    def take(self, rows: np.ndarray) -> Ragged:
        """Some of them, gathered in one go: long ones piece by piece, short ones by the place of each of their entries."""
        starts, stops = self.offsets[rows], self.offsets[rows + 1]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(stops - starts, out=offsets[1:])
        if len(rows) and offsets[-1] >= LONG * len(rows):
            pieces = [self.flat[a:b] for a, b in zip(starts.tolist(), stops.tolist())]
            return Ragged(np.concatenate(pieces), offsets)
        at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], stops - starts)
        return Ragged(self.flat[at], offsets)


Encoded = np.ndarray | Ragged  # (N, ...) where every value has the same shape, else Ragged


def take(encoded: Encoded, rows: np.ndarray) -> Any:
    """The items of some rows, as `collate` wants them."""
    return encoded.take(rows) if isinstance(encoded, Ragged) else encoded[rows]


@dataclass(frozen=True)
class Column:
    """A typed column. Dataclass fields (other than name and state) are its settings in a recipe."""

    name: str
    state: dict[str, Any] = field(default_factory=dict, kw_only=True)

    type: ClassVar[str]
    form: ClassVar[str]  # what x is: scalar (B,), index (B,), ids (B, T), vectors (B, T, D), grid (B, C, H, W)
    encoder: ClassVar[str]  # the encoder used when the recipe names none; "" = it cannot be an input
    head: ClassVar[str] = ""  # the head used when the column is an output; "" = it cannot be one
    of_form: ClassVar[str] = (
        ""  # the form of the column that it is `of:`, beside whose raw values it is read; "" = of none
    )
    endings: ClassVar[tuple[str, ...]] = ()  # of files that each are one value by themselves
    drawn: ClassVar[bool] = False  # data need not have it: the number of a row stands for its cell
    along: ClassVar[bool] = False  # as an output it is read off the positions of the column that it is `of:`
    pools: ClassVar[bool] = False  # as an output it can be put together from the windows of a long text
    turns: ClassVar[bool] = False  # whether its `follow` can follow a turn and a shear (`Move.turn`), too
    details: ClassVar[
        dict[str, str]
    ] = {}  # what else its answers tell that gets a column of a table: `number` or `text`

    @property
    def size(self) -> int:
        """How many ids an index or ids column has, how many channels a grid, how many numbers a vector; 1 for a scalar."""
        return 1

    # -- raw value <-> array ---------------------------------------------------------------------------------------
    def fit(self, values: Iterable[Any]) -> Self:
        """A new column that has learned from training values (vocabulary, mean, sizes)."""
        return self

    def supposed(self) -> Self:
        """The column as it may come out of `fit`, from its settings alone: what a plan without data counts with.

        Sizes are the largest that the settings allow. Raises Unsupported where they do not say.
        """
        raise Unsupported("column.no_guess", name=self.name, type=self.type)

    def encode(self, value: Any, of: Any = None) -> np.ndarray:
        """The array of one raw value. Raises DataError where the value cannot be one of this column."""
        raise NotImplementedError

    def encode_all(self, values: Any, of: Any = None) -> Encoded:
        """`encode` for many values; overridden where it can be faster, never where it would differ (a contract test)."""
        items = [self.encode(v) for v in to_list(values)]
        same = all(i.shape == items[0].shape for i in items) and not self.ragged
        return np.stack(items) if items and same else Ragged.of(items)

    sampled: ClassVar[int] = 0  # training values that `fit` looks at, evenly spaced; 0 = all
    ragged: ClassVar[bool] = False  # values differ in length

    def collate(self, items: Any) -> tuple[np.ndarray, np.ndarray]:
        """Items of one batch -> x (B, ...), mask bool (B,) or (B, T), True = real."""
        x = np.asarray(items)
        return x, np.ones(len(x), bool)

    def decode(self, array: np.ndarray, mask: np.ndarray | None = None) -> Answer:
        """The answer that one row of a head's output means. Softmax, NMS, CTC live here: every engine shares them."""
        raise DataError("column.not_an_output", name=self.name, type=self.type)

    def pooled(self, o: np.ndarray) -> np.ndarray:
        """The head output of a whole text from those of its windows (W, ...), where the column `pools`: the mean."""
        return np.asarray(o).mean(0)

    def narrowed(self, o: np.ndarray) -> np.ndarray:
        """Head outputs (B, ...) as they are kept for many rows, for `decode`: what it does not need is left out."""
        return o

    def numbered(self, array: np.ndarray) -> np.ndarray:
        """Head outputs (N, ...) -> the answers that they mean, as `score` wants them fixed: (N,), zeros where there are no
        classes, or ids (N, T) of a text, `GONE` behind its end.
        """
        labels = getattr(self, "labels", None)
        if labels is None:
            return np.zeros(len(array), np.int64)
        return np.array([labels.index(a.value) for a in self.decode_all(array)], np.int64)

    def decode_all(self, array: Any, mask: np.ndarray | None = None, of: Any = None) -> list[Answer]:
        """`of`: the raw values of the column that this one is `of:`, where it is one."""
        return [self.decode(a) for a in array]

    # -- what explains, heals and protects it -----------------------------------------------------------------------
    def segments(self, value: Any) -> Segments:
        return Segments([self.name], np.zeros((), np.int64))

    def positions(self, x: np.ndarray) -> list[str]:
        """A name for every position of one encoded value, as the axis of a plot shows it: their numbers, from 1."""
        return [str(i + 1) for i in range(len(x))] if np.ndim(x) else [self.name]

    def ablate(self, x: np.ndarray, index: np.ndarray, keep: np.ndarray) -> np.ndarray:
        """x with the segments that are not kept replaced by "nothing there".

        x: one encoded value; index: `segments(...).index`; keep: bool (S,) -> same shape as x, or (M, S) -> (M, *x.shape).
        Positions of no segment (-1) stay as they are.
        """
        shown = np.concatenate([keep, np.ones((*keep.shape[:-1], 1), bool)], axis=-1)[..., index]  # (M, *positions)
        return np.where(self.spread(shown, x), x, self.nothing(x))

    def spread(self, shown: np.ndarray, x: np.ndarray) -> np.ndarray:
        """A mask over positions made to broadcast against x."""
        return shown

    def nothing(self, x: np.ndarray) -> np.ndarray:
        """What stands at a position where nothing is: broadcastable against x."""
        return np.zeros((), x.dtype)

    def augment(self, x: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
        """A changed batch x (B, ...) and the change, for columns that are `of:` this one."""
        return x, None

    @property
    def turning(self) -> bool:
        """Whether `augment` may turn and shear."""
        return False

    @property
    def moving(self) -> bool:
        """Whether `augment` shows a value otherwise than it is, and not only hides of it: what was said of it may be no answer then."""
        return False

    def unmoved(self) -> Self:
        """The column as one that is not `moving`."""
        return self

    def still(self) -> Self:
        """The column as it augments where one that is `of:` it cannot follow a turn: shifts and mirrors are all it does."""
        return self

    def follow(self, x: np.ndarray, change: Any) -> np.ndarray:
        """Follow the change of the column that this one is `of:`."""
        return x

    def followed(self, x: np.ndarray, mask: np.ndarray, change: Any) -> tuple[np.ndarray, np.ndarray]:
        """`follow`, and the mask where some of x goes."""
        return self.follow(x, change), mask

    def corruptions(self) -> tuple[str, ...]:
        """Names of what may happen to values on the way here, for `corrupted`: none unless a column knows some."""
        return ()

    def corrupted(self, x: np.ndarray, name: str, severity: int, rng: np.random.Generator) -> np.ndarray:
        """An encoded batch x (B, ...) as a corruption of that name leaves it, severity 1 to 5."""
        raise NotImplementedError

    def agree(self, first: Answer, second: Answer) -> float:
        """How far two answers are the same, 0 to 1."""
        return float(first.value == second.value)

    def beside(self, others: Mapping[str, Column]) -> Self:
        """The column among the others of its recipe: one that is `of:` another gets to know it."""
        return self

    def becomes(self, fresh: Column) -> Column | None:
        """What an earlier model's column is in one that starts from it, where `fresh` stands; None where it cannot be."""
        return self if self.type == fresh.type else None

    def overlong(self, values: Any) -> int:
        """How many of some values are read only in part."""
        return 0

    def refused(self, values: Any) -> dict[int, tuple[str, dict[str, Any]]]:
        """Which of some values the recipe wants refused: number -> sentence id and what it names."""
        return {}

    def guarded(self, pixels: int = 0) -> Self:
        """The column as a server uses it: values come from strangers, so none of them may name a file to open, and a picture has no
        more than so many pixels (0: what is usual).
        """
        return self

    def outside(self, values: Any) -> bytes:
        """What tells whether that which values only name, such as files, is still the same."""
        return b""

    # -- what others see of it ---------------------------------------------------------------------------------------
    def featurizer(self, training: Any) -> Callable[[Any], Any]:
        """values -> features, with what has to be learned (a TF-IDF vocabulary) learned from training values."""
        return self.features

    def features(self, values: Any) -> Any:
        """A scipy.sparse matrix (N, F) for simple baselines: TF-IDF, one-hot, scaled, pixels."""
        raise NotImplementedError

    def schema(self) -> dict[str, Any]:
        """JSON Schema of a raw value."""
        return {}

    def render(self, value: Any, weights: Sequence[float] | None = None) -> str:
        """HTML of the value, its segments coloured by weight (signed, scaled so that the largest is about 1)."""
        text = html.escape("" if value is None else str(value))
        return coloured(text, weights[0]) if weights is not None and len(weights) else text

    # -- what a person reads of an explanation -------------------------------------------------------------------------
    def legible(self, answer: Answer) -> Any:
        """An answer of this column as it stands in a table: a text or a number."""
        return answer.value

    def named(self, answer: Answer, explained: Any) -> Any:
        """What is explained of an answer, as `fixed` named it, in the same way."""
        return explained

    def marked(self, drawn: str, answer: Answer, explained: Any, of: Any) -> str:
        """The HTML of `of`, the value of the column that this one is `of:`, with what is explained shown in it or beside it."""
        return drawn

    # -- saving ------------------------------------------------------------------------------------------------------
    def check(self) -> None:
        """Make what is made of the state now, so that a bad file is found on load. Raises BundleError."""

    def settings(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("name", "state", *BESIDE)}

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "type": self.type, "settings": self.settings(), "state": self.state}

    def learned(self, **state: Any) -> Self:
        return replace(self, state={**self.state, **state})


def make(name: str, type: str, settings: dict[str, Any]) -> Column:
    """The unfitted column that a recipe asks for."""
    kind = registry.find("columns", type)
    known = {f.name for f in fields(kind)} - {"name", "state", *BESIDE}
    return kind(
        name, **{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k in known and v is not None}
    )


def together(columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns of a recipe, each knowing the one that it is `of:`."""
    return {n: c.beside(columns) for n, c in columns.items()}


def from_json(plain: dict[str, Any]) -> Column:
    """A saved column. Raises BundleError where the file holds something else."""
    try:
        column = replace(make(plain["name"], plain["type"], plain["settings"]), state=plain["state"])
        column.check()
        return column
    except (KeyError, TypeError) as e:
        raise BundleError("bundle.bad_column", reason=str(e)) from e


def to_list(values: Any) -> list[Any]:
    """Arrow arrays, numpy arrays and sequences as a list of Python values (None = missing)."""
    if hasattr(values, "to_pylist"):
        return values.to_pylist()
    return values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else list(values)


def text_of(value: Any) -> str | None:
    """A raw cell as text; None and NaN are missing; 1.0 reads as 1, so that CSV and Parquet agree."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else str(value)


def coloured(inner: str, weight: float) -> str:
    """A span whose background says how much (opacity) and which way (hue) it spoke; `inner` is HTML."""
    strength = min(abs(float(weight)), 1.0)
    hue = "208, 59, 59" if weight >= 0 else "47, 111, 222"  # for red, against blue, as in pictures and bars
    return (
        f'<span class="seg" style="background:rgba({hue},{strength * 0.75:.2f})" title="{weight:+.3f}">{inner}</span>'
    )
