"""Translation of LibreOffice's help from English, split by page: what a network must beat.

    python -m benchmarks.language.translation [libreoffice-help-en-zh libreoffice-help-en-de] [--json FILE]

| side | what it is |
|---|---|
| copy | the English text as it is |
| translation_memory | the translation of the most similar training text; how similarity is measured is chosen on validation rows (`settings`) |

chrF and BLEU with bootstrap intervals over the rows; `sacrebleu` holds that package's own numbers and signatures for the same answers.
"""

from __future__ import annotations

import argparse
from typing import Any

import sacrebleu

from benchmarks.common import finish
from benchmarks.language.splits import pairs
from luban.evaluation.baselines import Baseline
from luban.evaluation.text_baselines import copy, translation_memory
from luban.evaluation.text_metrics import TOKENIZERS, bleu, chrf

SETS = ("libreoffice-help-en-zh", "libreoffice-help-en-de")


def scored(truth: list[str], answers: list[str], language: str) -> dict[str, Any]:
    """Every number of one side. Any system's answers to the test rows can be scored with this."""
    theirs = (sacrebleu.CHRF(), sacrebleu.BLEU(tokenize=TOKENIZERS.get(language, "13a")))
    scores = [metric.corpus_score(answers, [truth]) for metric in theirs]
    return {
        "chrf": chrf(truth, answers).to_json(),
        "bleu": bleu(truth, answers, language=language).to_json(),
        "sacrebleu": {str(m.get_signature()): s.score for m, s in zip(theirs, scores)},
    }


def row(baseline: Baseline, truth: list[str], language: str) -> dict[str, Any]:
    more = {"settings": baseline.settings, "seconds": baseline.seconds}
    return {**scored(truth, list(baseline.answers), language), **more}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="*", default=SETS)
    parser.add_argument("--json")
    a = parser.parse_args()
    rows = {}
    for name in a.sets:
        parts, language = pairs(name), name[-2:]
        inputs, truth = parts["test"]
        memory = translation_memory(parts["train"], parts["validation"], inputs)
        rows[name] = {b.name: row(b, truth, language) for b in (copy(inputs), memory)}
        rows[name]["rows"] = {part: len(found[0]) for part, found in parts.items()}
    finish("language-translation", rows, a.json)


if __name__ == "__main__":
    main()
