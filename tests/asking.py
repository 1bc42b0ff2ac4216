"""A toy of questions about stories: who sat where, and what they had. What is not told has no answer."""

import numpy as np

PEOPLE = ["Ann", "Bob", "Carla", "Dai", "Ebo", "Fay"]
PLACES = ["the old mill", "Rome", "the harbour", "a small red house", "New Delhi"]
THINGS = ["a kite", "two green apples", "a map", "the key", "his late uncle's watch"]
FILLERS = ["It rained.", "Nobody spoke.", "The day was long."]


def one(rng: np.random.Generator, unanswerable: float = 0.0) -> dict:
    person, place, thing = (str(rng.choice(some)) for some in (PEOPLE, PLACES, THINGS))
    told = [f"{person} sat in {place}.", f"{person} had {thing}."]
    which = int(rng.integers(2))
    question = [f"Where did {person} sit?", f"What did {person} have?"][which]
    words = [place, thing][which]
    if none := rng.random() < unanswerable:
        del told[which]
    told = rng.permutation([*told, *rng.choice(FILLERS, rng.integers(0, 3), replace=False)])
    story = " ".join(map(str, told))
    answer = [] if none else [{"text": words, "start": story.index(words)}]
    return {"question": question, "story": story, "answer": answer}


def rows(count: int, seed: int = 0, **settings) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [one(rng, **settings) for _ in range(count)]


def recipe(**changes) -> dict:
    plain = {
        "luban": 1,
        "inputs": {"question": "text", "story": "text"},
        "outputs": {"answer": {"span": {"of": "story"}}},
        "size": "nano",
        "model": {
            "question": {"transformer": {"width": 32, "layers": 2, "heads": 4, "dropout": 0.0, "positions": "rotary"}}
        },
        "stages": [{"train": {"epochs": 12, "rate": 0.01}}, "evaluate"],
    }
    return plain | changes
