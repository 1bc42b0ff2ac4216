"""What the tests of serving share: a small untrained model, a real server in a thread, a fixed slow engine."""

import contextlib
import threading
import time

import httpx
import numpy as np

from luban.columns.base import make
from luban.recipe import Recipe
from luban.stages.serve import prepare

ROWS = [
    {"age": 31.5, "city": "Wien", "note": "a quiet street"},
    {"age": None, "city": "Graz", "note": ""},
    {"age": 70, "city": "nowhere seen", "note": "loud loud loud street"},
]
TRAINING = {
    "age": [20.0, 31.5, 44.0, 70.0] * 5,
    "city": ["Wien", "Graz", "Linz", "Wien"] * 5,
    "note": ["a quiet street", "a loud street", "quiet and green", "loud loud street"] * 5,
    "kind": ["a", "b", "c", "b"] * 5,
    "price": [1.0, 2.0, 3.5, 7.0] * 5,
}
ENCODERS = {"note": {"mlp": {}}}


def tiny_bundle(inputs=("age", "city"), outputs=("kind", "price")):
    """An untrained Bundle over a few of the columns above, its weights drawn with a fixed seed."""
    import torch

    from luban.bundle import Bundle, build_network

    types = {"age": "number", "city": "category", "note": "text", "kind": "category", "price": "number"}
    recipe = Recipe.of(
        {"luban": 1, "inputs": {n: types[n] for n in inputs}, "outputs": {n: types[n] for n in outputs}, "size": "nano"}
    ).resolved()
    parts = {**recipe.inputs, **recipe.outputs}
    columns = {n: make(n, p.type, dict(p.settings)).fit(TRAINING[n]) for n, p in parts.items()}
    torch.manual_seed(7)
    return Bundle(recipe, columns, build_network(recipe, columns).eval())


@contextlib.contextmanager
def serving(source, **settings):
    """A running server on a free port of this machine; yields it with a client."""
    server = prepare(source, port=0, **settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=server.url, timeout=30, limits=limits) as client:
        try:
            yield server, client
        finally:
            client.close()
            server.stop()
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


class SlowEngine:
    """One number in, the same number out; a batch of any size costs `seconds`."""

    inputs, outputs = ("x",), ("y",)

    def __init__(self, seconds=0.05):
        self.seconds = seconds
        self.columns = {n: make(n, "number", {"scale": "none"}).fit([0.0, 1.0, 2.0]) for n in ("x", "y")}
        self.batches = []

    def run(self, arrays):
        x = arrays.inputs["x"][0]
        self.batches.append(len(x))
        time.sleep(self.seconds)
        return {"y": np.asarray(x, np.float32)[:, None]}


class MixedEngine:
    """Every type of column in, one number out: a checksum of what arrived, so that a changed answer is seen."""

    inputs, outputs = ("age", "city", "note", "photo"), ("price",)

    def __init__(self):
        photos = [np.full((4, 4, 3), 40 * i, np.uint8) for i in range(4)]
        fitted = {**{n: TRAINING[n] for n in ("age", "city", "note", "price")}, "photo": photos}
        types = {"age": "number", "city": "category", "note": "text", "photo": "image", "price": "number"}
        self.columns = {n: make(n, t, {}).fit(fitted[n]) for n, t in types.items()}

    def run(self, arrays):
        total = np.zeros(arrays.size, np.float64)
        for x, mask in arrays.inputs.values():
            total += np.where(mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim)), x, 0).reshape(len(x), -1).sum(1)
        return {"price": total.astype(np.float32)[:, None]}
