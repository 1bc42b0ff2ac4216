"""The encoder of the textbook (Vaswani et al. 2017): the encoder `classic` is PyTorch's own, weight for weight."""

import pytest
import torch
from torch import nn

from luban.columns.text import Text
from luban.nn.encoders.transformer import BERT, Classic, Transformer
from luban.recipe import Recipe

TEXTS = ["the cat sat on the mat", "a dog", "on the mat the dog sat and sat"] * 3
SIZES = {"width": 32, "layers": 2, "heads": 4}


def difference(encoder, first=False):
    """The largest one between an encoder and `torch.nn.TransformerEncoder` with its weights, over real positions; one text is padded."""
    layer = nn.TransformerEncoderLayer(32, 4, 128, 0.0, "relu", batch_first=True, norm_first=first)
    theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(32) if first else None, enable_nested_tensor=False).eval()
    for p in theirs.parameters():
        nn.init.normal_(p, 0, 0.3)
    with torch.no_grad():
        for mine, other in zip(encoder.layers.layers, theirs.layers):
            pairs = [(mine.attention.outer, other.self_attn.out_proj), (mine.dense.inner, other.linear1)]
            pairs += [(mine.dense.outer, other.linear2), (mine.before, other.norm1), (mine.between, other.norm2)]
            mine.attention.inner.weight.copy_(other.self_attn.in_proj_weight)
            mine.attention.inner.bias.copy_(other.self_attn.in_proj_bias)
            for a, b in pairs:
                a.load_state_dict(b.state_dict())
        if first and isinstance(encoder.layers.norm, nn.LayerNorm):
            encoder.layers.norm.load_state_dict(theirs.norm.state_dict())
        column = encoder.column
        x, mask = map(torch.as_tensor, column.collate(column.encode_all(TEXTS)))
        found = encoder(encoder.embed(x, mask), mask).x
        h = encoder.project(encoder.form.lift(encoder.embed(x, mask), mask))
        wanted = theirs(h + encoder.layers.positions[: h.shape[1]], src_key_padding_mask=~mask)
    assert not mask.all()
    return float((found - wanted)[mask].abs().max())


def made(kind=Classic, **settings):
    torch.manual_seed(0)
    column = Text("t", tokens="words", least=1).fit(TEXTS)
    encoder = kind([column], **SIZES, **settings).eval()
    encoder.column = column
    return encoder


@pytest.mark.parametrize("order", ["post", "pre"])
def test_it_is_the_encoder_of_pytorch(order):
    assert difference(made(order=order), first=order == "pre") < 1e-5


@pytest.mark.parametrize("kind, settings", [(Classic, {"order": "pre"}), (Transformer, {}), (BERT, {})], ids=str)
def test_planted_faults_other_shapes_differ(kind, settings):
    """The norm before the branch, GELU for ReLU, and BERT's norm of the embeddings are all seen."""
    assert difference(made(kind, **settings)) > 1e-2


def test_a_recipe_says_its_sizes():
    plain = {"luban": 1, "inputs": {"t": "text"}, "outputs": {"y": "category"}, "model": {"t": "classic"}}
    found = Recipe.of(plain | {"size": "base"}).resolved().encoder("t").settings
    assert (found["width"], found["layers"], found["heads"], found["order"]) == (512, 6, 8, "post")
