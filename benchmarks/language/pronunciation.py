"""Pronunciation of English words (CMUdict, stress removed), split by word: what a sequence-to-sequence network must beat.

    python -m benchmarks.language.pronunciation [--json FILE]

`joint_ngram` is the joint n-gram model of `benchmarks.language.joint_ngram`; the order of its n-grams is chosen on 3,000 validation words.
`word_error_rate` is the share of words whose answer is none of the listed variants, `phoneme_error_rate` counts phonemes against the nearest variant.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from benchmarks.common import finish
from benchmarks.language.joint_ngram import JointNgram
from benchmarks.language.splits import split
from luban.evaluation.intervals import mean
from luban.evaluation.text_metrics import word_error_rate


def scored(rows: list[dict[str, Any]], answers: list[str]) -> dict[str, Any]:
    """Every number of one side. Any system's answers to the test words can be scored with this."""
    variants = [row["variants"].split("; ") for row in rows]
    wrong = [float(answer not in right) for answer, right in zip(answers, variants)]
    return {
        "word_error_rate": mean(wrong).to_json(),
        "phoneme_error_rate": word_error_rate(variants, answers).to_json(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json")
    a = parser.parse_args()
    parts = split("cmudict")
    started = time.process_time()
    model = JointNgram([(r["word"], v.split()) for r in parts["train"] for v in r["variants"].split("; ")])
    some = parts["validation"][:: max(len(parts["validation"]) // 3000, 1)]
    tried = {}
    for order in range(3, model.order + 1):
        answers = model.read([r["word"] for r in some], order=order)
        tried[order] = scored(some, answers)["word_error_rate"]["value"]
    order = min(tried, key=tried.get)
    answers = model.read([r["word"] for r in parts["test"]], order=order)
    found = scored(parts["test"], answers) | {"order": order, "validation_by_order": tried}
    rows = {
        "joint_ngram": found | {"graphones": len(model.graphones) - 2, "cpu_seconds": time.process_time() - started}
    }
    finish("language-pronunciation", {**rows, "rows": {p: len(r) for p, r in parts.items()}}, a.json)


if __name__ == "__main__":
    main()
