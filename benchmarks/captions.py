"""Captions of Tux Paint's pictures beside the captions of the nearest training pictures, on test rows.

    python -m benchmarks.captions FOLDER [--json FILE]

FOLDER: a model trained by `recipes/tux-paint.yaml` (`luban run recipes/tux-paint.yaml --out FOLDER`).

| side | what it is |
|---|---|
| model | what the network writes |
| pixels | the caption of the nearest training picture, by the pixels as the report has it (`nearest_row`) |
| features | the same by the last map of the published EfficientNet-Lite0, averaged over the picture (1,280 numbers) |
| commonest | the commonest caption of the training rows |

chrF of the whole test part with a bootstrap interval; likeness (cosine or distance) and side (160 or 224) by validation rows.
`beside`: the model's chrF of a row less the rival's, the mean over the rows and its paired interval.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.sparse import csr_matrix

import luban
from benchmarks.clip_art import PARTS, features
from benchmarks.common import finish, learned
from luban.data.prepare import prepare
from luban.evaluation import intervals
from luban.evaluation.text_baselines import nearest_row
from luban.evaluation.text_metrics import chrf, chrf_by_row

SIDES = (160, 224)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = luban.load(asked.folder)
    data = prepare(model.recipe)
    rows = {p: data.table.take(data.part(p)).to_pydict() for p in PARTS}
    files, truth = {p: r["image"] for p, r in rows.items()}, {p: r["caption"] for p, r in rows.items()}
    answers = {
        p: [a["caption"] for a in model.predict([{"image": f} for f in files[p]])] for p in ("validation", "test")
    }
    column = model.columns["image"]
    pixels = [column.features(files[p]) for p in PARTS]
    found: dict[str, Any] = {"pixels": nearest_row(pixels, truth["train"], truth["validation"]).answers}
    best = -1.0
    for side in SIDES:
        deep = {p: csr_matrix(features(files[p], side, column.shape)) for p in PARTS}
        by = [deep["train"], deep["validation"]]
        there = nearest_row([*by, by[1]], truth["train"], truth["validation"]).answers
        score = float(np.mean(chrf_by_row(truth["validation"], list(there))))
        if score > best:
            best = score
            found["features"] = nearest_row([*by, deep["test"]], truth["train"], truth["validation"]).answers
    found["commonest"] = [Counter(truth["train"]).most_common(1)[0][0]] * len(truth["test"])
    mine = np.asarray(chrf_by_row(truth["test"], answers["test"]))
    result: dict[str, Any] = {
        "rows": {p: len(f) for p, f in files.items()},
        "cpu_seconds_training": round(learned(model)["cpu_seconds"]),
        "model": {
            "chrf": chrf(truth["test"], answers["test"]).to_json(),
            "validation": chrf(truth["validation"], answers["validation"]).value,
        },
        "examples": [list(pair) for pair in zip(answers["test"][:12], truth["test"][:12])],
    }
    for name, said in found.items():
        theirs = np.asarray(chrf_by_row(truth["test"], list(said)))
        beside = intervals.paired_difference(mine, theirs).to_json()
        result[name] = {"chrf": chrf(truth["test"], list(said)).to_json(), "beside": beside}
    finish("captions", result, asked.json)


if __name__ == "__main__":
    main()
