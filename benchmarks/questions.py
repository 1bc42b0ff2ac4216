"""Questions about composited scenes: a picture and a question -> an answer, beside what a question alone and frozen features know.

    python -m benchmarks.questions FOLDER [--detector FOLDER] [--seed 0] [--test] [--json FILE]

Questions about each scene of the sample set `clip-art-scenes` (its own split: no drawing and no photograph of a test scene was trained on), made
from its boxes: up to twelve of a training scene, three of any other. FOLDER gets them as a table, with the recipe, the features and the model. A model
that lies there is judged, and not trained again; a detector is trained by `recipes/scenes-fcos.yaml` where none is named. Without `--test`
only validation rows are judged.

| side | what it is |
|---|---|
| model | the encoder of that detector, frozen, whose places the question modulates (`fusion: film`) |
| question | the commonest answer to each question |
| probes | for each question a logistic regression on the averaged last map of EfficientNet-Lite0 with its published weights |
| detector probes | the same on the averaged last map that the model reads |
| boxes | a program by hand over the detector's boxes: what they would answer if the question were understood |

Strengths, and from which probability on a box counts, by validation rows. Intervals are over scenes, as questions about one scene go together.
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

from benchmarks.clip_art import PARTS, averaged, features
from benchmarks.common import finish, learned, taught
from luban.data import samples
from luban.data.prepare import prepare
from luban.evaluation import intervals

DETECTOR = str(Path(__file__).parent.parent / "recipes" / "scenes-fcos.yaml")
KINDS = ("card", "flag", "fruit", "mammal", "sign")
EACH = {"train": 12, "validation": 3, "test": 3}  # questions about a scene
DRAWN = 10  # times as many, of which they are the first different ones: of a scene with one thing there are few to ask
SIDE = 128  # pixels of the picture, of the first probes
SIDES = {"leftmost": (0, -1), "rightmost": (0, 1), "highest": (1, -1), "lowest": (1, 1)}
STRENGTHS = (1e-3, 0.01, 0.1)
SURE = (0.2, 0.3, 0.4, 0.5, 0.6)  # probabilities of a box
RECIPE = """luban: 1
data: {{rows: questions.csv, split: {{column: split}}, clean: {{duplicates: keep, conflicting: keep}}}}
inputs:
  image: {{image: {{side: 192, shape: pad, flip: false}}}}
  question: text
outputs: {{answer: category}}
model:
  image: {{efficientnet: {{weights: efficientnet-lite0}}}}
  question: {{gru: {{hidden: 64, embedding: 64}}}}
fusion: {{film: {{width: 64, dropout: 0.2}}}}
stages:
  - start: {{source: "{detector}"}}
  - train: {{compile: "off", epochs: 6, batch: 64, rate: 0.004, freeze: [image], augment: false, precision: bf16, keep: last}}
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


def written(folder: Path, detector: Path) -> Path:
    """The recipe, beside its table of questions. The table is a function of the sample set alone."""
    scenes = samples.fetch("clip-art-scenes")
    lines = [json.loads(line) for line in scenes.read_text(encoding="utf-8").splitlines()]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "questions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "question", "answer", "what", "split"])
        for i, line in enumerate(lines):
            rng = np.random.default_rng([0, i])
            said: dict[str, tuple[str, str]] = {}
            for _ in range(DRAWN * EACH[line["split"]]):
                what, question, answer = asked(line["objects"], rng)
                if len(said) < EACH[line["split"]]:
                    said[question] = (answer, what)
            for question, (answer, what) in said.items():
                table.writerow([scenes.parent / line["image"], question, answer, what, line["split"]])
    (folder / "recipe.yaml").write_text(RECIPE.format(detector=detector.resolve()), encoding="utf-8")
    return folder / "recipe.yaml"


def commonest(rows: dict[str, Any], part: str) -> np.ndarray:
    """The answer that was commonest in training to each question."""
    said: dict[str, Counter[str]] = {}
    for question, answer in zip(rows["train"]["question"], rows["train"]["answer"]):
        said.setdefault(question, Counter())[answer] += 1
    return np.array([said[q].most_common(1)[0][0] for q in rows[part]["question"]])


def probes(x: dict[str, np.ndarray], rows: dict[str, Any], part: str) -> np.ndarray:
    """Answers of a logistic regression for each question on the pictures' features; one strength for all, by validation rows."""
    from sklearn.linear_model import LogisticRegression

    question = {p: np.array(r["question"]) for p, r in rows.items()}
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


def maps(detector: Any, files: list[str]) -> np.ndarray:
    """(N, 1280): the last map of the detector's encoder, averaged."""
    return averaged(detector.columns["image"], detector.network.encoder_of("image"), files)


def known(path: Path, rows: dict[str, Any], make: Any) -> dict[str, np.ndarray]:
    """Features of the picture of each row, standardised by training scenes; kept at `path`, for they take minutes."""
    files = sorted({f for r in rows.values() for f in r["image"]})
    if not path.exists():
        np.save(path, make(files))
    at = {f: i for i, f in enumerate(files)}
    x, scenes = np.load(path), [at[f] for f in sorted({*rows["train"]["image"]})]
    x = (x - x[scenes].mean(0)) / (x[scenes].std(0) + 1e-6)
    return {p: x[[at[f] for f in r["image"]]] for p, r in rows.items()}


def reckoned(question: str, objects: list[dict[str, Any]]) -> str:
    """What a program by hand makes of boxes, the surest first; "" where the boxes lack what is asked about."""
    words, labels = question.split(), [o["label"] for o in objects]
    middle = lambda o, axis: o["box"][axis] + o["box"][axis + 2] / 2  # noqa: E731
    if words[:2] == ["is", "there"]:
        return "yes" if words[3] in labels else "no"
    if words[0] == "how":
        return str(labels.count(words[-1]))
    if words[0] == "what":
        axis, way = SIDES[words[3]]
        return max(objects, key=lambda o: middle(o, axis) * way)["label"] if objects else ""
    a, b = (next((o for o in objects if o["label"] == k), None) for k in (words[2], words[-1]))
    return "" if a is None or b is None else "left" if middle(a, 0) < middle(b, 0) else "right"


def boxes(detector: Any, rows: dict[str, Any], part: str) -> np.ndarray:
    """The program's answers; which boxes count by validation rows."""
    seen = {}
    for p in {"validation", part}:
        files = sorted({*rows[p]["image"]})
        seen |= dict(zip(files, (a["objects"] for a in detector.predict([{"image": f} for f in files]))))
    said = lambda p, sure: np.array([reckoned(q, [o for o in seen[f] if o["score"] >= sure]) for f, q in zip(rows[p]["image"], rows[p]["question"])])  # noqa: E731  # fmt: skip
    truth = np.array(rows["validation"]["answer"])
    return said(part, max(SURE, key=lambda sure: float((said("validation", sure) == truth).mean())))


def by_scene(right: np.ndarray, files: list[str]) -> np.ndarray:
    """The share that is right in each scene."""
    scene = np.unique(files, return_inverse=True)[1]
    return np.bincount(scene, right) / np.bincount(scene)


def judged(model: Any, detector: Any, rows: dict[str, Any], part: str, folder: Path) -> dict[str, Any]:
    """Each side's accuracy, over all questions and by their kind, and how much better the model is."""
    files, truth, what = rows[part]["image"], np.array(rows[part]["answer"]), np.array(rows[part]["what"])
    published = known(folder / "published.npy", rows, lambda found: features(found, SIDE, "pad"))
    own = known(folder / "detector.npy", rows, lambda found: maps(detector, found))
    asked = [{"image": f, "question": q} for f, q in zip(files, rows[part]["question"])]
    sides = {
        "model": np.array([a["answer"] for a in model.predict(asked)]), "question": commonest(rows, part),
        "probes": probes(published, rows, part), "detector probes": probes(own, rows, part), "boxes": boxes(detector, rows, part),
    }  # fmt: skip
    right = {n: said == truth for n, said in sides.items()}
    result: dict[str, Any] = {}
    for name, r in right.items():
        result[name] = {"accuracy": intervals.mean(by_scene(r, files)).to_json()}
        result[name] |= {str(k): round(float(r[what == k].mean()), 4) for k in np.unique(what)}
        if name != "model":
            beside = intervals.paired_difference(by_scene(right["model"], files), by_scene(r, files))
            result[name]["model_less_this"] = beside.to_json()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--detector", type=Path, help="a model of recipes/scenes-fcos.yaml; FOLDER/detector unless told"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    place = a.detector or a.folder / "detector"
    detector, _ = taught(DETECTOR, 0, place)
    model, _ = taught(str(written(a.folder, place)), a.seed, a.folder / "model")
    data = prepare(model.recipe)
    rows = {p: data.table.take(data.part(p)).to_pydict() for p in PARTS}
    part = "test" if a.test else "validation"
    result = {
        "part": part, "seed": a.seed, "rows": {p: len(r["answer"]) for p, r in rows.items()},
        "questions": len({*rows["train"]["question"]}), "answers": len({*rows["train"]["answer"]}),
        "parameters": model.parameters(), "cpu_seconds_training": round(learned(model)["cpu_seconds"]),
        "sides": judged(model, detector, rows, part, a.folder),
    }  # fmt: skip
    finish("questions", result, a.json)


if __name__ == "__main__":
    main()
