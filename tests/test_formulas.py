"""The textbook's formulas against the layers that Luban builds; beside each, the common misprint, which must fail.

`docs/textbook.md` explains them. NumPy, float64, loops where a formula has a sum: slow and plain on purpose.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from luban.columns.category import Category
from luban.columns.image import Image
from luban.columns.text import Text
from luban.evaluation import metrics
from luban.nn.encoders.attention import Attention
from luban.nn.encoders.cnn import CNN
from luban.nn.encoders.rnn import GRU, LSTM, RNN, BiLSTM
from luban.nn.heads.category import CategoryHead
from luban.nn.tokens import Dense, Pool, Tokens
from luban.nn.transformer import Attention as SelfAttention
from luban.nn.transformer import Shape


def close(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-9


def array(t):
    return t.detach().double().numpy()


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# -- convolution -----------------------------------------------------------------------------------------------------
def convolution(x, w, b, *, flipped=False, channels=True, bias=True):
    """y[o,i,j] = b[o] + sum over c, u, v of w[o,c,u,v] x[c,i+u,j+v]; x (C, H, W), valid.

    Misprints: a flipped kernel (that is convolution; CNN layers correlate), the sum over channels left out.
    """
    size = w.shape[2]
    y = np.zeros((len(w), x.shape[1] - size + 1, x.shape[2] - size + 1))
    for o in range(len(w)):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                for c in range(x.shape[0] if channels else 1):
                    for u in range(size):
                        for v in range(size):
                            k = w[o, c, size - 1 - u, size - 1 - v] if flipped else w[o, c, u, v]
                            y[o, i, j] += k * x[c, i + u, j + v]
                y[o, i, j] += b[o] if bias else 0
    return y


@pytest.fixture(scope="module")
def convolved():
    torch.manual_seed(0)
    column = Image("i").fit(np.random.default_rng(0).integers(0, 256, (3, 8, 7, 3), np.uint8))
    encoder = CNN([column], channels=[4, 5], kernel=3, padding=0, pool=1, dense=[], dropout=0.0).double().eval()
    x = torch.randn(1, 3, 8, 7, dtype=torch.float64)
    layer = encoder.layers.blocks[0][0]
    return array(x[0]), array(layer.weight), array(layer.bias), array(layer(x)[0]), encoder, x


def test_convolution_sums_over_channels_and_offsets(convolved):
    x, w, b, y, *_ = convolved
    assert close(convolution(x, w, b), y)


@pytest.mark.parametrize("misprint", [{"flipped": True}, {"channels": False}, {"bias": False}], ids=str)
def test_misprint_convolution(convolved, misprint):
    x, w, b, y, *_ = convolved
    assert not close(convolution(x, w, b, **misprint), y)


def test_each_convolution_has_its_activation(convolved):
    *_, encoder, x = convolved
    h = array(x[0])
    plain = h
    for block in encoder.layers.blocks:
        layer = next(m for m in block if isinstance(m, nn.Conv2d))
        h = np.maximum(convolution(h, array(layer.weight), array(layer.bias)), 0)
        plain = convolution(plain, array(layer.weight), array(layer.bias))
    y = array(encoder(x, torch.ones(1, dtype=torch.bool)).x[0]).T.reshape(h.shape)
    assert close(h, y)
    assert not close(plain, y)  # misprint: layers without their activation are one linear map


def test_padding_of_one_keeps_the_side_and_pooling_halves_it():
    column = Image("i").fit(np.zeros((1, 24, 24, 3), np.uint8))
    t = CNN([column], channels=[32, 64], kernel=3, padding=1, pool=2, dense=[], dropout=0.0)
    assert t.length * t.size == 2304  # 64 x 6 x 6, what the dense layer of cnn-24 reads


# -- dense layers ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "f"), [("relu", lambda z: np.maximum(z, 0)), ("sigmoid", sigmoid), ("tanh", np.tanh)])
def test_each_dense_layer_has_its_activation(name, f):
    torch.manual_seed(0)
    dense = Dense(5, [4, 3], name).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    h = plain = array(x)
    for layer in (m for m in dense if isinstance(m, nn.Linear)):
        h, plain = f(h @ array(layer.weight).T + array(layer.bias)), plain @ array(layer.weight).T + array(layer.bias)
    assert close(h, array(dense(x)))
    assert not close(plain, array(dense(x))) and not close(f(plain), array(dense(x)))


def test_backpropagation():
    """delta_i = (W_{i+1}' delta_{i+1}) * sigma'(z_i); dL/dW_i = delta_i a_{i-1}'."""
    torch.manual_seed(0)
    dense = Dense(5, [4, 3], "sigmoid").double()
    x = torch.randn(5, dtype=torch.float64)
    dense(x).square().sum().mul(0.5).backward()
    first, second = (m for m in dense if isinstance(m, nn.Linear))
    z1 = array(first.weight) @ array(x) + array(first.bias)
    a1 = sigmoid(z1)
    z2 = array(second.weight) @ a1 + array(second.bias)
    a2 = sigmoid(z2)
    slope = lambda z: sigmoid(z) * (1 - sigmoid(z))  # noqa: E731
    delta2 = a2 * slope(z2)
    delta1 = (array(second.weight).T @ delta2) * slope(z1)
    assert close(np.outer(delta2, a1), array(second.weight.grad)) and close(
        np.outer(delta1, array(x)), array(first.weight.grad)
    )
    for misprint in (
        array(second.weight).T @ delta2,  # the slope left out
        (array(second.weight).T @ delta2) * slope(a1),  # the slope at a_i in place of z_i
        (array(first.weight) @ array(first.weight).T @ z1) * slope(z1),  # the wrong layer's weights
    ):
        assert not close(np.outer(misprint, array(x)), array(first.weight.grad))


# -- attention -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def attended():
    torch.manual_seed(0)
    column = Text("t", tokens="words").fit(["a b c d e f"] * 2)
    encoder = Attention([column], over={"lstm": {"hidden": 8, "embedding": 5, "dropout": 0.0}}).double().eval()
    ids = torch.tensor([[2, 3, 4, 5, 0, 0]])
    mask = ids > 0
    e = encoder.embed(ids, mask)
    return encoder, array(encoder.over(e, mask).x[0]), array(encoder(e, mask).x[0, 0]), 4


def additive(encoder, h):
    """e_t = V tanh(W h_t + b)"""
    first, last = encoder.attention.energy[0], encoder.attention.energy[2]
    return (array(last.weight) @ np.tanh(array(first.weight) @ h.T + array(first.bias)[:, None]))[0]


def test_attention_is_a_softmax_then_a_weighted_sum(attended):
    encoder, h, y, n = attended
    e = additive(encoder, h)[:n]  # real positions only
    a = np.exp(e) / np.exp(e).sum()
    assert math.isclose(a.sum(), 1) and close((a[:, None] * h[:n]).sum(0), y)


def test_misprints_of_attention(attended):
    encoder, h, y, n = attended
    e = additive(encoder, h)
    a = np.exp(e[:n]) / np.exp(e[:n]).sum()
    assert not close((e[:n, None] * h[:n]).sum(0), y)  # energies used as weights
    assert not close((np.exp(e[:n])[:, None] * h[:n]).sum(0), y)  # not divided by the sum
    assert not close((e[:n, None] / e[:n].sum() * h[:n]).sum(0), y)  # divided without exp
    assert not close((a[:, None] * h[:n]).mean(0), y)  # a mean of what is weighted already
    whole = np.exp(e) / np.exp(e).sum()
    assert not close((whole[:, None] * h).sum(0), y)  # padding takes part


def test_attention_has_the_weights_of_the_textbook():
    encoder = Attention([Text("t").fit(["a b"] * 2)], over={"lstm": {"hidden": 256, "layers": 2, "embedding": 100}})
    shapes = [tuple(p.shape) for p in encoder.attention.energy.parameters()]
    assert shapes == [(256, 256), (256,), (1, 256)]


def test_self_attention():
    """softmax(Q K' / sqrt(d)) V, head by head."""
    torch.manual_seed(0)
    layer = SelfAttention(Shape(6, 1, 2)).double().eval()
    x, mask = torch.randn(1, 5, 6, dtype=torch.float64), torch.tensor([[True, True, True, True, False]])
    q, k, v = np.split(array(x[0]) @ array(layer.inner.weight).T + array(layer.inner.bias), 3, axis=1)

    def heads(scale):
        parts = []
        for s in (slice(0, 3), slice(3, 6)):
            e = (q[:, s] @ k[:4, s].T) / scale
            parts.append(np.exp(e) / np.exp(e).sum(1, keepdims=True) @ v[:4, s])
        return np.concatenate(parts, 1) @ array(layer.outer.weight).T + array(layer.outer.bias)

    assert close(heads(math.sqrt(3)), array(layer(x, mask[:, None, None])[0]))
    for misprint in (1.0, 3.0, math.sqrt(6)):  # no root, d without the root, the whole width
        assert not close(heads(misprint), array(layer(x, mask[:, None, None])[0]))


# -- recurrence ------------------------------------------------------------------------------------------------------------
def recurrence(kind, layer, xs):
    w, u, b, c = (array(p) for p in (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0))
    size = u.shape[1]
    h, cell, states = np.zeros(size), np.zeros(size), []
    for x in xs:
        if kind == "rnn":
            h = np.tanh(w @ x + b + u @ h + c)
        elif kind == "gru":
            (xr, xz, xn), (hr, hz, hn) = np.split(w @ x + b, 3), np.split(u @ h + c, 3)
            z = sigmoid(xz + hz)
            h = (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h
        else:
            i, f, g, o = np.split(w @ x + b + u @ h + c, 4)
            if kind == "lstm":
                cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            else:  # the misprint: input and forget gate exchanged
                cell = sigmoid(i) * cell + sigmoid(f) * np.tanh(g)
            h = sigmoid(o) * np.tanh(cell)
        states.append(h)
    return np.array(states)


@pytest.mark.parametrize(("kind", "made"), [("rnn", RNN), ("gru", GRU), ("lstm", LSTM)])
def test_recurrence(kind, made):
    torch.manual_seed(0)
    encoder = made([Text("t").fit(["a b c d"] * 2)], hidden=5, embedding=4, dropout=0.0).double().eval()
    ids = torch.tensor([[2, 3, 4, 5]])
    e = encoder.embed(ids, ids > 0)
    found = array(encoder(e, ids > 0).x[0])
    layer = encoder.forwards[0].layer
    assert close(recurrence(kind, layer, array(e[0])), found)
    if kind == "lstm":
        assert not close(recurrence("exchanged", layer, array(e[0])), found)


def test_both_ways_means_each_sequence_reversed_within_its_own_length():
    torch.manual_seed(0)
    encoder = BiLSTM([Text("t").fit(["a b c d"] * 2)], hidden=5, embedding=4, dropout=0.0).double().eval()
    ids = torch.tensor([[2, 3, 4, 0, 0]])
    e = encoder.embed(ids, ids > 0)
    y = array(Pool("last", 10, ways=2)(encoder(e, ids > 0))[0])
    xs = array(e[0])
    forward = recurrence("lstm", encoder.forwards[0].layer, xs[:3])[-1]
    backward = recurrence("lstm", encoder.backwards[0].layer, xs[2::-1])[-1]
    assert close(np.concatenate([forward, backward]), y)
    through_padding = recurrence("lstm", encoder.backwards[0].layer, xs[::-1])[-1]
    assert not close(np.concatenate([forward, through_padding]), y)  # misprint: the padding is read first


def test_last_means_the_last_real_step():
    x = torch.arange(12.0, dtype=torch.float64).view(1, 4, 3)
    mask = torch.tensor([[True, True, False, False]])
    assert close(array(Pool("last", 3)(Tokens(x, mask))[0]), array(x[0, 1]))
    assert not close(array(Pool("last", 3)(Tokens(x, mask))[0]), array(x[0, -1]))


# -- losses and measures ---------------------------------------------------------------------------------------------------
def test_log_softmax_is_taken_from_logits():
    head = CategoryHead(Category("y").fit(["a", "b", "c"]), 3)
    z = torch.tensor([[1000.0, 0.0, -1000.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    loss, weight = head.loss(z, torch.tensor([3, 1]), torch.ones(2, dtype=torch.bool))
    rows = array(z)
    top = rows.max(1, keepdims=True)
    log_p = rows - top - np.log(np.exp(rows - top).sum(1, keepdims=True))
    assert close(array(loss / weight), [-log_p[0, 2], -log_p[1, 0]])
    with np.errstate(all="ignore"):  # misprint: the logarithm of a probability that has already become 0
        p = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
        assert not np.isfinite(-np.log(p[0, 2]))


def test_two_classes_are_one_sigmoid():
    head = CategoryHead(Category("y").fit(["a", "b"]), 3)
    z = torch.tensor([[2.0], [-800.0]], dtype=torch.float64)
    loss, _ = head.loss(z, torch.tensor([2, 2]), torch.ones(2, dtype=torch.bool))
    assert close(array(loss), [np.log1p(np.exp(-2.0)), 800.0])
    assert not close(array(loss), [2.0, -800.0])


def test_f1_is_the_harmonic_mean():
    truth, answer = np.array([1, 1, 1, 0, 0, 0, 0, 0]), np.array([1, 0, 0, 1, 0, 0, 0, 0])
    precision, recall = 1 / 2, 1 / 3
    probabilities = np.eye(2)[answer] * 0.8 + 0.1
    f1 = metrics.classification(truth, probabilities, ["no", "yes"], resamples=10)["f1"].value
    assert math.isclose(f1, 2 * precision * recall / (precision + recall))
    assert not math.isclose(f1, (precision + recall) / 2)  # the arithmetic mean
    assert not math.isclose(f1, precision * recall / (precision + recall))  # the 2 forgotten
