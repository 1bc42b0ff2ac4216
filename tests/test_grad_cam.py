"""Grad-CAM over every family of image networks: what it draws is a map of the picture, and where it has a closed form, that."""

import pytest
import torch
import torch.nn.functional as F

from luban import registry
from luban.columns.image import Image
from luban.columns.video import Video
from luban.nn.encoders.frames import Frames
from luban.nn.tokens import Pool
from luban.nn.vision.backbone import Backbone
from luban.part import Part
from luban.recipe import fill
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


def flattened(encoder, x, weights):
    """Behind a flattened map stands one linear layer: each place speaks with its own weights, (C, H', W')."""
    with torch.no_grad():
        last = encoder.layers.features(encoder.layers.blocks[0](encoder.form.lift(encoder.embed(x, None), None)))
    found = torch.relu((last * weights).sum(1, keepdim=True))
    return F.interpolate(found, size=HW, mode="bilinear", align_corners=False)[:, 0]


def test_behind_a_flattened_map_each_place_has_its_own_weight():
    encoder = made("cnn", {"channels": [4, 4], "dense": [], "pool": 1})
    weights = torch.randn(4, *HW, generator=torch.Generator().manual_seed(3))
    found = explained(encoder, pictures(), weights.permute(1, 2, 0).flatten())
    assert torch.allclose(found, flattened(encoder, pictures(), weights), rtol=1e-4, atol=1e-5)
    encoder.feature_layer.local = False  # the planted fault: one weight for all places of a channel
    wrong = explained(encoder, pictures(), weights.permute(1, 2, 0).flatten())
    assert not torch.allclose(wrong, flattened(encoder, pictures(), weights), rtol=1e-2, atol=1e-3)


def test_what_weighs_places_alike_is_weighed_by_their_mean():
    assert made("cnn", {}).feature_layer.local and made("lenet", {}).feature_layer.local
    assert not made("cnn", {"dense": [], "pooling": "mean"}).feature_layer.local
    assert not made("resnet", {}).feature_layer.local


def test_each_frame_of_a_clip_is_weighed_for_itself():
    """An answer that a frame speaks for and another one against lies in the first alone."""
    encoder = Frames([Video("v", frames=2, side=list(HW), channels=3).supposed()], each="resnet", over="bag").eval()
    assert encoder.feature_layer.local
    seen, signs = torch.rand(2 * 2, 4, 8, 10) + 0.1, torch.tensor([2.0, -1.0])  # two clips of two frames
    layer = torch.nn.Identity()
    for layer.local in (True, False):
        score = lambda: (layer(seen).unflatten(0, (2, 2)).sum((2, 3, 4)) * signs).sum(1)  # noqa: E731
        found = grad_cam(score, layer, (2, *HW))
        assert (found[:, 0] > 0).all()
        assert bool((found[:, 1] > 0).any()) != layer.local  # the planted fault: a mean over both frames
