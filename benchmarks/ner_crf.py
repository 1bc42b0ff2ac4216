"""What a network has to beat on the sample set peoples-daily: a linear-chain CRF (CRFsuite, L-BFGS) over hand-made features of characters.

    python -m benchmarks.ner_crf --tune            every setting of GRID, judged on the validation days
    python -m benchmarks.ner_crf [--json FILE]     the chosen setting, judged once on the test days

Both sides see the same days: 1 to 22 train, 23 and 24 choose, 25 to 30 test (`SPLIT`). Features, as in the CRF taggers of the SIGHAN
bakeoffs: characters and their runs in a window around the position, classes of characters (digit, Latin, punctuation, first
character of a person's name in the training days), whether a run of characters around the position is a name of the training days.
Needs `python-crfsuite` and `seqeval` (extra `oracles`).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pycrfsuite
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score

from benchmarks.common import finish
from luban.data.samples import load
from luban.data.splits import split

SPLIT = {"time": "day", "validation": 0.093, "test": 0.132}
SAME = {"max_iterations": 100, "feature.possible_transitions": True}
GRID = [  # one step after the other: the features at a usual strength, then the strength of the best
    {"features": "runs", "c1": 0.0, "c2": 0.1},
    {"features": "trigrams", "c1": 0.0, "c2": 0.1},
    {"features": "names", "c1": 0.0, "c2": 0.1},
    {"features": "trigrams", "c1": 0.0, "c2": 1.0},
    {"features": "trigrams", "c1": 0.1, "c2": 0.1},
]
CHOSEN = {"features": "trigrams", "c1": 0.1, "c2": 0.1}  # the best of GRID on the validation days
LONGEST = 8  # characters of a name that is looked for

Sentence = tuple[str, list[str]]


class Features:
    """`runs`: characters at -2..2, pairs within; `trigrams`: threes, too; `names`: also names of the training days."""

    def __init__(self, kind: str, training: Sequence[Sentence]):
        self.kind = kind
        self.names: dict[str, str] = {}
        counts: dict[tuple[str, str], int] = {}
        for text, tags in training:
            for start, stop, label in entities(tags):
                key = (text[start:stop], label)
                counts[key] = counts.get(key, 0) + 1
        for (name, label), _ in sorted(counts.items(), key=lambda item: item[1]):
            self.names[name] = label
        self.first = {name[0] for name, label in self.names.items() if label == "PER"}

    def __call__(self, text: str) -> list[list[str]]:
        plain = unicodedata.normalize("NFKC", text) if len(unicodedata.normalize("NFKC", text)) == len(text) else text
        c = ["<", "<", *plain, ">", ">"]
        kinds = [_kind(x) for x in c]
        known = self._known(text) if self.kind == "names" else None
        result = []
        for i in range(2, len(c) - 2):
            f = ["b"]
            f += [f"{d}:{c[i + d]}" for d in (-2, -1, 0, 1, 2)]
            f += [f"{d}+:{c[i + d]}{c[i + d + 1]}" for d in (-2, -1, 0, 1)]
            f += [f"s:{c[i - 1]}{c[i + 1]}"]
            f += [f"k:{''.join(kinds[i - 1 : i + 2])}", f"K:{''.join(kinds[i - 2 : i + 3])}"]
            if self.kind != "runs":
                f += [f"{d}++:{c[i + d]}{c[i + d + 1]}{c[i + d + 2]}" for d in (-2, -1, 0)]
            if known is not None:
                f += [f"f{d}" for d in (-1, 0, 1) if c[i + d] in self.first]
                f += [f"n{d}:{known[i - 2 + d]}" for d in (-1, 0, 1) if 0 <= i - 2 + d < len(known)]
            result.append(f)
        return result

    def _known(self, text: str) -> list[str]:
        """Of each character its place in the longest name of the training days that covers it, from left to right."""
        places, at = ["-"] * len(text), 0
        while at < len(text):
            size = next((n for n in range(min(LONGEST, len(text) - at), 1, -1) if text[at : at + n] in self.names), 1)
            if size > 1:
                label = self.names[text[at : at + size]]
                places[at : at + size] = [f"B{label}", *[f"I{label}"] * (size - 1)]
            at += size
        return places


def _kind(character: str) -> str:
    if character.isdigit():
        return "d"
    if character.isascii() and character.isalpha():
        return "a"
    if character in "<>":
        return "e"
    return "c" if character.isalnum() else "p"


def entities(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    start, label = 0, ""
    for i, tag in enumerate([*tags, "O"]):
        if label and tag != f"I-{label}":
            yield start, i, label
            label = ""
        if tag != "O" and not label:
            start, label = i, tag[2:]


def parts() -> dict[str, list[Sentence]]:
    rows = load("peoples-daily")
    found = split(rows, ("sentence", "ner"), **SPLIT)
    texts, tags = (rows.table[n].to_pylist() for n in ("sentence", "ner"))
    return {name: [(texts[i], tags[i].split()) for i in index] for name, index in found.parts().items()}


def fitted(settings: dict, training: Sequence[Sentence], path: str) -> tuple[Features, pycrfsuite.Tagger]:
    features = Features(settings["features"], training)
    trainer = pycrfsuite.Trainer(verbose=False)
    for text, tags in training:
        trainer.append(features(text), tags)
    trainer.set_params({**SAME, "c1": settings["c1"], "c2": settings["c2"]})
    trainer.train(path)
    tagger = pycrfsuite.Tagger()
    tagger.open(path)
    return features, tagger


def judged(truth: list[list[str]], answers: list[list[str]]) -> dict[str, float]:
    scores = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    return {name: round(float(score(truth, answers)), 4) for name, score in scores.items()}


def interval(truth: list[list[str]], answers: list[list[str]], draws: int = 500) -> list[float]:
    """The middle 95 % of entity F1 over sentences drawn with replacement."""
    counts = []
    for t, a in zip(truth, answers):
        mine, theirs = set(entities(t)), set(entities(a))
        counts.append((len(mine & theirs), len(mine) + len(theirs)))
    counts = np.array(counts)
    rng = np.random.default_rng(0)
    drawn = [counts[rng.integers(0, len(counts), len(counts))].sum(0) for _ in range(draws)]
    return [round(float(v), 4) for v in np.quantile([2 * hit / total for hit, total in drawn], [0.025, 0.975])]


def run(settings: dict, training: Sequence[Sentence], judging: Sequence[Sentence]) -> dict:
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        features, tagger = fitted(settings, training, str(Path(folder, "crf")))
        spent = time.process_time() - began
        answers = [tagger.tag(features(text)) for text, _ in judging]
    truth = [tags for _, tags in judging]
    found = {**settings, **judged(truth, answers), "interval": interval(truth, answers), "sentences": len(truth)}
    found["types"] = {
        k: round(float(v["f1-score"]), 4)
        for k, v in classification_report(truth, answers, output_dict=True).items()
        if "avg" not in k
    }
    return found | {"train_cpu_seconds": round(spent, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--json")
    asked = parser.parse_args()
    found = parts()
    if asked.tune:
        rows = []
        for settings in GRID:
            rows.append(run(settings, found["train"], found["validation"]))
            print(rows[-1], flush=True)
        finish("ner_crf_tune", rows, asked.json)
    else:
        finish("ner_crf", [run(CHOSEN, found["train"], found["test"])], asked.json)


if __name__ == "__main__":
    main()
