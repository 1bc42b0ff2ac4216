"""Grad-CAM over every family of image networks: what it draws is a map of the picture, and where it has a closed form, that."""

import pytest
import torch
import torch.nn.functional as F

from luban import registry
from luban.columns.image import Image
from luban.nn.tokens import Pool
from luban.nn.vision.backbone import Backbone
from luban.recipe import Part, fill
from luban.stages.explain.grad_cam import grad_cam

HW = (32, 40)  # no square: sides that are taken for each other are seen
FAMILIES = [n for n in registry.ENCODERS if registry.schema("encoders", n).get("x-mapped") and n != "timm"]
CASES = [*((n, {}) for n in FAMILIES), ("vgg", {"norm": False}), ("vgg", {"depth": 16}), ("resnet", {"depth": 50})]
families = pytest.mark.parametrize(("name", "settings"), CASES, ids=str)


def made(name, settings):
    torch.manual_seed(0)
    part = fill("encoders", Part(name, settings), "nano")
    kept = {k: v for k, v in part.settings.items() if v is not None}
    return registry.find("encoders", name)([Image("i", side=list(HW), channels=3).supposed()], **kept).eval()


def pictures(count=2):
    return torch.randint(0, 256, (count, 3, *HW), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def explained(encoder, x, weights):
    """The map of a class with these weights over the pooled vector."""
    mask = torch.ones(len(x), dtype=torch.bool)
    pool = Pool("mean" if encoder.pooling == "attention" else encoder.pooling, encoder.size, encoder.length)
    return grad_cam(lambda: pool(encoder(encoder.embed(x, mask), mask)) @ weights, encoder.feature_layer, HW)


def classes(encoder, count=4):
    return torch.randn(count, encoder.size, generator=torch.Generator().manual_seed(2))


def faults(maps, count=2):
    """What is wrong with the maps of several classes, each (B, H, W)."""
    if any(tuple(m.shape) != (count, *HW) for m in maps):
        return "shape"
    whole = torch.stack(maps)
    if not whole.isfinite().all() or (whole < 0).any():
        return "values"
    flat = (
        whole.amax((2, 3)) - whole.amin((2, 3))
    ) <= 0  # a class may find nothing in a picture, not all in all of them
    return "nothing is shown" if flat.all() else "the same for every class" if whole.std(0).max() == 0 else ""


@families
def test_every_family_gets_a_map_of_its_picture(name, settings):
    encoder = made(name, settings)
    maps = [explained(encoder, pictures(), w) for w in classes(encoder)]
    assert not faults(maps)


def test_control_faults_of_maps_are_seen():
    encoder = made("resnet", {})
    maps = [explained(encoder, pictures(), w) for w in classes(encoder)]
    assert not faults(maps)
    assert faults([m.transpose(1, 2) for m in maps]) == "shape"
    assert faults([m / 0 for m in maps]) == faults([m - 1 for m in maps]) == "values"
    assert faults([torch.zeros_like(m) for m in maps]) == "nothing is shown"
    assert faults([maps[0]] * 4) == "the same for every class"
    with pytest.raises(ValueError):  # a layer that the picture does not pass
        grad_cam(lambda: encoder.net.conv1.weight.sum()[None], encoder.feature_layer, HW)


def closed(encoder, x, weights):
    """Behind the mean of a map stands one linear layer: the map is that of Zhou et al. 2016, over the number of positions."""
    mask = torch.ones(len(x), dtype=torch.bool)
    with torch.no_grad():
        last = encoder.maps(encoder.embed(x, mask), mask)[-1]
    found = torch.relu(torch.einsum("bchw,c->bhw", last, weights))[:, None] / last[0, 0].numel()
    return F.interpolate(found, size=HW, mode="bilinear", align_corners=False)[:, 0]


@families
def test_behind_a_mean_it_is_the_class_activation_map(name, settings):
    encoder = made(name, settings)
    if not isinstance(encoder, Backbone) or name == "vit" or len(encoder.dense):
        pytest.skip("something stands between the map and the mean")
    encoder.pooling = "mean"
    first, second = classes(encoder, 2).abs()  # what speaks against a class is cut off
    found = explained(encoder, pictures(), first)
    assert found.max() > 0
    like = {"rtol": 1e-4, "atol": 1e-5 * float(found.max())}
    assert torch.allclose(found, closed(encoder, pictures(), first), **like)
    assert not torch.allclose(found, closed(encoder, pictures(), second), **like)  # the planted fault: another class
