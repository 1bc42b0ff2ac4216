"""What default recipes reach on real data, beside simple baselines on the same rows.

    python -m benchmarks.quality [digits fashion reviews movies adult] [--seeds 5] [--json FILE]

| row | split | the model | beside |
|---|---|---|---|
| digits | 80/20, 5 seeds | default CNN | logistic regression on pixels |
| fashion | the official test rows | default CNN | logistic regression on pixels |
| reviews | 80/10/10, equal reviews once, those in both classes dropped | default for text | TF-IDF of character 1-3-grams, C by validation |
| movies | 80/10/10, equal sentences stay together | default for text | TF-IDF of words, C by validation |
| adult | 2/3-1/3, seeds 0-4 | default for tables | logistic regression, gradient boosting |
"""

from __future__ import annotations

import argparse
import os
import statistics

os.environ.setdefault("OMP_NUM_THREADS", "1")

import luban
from benchmarks.common import finish

ROWS = {
    "digits": {"data": "digits", "metric": "accuracy", "set": ["data.split.test=0.2", "data.split.validation=0.1"]},
    "fashion": {"data": "fashion-mnist", "metric": "accuracy", "set": ["data.split.column=split"], "seeds": 1},
    "reviews": {
        "data": "chinese-reviews",
        "metric": "accuracy",
        "set": ["data.clean.duplicates=drop", "data.clean.conflicting=drop"],
        "seeds": 3,
    },
    "movies": {"data": "movie-sentences", "metric": "accuracy", "inputs": ["sentence"], "set": []},
    "adult": {"data": "adult", "metric": "roc_auc", "set": ["data.split.test=0.3333", "data.split.validation=0.1"]},
}
TARGETS = {"digits": "label", "fashion": "label", "reviews": "label", "movies": "sentiment", "adult": "income"}


def row(name: str, seeds: int) -> dict:
    asked = ROWS[name]
    found: dict[str, list[float]] = {}
    spent = []
    for seed in range(min(seeds, asked.get("seeds", seeds))):
        model = luban.train(asked["data"], TARGETS[name], inputs=asked.get("inputs", ()), seed=seed, set=asked["set"])
        spent.append(next(h["cpu_seconds"] for h in model.history if h["stage"] == "train"))
        output = model.reports["evaluate"].numbers["outputs"][TARGETS[name]]
        for who, metrics in {"luban": output["metrics"], **output["baselines"]}.items():
            found.setdefault(who, []).append(metrics[asked["metric"]]["value"])
    values = {
        w: {"mean": round(statistics.mean(v), 4), "min": round(min(v), 4), "max": round(max(v), 4)}
        for w, v in found.items()
    }
    return {
        "row": name,
        "metric": asked["metric"],
        "seeds": len(spent),
        "train_cpu_seconds": round(statistics.median(spent), 1),
        "each": {w: [round(x, 4) for x in v] for w, v in found.items() if w != "majority"},
        **values,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json")
    asked = parser.parse_args()
    finish("quality", [row(name, asked.seeds) for name in asked.rows], asked.json)


if __name__ == "__main__":
    main()
