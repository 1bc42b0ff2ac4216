"""The smallest real Bundle that there is: two inputs, two answers, trained for one epoch in well under a second."""

import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

import luban


def rows(count: int = 40) -> list[dict]:
    rng = np.random.default_rng(0)
    shops, words = rng.choice(["north", "south"], count), rng.choice(["good", "bad", "odd"], (count, 3))
    return [
        {"shop": str(s), "price": float(p), "review": " ".join(w), "back": "yes" if p > 0 else "no"}
        for s, p, w in zip(shops, rng.normal(size=count), words)
    ]


def csv(path: Path, count: int = 40) -> Path:
    lines = ["shop,price,review,back"] + [
        f"{r['shop']},{r['price']:.4f},{r['review']},{r['back']}" for r in rows(count)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@cache
def model():
    return luban.train(rows(), "back", types={"review": "text"}, size="nano", epochs=1, seed=0, evaluate=False)


@cache
def _saved() -> Path:
    folder = Path(mkdtemp(prefix="luban-tiny-"))
    luban.train(csv(folder / "rows.csv"), "back", types={"review": "text"}, size="nano", epochs=1, out=folder / "shop")
    return folder / "shop"


def folder(place: Path, name: str = "shop") -> Path:
    """A fresh copy of one saved Bundle, judged, with a table, a report and a checkpoint."""
    shutil.copytree(_saved(), place / name)
    return place / name


@cache
def _writing() -> Path:
    folder = Path(mkdtemp(prefix="luban-tiny-"))
    recipe = {
        "luban": 1,
        "outputs": {"review": {"text": {"vocabulary": 300}}},
        "frame": {"pack": {"length": 16}},
        "model": {"review": {"llama": {"width": 16, "layers": 1, "heads": 2}}},
        "size": "nano",
        "stages": [{"train": {"epochs": 2}}],
        "data": {"rows": str(csv(folder / "rows.csv", 120))},
    }
    luban.train(recipe, out=folder / "writer", evaluate=False)
    return folder / "writer"


def writer(place: Path, name: str = "writer") -> Path:
    """A fresh copy of a saved language model."""
    shutil.copytree(_writing(), place / name)
    return place / name
