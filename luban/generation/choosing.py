"""The next token of each text from the logits of all.

V tokens in the vocabulary, B texts. Every text has its own settings and its own randomness, a function of (seed, place), so
that it is the same alone as beside others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from luban.generation.sampling import Sampling


def choose(
    logits: Tensor, settings: Sequence[Sampling], read: Sequence[Sequence[int]], begun: Sequence[int] = ()
) -> tuple[list[int], list[float]]:
    """logits (B, V), per text its settings and the ids read so far -> ids, and their log-probabilities to the network.

    `begun`: how many of the ids read were given, 0 each unless told.
    """
    plain = logits.log_softmax(-1)
    if all(s.temperature == 0 and not s.penalised for s in settings):
        found = plain.max(-1)
        return found.indices.tolist(), found.values.tolist()
    z = penalised(logits, settings, read, begun or [0] * len(settings))
    column = lambda name: torch.tensor([[getattr(s, name)] for s in settings], device=z.device, dtype=z.dtype)  # noqa: E731
    warm = torch.tensor([s.temperature > 0 for s in settings], device=z.device)
    p = (z / column("temperature").clamp(min=1e-6)).softmax(-1)
    p = kept(p, settings, column)
    u = torch.tensor([_uniform(s.seed, len(r)) for s, r in zip(settings, read)], device=z.device, dtype=torch.float64)
    sums = p.double().cumsum(-1)
    drawn = (sums <= u[:, None] * sums[:, -1:]).sum(-1).clamp(max=z.shape[1] - 1)
    ids = torch.where(warm, drawn, z.argmax(-1))
    return ids.tolist(), plain.gather(1, ids[:, None])[:, 0].tolist()


def penalised(
    logits: Tensor, settings: Sequence[Sampling], read: Sequence[Sequence[int]], begun: Sequence[int]
) -> Tensor:
    """Logits in which tokens that were read, or written, are less likely."""
    if not any(s.penalised for s in settings):
        return logits
    z = logits.clone()
    for row, s, ids, first in zip(z, settings, read, begun):
        if s.presence_penalty or s.frequency_penalty:
            own, count = (torch.as_tensor(a, device=z.device) for a in np.unique(ids[first:], return_counts=True))
            row[own.long()] -= s.presence_penalty + s.frequency_penalty * count
        if s.repetition_penalty != 1:
            index = torch.as_tensor(sorted(set(ids)), device=z.device)
            found = row[index]
            row[index] = torch.where(found > 0, found / s.repetition_penalty, found * s.repetition_penalty)
    return z


def kept(p: Tensor, settings: Sequence[Sampling], column: Callable[[str], Tensor]) -> Tensor:
    """Probabilities (B, V), those of tokens that are not to be chosen set to zero. The likeliest one always stays."""
    most = max((s.top_k for s in settings), default=0)
    if most:
        best = p.topk(min(most, p.shape[1]), -1).values
        last = [min(s.top_k or 1, p.shape[1]) - 1 for s in settings]
        limit = best.gather(1, torch.tensor(last, device=p.device)[:, None])
        p = torch.where((column("top_k") > 0) & (p < limit), 0, p)
    if any(s.min_p for s in settings):
        p = torch.where(p < column("min_p") * p.amax(-1, keepdim=True), 0, p)
    if any(s.top_p < 1 for s in settings):
        ordered, place = p.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # the probability of all that are likelier
        out = before >= column("top_p") * ordered.sum(-1, keepdim=True)
        p = p.masked_fill(out.scatter(1, place, out), 0)
    return p


def _uniform(seed: int, place: int) -> float:
    """A number in [0, 1) for one place of one text."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=place)).random())
