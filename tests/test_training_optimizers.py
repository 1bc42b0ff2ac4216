"""Our optimisers against torch.optim (lion: the paper's formula), and what they leave alone."""

import copy
import math

import pytest
import torch
from torch import nn

from luban import aliases
from luban.errors import Diverged, RecipeError
from luban.recipe import Recipe
from luban.training.optimizers import Optimizer, hidden_weights
from luban.training.plan import Plan
from luban.training.state import State

RATE = 0.01


class Lion:
    """Chen et al. 2023, algorithm 2, in the plainest words."""

    def __init__(self, params, decay):
        self.params, self.decay, self.m = list(params), decay, None

    @torch.no_grad()
    def step(self):
        self.m = self.m or [torch.zeros_like(p) for p in self.params]
        for p, m in zip(self.params, self.m):
            update = torch.sign(0.9 * m + 0.1 * p.grad) + self.decay * p
            p.sub_(RATE * update)
            m.copy_(0.99 * m + 0.01 * p.grad)


def muon(p, d):
    return torch.optim.Muon(p, lr=RATE, weight_decay=d, adjust_lr_fn="match_rms_adamw")


THEIRS = {
    "adamw": ("adamw", lambda p, d: torch.optim.AdamW(p, lr=RATE, weight_decay=d)),
    "adamw-betas": ({"adamw": {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6}},
                    lambda p, d: torch.optim.AdamW(p, lr=RATE, weight_decay=d, betas=(0.8, 0.95), eps=1e-6)),
    "adam": ("adam", lambda p, d: torch.optim.Adam(p, lr=RATE, weight_decay=d)),
    "sgd": ({"sgd": {"momentum": 0.0}}, lambda p, d: torch.optim.SGD(p, lr=RATE, weight_decay=d)),
    "momentum": ("sgd", lambda p, d: torch.optim.SGD(p, lr=RATE, momentum=0.9, weight_decay=d)),
    "nesterov": ({"sgd": {"nesterov": True}},
                 lambda p, d: torch.optim.SGD(p, lr=RATE, momentum=0.9, weight_decay=d, nesterov=True)),
    "rmsprop": ("rmsprop", lambda p, d: torch.optim.RMSprop(p, lr=RATE, momentum=0.9, weight_decay=d)),
    "rmsprop-plain": ({"rmsprop": {"momentum": 0.0}}, lambda p, d: torch.optim.RMSprop(p, lr=RATE, weight_decay=d)),
    "adagrad": ("adagrad", lambda p, d: torch.optim.Adagrad(p, lr=RATE, weight_decay=d)),
    "lion": ("lion", Lion),
    "muon": ({"muon": {"precision": "bf16"}}, muon),
}  # fmt: skip


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3, bias=False), nn.Tanh(), nn.Linear(3, 7, bias=False))


def differences(ours: nn.Module, theirs: nn.Module) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours.parameters(), theirs.parameters()))


def after(name: str, decay: float, rate: float = RATE, count: int = 100) -> float:
    """Largest difference of a weight after many steps of ours and of theirs, gradients being those of theirs."""
    settings, reference = THEIRS[name]
    ours = two_layers()
    theirs = copy.deepcopy(ours)
    if name == "muon":
        ours.add_module("last", nn.Linear(7, 1, bias=False).requires_grad_(False))  # stands for the head
    mine, oracle = Optimizer(ours, name=settings, weight_decay=decay), reference(theirs.parameters(), decay)
    for _ in range(count):
        theirs.zero_grad()
        (theirs(torch.randn(9, 5)) ** 2).mean().backward()
        for a, b in zip(ours.parameters(), theirs.parameters()):
            a.grad = b.grad.clone()
        mine.update(rate)
        oracle.step()
    return differences(ours, theirs)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", THEIRS)
def test_equal_to_the_oracle(name, decay):
    assert after(name, decay) < (2e-4 if name == "muon" else 2e-6)  # Newton-Schulz in bf16: the order of sums shows


@pytest.mark.parametrize("name", THEIRS)
def test_control_another_rate_is_seen(name):
    assert after(name, 0.0, rate=RATE * 1.1) > 5e-4


def test_muon_of_a_convolution_is_that_of_its_matrix():
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(3, 4, 2, bias=False), nn.Linear(12, 4, bias=False)
    linear.weight.data = convolution.weight.data.reshape(4, 12).clone()
    networks = [nn.Sequential(m, nn.Linear(1, 1)) for m in (convolution, linear)]
    grad = torch.randn(4, 12)
    for network in networks:
        for p in network.parameters():
            p.grad = torch.zeros_like(p)
        network[0].weight.grad = grad.reshape(network[0].weight.shape).clone()
        Optimizer(network, name="muon").update(RATE)
    assert torch.allclose(convolution.weight.reshape(4, 12), linear.weight, atol=1e-6)


def test_muon_takes_the_matrices_of_hidden_layers():
    network = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 5), nn.LayerNorm(5), nn.Conv1d(5, 2, 3), nn.Linear(2, 2))
    assert [id(p) for p in hidden_weights(network)] == [id(network[1].weight), id(network[3].weight)]
    network.heads = nn.ModuleList([network[4]])
    assert [id(p) for p in hidden_weights(network)] == [id(network[1].weight), id(network[3].weight)]
    groups = Optimizer(network, name="muon", weight_decay=0.1).groups
    assert sorted((g.rule.hidden, g.decay, len(g.params)) for g in groups) == [
        (False, 0.0, 6), (False, 0.1, 1), (True, 0.1, 2)]  # fmt: skip


def test_decay_spares_biases_and_embeddings():
    network = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))
    groups = Optimizer(network, name="adamw", weight_decay=0.5).groups
    assert sorted((len(g.params), g.decay) for g in groups) == [(1, 0.5), (2, 0.0)]


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "lion", "muon"])
def test_state_round_trip(name):
    one, two = two_layers(), two_layers()
    first, second = (Optimizer(n, name=name) for n in (one, two))
    for p in one.parameters():
        p.grad = torch.ones_like(p)
    first.update(0.1)
    second.restore(first.tensors())
    assert all(torch.equal(a, second.tensors()[n]) for n, a in first.tensors().items())


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "muon"])
def test_weights_that_lie_with_channels_last_learn_the_same(name):
    """The fused kernels go through weight and gradient in the order of memory, whatever the strides say."""
    ends = []
    for order in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 2)).to(memory_format=order)
        state = State(network, Plan(epochs=1, batch=4, rate=RATE, optimizer=name, warmup=0.0), total=10)
        for state.step in range(5):
            network(torch.randn(6, 3, 5, 5)).square().sum().backward()
            state.update()
        ends.append([p.detach().contiguous().flatten() for p in network.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*ends))


# -- an update whose gradient is not finite ------------------------------------------------------------------------------


def state_of(name: str = "adamw", **plan) -> State:
    return State(two_layers(), Plan(epochs=1, batch=4, rate=RATE, optimizer=name, warmup=0.0, **plan), total=10)


def gradients(state: State, value: float) -> None:
    torch.manual_seed(state.step)
    state.flat.copy_(torch.randn_like(state.flat))
    state.flat[3] = value


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "adagrad", "lion", "muon"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_update_is_skipped_on_the_device(name, value):
    """As on an accelerator, where nothing is read: weights and memories stay as they are, and it is told when asked."""
    bad, good = (state_of(name, clip_value=1.0, schedule="constant") for _ in range(2))
    bad.late = good.late = True
    for state, values in ((bad, [0.5, value, 0.7]), (good, [0.5, 0.7])):
        for state.step, v in enumerate(values):
            torch.manual_seed(int(10 * v) if math.isfinite(v) else 0)
            state.flat.copy_(torch.randn_like(state.flat))
            state.flat[3] = v
            state.update()
    assert differences(bad.network, good.network) == 0 and int(bad.optimizer.step) == 2
    assert all(torch.equal(a, good.optimizer.tensors()[n]) for n, a in bad.optimizer.tensors().items())
    assert (good.skipped(), bad.skipped()) == (-1, 1)


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_the_skipped_update_changed_nothing(name):
    state = state_of(name)
    state.late = True
    gradients(state, 0.5)
    state.update()
    before = [t.detach().clone() for t in (*state.network.parameters(), *state.optimizer.tensors().values())]
    gradients(state, float("nan"))
    state.update()
    now = [*state.network.parameters(), *state.optimizer.tensors().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, now))


def test_on_a_processor_it_is_raised_before_the_weights_are_touched():
    state = state_of()
    before = [p.detach().clone() for p in state.network.parameters()]
    gradients(state, float("nan"))
    with pytest.raises(Diverged):
        state.update()
    assert all(torch.equal(a, b) for a, b in zip(before, state.network.parameters()))


@pytest.mark.parametrize("late", [False, True])
def test_clipping(late):
    """By norm, by value, and of weights; the same read on the processor or left on the device."""
    state = state_of({"sgd": {"momentum": 0.0}}, clip=1.0, weight_decay=0.0, schedule="constant")
    state.late = late
    before = torch.cat([p.detach().flatten() for p in state.network.parameters()])
    gradients(state, 10.0)
    norm = float(state.flat.norm())
    want = before - RATE * state.flat / norm
    state.update()
    assert torch.allclose(torch.cat([p.detach().flatten() for p in state.network.parameters()]), want, atol=1e-6)
    state = state_of({"sgd": {"momentum": 0.0}}, clip=0.0, clip_value=0.5, weight_decay=0.0, schedule="constant")
    state.late = late
    gradients(state, 10.0)
    want = before - RATE * state.flat.clamp(-0.5, 0.5)
    state.update()
    assert torch.allclose(torch.cat([p.detach().flatten() for p in state.network.parameters()]), want, atol=1e-6)
    state = state_of(clip_weights=0.1)
    state.late = late
    gradients(state, 0.5)
    state.update()
    assert max(float(p.detach().abs().max()) for p in state.network.parameters()) == pytest.approx(0.1)


# -- names -----------------------------------------------------------------------------------------------------------------


def test_names_of_another_trainer():
    theirs = {
        "num_train_epochs": 3,
        "optim": "adamw_torch",
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "max_steps": -1,
    }
    assert aliases.renamed(theirs) == {"epochs": 3, "optimizer": "adamw", "schedule": "reduce-on-plateau", "steps": 0}
    recipe = Recipe.of({"luban": 1, "stages": [{"train": {"learning_rate": 0.1}}]}, None, ("train.lr=0.2",))
    assert recipe.stage("train").settings == {"rate": 0.2}
    with pytest.raises(RecipeError) as e:
        Recipe.of({"luban": 1, "stages": [{"train": {"learning_rate": 0.1, "rate": 0.2}}]})
    assert "learning_rate" in str(e.value)


TWICE = [
    ([{"train": {"learning_rate": 0.1, "rate": 0.2}}], ()),
    ([{"train": {"lr": 0.1, "learning_rate": 0.2}}], ()),
    (["train"], ("train.learning_rate=1e-3", "train.rate=1e-2")),
    (["train"], ("stages=[{train: {lr: 0.1, rate: 0.2}}]",)),
]


@pytest.mark.parametrize("stages, changes", TWICE)
def test_two_names_of_one_setting_are_refused(stages, changes):
    """One of them would win in silence."""
    with pytest.raises(RecipeError) as e:
        Recipe.of({"luban": 1, "stages": stages}, None, changes)
    assert [p.id for p in e.value.problems] == ["recipe.two_names"] and "'rate'" in str(e.value)


def test_one_name_may_change_what_another_has_set():
    file = {"luban": 1, "stages": [{"train": {"rate": 0.1}}]}
    assert Recipe.of(file, None, ("train.learning_rate=0.2",)).stage("train").settings == {"rate": 0.2}
    twice = ("train.lr=0.2", "train.lr=0.3")
    assert Recipe.of(file, None, twice).stage("train").settings == {"rate": 0.3}
    whole = Recipe.of(file, None, ("stages=[{train: {lr: 0.3}}]",))
    assert whole.stage("train").settings == {"rate": 0.3}


def test_settings_of_an_optimizer_are_checked():
    with pytest.raises(RecipeError) as e:
        Recipe.of({"luban": 1, "stages": [{"train": {"optimizer": {"sgd": {"momentun": 0.9}}, "schedule": "cosin"}}]})
    assert "momentum" in str(e.value) and "cosine" in str(e.value)
