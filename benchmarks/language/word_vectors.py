"""Do word vectors that were learned from raw text help? Film sentences by a bag of words that begins with them, and by the same from nothing.

    python -m benchmarks.language.word_vectors [--vectors FILE] [--seeds 3] [--json FILE]

The vectors are learned from the documents of english-books alone. Each seed draws its
own split; both sides learn from the same rows, `--share` of the training rows, and are judged on the same ones. The difference is that of right answers, paired by row.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch

import luban
from benchmarks.common import finish
from benchmarks.language.recipe import RECIPES
from luban.data.prepare import prepare
from luban.evaluation.intervals import mean, paired_difference
from luban.evaluation.table import table


def recipe(seed: int, vectors: str | None, test: float) -> dict[str, Any]:
    side = {"tokens": "words"} | ({"vectors": vectors} if vectors else {})
    return {
        "luban": 1, "seed": seed, "data": {"rows": "movie-sentences", "split": {"validation": 0.05, "test": test}},
        "inputs": {"sentence": {"text": side}}, "outputs": {"sentiment": "category"}, "model": {"sentence": {"bag": {"embedding": 64}}},
        "stages": [{"train": {"epochs": 15}}],
    }  # fmt: skip


def answered(seed: int, vectors: str | None, test: float) -> np.ndarray:
    """Right answers on the test rows."""
    model = luban.train(recipe(seed, vectors, test), evaluate=False)
    data = prepare(model.recipe)
    found = table(model, data, data.part("test")).outputs["sentiment"]
    right = found.column.probabilities(found.raw).argmax(1) == found.truth - 1
    return right[found.known]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vectors")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.1, help="of all rows that both sides learn from")
    parser.add_argument("--json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {"share": a.share}
    if a.vectors is None:
        started, folder = time.process_time(), Path(mkdtemp())
        made = luban.train(str(RECIPES / "word-vectors.yaml"), out=folder / "vectors")
        rows["learning_cpu_seconds"] = time.process_time() - started
        rows["neighbours"] = made.reports["evaluate"].to_json()["numbers"]["outputs"]["text"]
        a.vectors = str(made.export("word2vec", out=folder / "vectors.txt"))
    test = 0.95 - a.share
    sides = {
        side: [answered(s, v, test) for s in range(a.seeds)] for side, v in (("vectors", a.vectors), ("nothing", None))
    }
    right = {k: np.concatenate(v) for k, v in sides.items()}
    for k, v in sides.items():
        rows[k] = {"accuracy": mean(right[k]).to_json(), "each_seed": [float(r.mean()) for r in v]}
    rows |= {
        "difference": paired_difference(right["vectors"], right["nothing"]).to_json(),
        "rows": len(right["nothing"]),
    }
    finish("language-word-vectors", rows, a.json)


if __name__ == "__main__":
    main()
