"""Small models to compress, export and audit: every form of input that has an encoder, made without training."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from luban.bundle import Bundle, build_network
from luban.columns.base import make
from luban.columns.examples import cells
from luban.data.prepare import Data
from luban.data.rows import Rows
from luban.data.splits import Splits
from luban.recipe import Recipe, fill
from luban.training.random import seed_torch

WORDS = ["good", "bad", "film", "slow", "great", "plot", "dull", "actor", "fine", "scene"]


def rows(count: int = 120, seed: int = 0) -> pa.Table:
    """Numbers, a category, a sentence, a picture; `buys` and `spent` follow from them."""
    rng = np.random.default_rng(seed)
    age, income = rng.normal(40, 10, count), rng.normal(0, 1, count)
    city = rng.choice(["Ulm", "Bonn", "Kiel"], count)
    review = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(count)]
    photo = rng.integers(0, 255, (count, 8, 8), dtype=np.uint8)
    buys = np.where(age / 10 + income + (city == "Bonn") + rng.normal(0, 0.5, count) > 4.3, "yes", "no")
    return pa.table(
        {
            "age": age,
            "income": income,
            "city": city,
            "review": review,
            "photo": [p.tolist() for p in photo],
            "sex": rng.choice(["f", "m"], count),
            "buys": buys,
            "kind": rng.choice(["a", "b", "c"], count),
            "spent": age * 3 + income * 20,
        }
    )


def data(table: pa.Table, recipe: Recipe | None = None, split: bool = True) -> Data:
    n = table.num_rows
    parts = np.split(np.arange(n), [int(0.6 * n), int(0.8 * n)])
    return Data(
        Rows(table, np.arange(1, n + 1), "rows", rows_in=n), Splits(*parts, "random") if split else None, recipe
    )


def bundle(
    inputs: dict, outputs: dict, table: pa.Table, size: str = "nano", module: object = None, **recipe: object
) -> Bundle:
    """An untrained model whose columns are fitted."""
    asked = Recipe.of({"luban": 1, "inputs": inputs, "outputs": outputs, "size": size, **recipe}).resolved()
    parts = {**asked.inputs, **asked.outputs}
    columns = {
        n: make(n, p.type, dict(fill("columns", p, size).settings)).fit(cells(table[n])) for n, p in parts.items()
    }
    seed_torch(asked.seed, "weights")
    return Bundle(asked, columns, build_network(asked, columns, (), module).eval())


def tabular(table: pa.Table, **settings: object) -> Bundle:
    inputs = {"age": "number", "income": "number", "city": "category"}
    return bundle(inputs, {"buys": "category", "spent": "number"}, table, **settings)


def cases() -> dict[str, dict]:
    """One input of each form that a registered encoder reads, by the encoder's name."""
    from luban import registry

    asked = {
        "mlp": ({"age": "number", "city": "category"}, {}),
        "cnn-grid": ({"photo": "image"}, {"photo": "cnn"}),
        "cnn-ids": ({"review": "text"}, {"review": "cnn"}),
        "bilstm": ({"review": "text"}, {"review": "bilstm"}),
        "gru": ({"review": "text"}, {"review": "gru"}),
        "attention": ({"review": "text"}, {"review": "attention"}),
        "transformer": ({"review": "text"}, {"review": "transformer"}),
        "vit": ({"photo": "image"}, {"photo": "vit"}),
        "together": ({"age": "number", "review": "text", "photo": "image"}, {"review": "cnn", "photo": "cnn"}),
    }
    there = set(registry.names("encoders"))
    return {
        name: {"inputs": inputs, "outputs": {"kind": "category"}, "model": model}
        | ({"fusion": {"concat": {"layers": [8]}}} if name != "cnn-ids" else {})
        for name, (inputs, model) in asked.items()
        if set(model.values()) <= there
    }
