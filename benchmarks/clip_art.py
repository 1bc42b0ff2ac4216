"""EfficientNet-Lite0 fine-tuned on clip-art, beside a linear probe on its frozen features.

    python -m benchmarks.clip_art [--seeds 1] [--out FOLDER] [--json FILE]

`recipes/clip-art.yaml`, one split a seed. Beside it logistic regression on the last map of the published network, averaged over the
picture (1,280 numbers, standardised by training rows), at 224 pixels and at 192, which are its own and the side of the recipe's last epochs, each
with nine strengths; validation accuracy chooses among all. The test rows are the same. A model of this recipe
that lies in FOLDER/SEED is judged, and not trained again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.common import seeds, taught
from luban.columns.base import make
from luban.data.prepare import prepare
from luban.evaluation import intervals
from luban.nn.vision.efficientnet import EfficientNet

RECIPE = str(Path(__file__).parent.parent / "recipes" / "clip-art.yaml")
PARTS = ("train", "validation", "test")
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
SIDES, BATCH = (224, 192), 32


def features(files: list[str], side: int, shape: str) -> np.ndarray:
    """(N, 1280): the last map of the published network, averaged."""
    column = make("image", "image", {"side": side, "channels": 3, "shape": shape}).supposed()
    return averaged(column, EfficientNet([column], weights="efficientnet-lite0").eval(), files)


@torch.no_grad()
def averaged(column: Any, encoder: Any, files: list[str]) -> np.ndarray:
    """(N, D): the last map of an encoder of the column's images, averaged."""
    found = []
    for start in range(0, len(files), BATCH):
        x = torch.from_numpy(column.encode_all(files[start : start + BATCH]))
        mask = torch.ones(len(x), dtype=torch.bool)
        found.append(encoder(encoder.embed(x, mask), mask).x.mean(1).numpy())
    return np.concatenate(found)


def probe(files: dict[str, list[str]], truth: dict[str, np.ndarray], shape: str) -> dict[str, Any]:
    """The best linear probe by validation accuracy, and which of the test rows it gets right."""
    from sklearn.linear_model import LogisticRegression

    best: dict[str, Any] = {"validation": 0.0}
    for side in SIDES:
        x = {p: features(files[p], side, shape) for p in PARTS}
        mean, deviation = x["train"].mean(0), x["train"].std(0) + 1e-6
        x = {p: (v - mean) / deviation for p, v in x.items()}
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=1000).fit(x["train"], truth["train"])
            score = float((model.predict(x["validation"]) == truth["validation"]).mean())
            if score > best["validation"]:
                right = model.predict(x["test"]) == truth["test"]
                best = {"side": side, "C": strength, "validation": score, "right": right}
    return best


def run(seed: int, out: str | None) -> dict[str, Any]:
    model, spent = taught(RECIPE, seed, out)
    data = prepare(model.recipe)
    rows = {p: data.table.take(data.part(p)).to_pydict() for p in PARTS}
    files, truth = {p: r["image"] for p, r in rows.items()}, {p: np.array(r["label"]) for p, r in rows.items()}
    answers = np.array([a["label"] for a in model.predict([{"image": f} for f in files["test"]])])
    rival = probe(files, truth, model.columns["image"].shape)
    mine, theirs = answers == truth["test"], rival.pop("right")
    return {
        "seed": seed, "rows": {p: len(f) for p, f in files.items()}, "accuracy": intervals.mean(mine).to_json(),
        "probe": intervals.mean(theirs).to_json() | rival, "difference": intervals.paired_difference(mine, theirs).to_json(),
        "validation": model.metrics[-1]["validation_accuracy"], "cpu_seconds_training": round(spent),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", help="folder with a model for each seed: FOLDER/0, FOLDER/1 ...")
    parser.add_argument("--json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    seeds("clip-art", asked.seeds, lambda seed: run(seed, asked.out and f"{asked.out}/{seed}"), asked.json)


if __name__ == "__main__":
    main()
