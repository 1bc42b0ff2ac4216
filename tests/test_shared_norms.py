"""Batch norms of several ranks, here as threads, against torch's own over the whole batch; each with a fault to be seen."""

import threading
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from luban.training.norms import Norms
from luban.training.ranks import ALONE


class Threads:
    """What ranks tell each other, between threads of one process."""

    def __init__(self, world):
        self.world, self.met, self.held = world, threading.Barrier(world, timeout=20), [None] * world

    def of(self, rank):
        one = Thread()
        one.rank, one.world, one.all = rank, self.world, self
        return one


class Thread:
    def gather(self, tensor):
        self.all.held[self.rank] = tensor.clone()
        self.all.met.wait()
        found = torch.stack(self.all.held)
        self.all.met.wait()
        return found

    def add(self, tensor):
        return tensor.copy_(self.gather(tensor).sum(0))


def together(norms, parts, counts, ranks=None):
    """One forward and backward pass of each rank in a thread of its own: [(answers, gradients of the input)]."""
    group, found = Threads(len(parts)), [None] * len(parts)

    def one(rank):
        x = parts[rank].clone().requires_grad_()
        with Norms(norms[rank], ranks or group.of(rank))(counts[rank]):
            y = norms[rank](x)
            (wave(y) * counts[rank]).backward()
        found[rank] = y.detach(), x.grad

    threads = [threading.Thread(target=one, args=(r,)) for r in range(len(parts))]
    with ExitStack() as ends:
        for thread in threads:
            thread.start()
            ends.callback(thread.join)
    return found


def wave(y):
    return (y.float() * torch.arange(y[0].numel()).view_as(y[0]).cos()).sin().sum()


def apart(make, shape, cut, dtype=torch.float32, ranks=None):
    """The largest difference to one process of answers, gradients of input and weights, and running statistics."""
    torch.manual_seed(0)
    whole = (torch.randn(shape) * 3 + 5).to(dtype)
    if len(shape) == 4:
        whole = whole.to(memory_format=torch.channels_last)
    one, alike = make(), [make() for _ in cut]
    for norm in (one, *alike):
        for p in norm.parameters():
            nn.init.constant_(p, 1.5)
    x = whole.clone().requires_grad_()
    y = one(x)
    wave(y).backward()
    counts = [bool(c) for c in cut]
    parts = [p if c else whole[:1] for p, c in zip(whole.split(cut), counts)]
    found = together(alike, parts, counts, ranks)
    counted = [f for f, c in zip(found, counts) if c]
    assert all(not f[1].any() for f, c in zip(found, counts) if not c), "a row that does not count learns nothing"
    pairs = [(y, torch.cat([f[0] for f in counted])), (x.grad, torch.cat([f[1] for f in counted]))]
    pairs += [(p.grad, sum(q.grad for q in same)) for p, *same in zip(*(n.parameters() for n in (one, *alike)))]
    pairs += [(b, other) for b, *same in zip(*(n.buffers() for n in (one, *alike))) for other in same]
    assert all(a.dtype == b.dtype for a, b in pairs)
    return max(float((a.detach().float() - b.float()).abs().max()) for a, b in pairs)


KINDS = {
    "pictures": (lambda: nn.BatchNorm2d(4), (7, 4, 5, 3)),
    "rows": (lambda: nn.BatchNorm1d(6), (9, 6)),
    "positions": (lambda: nn.BatchNorm1d(3), (8, 3, 5)),
    "mean of all batches": (lambda: nn.BatchNorm2d(4, momentum=None), (7, 4, 2, 2)),
    "without weights": (lambda: nn.BatchNorm1d(6, affine=False), (9, 6)),
    "without statistics": (lambda: nn.BatchNorm1d(6, track_running_stats=False), (9, 6)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_have_the_statistics_of_the_whole_batch(kind, ranks):
    make, shape = KINDS[kind]
    cut = [shape[0] - 2 * (ranks - 1)] + [2] * (ranks - 1)
    assert apart(make, shape, cut) < 1e-5


def test_a_rank_whose_row_does_not_count_changes_nothing():
    assert apart(*KINDS["pictures"], [5, 2, 0]) < 1e-5


def test_half_precision_is_summed_in_single():
    make, shape = KINDS["pictures"]
    assert apart(make, shape, [4, 3], torch.bfloat16) < 0.1


def test_control_statistics_of_ones_own_rows_are_seen():
    make, shape = KINDS["pictures"]

    class Local(Thread):
        world = 2

        def gather(self, tensor):
            return tensor[None]

        def add(self, tensor):
            return tensor

    assert apart(make, shape, [4, 3], ranks=Local()) > 0.1


def test_norms_that_keep_their_statistics_tell_nobody_and_all_are_themselves_afterwards():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    network[0].eval()
    alone = Norms(network, ALONE)
    with alone(True):
        assert "forward" not in vars(network[0])
    silent = Thread()
    silent.world = 2  # gather would fail: there is nobody
    with Norms(network, silent)(True):
        assert torch.equal(network[0](torch.ones(2, 3)), nn.BatchNorm1d(3).eval()(torch.ones(2, 3)))
        with pytest.raises(AttributeError):
            network[1](torch.ones(2, 3))
    assert not any("forward" in vars(m) for m in network)
