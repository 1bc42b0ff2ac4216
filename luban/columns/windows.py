"""Texts longer than a model reads at once, where the recipe says `long: split`: read in windows, the answers put together.

What one window says is one answer of the head; `Column.pooled` makes one of several, tags are stitched together,
written texts joined. A network learns in each epoch from another window of a long text (`Drawn`), except where a text is written: what
of it belongs to which window nobody knows. numpy only, so that every engine reads long texts alike.

Letters: N examples, W windows of all of them, T positions, K numbers for each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luban.columns.base import Column, Encoded, Ragged, take, together
from luban.columns.examples import Arrays, Examples

SPLIT = "split"


def opened(columns: Mapping[str, Column]) -> Mapping[str, Column]:
    """The columns of a model that answers: those that split long texts read all of them."""
    long = [n for n, c in columns.items() if getattr(c, "long", "") == SPLIT]
    if not long:
        return columns
    return together({n: c.opened() if n in long else c for n, c in columns.items()})  # type: ignore[attr-defined]


def learning(columns: Mapping[str, Column], outputs: Sequence[str]) -> Mapping[str, Column]:
    """The columns that a network learns from: opened, unless it writes."""
    return columns if any(columns[n].form == "ids" for n in outputs) else opened(columns)


@dataclass(frozen=True)
class Drawn(Examples):
    """Examples to learn from: of a long text one window at a time, the one that stands at its share of them, with the
    tags that are of it. `drawn` gives those of an epoch; until then it is the first one.
    """

    shares: np.ndarray | None = None  # (N,), 0 the first window, below 1

    @classmethod
    def of(cls, examples: Examples) -> Examples:
        """The same examples where nothing is longer than a window."""
        found = cls(**{f: getattr(examples, f) for f in Examples.__dataclass_fields__})
        return found if any((examples.inputs[n].lengths > r).any() for n, r in found.reads.items()) else examples  # type: ignore[union-attr]

    @property
    def reads(self) -> dict[str, int]:
        """Inputs that are read in windows, and how many positions at once."""
        found = {n: self.columns[n].state.get("reads") for n in self.inputs}
        return {n: reads for n, reads in found.items() if reads}

    @property
    def redrawn(self) -> bool:
        return True

    def drawn(self, random: Callable[[], np.random.Generator]) -> Examples:
        made = copy.copy(self)  # with what has been collated once
        object.__setattr__(made, "shares", random().random(len(self)))
        return made

    def reached(self, name: str) -> np.ndarray:
        """Windows of a long text are all as long, so that batches of like length stay so in every epoch."""
        column = self.columns[name]
        reads = self.reads.get(column.of if column.along else name)  # type: ignore[attr-defined]
        return np.minimum(super().reached(name), reads) if reads else super().reached(name)

    def arrays(self, index: np.ndarray, rng: np.random.Generator | None = None) -> Arrays:
        shares = np.zeros(len(index)) if self.shares is None else self.shares[index]
        places = {
            n: [self.columns[n].window(k, s) for k, s in zip(self.inputs[n].lengths[index], shares)] for n in self.reads
        }  # type: ignore[union-attr, attr-defined]

        def cut(name: str, encoded: Encoded) -> Encoded:
            column = self.columns[name]
            at = places.get(column.of if column.along else name)  # type: ignore[attr-defined]
            return take(encoded, index) if at is None else Ragged.of([encoded[int(i)][p] for i, p in zip(index, at)])

        inputs = {n: cut(n, self.inputs[n]) for n in self.inputs}
        targets = {n: cut(n, e) for n, e in self.targets.items()}
        blocks = [(names, x[index], mask[index]) for names, x, mask in self.blocks]
        flat = {n: (x[index], mask[index]) for n, (x, mask) in self.flat_targets.items()}
        rows = self.rows[index] if isinstance(self.rows, np.ndarray) else None
        part = Examples(self.columns, inputs, targets, rows, len(index), (blocks, flat))
        found = part.arrays(np.arange(len(index)), rng)
        found.places = index  # among all, not in this part
        return found


@dataclass(frozen=True)
class Windows:
    """The windows of some examples, as examples. `owner` (W,): whose each is; `places`: by input, of each window the
    positions (T,) of the whole text that it holds.
    """

    examples: Examples
    owner: np.ndarray
    places: Mapping[str, Sequence[np.ndarray]]
    count: int

    @classmethod
    def of(cls, examples: Examples, sentences: bool) -> Windows | None:
        """None where nothing is longer than a window. `sentences`: windows end with sentences and share nothing.

        Of several long texts the windows go side by side, the last one of the shorter again where it has no more.
        """
        names = [n for n in examples.inputs if examples.columns[n].state.get("reads")]
        if not any((examples.inputs[n].lengths > examples.columns[n].state["reads"]).any() for n in names):  # type: ignore[union-attr]
            return None
        cuts = {n: [examples.columns[n].windows(ids, sentences) for ids in _items(examples.inputs[n])] for n in names}  # type: ignore[attr-defined]
        counts = np.max([[len(w) for w in found] for found in cuts.values()], axis=0)
        owner = np.repeat(np.arange(len(examples)), counts)
        places = {n: [w[min(k, len(w) - 1)] for w, c in zip(f, counts) for k in range(c)] for n, f in cuts.items()}
        inputs: dict[str, Encoded] = {
            n: Ragged.of([e[i][at] for i, at in zip(owner, places[n])]) if n in places else take(e, owner)
            for n, e in examples.inputs.items()
        }
        rows = np.asarray(examples.rows)[owner]
        return cls(Examples(examples.columns, inputs, {}, rows, len(owner)), owner, places, len(examples))

    def whole(self, name: str, column: Column, found: Encoded) -> Encoded:
        """Of every example one raw answer, from those of its windows (W, ...)."""
        groups = np.split(np.arange(len(self.owner)), np.searchsorted(self.owner, np.arange(1, self.count)))
        parts = ([found[int(w)] for w in group] for group in groups)
        if column.along:
            places = self.places.get(column.of)  # type: ignore[attr-defined]
            if places is None:  # of a text that is never split
                return Ragged.of([p[0] for p in parts])
            return Ragged.of([stitched(p, [places[w] for w in g]) for p, g in zip(parts, groups)])
        if name in self.examples.inputs:  # vectors of an input
            return np.stack([mean_vector(np.stack(p)) for p in parts])
        if column.form == "ids":
            from luban.columns.answering import alike

            made = [column.joined_up(p)[None] if len(p) > 1 else p[0][None] for p in parts]  # type: ignore[attr-defined]
            return np.concatenate(alike(made))
        return np.stack([column.pooled(np.stack(p)) if len(p) > 1 else np.asarray(p[0]) for p in parts])


def _items(encoded: Any) -> list[np.ndarray]:
    return [encoded[i] for i in range(len(encoded))]


def overlapping(length: int, room: int) -> list[tuple[int, int]]:
    """From and to of windows of `room` that share a quarter with the one before; the last one ends where the text does."""
    step = max(1, room - room // 4)
    starts = [0]
    while starts[-1] + room < length:
        starts.append(min(starts[-1] + step, length - room))
    return [(s, min(s + room, length)) for s in starts]


def by_sentences(ends: np.ndarray, begins: np.ndarray, room: int) -> list[tuple[int, int]]:
    """From and to of stretches of at most `room` positions: each ends behind the last sentence that fits; where none ends in
    the last three quarters of it, before the last word that begins there, else where there is no more room.

    ends, begins: bool (T,), whether a sentence ends with a position, and whether a word begins there.
    """
    found, start, length = [], 0, len(ends)
    while length - start > room:
        least, most = start + max(1, room // 4), start + room
        after = np.flatnonzero(ends[least - 1 : most]) + least
        words = np.flatnonzero(begins[least : most + 1]) + least
        stop = int(after[-1] if len(after) else words[-1] if len(words) else most)
        found.append((start, stop))
        start = stop
    return [*found, (start, length)]


def stitched(parts: Sequence[np.ndarray], places: Sequence[np.ndarray]) -> np.ndarray:
    """Lines for the positions of each window, with the same number of lines before them (before + T, K) -> those of the whole
    text: each position's from the window that it stands nearest to the middle of.
    """
    before = len(parts[0]) - len(places[0])
    length = 1 + max(int(at.max()) for at in places)
    result, depth = np.zeros((before + length, *parts[0].shape[1:]), parts[0].dtype), np.full(length, -1)
    result[:before] = parts[0][:before]
    for lines, at in zip(parts, places):
        inside = np.minimum(np.arange(len(at)), len(at) - 1 - np.arange(len(at)))
        better = inside > depth[at]
        result[before + at[better]] = lines[before:][better]
        depth[at[better]] = inside[better]
    return result


def mean_vector(parts: np.ndarray) -> np.ndarray:
    """The mean of vectors (W, D), as long as they are on average: those of length 1 give one of length 1."""
    mean, length = parts.mean(0), np.linalg.norm(parts, axis=1).mean()
    return (mean * (length / max(float(np.linalg.norm(mean)), 1e-12))).astype(parts.dtype)
