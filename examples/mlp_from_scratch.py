"""The network mlp-2x64 in NumPy: bag of words -> 64 -> 64 -> 2, forward, backward and descent by hand.

    python examples/mlp_from_scratch.py

The formulas are those of `docs/textbook.md`; a test holds the gradients against autograd (1e-6, float64).
Letters: B texts, V words, a_i what layer i answers, z_i before its activation, delta_i = dL/dz_i.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

RELU = (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(z.dtype))
SIGMOID = (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2)


def initial(sizes: tuple[int, ...], seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """A weight (out, in) and a bias (out,) for each layer (He et al. 2015)."""
    random = np.random.default_rng(seed)
    return [(random.normal(0, np.sqrt(2 / i), (o, i)), np.zeros(o)) for i, o in pairwise(sizes)]


def forward(layers, x, activation=RELU):
    """x (B, V) -> every z_i and a_i; the last layer has no activation: its z are the logits (B, 2)."""
    zs, answers = [], [x]
    for i, (w, b) in enumerate(layers):
        zs.append(answers[-1] @ w.T + b)
        answers.append(activation[0](zs[-1]) if i < len(layers) - 1 else zs[-1])
    return zs, answers


def loss(logits, truth):
    """Mean cross-entropy, log-softmax taken from the logits; and delta of the last layer, softmax(z) - truth."""
    z = logits - logits.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    delta = (np.exp(log_p) - np.eye(logits.shape[1])[truth]) / len(truth)
    return -log_p[np.arange(len(truth)), truth].mean(), delta


def backward(layers, zs, answers, delta, activation=RELU):
    """delta_i = (W_{i+1}' delta_{i+1}) * sigma'(z_i); dL/dW_i = delta_i a_{i-1}'; dL/db_i = delta_i."""
    gradients = []
    for i in reversed(range(len(layers))):
        gradients.append((delta.T @ answers[i], delta.sum(0)))
        if i:
            delta = (delta @ layers[i][0]) * activation[1](zs[i - 1])
    return gradients[::-1]


def descend(layers, x, truth, rate=0.5, steps=300, activation=RELU):
    for _ in range(steps):
        zs, answers = forward(layers, x, activation)
        _, delta = loss(answers[-1], truth)
        gradients = backward(layers, zs, answers, delta, activation)
        layers = [(w - rate * dw, b - rate * db) for (w, b), (dw, db) in zip(layers, gradients)]
    return layers


def bag(texts: list[str], words: list[str]) -> np.ndarray:
    return np.array([[t.split().count(w) for w in words] for t in texts], np.float64)


if __name__ == "__main__":
    texts = ["a warm and funny film", "dull and far too long", "funny and warm", "long dull film", "warm", "dull"]
    truth = np.array([1, 0, 1, 0, 1, 0])
    words = sorted({w for t in texts for w in t.split()})
    x = bag(texts, words)
    layers = initial((len(words), 64, 64, 2))
    print("loss before", round(loss(forward(layers, x)[1][-1], truth)[0], 4))
    layers = descend(layers, x, truth)
    print("loss after", round(loss(forward(layers, x)[1][-1], truth)[0], 4))
    print("a funny film:", forward(layers, bag(["a funny film"], words))[1][-1].argmax())
