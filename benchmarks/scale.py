"""One process beside two ranks on the same global batches: is the loss the same, and what does it cost?

    python -m benchmarks.scale [--ranks 2] [--epochs 4] [--json FILE]

A Transformer over texts (AG-like: random words, learnable classes), fp32, no dropout, no augmentation. `seconds` is the wall
clock of the training loop alone, `cpu` that of all processes from start to end; on a machine that others use, believe `cpu`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import cpu_seconds, finish

RECIPE = """luban: 1
data: {{rows: rows.csv}}
inputs: {{words: text}}
outputs: {{y: category}}
size: small
model: {{words: {{transformer: {{dropout: 0}}}}}}
fusion: {{concat: {{dropout: 0}}}}
stages: [{{train: {{epochs: {epochs}, patience: 0, precision: fp32, augment: false, batch: 64}}}}]
"""


def rows(path: Path, count: int = 1200) -> None:
    random = np.random.default_rng(0)
    lines = ["words,y"]
    for _ in range(count):
        kind = int(random.integers(4))
        words = [f"w{kind * 50 + int(random.integers(80))}" for _ in range(int(random.integers(10, 60)))]
        lines.append(f"{' '.join(words)},k{kind}")
    path.write_text("\n".join(lines) + "\n")


def measured(place: Path, name: str, *words: str) -> dict[str, Any]:
    recipe = str(place / "recipe.yaml")
    command = [sys.executable, "-m", "luban", "run", recipe, "--out", str(place / name), "--quiet", *words]
    cpu, _ = cpu_seconds(command)
    metrics = [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]
    entry = json.loads((place / name / "history.jsonl").read_text().splitlines()[0])
    return {"name": name, "cpu": round(cpu, 1), "seconds": entry["seconds"], "loss": [m["loss"] for m in metrics]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--json")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows(place / "rows.csv")
        (place / "recipe.yaml").write_text(RECIPE.format(epochs=asked.epochs))
        many = ("--ranks", str(asked.ranks))
        found = [
            measured(place, "one process"),
            measured(place, f"{asked.ranks} ranks, ddp", *many),
            measured(place, f"{asked.ranks} ranks, fsdp", *many, "--set", "scale.strategy=fsdp"),
        ]
    for line in found:
        line["apart"] = max(abs(a - b) for a, b in zip(line["loss"], found[0]["loss"], strict=True))
    finish("scale", found, asked.json)


if __name__ == "__main__":
    main()
