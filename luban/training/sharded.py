"""Weights, gradients and optimiser cut over the ranks: PyTorch's FSDP2 (`fully_shard`; Zhao et al. 2023).

Each rank holds 1/world of every parameter, cut along its first dimension. Before a group of modules runs, its weights are
gathered; after its backward pass the gradients are summed and each rank keeps its part, which here is a view of the
state's one flat buffer, so that norm, clipping, zero and the fused optimisers work on it as they do on whole weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from luban.errors import Unsupported, raise_all
from luban.scale import clashes
from luban.training import shards
from luban.training.divided import scalars
from luban.training.shards import Piece, Tensors


class Sharded:
    """Where the weights lie: a part of each in every rank. The network given is an empty shell while its copy is trained."""

    in_pieces = False  # every pass gathers weights from all ranks: one that made fewer would be waited for

    def __init__(self, network: nn.Module, ranks: Any):
        if found := scalars(network):
            raise Unsupported("scale.scalar", names=found)
        self.shell, self.ranks = network, ranks
        self.kept = set(network.state_dict())
        self.network = _cut(network, ranks)
        for parameter in network.parameters():  # the copy has its part; from here on nobody holds all of it
            parameter.data = _hollow(parameter)
        self.named = dict(self.network.named_parameters())
        self.leaves = {id(p): nn.Parameter(p.to_local().detach(), p.requires_grad) for p in self.named.values()}
        self.parameters = [self.leaves[id(p)] for p in self.named.values() if p.requires_grad]

    def local(self, parameter: Tensor) -> Tensor:
        """The part of a parameter that this rank updates."""
        return self.leaves[id(parameter)]

    def bind(self, optimizer: Any, plan: Any) -> None:
        """FSDP adds what it reduces to the gradients that the state made: views of its flat buffer.

        Raises Unsupported for what has to see whole weights, or is not the same number of passes in every rank.
        """
        raise_all(Unsupported, clashes("fsdp", vars(plan)))
        for p in self.named.values():
            if (grad := self.leaves[id(p)].grad) is not None:
                p.grad = DTensor.from_local(
                    grad, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
                )

    def reduce(self, flat: Tensor) -> None:
        """FSDP has done it in the backward pass."""

    def norm(self, flat: Tensor) -> Tensor:
        return self.ranks.add(flat.dot(flat)).sqrt()

    def read(self) -> dict[str, Tensor]:
        """This rank's part of every parameter; buffers are whole in every rank."""
        return {n: self.leaves[id(p)] for n, p in self.named.items()} | dict(self._buffers())

    @torch.no_grad()
    def write(self, tensors: dict[str, Tensor]) -> None:
        for module in self.network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        for name, mine in self.read().items():
            mine.copy_(tensors[name])

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        return ((n, b) for n, b in self.network.named_buffers() if n in self.kept)

    def check(self) -> None:
        """No two ranks hold the same weight: there is nothing to compare."""

    # -- checkpoints ---------------------------------------------------------------------------------------------------
    def save(
        self,
        folder: Path,
        step: int,
        tensors: Tensors,
        state: dict[str, Any],
        owners: dict[str, Tensor],
        good: bool = True,
    ) -> None:
        shards.save(self.ranks, folder, step, tensors, state, lambda file, name: self._piece(file, name, owners), good)

    def load(self, path: Path, owners: dict[str, Tensor]) -> Tensors:
        return shards.load(path, lambda file, name: self._piece(file, name, owners))

    def _piece(self, file: str, name: str, owners: dict[str, Tensor]) -> Piece | None:
        """Which rows of a whole tensor are this rank's; None where it has all of them."""
        if file in ("model", "best"):
            return self._rows(self.named[name]) if name in self.named else None
        leaf = owners.get(name) if file == "optimizer" else None
        found = next((p for p in self.named.values() if self.leaves[id(p)] is leaf), None)
        return None if found is None else self._rows(found)

    def _rows(self, parameter: Tensor) -> Piece:
        whole, each = parameter.shape[0], -(-parameter.shape[0] // self.ranks.world)
        return Piece(whole, min(whole, self.ranks.rank * each), len(self.leaves[id(parameter)]))

    # -- the end -------------------------------------------------------------------------------------------------------
    def release(self) -> None:
        """The first rank's network is whole again; the others' have the right shapes and take no memory."""
        shell, buffers = dict(self.shell.named_parameters()), dict(self.shell.named_buffers())
        for name, p in self.named.items():
            p.grad = None
            whole = p.full_tensor().detach()
            shell[name].data = whole.clone() if self.ranks.first else _hollow(whole)
        for name, b in self._buffers():
            buffers[name].copy_(b)


def _cut(network: nn.Module, ranks: Any) -> Any:
    mesh = DeviceMesh.from_group(ranks.tensors, next(network.parameters()).device.type)
    cut = copy.deepcopy(network, {id(p): p for p in network.parameters()})  # the weights themselves are not copied
    for group in [*blocks(cut), cut]:
        fully_shard(group, mesh=mesh)
        group.set_gradient_divide_factor(1.0)  # losses are divided by the weight of the whole global batch already
        group.set_force_sum_reduction_for_comms(True)
    cut.set_reduce_scatter_unused_params(True)  # an output whose truth is missing in all rows of one rank
    return cut


def blocks(network: nn.Module) -> list[nn.Module]:
    """Modules that repeat and are only ever called, such as a Transformer's blocks: each is gathered by itself."""
    lists = [list(m) for m in network.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    return [
        block
        for group in lists
        if len({type(b) for b in group}) == 1
        for block in group
        if any(True for _ in block.children()) and not hasattr(block, "embed") and not hasattr(block, "loss")
    ]


def _hollow(tensor: Tensor) -> Tensor:
    """The shape of a tensor without its memory."""
    return torch.zeros(1, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
