"""The rows of starters, made up by rules that the recipes' first lines tell, or copied. Nothing heavy is imported before rows are made.

Each function writes its rows into a folder and gives the name of their file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
SHAPES = ("box", "ball")
COLOURS = {"red": (210, 50, 40), "green": (40, 170, 60), "blue": (50, 70, 210), "yellow": (230, 200, 60)}
PLACES = {  # rows and columns that the upper left corner of a thing may have
    "left": ((5, 12), (0, 4)),
    "right": ((5, 12), (13, 17)),
    "top": ((0, 4), (5, 12)),
    "bottom": ((13, 17), (5, 12)),
}
WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # y, x
HANDLING = {
    "fine": ("dry", "careful", "upright", "padded", "sealed"),
    "rough": ("dropped", "wet", "torn", "leaking", "crushed"),
}


def sample(name: str) -> Callable[[Path], str]:
    def save(folder: Path) -> str:
        from luban.data import samples

        target = folder / (samples.SAMPLES[name].source or name)
        if not target.exists():
            samples.save(name, target)
        return target.name

    return save


def messages(folder: Path) -> str:
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


def tagged(folder: Path) -> str:
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


def asked(folder: Path) -> str:
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


def days(folder: Path) -> str:
    """1,500 days of two centuries, in figures and as a letter says them."""
    import datetime

    import numpy as np

    days = np.random.default_rng(0).choice(73_000, 1500, replace=False)
    dates = [datetime.date(1900, 1, 1) + datetime.timedelta(int(d)) for d in days]
    lines = [(d.isoformat(), f"{d.day} {MONTHS[d.month - 1]} {d.year}") for d in dates]
    return _csv(folder / "days.csv", ("day", "letter"), lines)


def parcels(folder: Path) -> str:
    """400 parcels: a picture, a note, a weight. Damaged when two of three say so: a dark dent, a rough word, 20 kg."""
    import numpy as np

    rng = np.random.default_rng(0)
    lines = []
    for i in range(400):
        dented, rough, heavy = rng.random(3) < 0.5
        pixels = rng.integers(150, 190, (16, 16, 3)) * np.array([1.0, 0.8, 0.55])
        if dented:
            y, x = rng.integers(2, 10, 2)
            pixels[y : y + 4, x : x + 4] *= 0.3
        name = _png(folder, "pictures", i, pixels.astype(np.uint8))
        note = [*rng.choice(HANDLING["fine"], 3), rng.choice(HANDLING["rough" if rough else "fine"])]
        weight = rng.uniform(20, 30) if heavy else rng.uniform(1, 20)
        damaged = rng.random() < 0.5 if rng.random() < WRONG else int(dented) + int(rough) + int(heavy) >= 2
        lines.append((name, " ".join(rng.permutation(note)), f"{weight:.1f}", "damaged" if damaged else "whole"))
    return _csv(folder / "parcels.csv", ("picture", "note", "weight", "arrived"), lines)


def things(folder: Path) -> str:
    """200 pictures of 64 pixels with one to three boxes or balls on noise, and where they are."""
    import numpy as np

    rng = np.random.default_rng(0)
    lines = []
    for i in range(200):
        pixels, found = _scene(rng)
        objects = [{"label": label, "box": box} for label, box, _ in found]
        lines.append(json.dumps({"picture": _png(folder, "pictures", i, pixels), "objects": objects}))
    (folder / "things.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "things.jsonl"


def outlined(folder: Path) -> str:
    """200 such pictures, and masks of the same size: 0 where nothing is, 1 in a box, 2 in a ball."""
    import numpy as np

    rng = np.random.default_rng(0)
    lines = []
    for i in range(200):
        pixels, found = _scene(rng)
        mask = np.zeros(pixels.shape[:2], np.uint8)
        for label, (x, y, width, height), inside in found:
            mask[y : y + height, x : x + width][inside] = 1 + SHAPES.index(label)
        lines.append((_png(folder, "pictures", i, pixels), _png(folder, "masks", i, mask)))
    return _csv(folder / "things.csv", ("picture", "mask"), lines)


def _scene(rng: Any) -> tuple[Any, list[tuple[str, list[int], Any]]]:
    """Pixels (64, 64, 3), and of each thing its name, its box [x, y, width, height] and which pixels of the box are its own."""
    import numpy as np

    pixels, found = rng.integers(60, 196, (64, 64, 3)).astype(np.uint8), []
    for at in rng.permutation(4)[: rng.integers(1, 4)]:  # one in each quarter at most
        width, height = (int(n) for n in rng.integers(14, 27, 2))
        x, y = (int(32 * q + rng.integers(0, 33 - n)) for q, n in ((at % 2, width), (at // 2, height)))
        label = "ball" if rng.random() < 0.5 else "box"
        inside = _inside(label, height, width)
        pixels[y : y + height, x : x + width][inside] = rng.integers(0, 256, 3) // 2 + (128 if label == "ball" else 0)
        found.append((label, [x, y, width, height], inside))
    return pixels, found


def captions(folder: Path) -> str:
    """800 pictures of one coloured thing, each with a line that says what is where."""
    import numpy as np

    rng = np.random.default_rng(0)
    lines = []
    for i in range(800):
        pixels, colour, shape, side = _one(rng)
        where = f"{'on' if side in ('left', 'right') else 'at'} the {side}"
        lines.append((_png(folder, "pictures", i, pixels), f"a {colour} {shape} {where}"))
    return _csv(folder / "captions.csv", ("picture", "caption"), lines)


def questions(folder: Path) -> str:
    """1,000 such pictures, each with a question about it and the answer."""
    import numpy as np

    rng = np.random.default_rng(0)
    lines = []
    for i in range(1000):
        pixels, colour, shape, side = _one(rng)
        told = (
            (("what", "colour", "is", "it", "?"), colour),
            (("what", "is", "it", "?"), shape),
            (("where", "is", "it", "?"), side),
        )
        question, answer = told[rng.integers(len(told))]
        lines.append((_png(folder, "pictures", i, pixels), " ".join(question), answer))
    return _csv(folder / "questions.csv", ("picture", "question", "answer"), lines)


def shapes(folder: Path) -> str:
    """1,000 grey pictures of 14 pixels with one thing near the middle, bright on dark or dark on bright, and its name."""
    import numpy as np

    rng = np.random.default_rng(0)
    lines = []
    for i in range(1000):
        pixels, shape = np.full((14, 14), rng.integers(0, 30), np.uint8), str(rng.choice((*SHAPES, "cross")))
        y, x = rng.integers(2, 6, 2)
        pixels[y : y + 8, x : x + 8][_inside(shape, 8, 8)] = rng.integers(190, 256)
        pixels = 255 - pixels if rng.random() < 0.5 else pixels
        lines.append((_png(folder, "pictures", i, pixels), shape))
    return _csv(folder / "shapes.csv", ("picture", "shape"), lines)


def clips(folder: Path) -> str:
    """400 grey animations of 6 frames: a bright thing on noise goes left, right, up or down."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "clips").mkdir(exist_ok=True)
    lines = []
    for i in range(400):
        way = str(rng.choice(list(WAYS)))
        frames = rng.integers(0, 90, (6, 20, 20)).astype(np.uint8)
        inside, grey = _inside(str(rng.choice(SHAPES)), 6, 6), rng.integers(150, 256)
        y, x = 7 - 5 * np.array(WAYS[way]) + rng.integers(-2, 3, 2)
        for frame in frames:
            frame[y : y + 6, x : x + 6][inside] = grey
            y, x = y + 2 * WAYS[way][0], x + 2 * WAYS[way][1]
        name = f"clips/{i:03}.gif"
        first, *others = (Image.fromarray(frame) for frame in frames)
        first.save(folder / name, save_all=True, append_images=others, duration=120, loop=0)
        answer = str(rng.choice(list(WAYS))) if rng.random() < WRONG else way
        lines.append((name, answer))
    return _csv(folder / "clips.csv", ("clip", "way"), lines)


def _one(rng: Any) -> tuple[Any, str, str, str]:
    """Pixels (24, 24, 3) of one thing on noise; its colour, its shape and on which side it is."""
    import numpy as np

    colour, shape, side = (str(rng.choice(list(some))) for some in (COLOURS, SHAPES, PLACES))
    pixels = (rng.integers(40, 180) + rng.integers(0, 20, 3) + rng.integers(0, 40, (24, 24, 3))).astype(np.uint8)
    size, (y, x) = int(rng.integers(7, 9)), (int(rng.integers(*span)) for span in PLACES[side])
    pixels[y : y + size, x : x + size][_inside(shape, size, size)] = COLOURS[colour] + rng.integers(-30, 20, 3)
    return pixels, colour, shape, side


def _inside(shape: str, height: int, width: int) -> Any:
    """bool (height, width): which pixels a thing that fills them has."""
    import numpy as np

    down, across = (2 * n / (size - 1) - 1 for n, size in zip(np.mgrid[:height, :width], (height, width)))
    if shape == "cross":
        return (abs(down) < 0.35) | (abs(across) < 0.35)
    return down**2 + across**2 <= 1 if shape == "ball" else np.ones((height, width), bool)


def _png(folder: Path, kind: str, i: int, pixels: Any) -> str:
    """Write a picture; its path, as it stands in the table."""
    from PIL import Image

    (folder / kind).mkdir(exist_ok=True)
    name = f"{kind}/{i:03}.png"
    Image.fromarray(pixels).save(folder / name)
    return name


def _csv(path: Path, header: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(lines)
    return path.name
