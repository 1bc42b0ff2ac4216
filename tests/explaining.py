"""Small untrained Bundles for the tests of explain: real columns, real networks, random weights."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from luban.bundle import Bundle, build_network
from luban.columns.base import make
from luban.columns.examples import cells
from luban.data.frames import row
from luban.data.rows import Rows as ReadRows
from luban.recipe import Recipe


class Rows:
    """What explain asks of prepared data: a table, all of it held out."""

    def __init__(self, table: pa.Table):
        count = table.num_rows
        self.table, self.rows = table, ReadRows(table, np.arange(1, count + 1), "rows", rows_in=count)

    def held_out(self):
        return "test", np.arange(self.table.num_rows)

    def framed(self, rows, frame):
        return row(self.table, rows)


def bundle(table: pa.Table, inputs: dict, outputs: dict, *, seed: int = 0, wide: float = 2.0, **more) -> Bundle:
    """A Bundle whose columns are fitted on the table; `wide` stretches the weights, so that the network is far from linear."""
    recipe = Recipe.of({"luban": 1, "inputs": inputs, "outputs": outputs, "size": "nano", **more}).resolved()
    parts = {**recipe.inputs, **recipe.outputs}
    columns = {n: make(n, p.type, dict(p.settings)).fit(cells(table[n])) for n, p in parts.items()}
    torch.manual_seed(seed)
    network = build_network(recipe, columns)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(wide)
    return Bundle(recipe, columns, network.eval())


def table(rows: int = 40, numbers: int = 3, seed: int = 0) -> pa.Table:
    """Numbers (one with gaps), a category, and three outputs."""
    rng = np.random.default_rng(seed)
    data = {f"n{i}": rng.normal(i, 1 + i, rows).round(3).tolist() for i in range(numbers)}
    data["n0"][3] = None
    data["kind"] = rng.choice(["red", "green", "blue"], rows).tolist()
    data["grade"] = rng.choice(["a", "b", "c"], rows).tolist()
    data["yes"] = rng.choice(["no", "yes"], rows).tolist()
    data["price"] = rng.normal(100, 20, rows).tolist()
    return pa.table(data)


INPUTS = {"n0": "number", "n1": "number", "n2": "number", "kind": "category"}
OUTPUTS = {"grade": "category", "yes": "category", "price": "number"}


def mixed(**more) -> tuple[Bundle, Rows]:
    data = table()
    return bundle(data, INPUTS, OUTPUTS, **more), Rows(data)
