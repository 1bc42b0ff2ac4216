"""A toy of tagged sentences with a truth to be found: persons after "mr", places after "in"; names of one to three words."""

import numpy as np

PEOPLE, PLACES = ["smith", "jones", "o'hara", "de la cruz", "lee"], ["york", "new delhi", "st. ives", "rome"]
FILLERS = ["the", "old", "man", "said", "that", "it", "rained", "again", "today"]


def sentence(rng: np.random.Generator) -> tuple[list[str], list[str]]:
    words, tags = [], []
    for _ in range(rng.integers(1, 4)):
        fill = rng.choice(FILLERS, rng.integers(0, 4)).tolist()
        words, tags = words + fill, tags + ["O"] * len(fill)
        lead, names, label = [("mr", PEOPLE, "PER"), ("in", PLACES, "LOC")][rng.integers(2)]
        name = str(rng.choice(names)).split()
        words += [lead, *name]
        tags += ["O", f"B-{label}", *[f"I-{label}"] * (len(name) - 1)]
    return words, tags


def rows(count: int, seed: int = 0, lists: bool = False) -> list[dict]:
    rng = np.random.default_rng(seed)
    made = [sentence(rng) for _ in range(count)]
    if lists:
        return [{"sentence": w, "ner": t} for w, t in made]
    return [{"sentence": " ".join(w), "ner": " ".join(t)} for w, t in made]


def recipe(**changes) -> dict:
    plain = {
        "luban": 1,
        "inputs": {"sentence": "text"},
        "outputs": {"ner": "tags"},
        "size": "nano",
        "stages": [{"train": {"epochs": 12, "rate": 0.01}}, "evaluate"],
    }
    return plain | changes
