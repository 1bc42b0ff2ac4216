"""A small CNN that learns from a trained network's answers, beside the same CNN alone for as long: accuracy on test rows.

    python -m benchmarks.distilling FOLDER [--seeds 2] [--epochs 18] [--alone 20] [--json FILE]

FOLDER: the teacher, a trained model of Fashion-MNIST as of `benchmarks.language.recipe fashion-cnn --out FOLDER`.

| side | what it is |
|---|---|
| distilled | `luban compress FOLDER --distill student.yaml --epochs E`, all other settings as they come |
| alone | the same recipe trained for A epochs, which take as many CPU seconds: the teacher is asked once, which takes those of an epoch |

The recipe has `augment: false`, with which the student alone does better on validation rows (docs/figures.md). Test rows are judged once and choose nothing; `difference` is distilled less alone, row by row.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import luban
from benchmarks.common import examples, learned, seeds
from luban.columns.examples import Examples
from luban.data.prepare import prepare
from luban.evaluation import intervals

STUDENT = """luban: 1
size: nano
data: {{rows: fashion-mnist, split: {{column: split, validation: 0.1}}}}
inputs: {{image: {{image: {{flip: true}}}}}}
outputs: {{label: category}}
model: {{image: {{cnn: {{width: 8}}}}}}
stages: [train: {{compile: "off", epochs: {epochs}, augment: false, patience: 0, keep: last, ema: 0.998}}]
"""


def right(model: Any, test: Examples) -> np.ndarray:
    """Which test rows are answered rightly."""
    pieces = np.array_split(np.arange(len(test)), max(1, len(test) // 250))
    said = np.concatenate([model.engine.run(test.arrays(i))["label"].argmax(1) for i in pieces])
    return said == test.targets["label"] - 1


def run(teacher: Any, data: Any, asked: argparse.Namespace, seed: int, place: Path) -> dict[str, Any]:
    test = examples(teacher, data, "test")
    paths = {e: place / f"student-{e}.yaml" for e in (asked.epochs, asked.alone)}
    for epochs, path in paths.items():
        path.write_text(STUDENT.format(epochs=epochs), encoding="utf-8")
    small = teacher.compress(data, distill=str(paths[asked.epochs]), seed=seed, explain=0, resamples=20)
    alone = luban.train(str(paths[asked.alone]), seed=seed, evaluate=False)
    spent = {"distilled": small.history[-1]["cpu_seconds"], "alone": learned(alone)["cpu_seconds"]}
    hits = {n: right(m, test) for n, m in (("distilled", small), ("alone", alone), ("teacher", teacher))}
    return {
        "seed": seed, "parameters": {"teacher": teacher.parameters(), "student": small.parameters()},
        "epochs": {"distilled": asked.epochs, "alone": asked.alone},
        "cpu_seconds": {n: round(s) for n, s in spent.items()},
        "accuracy": {n: intervals.mean(h).to_json() for n, h in hits.items()},
        "difference": intervals.paired_difference(hits["distilled"], hits["alone"]).to_json(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--alone", type=int, default=20)
    parser.add_argument("--json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    teacher = luban.load(asked.folder)
    data = prepare(teacher.recipe)
    with tempfile.TemporaryDirectory() as place:
        seeds("distilling", asked.seeds, lambda seed: run(teacher, data, asked, seed, Path(place)), asked.json)


if __name__ == "__main__":
    main()
