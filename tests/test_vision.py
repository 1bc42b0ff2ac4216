"""Image networks: their weights are those that others published, by name, by shape and by what they answer."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from luban import registry
from luban.columns.image import Image
from luban.data import models
from luban.errors import LubanError, RecipeError, RequestError
from luban.nn.tensor_files import read
from luban.nn.vision.resnet import Basic, Bottleneck
from luban.part import Part
from luban.recipe import fill

DAISY = 985  # its number in ImageNet
PEERS = [  # ours, the peer's name in timm, our settings, side
    ("resnet", "resnet18", {"depth": 18}, 64),
    ("resnet", "resnet34", {"depth": 34}, 64),
    ("resnet", "resnet50", {"depth": 50}, 65),
    ("vgg", "vgg11_bn", {"depth": 11}, 64),
    ("vgg", "vgg11", {"depth": 11, "norm": False}, 64),
    ("vgg", "vgg16_bn", {"depth": 16}, 64),
    ("vgg", "vgg16", {"depth": 16, "norm": False}, 64),
    ("densenet", "densenet121", {"depth": 121}, 64),
    ("inception", "inception_v3", {}, 96),
    ("efficientnet", "tf_efficientnet_lite0", {}, 65),
    ("efficientnet", "tf_efficientnet_lite2", {"variant": "lite2"}, 64),
    ("vit", "vit_tiny_patch16_224", {"width": 192, "layers": 12, "heads": 3}, 64),
    ("timm", "mobilenetv3_small_100", {"name": "mobilenetv3_small_100"}, 64),
]


@pytest.fixture(scope="module")
def timm():
    """The library, which a torchvision without its operators keeps from being imported."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("timm")


def made(name, side, /, channels=3, **settings):
    column = Image("i", side=side, channels=channels).supposed()
    part = fill("encoders", Part(name, settings), "small")
    kept = {k: v for k, v in part.settings.items() if v is not None}
    return registry.find("encoders", name)([column], **kept).eval()


def tokens(encoder, x):
    mask = torch.ones(len(x), dtype=torch.bool)
    with torch.no_grad():
        return encoder(encoder.embed(x, mask), mask).x


def peer_tokens(model, encoder, x):
    mean, deviation = (torch.tensor(v).view(-1, 1, 1) for v in encoder.usual)
    with torch.no_grad():
        found = model.eval().forward_features((x.float() - mean) / deviation)
    return found.permute(0, 2, 3, 1).flatten(1, 2) if found.ndim == 4 else found


def shaken(model):
    """Normalisation layers that are not the identity."""
    generator = torch.Generator().manual_seed(1)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1, generator=generator)
            m.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.mark.parametrize(("name", "peer", "settings", "side"), PEERS, ids=[p[1] for p in PEERS])
def test_published_weights_answer_as_in_timm(timm, tmp_path, name, peer, settings, side):
    torch.manual_seed(0)
    given = {"img_size": side} if name == "vit" else {}
    model = shaken(timm.create_model(peer, **given))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "w.safetensors")
    encoder = made(name, side, weights=str(tmp_path / "w.safetensors"), **settings)
    x = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    want, found = peer_tokens(model, encoder, x), tokens(encoder, x)
    if name == "vgg":  # the peer's features end in dense layers without a place here
        want = model.features(
            (x.float() - torch.tensor(encoder.usual[0]).view(-1, 1, 1)) / torch.tensor(encoder.usual[1]).view(-1, 1, 1)
        ).detach()
        want = want.permute(0, 2, 3, 1).flatten(1, 2)
    assert found.shape == want.shape
    assert torch.allclose(found, want, atol=1e-5 * float(want.abs().max()) + 1e-5)
    with torch.no_grad():  # the planted fault: one filter is another's
        first = next(p for p in encoder.net.parameters() if p.ndim == 4)
        first[0] = first[1] + 0.1
    assert not torch.allclose(tokens(encoder, x), want, atol=1e-5 * float(want.abs().max()) + 1e-5)


@pytest.mark.slow
def test_the_real_efficientnet_sees_a_daisy():
    """The package's own weights, with the last layer that Luban leaves out put back for the test."""
    image = load_sample_image("flower.jpg")
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    column = Image("i", side=224, channels=3).supposed()
    x = torch.from_numpy(column.encode(np.ascontiguousarray(image[top : top + side, left : left + side])))[None]
    encoder = made("efficientnet", 224, weights="efficientnet-lite0")
    weights = read(next(models.found("efficientnet-lite0").glob("*.pth")))
    scores = tokens(encoder, x).mean(1) @ weights["_fc.weight"].T + weights["_fc.bias"]
    assert int(scores.argmax()) == DAISY
    upside = tokens(made("efficientnet", 224), x).mean(1) @ weights["_fc.weight"].T  # the control: weights of nobody
    assert int(upside.argmax()) != DAISY


def test_weights_of_another_network_are_named(tmp_path):
    torch.manual_seed(0)
    net = made("resnet", 64, depth=18, width=64, stem="imagenet").net
    tensors = net.state_dict()
    del tensors["layer2.0.conv1.weight"]
    tensors["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(RequestError) as error:
        made("resnet", 64, weights=str(tmp_path / "w.safetensors"))
    assert "layer2.0.conv1.weight" in str(error.value)
    assert "conv1.weight" in str(error.value)


def test_a_grey_image_is_read_by_a_network_of_colours(tmp_path):
    torch.manual_seed(0)
    save_file(made("resnet", 64, depth=18, width=64, stem="imagenet").net.state_dict(), tmp_path / "w.safetensors")
    x = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    grey, colour = (made("resnet", 64, channels=c, weights=str(tmp_path / "w.safetensors")) for c in (1, 3))
    assert torch.allclose(tokens(grey, x), tokens(colour, x.expand(-1, 3, -1, -1)), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet", "vgg", "inception", "densenet", "alexnet", "efficientnet", "vit", "lenet"])
@pytest.mark.parametrize("side", [28, 224])
def test_sizes(name, side):
    with torch.device("meta"):
        column = Image("i", side=side, channels=3).supposed()
        part = fill("encoders", Part(name, {}), "small")
        encoder = registry.find("encoders", name)([column], **{k: v for k, v in part.settings.items() if v is not None})
        x = torch.empty(2, 3, side, side)
        found = encoder.eval()(x, torch.ones(2, dtype=torch.bool))
    assert found.x.shape[::2] == (2, encoder.size)
    assert found.x.shape[1] == encoder.length
    span = found.spans[0]
    assert span.stop - span.start == np.prod(span.grid)


def test_an_image_smaller_than_the_filters_is_said():
    with pytest.raises(RecipeError, match="too small"):
        made("inception", 40, stem="imagenet")


def test_an_unknown_network_of_timm_is_said_with_the_nearest(timm):
    with pytest.raises(LubanError, match="resnet18"):
        made("timm", 64, name="resnet81")


SHORT = """
import torch
from luban.nn.vision.resnet import Basic
torch.set_num_threads(2)
layer = Basic(8, 16, 2, 0.0).to(memory_format=torch.channels_last)
x = torch.randn(5, 8, 12, 10).contiguous(memory_format=torch.channels_last).requires_grad_()
for _ in range(200):
    layer(x).sum().backward()
"""


@pytest.mark.parametrize("block", [Basic, Bottleneck])
def test_a_shortcut_is_a_strided_convolution(block):
    torch.manual_seed(0)
    layer = block(8, 16, 2, 0.0).eval()
    x = torch.randn(5, 8, 7, 10)
    conv, norm = layer.downsample
    wanted = torch.relu(layer.branch(x) + norm(torch.nn.functional.conv2d(x, conv.weight, stride=2)))
    assert torch.allclose(layer(x), wanted, atol=1e-5)


def test_a_shortcut_of_few_channels_learns_with_several_threads():
    """With a strided `nn.Conv2d` in it torch 2.13 ends the process here, on processors with AVX-512."""
    env = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([sys.executable, "-c", SHORT], env=env, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr


def test_a_file_that_several_rows_name_is_opened_once(tmp_path, monkeypatch):
    from PIL import Image as Picture

    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for i, path in enumerate(paths):
        Picture.new("RGB", (8, 8), (90 * i, 0, 0)).save(path)
    column = Image("picture", side=8).fit(paths)
    opened, encode = [], Image.encode
    monkeypatch.setattr(Image, "encode", lambda self, v, of=None: (opened.append(v), encode(self, v, of))[1])
    asked = [paths[0], paths[1], paths[0], None, paths[1], None]
    found = column.encode_all(asked)
    assert opened.count(paths[0]) == opened.count(paths[1]) == 1
    assert all(np.array_equal(x, encode(column, v)) for x, v in zip(found, asked))
