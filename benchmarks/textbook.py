"""The textbook's recipes as they stand, each beside the baselines on the same rows.

    python -m benchmarks.textbook [cnn-28 mlp-2x64 ...] [--steps N] [--json FILE]

The LSTMs with attention are also compared with the one without, row by row of the same test rows. `--steps` cuts training
short: to see that a recipe runs, not for a figure.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.common import finish
from luban import comparing, pipeline

RECIPES = Path(__file__).parent.parent / "recipes" / "textbook"
METRIC = {"category": "accuracy", "number": "r2"}
PLAIN, BESIDE = "lstm-2x256", ("lstm-attention", "lstm-self-attention")


def row(name: str, steps: int, work: Path) -> dict:
    model = pipeline.run(RECIPES / f"{name}.yaml", work / name, set=[f"train.steps={steps}"] if steps else [])
    found = {"recipe": name, "parameters": model.parameters()}
    for output, numbers in model.reports["evaluate"].numbers["outputs"].items():
        metric = METRIC[numbers["kind"]]
        found |= {"output": output, "metric": metric, "luban": numbers["metrics"][metric]}
        found |= {who: m[metric]["value"] for who, m in numbers["baselines"].items()}
    trained = next(h for h in model.history if h["stage"] == "train")
    return found | {"train_cpu_seconds": trained["cpu_seconds"], "precision": trained["settings"]["precision"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=sorted(p.stem for p in RECIPES.glob("*.yaml")))
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--json")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        rows = [row(name, asked.steps, Path(work)) for name in asked.recipes]
        beside = [Path(work) / name for name in BESIDE if name in asked.recipes]
        if PLAIN in asked.recipes and beside:
            rows += comparing.compare([Path(work) / PLAIN, *beside]).numbers["paired"]
    finish("textbook", rows, asked.json)


if __name__ == "__main__":
    main()
