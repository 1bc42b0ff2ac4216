"""How fast an epoch of shuffled batches is read: Luban's kept examples beside HF datasets with a DataLoader.

    python -m benchmarks.feed [tokens numbers] [--pairs 5 | --quick] [--json FILE]

| row | what is read |
|---|---|
| tokens | 4,000 texts of 256 ids, batches of 32, as int64 tensors |
| numbers | 20,000 rows of 16 numbers and a class, batches of 128 |

Both sides read from disk files that are mapped, in an order shuffled by a seed, and give each batch as torch tensors; nothing is computed
with it. `luban`: `Feed` over examples in the cache. `datasets`: `set_format("torch")` and `DataLoader(shuffle=True)`. `datasets-batched`: the
same with whole batches fetched at once (a `BatchSampler` as sampler), its best documented setting. `same`: both gave every row once, with
equal sums.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import torch

from benchmarks.common import finish
from luban import console
from luban.columns import kept
from luban.columns.base import make
from luban.data.frames import row as framed
from luban.training.feed import Feed
from luban.training.plan import Plan

TEXTS, LENGTH, ROWS, WIDTH = 4_000, 256, 20_000, 16


def tokens() -> tuple[pa.Table, dict[str, Any], int]:
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(5000)])
    texts = [" ".join(words[i]) for i in rng.integers(0, len(words), (TEXTS, LENGTH))]
    table = pa.table({"text": texts, "y": rng.choice(["a", "b"], TEXTS)})
    return table, {"text": make("text", "text", {"tokens": "words", "least": 1, "length": LENGTH})}, 32


def numbers() -> tuple[pa.Table, dict[str, Any], int]:
    rng = np.random.default_rng(0)
    table = pa.table({**{f"n{i}": rng.normal(size=ROWS) for i in range(WIDTH)}, "y": rng.choice(["a", "b"], ROWS)})
    return table, {f"n{i}": make(f"n{i}", "number", {}) for i in range(WIDTH)}, 128


def row(name: str, count: int) -> dict:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    table, columns, batch = {"tokens": tokens, "numbers": numbers}[name]()
    inputs = list(columns)
    columns = {n: c.fit(table[n]) for n, c in {**columns, "y": make("y", "category", {})}.items()}
    kept.ABOVE = 0
    examples = kept.encode_kept(columns, inputs, ["y"], framed(table, np.arange(len(table))))
    assert examples.stored
    whole = examples.arrays(np.arange(len(examples)))
    cells = {n: list(x) if x.ndim > 1 else x for n, (x, _) in {**whole.inputs, **whole.targets}.items()}
    with tempfile.TemporaryDirectory() as folder:
        Dataset.from_dict(cells).save_to_disk(folder)
        rival = Dataset.load_from_disk(folder).with_format("torch")
        plan = Plan(epochs=1, batch=batch, rate=0.0, augment=False)
        sides = {
            "luban": lambda seed: _of_luban(Feed(examples, Plan(**{**vars(plan), "seed": seed})), inputs),
            "datasets": lambda seed: _of_loader(rival, batch, inputs, seed),
            "datasets-batched": lambda seed: _of_batches(rival, batch, inputs, seed),
        }
        spent: dict[str, list[float]] = {n: [] for n in sides}
        sums: dict[str, list[float]] = {n: [] for n in sides}
        for seed in range(count + 1):  # the first warms up
            for n, side in sides.items():
                batches = side(seed)
                began = time.process_time()
                sizes = [size for size, _ in batches]
                spent[n].append(time.process_time() - began)
                assert sum(sizes) == len(table)
        for n, side in sides.items():
            sums[n] = [sum(float(x.double().sum()) for _, xs in side(0) for x in xs)]
    cells_each = LENGTH if name == "tokens" else WIDTH
    total = len(table) * cells_each
    return {
        "row": name,
        "rows": len(table),
        "same": bool(
            np.allclose(sums["luban"], sums["datasets"]) and np.allclose(sums["luban"], sums["datasets-batched"])
        ),
        "n": count,
        **{
            n: {
                "million_cells_per_cpu_second": round(total / 1e6 / statistics.median(s[1:]), 2),
                "luban_is_faster_by": {
                    k: round(f([b / a for a, b in zip(spent["luban"][1:], s[1:])]), 2)
                    for k, f in (("median", statistics.median), ("min", min), ("max", max))
                },
            }
            for n, s in spent.items()
        },
    }


Batches = Iterator[tuple[int, list[torch.Tensor]]]


def _of_luban(feed: Feed, inputs: list[str]) -> Batches:
    for batch in feed.batches(0, 0):
        yield batch.size, [batch.inputs[n][0] for n in inputs]


def _of_loader(rival: Any, batch: int, inputs: list[str], seed: int) -> Batches:
    order = torch.Generator().manual_seed(seed)
    for found in torch.utils.data.DataLoader(rival, batch_size=batch, shuffle=True, generator=order):
        yield len(found["y"]), [found[n] for n in inputs]


def _of_batches(rival: Any, batch: int, inputs: list[str], seed: int) -> Batches:
    order = torch.utils.data.RandomSampler(rival, generator=torch.Generator().manual_seed(seed))
    sampler = torch.utils.data.BatchSampler(order, batch, drop_last=False)
    for found in torch.utils.data.DataLoader(rival, sampler=sampler, batch_size=None):
        yield len(found["y"]), [found[n] for n in inputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=["tokens", "numbers"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two pairs: good to a fifth")
    parser.add_argument("--json")
    asked = parser.parse_args()
    console.configure(quiet=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LUBAN_CACHE"] = folder
        finish("feed", [row(n, 2 if asked.quick else asked.pairs) for n in asked.rows], asked.json)


if __name__ == "__main__":
    main()
