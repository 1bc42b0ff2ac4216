"""Does reading raw text first help? bert-movie.yaml from the encoder of bert-books.yaml, and the same network from nothing.

    python -m benchmarks.language.bert [--reader FOLDER] [--seeds 5] [--json FILE]

Each seed draws its own split; both sides learn from the same rows and are judged on the same rows. The network from nothing has its own vocabulary, and the
rate and number of epochs that do best on the validation rows of seed 0 (`tried`). The difference is that of right answers, paired by row.
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
from luban.recipe import Recipe

TRIED = [("adamw", 0.0005, 5), ("adamw", 0.001, 5), ("adamw", 0.002, 8), ("muon", 0.005, 5)]


def answered(seed: int, reader: str | None, optimizer: str, rate: float, epochs: int) -> dict[str, Any]:
    """Right answers on the test rows and the accuracy on the validation rows, of one trained model."""
    plain = Recipe.load(RECIPES / "bert-movie.yaml").plain() | {"seed": seed}
    kept = [s for s in plain["stages"] if "start" not in s]
    train = {**kept[0]["train"], "optimizer": optimizer, "rate": rate, "epochs": epochs}
    if not reader:
        train.pop("rates", None)  # nothing is there that a smaller rate would keep
    start = [{"start": {"source": reader, "names": {"sentence": "text"}}}] if reader else []
    started = time.process_time()
    model = luban.train(plain | {"stages": [*start, {"train": train}]}, evaluate=False)
    seconds = time.process_time() - started
    data = prepare(model.recipe)
    found = table(model, data, data.part("test")).outputs["sentiment"]
    right = found.raw.reshape(len(found.raw), -1)[:, -1] > 0
    best = max(m["validation_accuracy"] for m in model.metrics)
    return {"right": (found.truth == 1 + right)[found.known], "validation": best, "cpu_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reader")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    if a.reader is None:
        a.reader, started = str(Path(mkdtemp()) / "reader"), time.process_time()
        luban.train(str(RECIPES / "bert-books.yaml"), out=a.reader, evaluate=False)
        rows["reading_cpu_seconds"] = time.process_time() - started
    own = Recipe.load(RECIPES / "bert-movie.yaml").stage("train").settings
    tried = {" ".join(map(str, t)): answered(0, None, *t)["validation"] for t in TRIED}
    best = TRIED[int(np.argmax(list(tried.values())))]
    sides: dict[str, list[dict[str, Any]]] = {"read": [], "nothing": []}
    for seed in range(a.seeds):
        sides["read"].append(answered(seed, a.reader, own["optimizer"], own["rate"], own["epochs"]))
        sides["nothing"].append(answered(seed, None, *best))
    right = {k: np.concatenate([f["right"] for f in v]) for k, v in sides.items()}
    for k, v in sides.items():
        each = [float(f["right"].mean()) for f in v]
        rows[k] = {
            "accuracy": mean(right[k]).to_json(),
            "each_seed": each,
            "spread": float(np.std(each, ddof=1)) if len(each) > 1 else None,
            "cpu_seconds": [f["cpu_seconds"] for f in v],
        }
    rows |= {"difference": paired_difference(right["read"], right["nothing"]).to_json(), "tried": tried}
    finish("language-bert", rows, a.json)


if __name__ == "__main__":
    main()
