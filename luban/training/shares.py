"""Which parts of a network learn, and how fast: frozen parts, a share of the rate for each, less for lower layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from luban.errors import RequestError, Unsupported, problem
from luban.nn.parts import parts


def check(network: Any, *named: Collection[str]) -> None:
    """Raises RequestError for every name that is no part of the network."""
    found = parts(network)
    wrong = [problem("train.no_part", name=n, allowed=found) for names in named for n in names if n not in found]
    if wrong:
        raise RequestError(*wrong)


def usual(network: Any, rates: Mapping[str, float]) -> dict[str, float]:
    """`rates`, and for parts that are not named there the `share` that they ask for themselves: weights that have learned
    elsewhere are soon forgotten at the rate of new ones.
    """
    asked = {n: [m.share for m in part.modules() if hasattr(m, "share")] for n, part in parts(network).items()}
    return {n: min(found) for n, found in asked.items() if found} | dict(rates)


def freeze(network: Any, names: Collection[str]) -> set[str]:
    """These parts do not learn from here on; the names of the parameters that learned before. Raises RequestError for an
    unknown part, Unsupported where nothing is left to learn.
    """
    if not names:
        return set()
    check(network, names)
    inside = {id(p) for n in names for p in parts(network)[n].parameters()}
    held = {n: p for n, p in network.named_parameters() if p.requires_grad and id(p) in inside}
    if not any(p.requires_grad and id(p) not in inside for p in network.parameters()):
        raise Unsupported("train.all_frozen", parts=list(names))
    for p in held.values():
        p.requires_grad_(False)
    return set(held)


def thaw(network: nn.Module, names: Collection[str]) -> None:
    """Parameters, by name, that learn again."""
    for n, p in network.named_parameters():
        if n in names:
            p.requires_grad_(True)


def shares(network: Any, rates: Mapping[str, float], decay: float) -> dict[int, float]:
    """Parameter id -> factor on the rate: that of its part in `rates` (else 1), times `decay` for every layer above it in its
    part (Howard & Ruder 2018, "discriminative fine-tuning"; Clark et al. 2020). Heads and `fusion` are not decayed.
    """
    if not rates and decay == 1:
        return {}
    result: dict[int, float] = {}
    outputs = {id(head) for head in getattr(network, "heads", ())}
    for name, part in parts(network).items():
        if name not in rates and any(id(p) in result for p in part.parameters()):
            continue  # an encoder that inputs share goes by the one that is named
        layers = _layers(part)
        top = max(layers.values(), default=0)
        deep = id(part) not in outputs and part is not getattr(network, "fusion", None)
        for parameter, p in part.named_parameters():
            below = decay ** (top - layers[parameter]) if deep else 1.0
            result[id(p)] = rates.get(name, 1.0) * below
    return result


def _layers(part: nn.Module) -> dict[str, int]:
    """Parameter name -> the number of its layer from below: members of a list are layers, else each module that has weights.

    What stands before the first list, or the embedding tables where there is none, is the lowest layer together.
    """
    names = [n for n, _ in part.named_parameters()]
    listed = [i for i, n in enumerate(names) if any(w.isdecimal() for w in n.split("."))]
    tables = {f"{n}." for n, m in part.named_modules() if isinstance(m, nn.Embedding)}
    others = (i for i, n in enumerate(names) if n.rpartition(".")[0] + "." not in tables)
    first = listed[0] if listed else next(others, len(names))
    numbers: dict[str, int] = {"below": 0} if first else {}
    result = dict.fromkeys(names[:first], 0)
    for name in names[first:]:
        words = name.split(".")
        place = next((i for i, w in enumerate(words) if w.isdecimal()), len(words) - 2)
        result[name] = numbers.setdefault(".".join(words[: place + 1]) if place >= 0 else "", len(numbers))
    return result


def still(network: nn.Module) -> list[nn.Module]:
    """Frozen batch norms: they keep the statistics they have, too."""
    kinds = nn.modules.batchnorm._BatchNorm
    found = [m for m in network.modules() if isinstance(m, kinds) and list(m.parameters(recurse=False))]
    return [m for m in found if not any(p.requires_grad for p in m.parameters(recurse=False))]
