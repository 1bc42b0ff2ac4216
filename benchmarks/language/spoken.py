"""A trained model of `recipes/cmudict.yaml` scored as the baseline is: any listed variant is right.

python -m benchmarks.language.recipe cmudict --out MODEL
python -m benchmarks.language.spoken MODEL [--json FILE]
"""

from __future__ import annotations

import argparse
import time

import torch

import luban
from benchmarks.common import finish
from benchmarks.language.pronunciation import scored
from benchmarks.language.splits import split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    model, rows = luban.load(a.model), split("cmudict")["test"]
    started = time.process_time()
    answers = [r["phonemes"] for r in model.predict([{"word": r["word"]} for r in rows])]
    found = scored(rows, answers) | {"cpu_seconds": time.process_time() - started}
    finish("language-spoken", {"luban": found, "rows": len(rows)}, a.json)


if __name__ == "__main__":
    main()
