"""Summaries: Debian's long descriptions to short ones, Chinese help pages to their titles. What a network must beat.

    python -m benchmarks.language.summaries [debian-descriptions libreoffice-titles-zh] [--json FILE]

| side | what it is |
|---|---|
| first_sentence | the first sentence, whole |
| first_sentence_cut | the same, cut after as many words as is best on validation rows |
| translation_memory | the summary of the most similar training text |
| copy | the whole text |

ROUGE-L (F) with bootstrap intervals over the rows.
"""

from __future__ import annotations

import argparse

from benchmarks.common import finish
from benchmarks.language.splits import pairs
from luban.evaluation.baselines import Baseline
from luban.evaluation.text_baselines import copy, first_sentence, lead, translation_memory
from luban.evaluation.text_metrics import rouge_l, rouge_l_by_row

SETS = ("debian-descriptions", "libreoffice-titles-zh")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="*", default=SETS)
    parser.add_argument("--json")
    a = parser.parse_args()
    rows = {}
    for name in a.sets:
        parts = pairs(name)
        inputs, truth = parts["test"]
        whole = Baseline("first_sentence", [lead(text) for text in inputs])
        cut = first_sentence(parts["validation"], inputs, score=rouge_l_by_row)
        memory = translation_memory(parts["train"], parts["validation"], inputs, score=rouge_l_by_row)
        sides = {"copy": copy(inputs), "first_sentence": whole, "first_sentence_cut": cut, "translation_memory": memory}
        rows[name] = {
            side: {"rouge_l": rouge_l(truth, list(b.answers)).to_json(), "settings": b.settings, "seconds": b.seconds}
            for side, b in sides.items()
        }
        rows[name]["rows"] = {part: len(found[0]) for part, found in parts.items()}
    finish("language-summaries", rows, a.json)


if __name__ == "__main__":
    main()
