"""Does reading raw text first help? bert-movie.yaml from the encoder of bert-books.yaml, and the same network from nothing.

    python -m benchmarks.language.bert [--reader FOLDER] [--seeds 5] [--json FILE]

Three sides: `read` begins with the encoder that has read the books; `nothing` is that network with that vocabulary, its weights as they are
drawn; `own` is from nothing with a vocabulary of the film reviews. Each seed draws its own split; all sides learn from the same rows and are
judged on the same rows. Each side takes what does best on the validation rows of seed 0 of three settings (`tried`), and keeps the last epoch.
Differences are those of right answers, paired by row.
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

Setting = tuple[str, float, int, float]  # optimiser, rate, epochs, factor of the encoder's rate
READ: list[Setting] = [("muon", 0.005, 5, 0.3), ("muon", 0.005, 3, 0.3), ("muon", 0.005, 5, 1.0)]
NOTHING: list[Setting] = [("muon", 0.005, 5, 1.0), ("muon", 0.005, 3, 1.0), ("adamw", 0.001, 5, 1.0)]


def unread(place: Path, seed: int) -> str:
    """The folder of a reader that has read nothing: its vocabulary, and weights as a seed draws them."""
    plain = Recipe.load(RECIPES / "bert-books.yaml").plain() | {"seed": seed}
    settings = {k: v for k, v in plain["stages"][0]["train"].items() if k != "epochs"}
    stages = [{"train": {**settings, "steps": 1, "rate": 1e-12}}]
    luban.train(plain | {"stages": stages}, out=str(place / f"unread-{seed}"), evaluate=False)
    return str(place / f"unread-{seed}")


def answered(seed: int, reader: str | None, setting: Setting) -> dict[str, Any]:
    """Which test rows one trained model answers rightly, its accuracy on the validation rows, and its CPU seconds."""
    optimizer, rate, epochs, factor = setting
    plain = Recipe.load(RECIPES / "bert-movie.yaml").plain() | {"seed": seed}
    kept = next(s["train"] for s in plain["stages"] if "train" in s)
    train = {
        **kept,
        "optimizer": optimizer,
        "rate": rate,
        "epochs": epochs,
        "keep": "last",
        "rates": {"sentence": factor},
    }
    start = [{"start": {"source": reader, "names": {"sentence": "text"}}}] if reader else []
    started = time.process_time()
    model = luban.train(plain | {"stages": [*start, {"train": train}]}, evaluate=False)
    seconds = time.process_time() - started
    data, right = prepare(model.recipe), {}
    for part in ("validation", "test"):
        found = table(model, data, data.part(part)).outputs["sentiment"]
        positive = found.raw.reshape(len(found.raw), -1)[:, -1] > 0
        right[part] = (found.truth == 1 + positive)[found.known]
    return {"right": right["test"], "validation": float(right["validation"].mean()), "cpu_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reader")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    place = Path(mkdtemp())
    if a.reader is None:
        a.reader, started = str(place / "reader"), time.process_time()
        luban.train(str(RECIPES / "bert-books.yaml"), out=a.reader, evaluate=False)
        rows["reading_cpu_seconds"] = time.process_time() - started
    empty = [unread(place, seed) for seed in range(a.seeds)]
    begins = {"read": [a.reader] * a.seeds, "nothing": empty, "own": [None] * a.seeds}
    right = {}
    for side, readers in begins.items():
        settings = READ if side == "read" else NOTHING
        first = [answered(0, readers[0], s) for s in settings]
        best = int(np.argmax([f["validation"] for f in first]))
        runs = [first[best], *(answered(seed, readers[seed], settings[best]) for seed in range(1, a.seeds))]
        right[side] = np.concatenate([f["right"] for f in runs])
        each = [float(f["right"].mean()) for f in runs]
        rows[side] = {
            "accuracy": mean(right[side]).to_json(),
            "each_seed": each,
            "spread": float(np.std(each, ddof=1)) if len(each) > 1 else None,
            "validation": [f["validation"] for f in runs],
            "cpu_seconds": [f["cpu_seconds"] for f in runs],
            "tried": {" ".join(map(str, s)): f["validation"] for s, f in zip(settings, first)},
            "taken": " ".join(map(str, settings[best])),
        }
        print(side, rows[side], flush=True)
    for side in ("nothing", "own"):
        rows[f"read_minus_{side}"] = paired_difference(right["read"], right[side]).to_json()
    finish("language-bert", rows, a.json)


if __name__ == "__main__":
    main()
