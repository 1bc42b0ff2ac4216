"""A pretrained encoder beside linear models that are tuned on the same validation rows.

    python -m benchmarks.pretrained [--seeds 3] [--model FOLDER] [--json FILE]

recipes/minilm-movie.yaml, one split a seed, or a run of it that is there. Beside it logistic regression on TF-IDF: words, words and pairs of words, runs of
2-5 characters, or both together, each with eight strengths; validation accuracy chooses, the test rows are the same.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import luban
from benchmarks.common import learned, seeds
from luban.data.prepare import prepare
from luban.evaluation import intervals

RECIPES = Path(__file__).parent.parent / "recipes"
STRENGTHS = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def tuned(texts: dict[str, list[str]], truth: dict[str, np.ndarray]) -> dict:
    """The best of the linear models by validation accuracy, and which of the test rows it gets right."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_union

    def words(most: int) -> TfidfVectorizer:
        return TfidfVectorizer(sublinear_tf=True, ngram_range=(1, most), token_pattern=r"(?u)\w+(?:['’]\w+)*|[^\w\s]")

    runs = lambda: TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5), min_df=2)  # noqa: E731
    best = {"validation": 0.0}
    for name, make in {
        "words": words(1), "words 1-2": words(2), "characters 2-5": runs(), "words 1-2 and characters 2-5": make_union(words(2), runs()),
    }.items():  # fmt: skip
        x = {"train": make.fit_transform(texts["train"])} | {
            p: make.transform(texts[p]) for p in ("validation", "test")
        }
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=2000, solver="liblinear").fit(x["train"], truth["train"])
            score = float((model.predict(x["validation"]) == truth["validation"]).mean())
            if score > best["validation"]:
                right = model.predict(x["test"]) == truth["test"]
                best = {"features": name, "C": strength, "validation": score, "right": right}
    return best


def movie(seed: int, folder: str | None) -> dict:
    """`folder`: a run of the recipe that is judged instead of a new one."""
    recipe = str(RECIPES / "minilm-movie.yaml")
    model = luban.load(folder) if folder else luban.train(recipe, set=[f"seed={seed}"], evaluate=False)
    data = prepare(model.recipe)
    parts = {p: data.table.take(data.part(p)).to_pydict() for p in ("train", "validation", "test")}
    texts = {p: rows["sentence"] for p, rows in parts.items()}
    truth = {p: np.array(rows["sentiment"]) for p, rows in parts.items()}
    answers = np.array([a["sentiment"] for a in model.predict([{"sentence": t} for t in texts["test"]])])
    mine, rival = answers == truth["test"], tuned(texts, truth)
    theirs = rival.pop("right")
    spent = learned(model)
    return {
        "seed": model.recipe.seed,
        "rows": {p: len(t) for p, t in texts.items()},
        "accuracy": intervals.mean(mine).to_json(),
        "tfidf": intervals.mean(theirs).to_json() | rival,
        "difference": intervals.paired_difference(mine, theirs).to_json(),
        "train_cpu_seconds": spent.get("cpu_seconds"),
        "epochs": spent["settings"]["epochs"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", help="a folder that `luban run recipes/minilm-movie.yaml --out FOLDER` made")
    parser.add_argument("--json")
    asked = parser.parse_args()
    seeds("pretrained", 1 if asked.model else asked.seeds, lambda seed: movie(seed, asked.model), asked.json)


if __name__ == "__main__":
    main()
