"""Every registered edit: apply, save, load, bit-equal; gradients flow; two compose; a new one is forty lines."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from luban import registry
from luban.bundle import Bundle
from luban.columns.examples import encode
from luban.errors import BundleError
from luban.nn import channels
from luban.nn.calibration import calibrated
from luban.nn.edits import replay
from luban.nn.lora import layers_in
from luban.nn.tokens import Batch
from tests import compact

TABLE = compact.rows()
CASES = compact.cases()


class Halved(nn.Module):
    """A toy: half of the linear layer's answer, written in a test."""

    def __init__(self, inner: nn.Module, share: float):
        super().__init__()
        self.inner, self.share = inner, share

    def forward(self, x):
        return self.inner(x) * self.share


def halve(network: nn.Module, *, layer: str, share: float) -> nn.Module:
    from luban.nn.edits import put

    put(network, layer, Halved(network.get_submodule(layer), share))
    return network


EDITS = [*registry.EDITS, "halve"]


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(registry.EDITS, "halve", "tests.test_contract_edits:halve")


def batch_of(model: Bundle, count: int = 9) -> Batch:
    framed = compact.data(TABLE).framed(np.arange(count), model.recipe.frame)
    return Batch.of(encode(model.columns, model.inputs, model.outputs, framed).arrays(np.arange(count)))


def linear(network: nn.Module) -> list[str]:
    return [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and min(m.weight.shape) > 1]


def arguments(name: str, model: Bundle) -> dict | None:
    """Arguments that suit this network; None where there is nothing to change."""
    from luban.nn.grouped import in_groups
    from luban.nn.quantized import stand_in

    network = model.network
    if name == "quantize_linear":
        return {"layers": [n for n, m in network.named_modules() if stand_in(m) is not None]}
    if name == "quantize_groups":
        layers = [n for n, m in network.named_modules() if in_groups(m) is not None]
        return {"layers": layers, "zeros": True} if layers else None
    if name == "quantize_static":
        found = calibrated(network.eval(), [batch_of(model)])
        return found if found["layers"] else None
    if name == "prune_magnitude":
        return {"layers": channels.prunable(network), "share": 0.4}
    if name == "halve":
        heads = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and n.startswith("heads")]
        return {"layer": heads[0], "share": 0.5} if heads else None
    if name == "low_rank":
        wide = linear(network)
        return {"ranks": {wide[0]: 1}} if wide else None
    if name == "lora":
        layers = layers_in(network, [network])
        return {"layers": layers, "rank": 2, "alpha": 8.0, "dropout": 0.1} if layers else None
    if name == "merge_lora":
        return {}
    batch = batch_of(model)
    found = channels.groups(network, batch)
    return channels.Cutting(network).edit(found[0], torch.arange(0, found[0].channels, 2)) if found else None


def edited(model: Bundle, name: str) -> Bundle | None:
    from dataclasses import replace

    given = arguments(name, model)
    if given is None:
        return None
    if name == "merge_lora":
        model = edited(model, "lora") or model
    edit = {"edit": name, **given}
    network = replay(model.copy_network(), [edit]).eval()
    if name == "lora":
        learn(network)
    return replace(model, network=network, edits=[*model.edits, edit])


def learn(network: nn.Module) -> None:
    """The thin layers as if they had learned."""
    torch.manual_seed(0)
    for p in network.parameters():
        if p.requires_grad:
            nn.init.normal_(p, 0, 0.3)


def outputs(model: Bundle) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return model.network(batch_of(model))


def model_of(case: str) -> Bundle:
    return compact.bundle(table=TABLE, **CASES[case])


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", EDITS)
def test_saved_and_loaded_it_answers_bit_for_bit(name, case, tmp_path):
    model = model_of(case)
    changed = edited(model, name)
    assert not same(outputs(changed), outputs(model)), "the edit changed nothing"
    changed.save(tmp_path / "m")
    again = Bundle.load(tmp_path / "m")
    assert same(outputs(again), outputs(changed))
    assert again.edits[-1]["edit"] == name and len(again.edits) == (2 if name == "merge_lora" else 1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", EDITS)
def test_gradients_reach_the_first_differentiable_form(name, case):
    changed = edited(model_of(case), name)
    batch = batch_of(changed)
    embedded = {n: e.detach().requires_grad_(True) for n, e in changed.network.embed(batch).items()}
    score = changed.network.score(changed.network(batch, embedded), {"kind": torch.zeros(batch.size, dtype=torch.long)})
    score["kind"].sum().backward()
    assert all(torch.isfinite(e.grad).all() and e.grad.abs().sum() > 0 for e in embedded.values())


@pytest.mark.parametrize("first, second", list(itertools.permutations(EDITS, 2)))
def test_two_edits_compose(first, second, tmp_path):
    once = edited(model_of("mlp"), first)
    twice = edited(once, second)
    if twice is None:
        pytest.skip("nothing is left that the second could change")
    twice.save(tmp_path / "m")
    assert same(outputs(Bundle.load(tmp_path / "m")), outputs(twice))


def test_control_an_edit_that_is_not_recorded_does_not_load(tmp_path):
    from dataclasses import replace

    changed = edited(model_of("mlp"), "prune_channels")
    replace(changed, edits=[]).save(tmp_path / "m")
    with pytest.raises(BundleError):
        Bundle.load(tmp_path / "m")


HOSTILE = [
    {"edit": "quantize_linear", "layers": ["no.such.layer"]},
    {"edit": "quantize_linear", "layers": 3},
    {"edit": "quantize_linear"},
    {"edit": "prune_magnitude", "layers": [], "share": 7},
    {"edit": "prune_channels", "layer": "fusion.layers.0", "keep": [10**9], "into": {}},
    {"edit": "prune_channels", "layer": "fusion.layers.0", "keep": [], "into": {}},
    {"edit": "prune_channels", "layer": "fusion.layers.0", "keep": [3, 1], "into": {}},
    {"edit": "prune_channels", "layer": "fusion.layers.0", "keep": [[0]], "into": {}},
    {"edit": "quantize_static", "norms": {}, "layers": {"fusion.layers.0": [[0.0, 3], None]}, "points": {}},
    {"edit": "quantize_static", "norms": {}, "layers": {"fusion.layers.0": [[1.0, 999], None]}, "points": {}},
    {"edit": "quantize_static", "norms": {"fusion.layers.0": "fusion"}, "layers": {}, "points": {}},
    {"edit": "quantize_static", "norms": {}, "layers": {"fusion": [None, None]}, "points": {}},
    {"edit": "quantize_static", "norms": {}, "layers": {}, "points": {"fusion.layers.1": None}},
    {"edit": "low_rank", "ranks": {"fusion.layers.0": 10**12}},
    {"edit": "lora", "layers": ["no.such.layer"], "rank": 2, "alpha": 1.0},
    {"edit": "lora", "layers": ["fusion"], "rank": 2, "alpha": 1.0},
    {"edit": "lora", "layers": ["fusion.layers.0"], "rank": 0, "alpha": 1.0},
    {"edit": "lora", "layers": ["fusion.layers.0"], "rank": "8", "alpha": 1.0},
    {"edit": "lora", "layers": ["fusion.layers.0"], "rank": 2, "alpha": 1.0, "dropout": 7},
    {"edit": "merge_lora", "layers": []},
    {"edit": "__class__"},
    {"layers": []},
    "quantize_linear",
]


@pytest.mark.parametrize("edit", HOSTILE, ids=str)
def test_hostile_edits_are_refused_in_a_sentence(edit):
    from luban.errors import RequestError

    with pytest.raises(RequestError):
        replay(model_of("mlp").network, [edit])


# -- channels that go together --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_cutting_channels_that_nobody_looks_at_changes_nothing(case):
    """The readers' columns of the channels to go are set to zero first; then cutting them must not move an answer."""
    model = model_of(case)
    batch = batch_of(model)
    found = channels.groups(model.network, batch)
    for group in found:
        network = model.copy_network()
        for reader, columns in group.columns.items():
            network.get_submodule(reader).weight.data[:, columns[0]] = 0
        edit = channels.Cutting(network).edit(group, torch.arange(1, group.channels))
        with torch.no_grad():
            before = network(batch)
            cut = replay(network, [{"edit": "prune_channels", **edit}])(batch)
        assert all(torch.allclose(before[n], cut[n], atol=1e-5) for n in before)
        assert cut["kind"].shape == before["kind"].shape
    assert found


def test_an_answer_has_no_channels_to_cut():
    model = model_of("mlp")
    heads = [n for n in channels.prunable(model.network) if n.startswith("heads")]
    cut = {n for g in channels.groups(model.network, batch_of(model)) for n in g.layers}
    assert heads and cut and not cut & {*heads}


def test_control_channels_that_a_sum_ties_together_are_left_alone():
    class Residual(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner, self.more = inner, nn.Linear(inner.out_features, inner.out_features)

        def forward(self, x):
            h = self.inner(x)
            return h + self.more(h)

    model = model_of("mlp")
    model.network.fusion.layers[0] = Residual(model.network.fusion.layers[0])
    cut = {n: g.layers for g in channels.groups(model.network, batch_of(model)) for n in g.layers}
    assert not {"fusion.layers.0.inner", "fusion.layers.0.more"} & {n for n, g in cut.items() if len(g) == 1}
