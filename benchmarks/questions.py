"""Questions about composited scenes: a picture and a question -> an answer, beside what a question or a picture alone would answer.

    python -m benchmarks.questions FOLDER [--seed 0] [--test] [--json FILE]

Three questions for each scene of the sample set `clip-art-scenes` (its own split: no drawing and no photograph of a test scene was trained on), made from its
boxes; FOLDER gets them as a table, with the recipe and the model. A model that lies there is judged, and not trained again. Without `--test` only
validation rows are judged.

| side | what it is |
|---|---|
| model | EfficientNet-Lite0 (published weights, frozen) and a transformer over the question, side by side (`fusion: concat`) |
| question | the commonest answer to each question |
| picture | logistic regression on the averaged last map of that EfficientNet, without the question |
| probes | one such regression for each question: what frozen features know |

Strengths by validation rows. Intervals are over scenes, as questions about one scene go together.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.clip_art import PARTS, features
from benchmarks.common import finish, learned, taught
from luban.data import samples
from luban.data.prepare import prepare
from luban.evaluation import intervals

KINDS = ("card", "flag", "fruit", "mammal", "sign")
EACH = 3  # questions about a scene
SIDE = 128  # pixels of the picture, of all that look at it
SIDES = {"leftmost": (0, -1), "rightmost": (0, 1), "highest": (1, -1), "lowest": (1, 1)}
STRENGTHS = (1e-3, 0.01, 0.1)
RECIPE = """luban: 1
data: {rows: questions.csv, split: {column: split}}
inputs:
  image: {image: {side: 128, shape: pad, flip: false}}
  question: text
outputs: {answer: category}
model:
  image: {efficientnet: {weights: efficientnet-lite0}}
  question: {transformer: {width: 64, layers: 1}}
fusion: {concat: {width: 256}}
stages:
  - train: {compile: "off", epochs: 2, batch: 32, optimizer: muon, rate: 0.01, freeze: [image]}
"""


def asked(objects: list[dict[str, Any]], rng: np.random.Generator) -> tuple[str, str, str]:
    """(kind of question, question, answer) about the boxes of a scene; drawn again where it would have two answers."""
    labels = [o["label"] for o in objects]
    middles = np.array([[x + w / 2, y + h / 2] for x, y, w, h in (o["box"] for o in objects)])
    there, absent = sorted({*labels}), [k for k in KINDS if k not in labels]
    alone = [k for k in there if labels.count(k) == 1]
    while True:
        what = str(rng.choice(["is there", "how many", "which", "left or right"]))
        if what == "is there":
            yes = not absent or rng.random() < 0.5
            kind = str(rng.choice(there if yes else absent))
            return what, f"is there a {kind}", "yes" if yes else "no"
        if what == "how many":
            kind = str(rng.choice(there))
            return what, f"how many things are a {kind}", str(labels.count(kind))
        if what == "which":
            name = str(rng.choice(list(SIDES)))
            axis, way = SIDES[name]
            along = np.sort(middles[:, axis] * way)[::-1]
            if len(along) > 1 and along[0] - along[1] >= 8:
                return what, f"what is the {name} thing", labels[int((middles[:, axis] * way).argmax())]
        if what == "left or right" and len(alone) > 1:
            a, b = (str(k) for k in rng.choice(alone, 2, replace=False))
            apart = middles[labels.index(a), 0] - middles[labels.index(b), 0]
            if abs(apart) >= 8:
                return what, f"is the {a} left or right of the {b}", "left" if apart < 0 else "right"


def written(folder: Path) -> Path:
    """The recipe, beside its table of questions. A function of the sample set alone."""
    scenes = samples.fetch("clip-art-scenes")
    lines = [json.loads(line) for line in scenes.read_text(encoding="utf-8").splitlines()]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "questions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "question", "answer", "what", "split"])
        for i, line in enumerate(lines):
            rng = np.random.default_rng([0, i])
            said: dict[str, tuple[str, str]] = {}
            for _ in range(10 * EACH):  # of a scene with one thing there are few to ask
                what, question, answer = asked(line["objects"], rng)
                if len(said) < EACH:
                    said[question] = (answer, what)
            for question, (answer, what) in said.items():
                table.writerow([scenes.parent / line["image"], question, answer, what, line["split"]])
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder / "recipe.yaml"


def commonest(rows: dict[str, Any], part: str) -> np.ndarray:
    """The answer that was commonest in training to each question."""
    said: dict[str, Counter[str]] = {}
    for question, answer in zip(rows["train"]["question"], rows["train"]["answer"]):
        said.setdefault(question, Counter())[answer] += 1
    return np.array([said[q].most_common(1)[0][0] for q in rows[part]["question"]])


def probes(x: dict[str, np.ndarray], rows: dict[str, Any], part: str, each: bool) -> np.ndarray:
    """Answers of logistic regression on the pictures' features, for all questions together or one for `each`; its strength by validation rows."""
    from sklearn.linear_model import LogisticRegression

    question = {p: np.array(r["question"]) if each else np.zeros(len(r["question"])) for p, r in rows.items()}
    truth = {p: np.array(r["answer"]) for p, r in rows.items()}
    best, answers = -1.0, np.array([])
    for strength in STRENGTHS:
        said = {p: truth[p].astype(object) for p in ("validation", part)}
        for q in np.unique(question["train"]):
            mine = question["train"] == q
            model = LogisticRegression(C=strength, max_iter=300).fit(x["train"][mine], truth["train"][mine])
            for p in said:
                here = question[p] == q
                said[p][here] = model.predict(x[p][here]) if here.any() else said[p][here]
        score = float((said["validation"] == truth["validation"]).mean())
        if score > best:
            best, answers = score, said[part]
    return answers


def by_scene(right: np.ndarray, files: list[str]) -> np.ndarray:
    """The share that is right in each scene."""
    scene = np.unique(files, return_inverse=True)[1]
    return np.bincount(scene, right) / np.bincount(scene)


def judged(model: Any, rows: dict[str, Any], part: str) -> dict[str, Any]:
    """Each side's accuracy, over all questions and by their kind, and how much better the model is."""
    files, truth, what = rows[part]["image"], np.array(rows[part]["answer"]), np.array(rows[part]["what"])
    x = {p: features(r["image"], SIDE, "pad") for p, r in unique(rows).items()}
    mean, deviation = x["train"].mean(0), x["train"].std(0) + 1e-6
    at = {p: np.unique(r["image"], return_inverse=True)[1] for p, r in rows.items()}
    x = {p: ((v - mean) / deviation)[at[p]] for p, v in x.items()}
    asked = [{"image": f, "question": q} for f, q in zip(files, rows[part]["question"])]
    sides = {
        "model": np.array([a["answer"] for a in model.predict(asked)]), "question": commonest(rows, part),
        "picture": probes(x, rows, part, each=False), "probes": probes(x, rows, part, each=True),
    }  # fmt: skip
    right = {n: said == truth for n, said in sides.items()}
    result: dict[str, Any] = {}
    for name, r in right.items():
        result[name] = {"accuracy": intervals.mean(by_scene(r, files)).to_json()}
        result[name] |= {k: round(float(r[what == k].mean()), 4) for k in np.unique(what)}
        if name != "model":
            beside = intervals.paired_difference(by_scene(right["model"], files), by_scene(r, files))
            result[name]["model_less_this"] = beside.to_json()
    return result


def unique(rows: dict[str, Any]) -> dict[str, Any]:
    """Each picture once, in the order of their names."""
    return {p: {"image": sorted({*r["image"]})} for p, r in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = taught(str(written(a.folder)), a.seed, a.folder / "model")
    data = prepare(model.recipe)
    rows = {p: data.table.take(data.part(p)).to_pydict() for p in PARTS}
    part = "test" if a.test else "validation"
    result = {
        "part": part, "seed": a.seed, "rows": {p: len(r["answer"]) for p, r in rows.items()},
        "questions": len({*rows["train"]["question"]}), "answers": len({*rows["train"]["answer"]}),
        "parameters": model.parameters(), "cpu_seconds_training": round(learned(model)["cpu_seconds"]),
        "sides": judged(model, rows, part),
    }  # fmt: skip
    finish("questions", result, a.json)


if __name__ == "__main__":
    main()
