"""A language model that is shown k film sentences in its prompt, beside a model that was trained on all of them, on the same held-out rows.

    python -m benchmarks.language.shots --model FOLDER [--shots 0 4 16] [--rows 200] [--draws 2] [--json FILE]

`--model`: a saved language model, or a checkpoint (a folder, a name on the hub). The trained model is a bag of words.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

import luban
from benchmarks.common import finish
from luban.data.prepare import prepare

RECIPE: dict[str, Any] = {
    "luban": 1, "data": {"rows": "movie-sentences", "split": {"validation": 0.1, "test": 0.1}}, "inputs": {"sentence": {"text": {"tokens": "words"}}},
    "outputs": {"sentiment": "category"}, "model": {"sentence": {"bag": {"embedding": 64}}}, "stages": [{"train": {"epochs": 10}}],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 4, 16])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    trained = luban.train(RECIPE, evaluate=False)
    data, started = prepare(trained.recipe), time.process_time()
    report = trained.shots(
        data,
        model=a.model,
        shots=a.shots,
        rows=a.rows,
        draws=a.draws,
        template="Sentence: {sentence}\nSentiment: {sentiment}",
    )
    found = report.to_json()["numbers"] | {"cpu_seconds": time.process_time() - started}
    finish("language-shots", found, a.json)


if __name__ == "__main__":
    main()
