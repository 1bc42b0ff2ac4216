"""A recipe of recipes/ trained and judged on its test rows, with the CPU seconds that each took.

    python -m benchmarks.language.recipe NAME [--seed 0] [--set KEY=VALUE ...] [--out FOLDER] [--json FILE]

Seconds are those of the process, preparation of the data included. Baselines are measured on the same rows in the same run. A FOLDER that holds a model
trained by this recipe is judged, and not trained again: its seconds are those of its history. What `--set` changes stands in the JSON.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.common import finish, taught
from luban.data.prepare import prepare
from luban.recipe import Recipe

RECIPES = Path(__file__).parent.parent.parent / "recipes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out")
    parser.add_argument("--json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    path = str(RECIPES / f"{a.name}.yaml")
    model, spent = taught(path, a.seed, a.out, a.set)
    trained = time.process_time()
    settings = next((dict(s.settings) for s in Recipe.load(path, tuple(a.set)).stages if s.type == "evaluate"), {})
    report = model.evaluate(prepare(model.recipe), **settings)
    if a.out:
        model.with_report(report).save(a.out)
    row = {
        "seed": a.seed,
        **({"changes": a.set} if a.set else {}),
        "cpu_seconds_training": spent,
        "cpu_seconds_judging": time.process_time() - trained,
        "parameters": model.parameters(),
        "outputs": report.numbers["outputs"],
        "rows": report.numbers["rows"],
    }
    finish(f"recipe-{Path(a.name).name}", row, a.json)


if __name__ == "__main__":
    main()
