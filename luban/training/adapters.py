"""Fine-tuning with LoRA: which parts of a network get thin layers, which learn whole, and what is left at the end."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from luban.console import tell
from luban.errors import RequestError, Unsupported, problem
from luban.nn.edits import replay
from luban.nn.lora import layers_in, merge_lora
from luban.nn.parts import parts
from luban.settings import Count, Positive, Range
from luban.training.random import seed_torch

Edit = dict[str, Any]


@dataclass(frozen=True)
class Adapters:
    """What was put in. `frozen`: parameters that did not learn before."""

    edit: Edit
    merge: bool
    frozen: frozenset[str]

    def finished(self, network: Any, edits: list[Edit]) -> tuple[Any, list[Edit]]:
        """The network as it is kept, and its edits: without thin layers where they are merged."""
        if not self.merge:
            return network, [*edits, self.edit]
        network = merge_lora(network)
        for name, p in network.named_parameters():
            p.requires_grad_(name not in self.frozen)
        return network, edits


def adapt(
    network: Any,
    known: Collection[str] | None,
    seed: int = 0,
    *,
    rank: Count = 8,
    alpha: Positive = 16.0,
    dropout: Annotated[float, Range(low=0, high=0.99)] = 0.0,
    targets: list[str] | Literal["auto"] = "auto",
    merge: bool = True,
) -> Adapters:
    """Put thin layers into `network`, in place (`luban.nn.lora`). Parts that are not `known`, having learned nothing, learn whole.

    `targets`: parts whose linear, convolutional and recurrent layers get them, by name (inputs, outputs, `fusion`); all
    that are known when auto. `merge`: at the end the thin layers are added into the others.
    Raises RequestError for a part that does not exist or nothing known, Unsupported where no layer fits.
    """
    found = parts(network)
    if not known:
        raise RequestError("lora.nothing_known" if known is None else "lora.nothing_taken")
    wrong = (
        [problem("lora.no_part", name=n, allowed=found) for n in targets if n not in found] if targets != "auto" else []
    )
    if wrong:
        raise RequestError(*wrong)
    new = {id(m): n for n, m in found.items() if n not in known}
    chosen = {n: m for n, m in found.items() if targets == "auto" or n in targets}
    layers = layers_in(network, [m for m in chosen.values() if id(m) not in new])
    if not layers:
        raise Unsupported("lora.no_layers", parts=list(chosen))
    frozen = frozenset(n for n, p in network.named_parameters() if not p.requires_grad)
    edit = {"edit": "lora", "layers": layers, "rank": rank, "alpha": alpha, "dropout": dropout}
    seed_torch(seed, "lora")
    replay(network, [edit])
    for module in found.values():
        if id(module) in new:
            module.requires_grad_(True)
    _tell(network, layers, sorted(new.values()))
    return Adapters(edit, merge, frozen)


def known_parts(bundle: Any, network: Any) -> set[str] | None:
    """Parts that have learned something: what was taken from a model, all after a training, a module of one's own.

    What came out of a checkpoint has, too. None where there is nothing of the kind.
    """
    stages = {h["stage"]: h for h in bundle.history}
    if hasattr(network, "module") or "train" in stages:
        return set(parts(network))
    learned = {n for n, part in parts(network).items() if any(getattr(m, "learned", False) for m in part.modules())}
    return {*stages.get("start", {"weights": ()})["weights"], *learned} if learned or "start" in stages else None


def _tell(network: Any, layers: list[str], new: list[str]) -> None:
    learn, whole = trained(network), sum(p.numel() for p in network.parameters())
    tell("lora.learn", trained=f"{learn:,}", whole=f"{whole:,}", share=f"{learn / whole:.1%}", layers=len(layers))
    if new:
        tell("lora.new", parts=new)


def trained(network: Any) -> int:
    """How many weights learn."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
