"""What a rank is: one of several processes that train one network together, each on its part of every batch.

    ranks = here()                       Alone, or the Group that `join` made, inside of `together`
    index, counts = ranks.share(index)   this rank's rows of a global batch
    ranks.add(tensor)                    the sum over all ranks, in place, on every rank the same bits
    ranks.gather(tensor)                 those of all ranks, in their order
    asked = ranks.ask(flag); asked()     the largest flag of any rank: the same decision everywhere, at the same step
    ranks.told(value)                    rank 0's value (JSON)

Two groups of processes carry this: one for tensors (nccl on GPUs, gloo on processors), one for what the loop has to agree
upon (gloo, so that no device is waited for). Nothing here pickles: values go round as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from luban.errors import RanksDiffer
from luban.training import checkpoints, shards

TIMEOUT = 600.0  # seconds that a rank waits for the others
PATIENT = 7 * 24 * 3600.0  # seconds that a rank waits for work
Flag = int | bool


class Ranks(Protocol):
    """`rank` of `world`; `first` writes files and speaks."""

    rank: int
    world: int
    first: bool
    own: tuple[int, ...]  # what sets this rank's random numbers apart

    def share(self, index: np.ndarray) -> tuple[np.ndarray, bool]: ...
    def add(self, tensor: Tensor) -> Tensor: ...
    def gather(self, tensor: Tensor) -> Tensor: ...
    def ask(self, flag: Callable[[], Flag]) -> Callable[[], int]: ...
    def total(self, numbers: list[float]) -> list[float]: ...
    def told(self, value: Any) -> Any: ...
    def wait(self) -> None: ...
    def same(self, what: str, *values: Any) -> None: ...
    def spread(self, network: nn.Module) -> Any: ...


class Alone:
    """One process: everything is its own, nothing is waited for."""

    rank, world, first, own = 0, 1, True, ()

    def share(self, index: np.ndarray) -> tuple[np.ndarray, bool]:
        return index, True

    def add(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor[None]

    def ask(self, flag: Callable[[], Flag]) -> Callable[[], int]:
        return lambda: int(flag())

    def total(self, numbers: list[float]) -> list[float]:
        return numbers

    def told(self, value: Any) -> Any:
        return value

    def wait(self) -> None: ...

    def same(self, what: str, *values: Any) -> None: ...

    def spread(self, network: nn.Module) -> Replicated:
        return Replicated(network, self)


class Group:
    """Several processes of torch.distributed. Raises RuntimeError (torch's own) where another rank is gone or silent."""

    def __init__(self, timeout: float = TIMEOUT, strategy: str = "ddp"):
        self.strategy = strategy
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.first, self.own = self.rank == 0, (self.rank,)
        self.tensors = dist.new_group(timeout=timedelta(seconds=timeout))
        self.words = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    def share(self, index: np.ndarray) -> tuple[np.ndarray, bool]:
        """Every `world`-th row from `rank` on: rows of like length stand together, so each rank gets as many long ones.

        A batch with fewer rows than ranks leaves some without: they compute a row that does not count (False).
        """
        own = index[self.rank :: self.world]
        return (own, True) if len(own) else (index[:1], False)

    def add(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor, group=self.tensors)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """(C,) of each rank -> (W, C)"""
        each = tensor.new_empty(self.world * len(tensor))
        dist.all_gather_into_tensor(each, tensor, group=self.tensors)
        return each.view(self.world, -1)

    def ask(self, flag: Callable[[], Flag]) -> Callable[[], int]:
        """Starts the question; calling what it gives ends it. In between the step is computed."""
        answer = torch.tensor(int(flag()), dtype=torch.int64)
        work = dist.all_reduce(answer, op=dist.ReduceOp.MAX, group=self.words, async_op=True)

        def asked() -> int:
            work.wait()
            return int(answer)

        return asked

    def total(self, numbers: list[float]) -> list[float]:
        """Numbers of each rank, added up in double precision."""
        whole = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(whole, group=self.words)
        return whole.tolist()

    def told(self, value: Any) -> Any:
        return _told(value, self.words)

    def wait(self) -> None:
        dist.barrier(group=self.words)

    def same(self, what: str, *values: Any) -> None:
        """Raises RanksDiffer where the ranks do not hold the same: other data, another version, or weights that drifted."""
        digest = hashlib.blake2b(digest_size=7)
        for value in values:
            digest.update(_bytes(value))
        number = int.from_bytes(digest.digest(), "little")
        ends = torch.tensor([number, -number])
        dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=self.words)
        if int(ends[0]) != -int(ends[1]):
            raise RanksDiffer("ranks.differ", what=what, world=self.world)

    def spread(self, network: nn.Module) -> Any:
        """How the weights lie: `Replicated`, or `luban.training.sharded.Sharded`."""
        if self.strategy == "ddp":
            return Replicated(network, self)
        from luban.training.sharded import Sharded

        return Sharded(network, self)


class Replicated:
    """Where the weights lie: all of them in every rank. Gradients are added up over the ranks."""

    in_pieces = True  # a batch may be computed in pieces, in one rank in more of them than in another

    def __init__(self, network: nn.Module, ranks: Ranks):
        self.network, self.ranks = network, ranks
        self.parameters = [p for p in network.parameters() if p.requires_grad]

    def local(self, parameter: Tensor) -> Tensor:
        """The part of a parameter that this rank updates."""
        return parameter

    def reduce(self, flat: Tensor) -> None:
        """All gradients of this rank become those of the whole global batch."""
        self.ranks.add(flat)

    def norm(self, flat: Tensor) -> Tensor:
        return torch.linalg.vector_norm(flat)

    def read(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def write(self, tensors: dict[str, Tensor]) -> None:
        self.network.load_state_dict(tensors)

    def bind(self, optimizer: Any, plan: Any) -> None:
        """The state has made the gradients of `parameters` and the optimiser that updates them."""

    def save(
        self, folder: Path, step: int, tensors: Any, state: dict[str, Any], owners: dict[str, Tensor], good: bool = True
    ) -> None:
        """A checkpoint of `read`, the optimiser's tensors (`owners`: whose each is) and whatever else; one rank writes it."""
        if self.ranks.first:
            checkpoints.save(folder, step, tensors, state, good=good)

    def load(self, path: Path, owners: dict[str, Tensor]) -> Any:
        """The tensors of a checkpoint's folder as `save` was given them, however many ranks wrote it."""
        return shards.load(path)

    def check(self) -> None:
        """Raises RanksDiffer where the ranks no longer hold the same weights."""
        if self.ranks.world > 1:
            self.ranks.same("weights", *self.network.state_dict().values())

    def release(self) -> None:
        """Let go of the gradients: the network belongs to others again, whole and unsharded."""
        for p in self.parameters:
            p.grad = None


ALONE: Ranks = Alone()
_here = ALONE
_made = False  # torch.distributed was set up here, not by an engine


def here() -> Ranks:
    """The ranks that this process trains with."""
    return _here


def join(timeout: float = TIMEOUT, strategy: str = "ddp") -> Group:
    """Become one of the ranks that torchrun, Ray or anything that sets torch's own environment has started.

    Each rank gets a GPU of its own where there are any. Where torch.distributed is set up already (Ray), that is used.
    """
    _meet(timeout)
    return Group(timeout, strategy)


def restarts() -> int:
    """How often torchrun has started these ranks anew after one had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


class Crew:
    """Ranks that wait for rank 0 to tell them what to do, for as long as it takes."""

    def __init__(self) -> None:
        _meet(TIMEOUT)
        self.patient = dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENT))

    def told(self, value: Any) -> Any:
        return _told(value, self.patient)


def _meet(timeout: float) -> None:
    global _made
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        wait = timedelta(seconds=timeout)
        store, rank, world = next(dist.rendezvous("env://", timeout=wait))
        # torchrun keeps its store over a restart: without a prefix, ranks would call at the addresses of the dead
        store = dist.PrefixStore(f"start-{restarts()}", store)
        _made = True
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=wait)


@contextmanager
def together(group: Ranks) -> Iterator[None]:
    """What is trained inside is trained by the group."""
    global _here
    before, _here = _here, group
    try:
        yield
    finally:
        _here = before


def leave() -> None:
    """End what `join` began."""
    global _made
    if dist.is_initialized() and _made:
        _made = False
        dist.destroy_process_group()


def totals(
    ranks: Ranks, sums: dict[str, tuple[Tensor, Tensor]], counts: bool = True
) -> dict[str, tuple[Tensor, Tensor]]:
    """{output: (sum, weight)} of one rank, without gradient -> of the whole global batch.

    A rank whose rows do not `counts` adds nothing.
    """
    if ranks.world == 1:
        return sums
    plain = torch.stack([t.float() for pair in sums.values() for t in pair])
    whole = ranks.add(plain if counts else torch.zeros_like(plain))
    return {n: (whole[2 * i], whole[2 * i + 1]) for i, n in enumerate(sums)}


def _told(value: Any, group: Any) -> Any:
    """JSON from rank 0 to all."""
    data = json.dumps(value).encode()
    size = torch.tensor(len(data))
    dist.broadcast(size, 0, group=group)
    buffer = torch.zeros(int(size), dtype=torch.uint8)
    if dist.get_rank() == 0:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(buffer, 0, group=group)
    return json.loads(bytes(buffer.numpy()))


def _bytes(value: Any) -> bytes:
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        return (
            plain.view(torch.uint8).numpy().tobytes()
            if plain.ndim
            else plain.reshape(1).view(torch.uint8).numpy().tobytes()
        )
    return json.dumps(value, sort_keys=True, default=str).encode()
