"""The narrow waist: every modality becomes Tokens, every fusion and head speaks only that.

Letters used in `luban/nn`: B examples, T positions, D features of a position, F columns that share one encoder,
K classes, C channels, H height, W width. Every mask is bool, True = real.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from luban.columns.base import GONE
from luban.columns.examples import Pairs


class Span(NamedTuple):
    """Where one column's positions lie among T, and their own layout: (T,) or (H, W)."""

    name: str
    start: int
    stop: int
    grid: tuple[int, ...]


class Tokens(NamedTuple):
    x: Tensor  # (B, T, D)
    mask: Tensor  # (B, T)
    spans: tuple[Span, ...] = ()


class Pyramid(NamedTuple):
    """The feature maps of an encoder that has several, finest first: what a head that reads maps is made for."""

    channels: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]  # (H', W') of each
    side: tuple[int, int]  # (H, W) of the image, in pixels


@dataclass
class Batch:
    """What a network sees of some examples. `size` is known without any input (a language model has none).

    inputs, targets: column name -> (x (B, ...), mask (B,) or (B, T)); rows: ids of the examples' rows; places: where these
    stand among all examples that batches are cut from. `counts`: False where they only stand in for rows that this process has none of.
    """

    inputs: MutableMapping[str, tuple[Tensor, Tensor]]
    targets: dict[str, tuple[Tensor, Tensor]]
    size: int
    rows: Any = None
    counts: bool = True
    places: np.ndarray | None = None

    @classmethod
    def of(cls, arrays: Any, device: torch.device | str = "cpu") -> Batch:
        """From numpy (`luban.columns.examples.Arrays`)."""
        put = _from_numpy if str(device) == "cpu" else lambda a: brought(a, torch.device(device))
        found = arrays.inputs
        blocks, others = (found.blocks, found.others) if isinstance(found, Pairs) else ((), found)
        inputs = Pairs(
            [(names, put(x), put(mask)) for names, x, mask in blocks],
            {n: (put(x), put(mask)) for n, (x, mask) in others.items()},
        )
        targets = {n: (put(x), put(mask)) for n, (x, mask) in arrays.targets.items()}
        return cls(inputs, targets, arrays.size, arrays.rows, places=arrays.places)

    def together(self, names: list[str]) -> tuple[Tensor, Tensor]:
        """Inputs of one number per example side by side: (x (B, F), mask (B, F))."""
        found = self.inputs.block(names) if isinstance(self.inputs, Pairs) else None
        if found is not None:
            return found
        xs, masks = zip(*(self.inputs[n] for n in names))
        return torch.stack(xs, 1), torch.stack(masks, 1)

    def take(self, index: slice | Tensor) -> Batch:
        """Some of its examples: per-example gradients, micro-batches."""
        size = len(range(self.size)[index]) if isinstance(index, slice) else index.shape[0]
        known = self.rows is not None or self.places is not None  # ids and places lie in memory, wherever the rest is
        at = index.cpu().numpy() if known and not isinstance(index, slice) else index
        rows, places = (of if of is None else of[at] for of in (self.rows, self.places))
        inputs, targets = _taken(self.inputs, index), _taken(self.targets, index)
        return replace(self, inputs=inputs, targets=targets, size=size, rows=rows, places=places)

    def answered(self, output: str, answers: Tensor) -> Batch:
        """The batch in which the answers to an output are these: a text is scored while it is read, so a network must have it.

        answers: class numbers (B,), which change nothing, or ids (B, T), `GONE` = padding, ~id = given and not to be scored.
        """
        if answers.ndim < 2:
            return self
        real = answers != GONE
        return replace(self, targets={output: (torch.where(real, answers, 0), real)})

    def cut(self, pieces: int) -> list[Batch]:
        """Its examples in so many batches of like size, or as many as there are examples."""
        pieces = max(1, min(pieces, self.size))
        ends = [self.size * i // pieces for i in range(pieces + 1)]
        return list(self.split([b - a for a, b in pairwise(ends)]))

    def split(self, sizes: list[int]) -> Iterator[Batch]:
        """Its examples in batches of these sizes, one after the other; views of what is here."""
        blocks = self.inputs.blocks if isinstance(self.inputs, Pairs) else []
        others = self.inputs.others if isinstance(self.inputs, Pairs) else self.inputs
        cut = lambda pairs: {n: (x.split(sizes), mask.split(sizes)) for n, (x, mask) in pairs.items()}  # noqa: E731
        at = lambda pairs, i: {n: (x[i], mask[i]) for n, (x, mask) in pairs.items()}  # noqa: E731
        blocks = [(names, x.split(sizes), mask.split(sizes)) for names, x, mask in blocks]
        others, targets, start = cut(others), cut(self.targets), 0
        for i, size in enumerate(sizes):
            inputs = Pairs([(names, x[i], mask[i]) for names, x, mask in blocks], at(others, i))
            rows, places = (of if of is None else of[start : start + size] for of in (self.rows, self.places))
            yield Batch(inputs, at(targets, i), size, rows, self.counts, places)
            start += size


def _taken(pairs: Any, index: Any) -> Any:
    if not isinstance(pairs, Pairs):
        return {n: (x[index], m[index]) for n, (x, m) in pairs.items()}
    return Pairs([(n, x[index], m[index]) for n, x, m in pairs.blocks], _taken(pairs.others, index))


def _from_numpy(a: Any) -> Tensor:
    return torch.from_numpy(a if a.flags.writeable else a.copy()) if isinstance(a, np.ndarray) else torch.as_tensor(a)


def brought(a: Any, device: torch.device) -> Tensor:
    """An array as a tensor of a device. A GPU takes it from pinned memory while the processor goes on: from other memory every copy is waited for."""
    if device.type == "cpu":
        return _from_numpy(a)
    if device.type != "cuda":
        return torch.as_tensor(a, device=device)
    return _from_numpy(a).pin_memory().to(device, non_blocking=True)


class Encoder(nn.Module):
    """x of one column, or of F scalar ones -> Tokens.

    `accepts` lists the forms of x that it reads (see `Column.form`). `size` is D; `length` is T where every example
    has the same, else None; `pooling` is how a fusion turns its Tokens into one vector; `feature_layer` is the
    module whose output Grad-CAM reads, None where there is none. `deep`: its vector needs no further layers before a head.
    `ways`: how many directions stand side by side in D. `sequences`: of a sequence it can give a state for each position.
    `placeless`: the states of a grid do not tell where they stand.
    `mapped`: of an image it gives feature maps, too: it has a `pyramid`, and `read(embedded, mask) -> (maps, Tokens)`.
    """

    accepts: tuple[str, ...] = ()
    size: int
    length: int | None = None
    pooling: str = "mean"
    deep: bool = False
    ways: int = 1
    sequences: bool = False
    placeless: bool = False
    mapped: bool = False

    def embed(self, x: Tensor, mask: Tensor) -> Tensor:
        """The first differentiable form of x."""
        raise NotImplementedError

    def forward(self, embedded: Tensor, mask: Tensor) -> Tokens:
        raise NotImplementedError

    @property
    def feature_layer(self) -> nn.Module | None:
        return None


class Pool(nn.Module):
    """Tokens -> one vector (B, size), looking at real positions only.

    first: the first position; last: the last real one (of a backward layer's half the first, where it has read all); mean,
    max: over real ones; root: their sum / sqrt(T), so that a longer text may be surer
    (as unit-length TF-IDF rows are); attention: softmax over time of V tanh(W h_t), then the
    weighted sum (Bahdanau et al. 2015); flatten: all T positions side by side (T fixed).
    """

    def __init__(self, kind: str, size: int, length: int | None = None, ways: int = 1):
        super().__init__()
        self.kind, self.ways = kind, ways
        if kind == "attention":
            self.energy = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 1, bias=False))
        self.size = size * length if kind == "flatten" and length else size

    def forward(self, tokens: Tokens) -> Tensor:
        x, mask = tokens.x, tokens.mask
        if self.kind == "flatten":
            return x.flatten(1)
        if self.kind == "first":
            return x[:, 0]
        if self.kind == "last":
            last = (mask.long() * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(dim=1)
            h = x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]
            half = x.shape[2] // 2
            return torch.cat([h[:, :half], x[:, 0, half:]], dim=1) if self.ways == 2 else h
        if self.kind == "max":
            return x.masked_fill(~mask[..., None], float("-inf")).amax(1).nan_to_num(neginf=0.0)
        if self.kind == "attention":
            return (self.weights(tokens)[..., None] * x).sum(1)
        real = mask[..., None].to(x.dtype)
        count = real.sum(1).clamp(min=1)
        return (x * real).sum(1) / (count.sqrt() if self.kind == "root" else count)

    def weights(self, tokens: Tokens) -> Tensor:
        """Attention over time, (B, T); zero on padding, and everywhere for an empty example."""
        energy = self.energy(tokens.x)[..., 0].masked_fill(
            ~tokens.mask, -1e9
        )  # not -inf: an empty row would give NaN gradients
        return torch.softmax(energy, dim=1) * tokens.mask


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class Dense(nn.Sequential):
    """Linear layers, each with its activation (and dropout): size -> layers[0] -> ... -> `out`."""

    def __init__(
        self,
        size: int,
        layers: list[int] | tuple[int, ...],
        activation: str = "relu",
        dropout: float = 0.0,
        norm: bool = False,
    ):
        modules: list[nn.Module] = []
        self_size = size
        for width in layers:
            modules.append(nn.Linear(self_size, width))
            if norm:
                modules.append(nn.LayerNorm(width))
            modules.append(ACTIVATIONS[activation]())
            if dropout:
                modules.append(nn.Dropout(dropout))
            self_size = width
        super().__init__(*modules)
        self.out = self_size
