"""How the accuracy of an image recipe falls under the common corruptions, as it stands and with images disturbed in training.

    python -m benchmarks.robustness [fashion-cnn] [--input image] [--randaugment 0.3] [--seed 0] [--json FILE]

Both are trained alike and judged on the same 1,000 test rows with the same draw of each corruption (nine kinds, five severities; Hendrycks and
Dietterich 2019); uncorrupted on all test rows, too, beside the linear model of the report.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

import luban
from benchmarks.common import finish
from benchmarks.language.recipe import RECIPES
from luban.data.prepare import prepare
from luban.recipe import Recipe


def judged(recipe: Recipe) -> dict[str, Any]:
    """Trained, and judged with corruptions."""
    started = time.process_time()
    model = luban.train(recipe, evaluate=False)
    trained = time.process_time()
    report = model.evaluate(prepare(model.recipe), corruptions=True)
    spent = {"cpu_seconds_training": trained - started, "cpu_seconds_judging": time.process_time() - trained}
    return spent | {k: report.numbers[k] for k in ("outputs", "robustness")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="fashion-cnn")
    parser.add_argument("--input", default="image")
    parser.add_argument("--randaugment", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    sides = {"as it stands": (), "randaugment": (f"inputs.{a.input}.image.randaugment={a.randaugment}",)}
    path = str(RECIPES / f"{a.name}.yaml")
    rows = {k: judged(Recipe.load(path, (*more, f"seed={a.seed}"))) for k, more in sides.items()}
    finish("robustness", {"recipe": a.name, "sides": rows}, a.json)


if __name__ == "__main__":
    main()
