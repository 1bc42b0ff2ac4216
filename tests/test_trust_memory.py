"""Out of memory: the batch is computed in halves, the update stays that of the whole batch, and it is said aloud."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import luban
from luban.errors import OutOfMemory
from luban.training.loop import fit
from luban.training.objectives import supervised
from tests.test_trust_divergence import PLAN, Small, parts  # noqa: F401

ERRORS = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 12 bytes"),
    "python": MemoryError,
}


class Narrow(Small):
    """A network that has memory for so many examples at once."""

    most, error = 5, staticmethod(ERRORS["cuda"])

    def forward(self, batch):
        if self.training and batch.size > self.most:
            raise self.error()
        return super().forward(batch)


def run(parts, network, **k):  # noqa: F811
    network = copy.deepcopy(network)
    torch.nn.Module.load_state_dict(network, parts[0].state_dict())
    network.drop.p = 0.0  # other pieces draw other masks
    history = fit(network, parts[1], parts[2], plan=replace(PLAN, **k.pop("plan", {})), objective=supervised, **k)
    return history, {n: w for n, w in network.state_dict().items() if n != "seen"}


@pytest.mark.parametrize("name", ERRORS)
def test_halved_until_it_fits_and_the_update_is_the_same(parts, name, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Narrow, "error", staticmethod(ERRORS[name]))
    history, weights = run(parts, Narrow())
    assert history.pieces == 4 and history.step == 20, "16 -> 8 -> 4 at once"
    said = capsys.readouterr().err
    assert "in 2 pieces of 8" in said and "in 4 pieces of 4" in said
    whole, want = run(parts, Small())
    assert whole.pieces == 0
    torch.testing.assert_close(weights, want, rtol=1e-4, atol=1e-6)
    assert history.epochs[0]["loss"] == pytest.approx(whole.epochs[0]["loss"], rel=1e-5)


def test_control_a_batch_that_shrinks_is_another_update(parts):  # noqa: F811
    _, weights = run(parts, Small(), plan={"batch": 4})
    _, want = run(parts, Small())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(weights, want, rtol=1e-4, atol=1e-6)


def test_one_example_that_does_not_fit_ends_in_words(parts):  # noqa: F811
    network = Narrow()
    network.most = 0
    with pytest.raises(OutOfMemory, match="smaller batch"):
        run(parts, network)


def test_examples_that_depend_on_each_other_are_not_cut(parts):  # noqa: F811
    network = Narrow()
    network.separable = False
    with pytest.raises(OutOfMemory, match="cannot be cut"):
        run(parts, network)


def test_other_errors_pass_through(parts, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Narrow, "error", staticmethod(lambda: RuntimeError("shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="shapes"):
        run(parts, Narrow())


def test_it_stands_in_the_recipe(monkeypatch):
    from luban.nn.network import Composed

    real = Composed.forward

    def narrow(self, batch, *a, **k):
        if self.training and batch.size > 8:
            raise ERRORS["cuda"]()
        return real(self, batch, *a, **k)

    monkeypatch.setattr(Composed, "forward", narrow)
    rng = np.random.default_rng(0)
    rows = [{"x": float(x), "y": "p" if x > 0 else "n"} for x in rng.normal(size=80)]
    bundle = luban.train(rows, "y", size="nano", epochs=1, batch=16, evaluate=False, precision="fp32")
    settings = bundle.recipe.stage("train").settings
    assert (settings["batch"], settings["accumulate"]) == (8, 2)
