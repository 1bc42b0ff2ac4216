"""Channels of residual and dense networks: found, tied where they are added, cut, smaller and faster for it, trained on."""

import numpy as np
import pytest
import torch
from torch import nn

from luban.bundle import Bundle
from luban.nn import channels
from luban.nn.edits import replay
from luban.stages.compress.methods import folded, importance, left, without_channels
from tests.test_static import FAMILIES, QUICK, TABLE, batch_of, model_of

SLOW = ("resnet50", "efficientnet", "densenet", "inception")  # hundreds of layers
CASES = [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in FAMILIES]
PRUNED = {k: v for k, v in QUICK.items() if k != "accept"}


@pytest.fixture(scope="module")
def resnet():
    return model_of("resnet", epochs=4)


def test_a_residual_stream_is_one_group(resnet):
    found = [{n.rsplit("net.", 1)[-1] for n in g.layers} for g in channels.groups(resnet.network, batch_of(resnet, 4))]
    assert {"conv1", "layer1.0.conv2", "layer1.1.conv2"} in found
    assert {"layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"} in found
    assert {"layer1.0.conv1"} in found
    assert len(found) == 4 + 8  # a stream for each stage, and what is inside of each block


@pytest.mark.parametrize("family", CASES)
def test_cutting_what_nobody_looks_at_changes_no_answer(family):
    """Readers' columns of the channels to go are set to zero first; then all groups are cut one after the other."""
    model = model_of(family)
    network, batch = model.copy_network().eval(), batch_of(model, 4)
    found, cutting, edits = channels.groups(network, batch), channels.Cutting(network), []
    assert found
    for group in found:
        keep = torch.arange(0, group.channels, 2)
        for name, columns in group.columns.items():
            module = network.get_submodule(name)
            if not isinstance(module, channels.NORM) and getattr(module, "groups", 1) == 1:
                module.weight.data[:, columns[1::2].flatten()] = 0
        edits.append({"edit": "prune_channels", **cutting.edit(group, keep)})
    with torch.no_grad():
        before = network(batch)["y"]
        after = replay(network, edits).eval()(batch)["y"]
    assert torch.allclose(before, after, atol=1e-4 * max(1.0, float(before.abs().max())))


@pytest.mark.parametrize("family", CASES)
def test_half_of_the_channels_are_about_a_quarter_of_the_weights(family, tmp_path):
    model = model_of(family)
    small = without_channels(model, 0.5, batch_of(model, 4))
    share = small.parameters() / model.parameters()
    assert share < (0.45 if family in ("efficientnet", "densenet") else 0.35), share
    small.save(tmp_path / "m")
    again = Bundle.load(tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(again.network(batch_of(model))["y"], small.network(batch_of(model))["y"])


@pytest.mark.parametrize("count", [2, 3, 8, 37])
def test_channels_are_told_apart_by_a_few_examples(count):
    """A column that holds one channel is found, wherever it stands; one that holds two, or changes in all examples, is no column of one."""
    code, reader = channels._code(count), nn.Linear(2 * count, 1, bias=False)
    order = torch.randperm(2 * count, generator=torch.Generator().manual_seed(count))
    one = torch.cat([code, code], 1).float()[:, order]  # each channel stands in two columns
    held = channels._columns(reader, code, one, torch.zeros_like(one))
    assert torch.equal(held.nonzero()[:, 0].bincount(), torch.full((count,), 2))
    assert torch.equal(held, (order % count) == torch.arange(count)[:, None])
    for fault in ((one[:, 0] + one[:, (order % count != order[0] % count).nonzero()[0, 0]]), torch.ones(len(one))):
        assert (
            channels._columns(reader, code, one.index_copy(1, torch.tensor([0]), fault[:, None]), torch.zeros_like(one))
            is None
        )


def test_the_norm_behind_a_layer_counts(resnet):
    """Planted fault: by the weights alone a channel that its norm silences would stay."""
    network, batch = resnet.copy_network().eval(), batch_of(resnet, 4)
    group = next(g for g in channels.groups(network, batch) if g.layers[0].endswith("layer1.0.conv1"))
    norm = next(n for n in group.columns if isinstance(network.get_submodule(n), nn.BatchNorm2d))
    network.get_submodule(norm).weight.data[2] = 0
    alone = importance(network, group)
    assert int(importance(folded(network, batch), group).argmin()) == 2 and alone[2] > 0


def test_it_is_trained_on_faster_and_goes_on_to_integers(resnet):
    small = resnet.compress(TABLE, prune=0.5, healing=1, **PRUNED)
    numbers = small.reports["compress"].numbers
    assert numbers["after"]["parameters"] < 0.35 * numbers["before"]["parameters"]
    assert np.isfinite(numbers["outputs"]["y"]["accuracy"]["after"].value)
    both = small.compress(TABLE, quantize="int8", calibrate=32, **QUICK)
    assert both.bytes() < 0.2 * resnet.bytes()


@pytest.mark.parametrize(
    ("channels", "share", "stay"),
    [
        (64, 0.3, 48),
        (128, 0.3, 96),
        (32, 0.3, 16),
        (32, 0.2, 26),
        (20, 0.5, 10),
        (8, 0.9, 1),
        (64, 0.01, 63),
        (48, 0.5, 32),
    ],
)
def test_of_many_channels_a_multiple_of_sixteen_stays(channels, share, stay):
    """Others are left over by vector units; a layer that would not be cut at all is cut as asked."""
    assert left(channels, share) == stay
