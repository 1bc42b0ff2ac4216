"""Our optimisers against torch.optim, and the schedules against their formulas."""

import copy

import pytest
import torch

from luban.training.optimizers import Optimizer
from luban.training.schedules import schedule

THEIRS = {
    "adamw": lambda p, m, d: torch.optim.AdamW(p, lr=0.01, weight_decay=d),
    "adam": lambda p, m, d: torch.optim.Adam(p, lr=0.01, weight_decay=d),
    "sgd": lambda p, m, d: torch.optim.SGD(p, lr=0.01, momentum=m, weight_decay=d),
    "rmsprop": lambda p, m, d: torch.optim.RMSprop(p, lr=0.01, momentum=m, weight_decay=d),
}


def steps(name: str, momentum: float, decay: float, rate: float = 0.01) -> float:
    """Largest difference of a weight after 30 steps of ours and of theirs."""
    torch.manual_seed(0)
    ours = torch.nn.Linear(5, 3, bias=False)
    theirs = copy.deepcopy(ours)
    mine = Optimizer(ours, name=name, momentum=momentum, weight_decay=decay)
    reference = THEIRS[name](theirs.parameters(), momentum, decay)
    for _ in range(30):
        x = torch.randn(7, 5)
        for network in (ours, theirs):
            network.zero_grad()
            (network(x) ** 2).sum().backward()
        mine.update(rate)
        reference.step()
    return float((ours.weight - theirs.weight).detach().abs().max())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", THEIRS)
def test_equal_to_torch_optim(name, decay, momentum):
    assert steps(name, momentum, decay) < 1e-6


def test_control_another_rate_is_seen():
    assert steps("adamw", 0.9, 0.0, rate=0.011) > 1e-4


def test_decay_spares_biases_and_embeddings():
    network = torch.nn.Sequential(torch.nn.Embedding(4, 3), torch.nn.Linear(3, 2))
    groups = Optimizer(network, name="adamw", weight_decay=0.5).groups
    assert [(len(p), d) for p, d in groups] == [(1, 0.5), (2, 0.0)]


def test_state_round_trip():
    network = torch.nn.Linear(3, 2)
    first, second = (Optimizer(network, name="adamw") for _ in range(2))
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    first.update(0.1)
    second.restore(first.tensors())
    assert all(torch.equal(a, second.tensors()[n]) for n, a in first.tensors().items())


def test_schedules():
    cosine = schedule("cosine", 0.1, 100)
    assert [round(cosine(s), 6) for s in (0, 9, 10, 55, 100)] == [0.1, 1.0, 1.0, 0.5, 0.0]
    assert schedule("linear", 0.0, 10)(5) == 0.5
    assert schedule("constant", 0.0, 10)(9) == 1.0
