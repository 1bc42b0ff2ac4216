"""`luban new TASK FOLDER`: a recipe to begin with, and rows to try it on. Nothing heavy is imported before rows are made.

Tables and digits are scikit-learn's, copied. There is no free text among them, so messages and parcels are made up by a
rule that the recipe's first lines tell, with as many wrong answers as they say.
"""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luban.errors import RequestError, problem
from luban.messages import say

WRONG = 0.05  # share of made-up rows whose answer is drawn anew
TOPICS = {
    "delivery": ("parcel", "courier", "late", "doorstep", "tracking", "shipped", "box", "waiting"),
    "payment": ("card", "refund", "charged", "twice", "invoice", "price", "bank", "receipt"),
    "account": ("password", "login", "locked", "email", "profile", "reset", "username", "code"),
}
FILLERS = (
    "hello",
    "please",
    "my",
    "the",
    "is",
    "was",
    "again",
    "today",
    "help",
    "me",
    "with",
    "since",
    "friday",
    "thanks",
)
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
THINGS = ("a kite", "3 lamps", "a map", "a tea-pot", "12 chairs", "a box")
PEOPLE = ("Ann Smith", "Bob", "Carla de Cruz", "Dai Jones", "Ebo", "Fay Lee")
CITIES = ("Rome", "New Delhi", "York", "Buenos Aires", "Oslo")
DAYS = ("monday", "tuesday", "friday", "May 1")
HANDLING = {
    "fine": ("dry", "careful", "upright", "padded", "sealed"),
    "rough": ("dropped", "wet", "torn", "leaking", "crushed"),
}


@dataclass(frozen=True)
class Starter:
    """`rows`: writes the sample into the folder and gives its name. `recipe`: what stands in the recipe beside `data`."""

    rows: Callable[[Path], str]
    recipe: Mapping[str, Any]
    epochs: int
    explained: bool = True


def write_starter(task: str, folder: str | Path) -> tuple[str, str]:
    """Write `folder`/recipe.yaml and its sample: the paths of both.

    Raises RequestError for an unknown task, with the nearest one.
    """
    known(task)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    starter = STARTERS[task]
    rows = starter.rows(folder)
    path = folder / "recipe.yaml"
    path.write_text(_recipe(task, rows, starter), encoding="utf-8")
    return str(path), str(folder / rows)


def known(task: str) -> None:
    if task not in STARTERS:
        raise RequestError(problem("starter.unknown", name=task, allowed=STARTERS))


def listed() -> dict[str, str]:
    """What each starter is about, by task."""
    return {name: say(f"starter.about.{name}", wrong=f"{WRONG:.0%}") for name in STARTERS}


def _recipe(task: str, rows: str, starter: Starter) -> str:
    """The recipe as YAML; every key has its comment above it, out of the catalogue."""
    from luban.yaml_file import dump

    stages: list[dict[str, Any]] = [{"train": {"epochs": starter.epochs}}, {"evaluate": {}}]
    stages += [{"explain": {"rows": 4}}] if starter.explained else []
    plain = {"luban": 1, "data": {"rows": rows, "split": {"validation": 0.1, "test": 0.2}}, **starter.recipe}
    plain |= {"size": "nano", "stages": stages, "seed": 0}
    lines = _comment(f"starter.about.{task}")
    for line in dump({k: v for k, v in plain.items() if v != {}}).splitlines():
        key = line.partition(":")[0]
        if key == "outputs" and plain.get("inputs") == {}:
            lines += ["", *_comment("starter.note.inputs")]
        if key in plain and key != "luban":
            lines += ["", *_comment(f"starter.note.{key}")]
        lines.append(line)
    return "\n".join(lines) + "\n"


def _comment(id: str) -> list[str]:
    return ["# " + line for line in textwrap.wrap(say(id, wrong=f"{WRONG:.0%}"), 98)]


# -- rows --------------------------------------------------------------------------------------------------------------


def _sample(name: str) -> Callable[[Path], str]:
    def save(folder: Path) -> str:
        from luban.data import samples

        target = folder / (samples.SAMPLES[name].source or name)
        if not target.exists():
            samples.save(name, target)
        return target.name

    return save


def _messages(folder: Path) -> str:
    """600 messages to a shop: fillers, and one to three words of their topic."""
    import numpy as np

    rng = np.random.default_rng(0)
    lines = []
    for _ in range(600):
        topic = str(rng.choice(list(TOPICS)))
        words = [
            *rng.choice(FILLERS, rng.integers(4, 9)),
            *rng.choice(TOPICS[topic], rng.integers(1, 4), replace=False),
        ]
        answer = str(rng.choice(list(TOPICS))) if rng.random() < WRONG else topic
        lines.append((" ".join(rng.permutation(words)), answer))
    return _csv(folder / "messages.csv", ("message", "topic"), lines)


def _tagged(folder: Path) -> str:
    """500 wishes to a shop, each with what is wanted, by whom, and where it goes, one tag a word."""
    import numpy as np

    rng = np.random.default_rng(0)
    lines = []
    for _ in range(500):
        words, tags = [], []
        parts = [("please", ""), ("send", ""), *_named(rng, "ITEM", THINGS), ("to", ""), *_named(rng, "PER", PEOPLE)]
        parts += [("in", ""), *_named(rng, "LOC", CITIES)] if rng.random() < 0.7 else []
        for word, tag in parts:
            words.append(word)
            tags.append(tag or "O")
        if rng.random() < WRONG:
            tags = ["O"] * len(tags)
        lines.append((" ".join(words), " ".join(tags)))
    return _csv(folder / "wishes.csv", ("wish", "names"), lines)


def _named(rng: Any, kind: str, names: tuple[str, ...]) -> list[tuple[str, str]]:
    words = str(rng.choice(names)).split()
    return [(w, f"{'I' if i else 'B'}-{kind}") for i, w in enumerate(words)]


def _asked(folder: Path) -> str:
    """800 questions about short notes on parcels; the answer stands in the note, or is not told."""
    import numpy as np

    rng = np.random.default_rng(0)
    lines = []
    for _ in range(800):
        thing, person, city, day = (str(rng.choice(some)) for some in (THINGS, PEOPLE, CITIES, DAYS))
        told = (
            (("who", "ordered", "it", "?"), (person, "ordered", thing, "."), person),
            (("what", "was", "ordered", "?"), (person, "ordered", thing, "."), thing),
            (("where", "does", "it", "go", "?"), ("it", "goes", "to", city, "."), city),
            (("when", "will", "it", "come", "?"), ("it", "comes", "on", day, "."), day),
        )
        question, sentence, answer = told[rng.integers(len(told))]
        rest = [s for s in dict.fromkeys(s for _, s, _ in told) if s != sentence and rng.random() < 0.7]
        silent = bool(rest) and rng.random() < WRONG
        chosen = rest if silent else [sentence, *rest]
        note = " ".join(" ".join(chosen[i]) for i in rng.permutation(len(chosen)))
        lines.append((" ".join(question), note, "[]" if silent else answer))
    return _csv(folder / "notes.csv", ("question", "note", "answer"), lines)


def _days(folder: Path) -> str:
    """1,500 days of two centuries, in figures and as a letter says them."""
    import datetime

    import numpy as np

    days = np.random.default_rng(0).choice(73_000, 1500, replace=False)
    dates = [datetime.date(1900, 1, 1) + datetime.timedelta(int(d)) for d in days]
    lines = [(d.isoformat(), f"{d.day} {MONTHS[d.month - 1]} {d.year}") for d in dates]
    return _csv(folder / "days.csv", ("day", "letter"), lines)


def _parcels(folder: Path) -> str:
    """400 parcels: a picture, a note, a weight. Damaged when two of three say so: a dark dent, a rough word, 20 kg."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir(exist_ok=True)
    lines = []
    for i in range(400):
        dented, rough, heavy = rng.random(3) < 0.5
        pixels = rng.integers(150, 190, (16, 16, 3)) * np.array([1.0, 0.8, 0.55])
        if dented:
            y, x = rng.integers(2, 10, 2)
            pixels[y : y + 4, x : x + 4] *= 0.3
        name = f"pictures/{i:03}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        note = [*rng.choice(HANDLING["fine"], 3), rng.choice(HANDLING["rough" if rough else "fine"])]
        weight = rng.uniform(20, 30) if heavy else rng.uniform(1, 20)
        damaged = rng.random() < 0.5 if rng.random() < WRONG else int(dented) + int(rough) + int(heavy) >= 2
        lines.append((name, " ".join(rng.permutation(note)), f"{weight:.1f}", "damaged" if damaged else "whole"))
    return _csv(folder / "parcels.csv", ("picture", "note", "weight", "arrived"), lines)


def _things(folder: Path) -> str:
    """200 pictures of 64 pixels with one to three boxes or balls on noise, and where they are."""
    import json

    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir(exist_ok=True)
    lines = []
    for i in range(200):
        pixels, objects = rng.integers(60, 196, (64, 64, 3)).astype(np.uint8), []
        for at in rng.permutation(4)[: rng.integers(1, 4)]:  # one in each quarter at most
            width, height = (int(n) for n in rng.integers(14, 27, 2))
            x, y = (int(32 * q + rng.integers(0, 33 - n)) for q, n in ((at % 2, width), (at // 2, height)))
            down, across = np.mgrid[:height, :width]
            ball = bool(rng.random() < 0.5)
            round_ = (2 * down / (height - 1) - 1) ** 2 + (2 * across / (width - 1) - 1) ** 2 <= 1
            inside = round_ if ball else np.ones((height, width), bool)
            pixels[y : y + height, x : x + width][inside] = rng.integers(0, 256, 3) // 2 + (128 if ball else 0)
            objects.append({"label": "ball" if ball else "box", "box": [x, y, width, height]})
        name = f"pictures/{i:03}.png"
        Image.fromarray(pixels).save(folder / name)
        lines.append(json.dumps({"picture": name, "objects": objects}))
    (folder / "things.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "things.jsonl"


def _csv(path: Path, header: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(lines)
    return path.name


STARTERS = {
    "tabular-classification": Starter(
        _sample("breast-cancer"), {"inputs": {}, "outputs": {"diagnosis": "category"}}, 15
    ),
    "tabular-regression": Starter(_sample("diabetes"), {"inputs": {}, "outputs": {"progression": "number"}}, 30),
    "text-classification": Starter(_messages, {"inputs": {"message": "text"}, "outputs": {"topic": "category"}}, 10),
    "text-generation": Starter(
        _messages, {"outputs": {"message": "text"}, "frame": {"pack": {"length": 64}}}, 10, explained=False
    ),
    "text2text-generation": Starter(
        _days,
        {
            "inputs": {"day": {"text": {"tokens": "characters"}}},
            "outputs": {"letter": {"text": {"tokens": "characters", "whitespace": True}}},
        },
        15,
    ),
    "token-classification": Starter(_tagged, {"inputs": {"wish": "text"}, "outputs": {"names": "tags"}}, 10),
    "question-answering": Starter(
        _asked,
        {"inputs": {"question": "text", "note": "text"}, "outputs": {"answer": {"span": {"of": "note"}}}},
        20,
    ),
    "image-classification": Starter(
        _sample("digits"), {"inputs": {"image": "image"}, "outputs": {"label": "category"}}, 10
    ),
    "object-detection": Starter(_things, {"inputs": {"picture": "image"}, "outputs": {"objects": "boxes"}}, 15),
    "multimodal-classification": Starter(
        _parcels,
        {"inputs": {"picture": "image", "note": "text", "weight": "number"}, "outputs": {"arrived": "category"}},
        20,
    ),
}
