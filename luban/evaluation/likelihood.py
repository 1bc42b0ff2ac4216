"""How likely the true texts are to a network: what perplexity and bits per byte are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from luban.columns.answering import TOKENS
from luban.columns.base import Ragged, take
from luban.columns.examples import Examples
from luban.nn.tokens import Batch


@torch.inference_mode()
def likelihood(network: Any, name: str, examples: Examples) -> np.ndarray:
    """(N, 2): minus the log-probability (natural) of the text of each example, its end included, and its tokens.

    A text longer than what the network learned at once is read in windows that overlap by half: every token but the first
    ones sees at least half a window before it, and counts once.
    """
    texts, most = examples.targets[name], network.window - 1
    found = np.zeros((len(examples), 2))
    pieces, owners = [], []
    for i in range(len(texts)):
        for piece in windows(texts[i], most):
            pieces.append(piece)
            owners.append(i)
    cut, owner = Ragged.of(pieces), np.array(owners, np.int64)
    device = _device(network)
    for index in _batches(np.maximum(cut.lengths, _input_lengths(examples)[owner])):
        arrays = examples.arrays(owner[index])
        arrays.targets = {name: examples.columns[name].collate(take(cut, index))}
        batch = Batch.of(arrays, device)
        each, weight = network.loss(network(batch), batch)[name]
        np.add.at(found, owner[index], np.stack([each.double().cpu().numpy(), weight.double().cpu().numpy()], 1))
    return found


@torch.inference_mode()
def hidden(network: Any, name: str, examples: Examples) -> np.ndarray:
    """(N, 3 or more) for a network that is asked what a text itself holds: the loss of what was asked, how much that is, how
    much was right; see `told` of its fusion.
    """
    column, texts = examples.columns[name], examples.inputs[name]
    found, pieces, owners = np.zeros((len(examples), 0)), [], []
    most = min(column.length, int(texts.lengths.max(initial=1)))
    for i in range(len(texts)):
        cut = [texts[i][a : a + most] for a in range(0, len(texts[i]), most)]
        pieces, owners = [*pieces, *cut], [*owners, *[i] * len(cut)]
    cut, owner = Ragged.of(pieces), np.array(owners, np.int64)
    device = _device(network)
    for index in _batches(cut.lengths):
        x, mask = column.collate(take(cut, index))
        batch = Batch({name: (torch.as_tensor(x, device=device), torch.as_tensor(mask, device=device))}, {}, len(index))
        told = network(batch)[name].double().cpu().numpy()
        found = found if found.shape[1] else np.zeros((len(examples), told.shape[1]))
        np.add.at(found, owner[index], told)
    return found


def _device(network: Any) -> torch.device:
    """Where its weights lie; those stored as integers are buffers."""
    return next((w.device for w in (*network.parameters(), *network.buffers())), torch.device("cpu"))


def windows(ids: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """One text in windows of at most `most` ids; those that an earlier window has counted are given (~id)."""
    yield ids[:most]
    half = max(1, most // 2)
    for start in range(half, len(ids) - most + half, half):
        piece = ids[start : start + most].astype(np.int64)
        before = most - half
        given = np.where(piece[:before] < 0, piece[:before], ~piece[:before])
        yield np.concatenate([given, piece[before:]])


def _input_lengths(examples: Examples) -> np.ndarray:
    found = [e.lengths for e in examples.inputs.values() if isinstance(e, Ragged)]
    return np.maximum.reduce(found) if found else np.zeros(len(examples), np.int64)


def _batches(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Windows of like length together, TOKENS / 4 positions at most at once: each has the whole vocabulary."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and lengths[order[stop]] * (stop + 1 - start) <= TOKENS // 4:
            stop += 1
        yield order[start:stop]
        start = stop
