"""What is minimised: `objective(network, batch, rng) -> {output: (sum (B,), weight (B,))}`.

An objective may own modules and state (a teacher, a reference model); `fit` checkpoints what `modules` returns. One that
has parameters to learn puts them into the network for as long as it trains (`balanced`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luban.errors import RequestError, Unsupported
from luban.nn.tokens import Batch, brought
from luban.training.teaching import Answers

Losses = dict[str, tuple[Tensor, Tensor]]
Objective = Callable[[Any, Batch, np.random.Generator], Losses]


def supervised(network: Any, batch: Batch, rng: np.random.Generator) -> Losses:
    """The network's own loss against the truth."""
    return network.loss(network(batch), batch)


def _weights(network: Any, batch: Batch) -> dict[str, Tensor] | None:
    """What `supervised` gives as weights, from the truth alone; None where the network cannot tell."""
    return network.weights(batch) if hasattr(network, "weights") else None


supervised.weights = _weights  # type: ignore[attr-defined]


class Distillation:
    """(1 - share) x the truth + share x the teacher's answers (Hinton et al. 2015). The teacher is frozen.

    `kept`: its answers to the training examples, where it was asked before; without them it is asked in each update.
    """

    def __init__(
        self, teacher: nn.Module, *, share: float = 0.7, temperature: float = 2.0, kept: Answers | None = None
    ):
        self.teacher, self.kept = teacher.eval().requires_grad_(False), kept
        self.share, self.temperature = share, temperature

    def __call__(self, network: Any, batch: Batch, rng: np.random.Generator) -> Losses:
        o = network(batch)
        with torch.no_grad():
            soft = self.teacher(batch) if self.kept is None else self.kept.of(batch.places, o)
        truth = network.loss(o, batch)
        result: Losses = {}
        for name, each in network.divergence(o, soft, self.temperature, batch).items():
            hard, weight = truth.get(name, (torch.zeros_like(each), torch.ones_like(each)))
            result[name] = ((1 - self.share) * hard + self.share * each * weight, weight)
        return result


# -- examples mixed in pairs -------------------------------------------------------------------------------------------


class Mixed:
    """Every example is mixed with another of its batch, and so are their losses, in the same proportion.

    `mixup` (Zhang et al. 2018): x = s x_i + (1 - s) x_j of the first differentiable form, s ~ Beta(mixup, mixup) for each
    batch. `cutmix` (Yun et al. 2019): a box of x_j stands in x_i, s being what is left of x_i; grids only. With both,
    each batch is one or the other. Losses are mixed, not answers, so that every head keeps the truth it knows.
    Partners, and `s`, are drawn within what one process holds: with several ranks each mixes its own share of the global
    batch, so that no example travels, and the loss is not the one of a single process.
    """

    separable = False  # an example's loss depends on its neighbour

    def __init__(self, mixup: float = 0.0, cutmix: float = 0.0):
        self.mixup, self.cutmix = mixup, cutmix

    def __call__(self, network: Any, batch: Batch, rng: np.random.Generator) -> Losses:
        embedded = network.embed(batch)
        lookup = [n for n, e in embedded.items() if not e.is_floating_point()]
        if lookup:
            raise Unsupported("mix.no_embedding", inputs=lookup)
        index = brought(rng.permutation(batch.size), next(iter(embedded.values())).device)
        cut = bool(self.cutmix) and (not self.mixup or rng.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share, both = float(rng.beta(alpha, alpha)), batch
        if cut:
            embedded, share = pasted(embedded, index, share, rng)
        else:
            embedded, both = blended(embedded, batch, index, share)
        o = network(both, embedded)
        partners = replace(batch, rows=None, places=None).take(index)  # which would have to be asked of the device
        mine, theirs = network.loss(o, batch), network.loss(o, partners)
        mix = lambda a, b: share * a + (1 - share) * b  # noqa: E731
        return {n: (mix(mine[n][0], theirs[n][0]), mix(mine[n][1], theirs[n][1])) for n in mine}


def blended(
    embedded: Mapping[str, Tensor], batch: Batch, index: Tensor, share: float
) -> tuple[dict[str, Tensor], Batch]:
    """share x each example + (1 - share) x its partner, where the shorter of two counts as zero beyond its end.

    The batch's masks become those of what is mixed: real where either is.
    """
    result, inputs = {}, {}
    for name, e in embedded.items():
        x, mask = batch.inputs[name]
        if mask.ndim == 2:
            e = e * mask[..., None]
        result[name] = share * e + (1 - share) * e[index]
        inputs[name] = (x, mask | mask[index])
    return result, replace(batch, inputs=batch.inputs | inputs)


def pasted(
    embedded: Mapping[str, Tensor], index: Tensor, share: float, rng: np.random.Generator
) -> tuple[dict[str, Tensor], float]:
    """A box of its partner in each grid (B, C, H, W), about 1 - share of the area; and the share that was kept."""
    (y, x), side = rng.random(2), (1 - share) ** 0.5
    result, kept = {}, []
    for name, e in embedded.items():
        rows, columns = _stretch(y, side, e.shape[2]), _stretch(x, side, e.shape[3])
        result[name] = e.clone()
        result[name][..., rows, columns] = e[index][..., rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        kept.append(1 - area / (e.shape[2] * e.shape[3]))
    return result, float(np.mean(kept))


def _stretch(centre: float, side: float, size: int) -> slice:
    """`side` of a length around `centre` (both as shares of it), cut off at its ends."""
    low, high = (round(min(max(centre + s * side / 2, 0), 1) * size) for s in (-1, 1))
    return slice(low, high)


def mixed(network: Any, columns: Sequence[Any], *, mixup: float, cutmix: float) -> Objective:
    """The objective for some strengths of mixing (0 = off). `columns`: the inputs. Raises Unsupported where it cannot be."""
    if not (mixup or cutmix):
        return supervised
    if not hasattr(network, "embed"):
        raise Unsupported("mix.no_embedding", inputs=[c.name for c in columns])
    tied = [n for n, c in getattr(network, "outputs", {}).items() if c.of_form == "grid"]
    if tied:
        raise Unsupported("mix.tied", outputs=tied)
    other = [c.name for c in columns if c.form != "grid"]
    if cutmix and other:
        raise Unsupported("mix.no_grid", inputs=other)
    return Mixed(mixup, cutmix)


# -- several outputs ---------------------------------------------------------------------------------------------------


class Balance(nn.Module):
    """One learnt number for each output: s = log of its variance (Kendall et al. 2018, "Multi-Task Learning Using
    Uncertainty to Weigh Losses"). Its loss counts exp(-s) times, and s / 2 keeps s from growing for ever.

    The paper halves the loss of a number; that only moves s by log 2.
    """

    def __init__(self, outputs: Sequence[str]):
        super().__init__()
        self.place = {n: i for i, n in enumerate(outputs)}
        self.log_variance = nn.Parameter(torch.zeros(len(outputs)))

    def forward(self, name: str, each: Tensor, weight: Tensor) -> Tensor:
        """The value of the plain loss, so that it can be held against validation; the gradient of the balanced one."""
        s = self.log_variance[self.place[name]]
        learnt = torch.exp(-s) * each + s / 2 * weight
        return each.detach() + (learnt - learnt.detach())

    def weights(self) -> dict[str, float]:
        """How much each output counts."""
        return dict(zip(self.place, torch.exp(-self.log_variance.detach()).tolist()))


@contextmanager
def balanced(objective: Objective, network: Any, balance: str) -> Iterator[tuple[Objective, dict[str, float]]]:
    """The objective with learnt balancing of the outputs, while the `with` lasts; what was learnt stands in the dict after.

    The numbers are parameters of the network for that time, so one optimiser, one norm and one checkpoint hold all.
    Raises RequestError where there is only one output.
    """
    found: dict[str, float] = {}
    if balance != "learnt":
        yield objective, found
        return
    if len(network.outputs) < 2:
        raise RequestError("balance.one_output")
    device = next(network.parameters()).device
    network.balance = Balance(list(network.outputs)).to(device)

    def learning(network: Any, batch: Batch, rng: np.random.Generator) -> Losses:
        losses = objective(network, batch, rng)
        return {n: (network.balance(n, each, weight), weight) for n, (each, weight) in losses.items()}

    learning.separable = getattr(objective, "separable", True)  # type: ignore[attr-defined]
    if hasattr(objective, "weights"):
        learning.weights = objective.weights  # type: ignore[attr-defined]
    try:
        yield learning, found
        found.update(network.balance.weights())
    finally:
        del network.balance
