"""Pictures that a model makes from noise, of what is asked for."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luban.columns.examples import encode_values
from luban.columns.image import shown
from luban.errors import DataError, RequestError, Unsupported, problem
from luban.recipe import Recipe, drawn
from luban.yaml_file import parse

PART = 250  # pictures made at once
ACROSS = 8


def draws(recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Raises Unsupported for the recipe of a model that makes no pictures, RequestError for what it cannot be asked for."""
    if not recipe.draws:
        raise Unsupported("generate.no_pictures", outputs=list(recipe.outputs))
    known = [n for n, p in recipe.inputs.items() if not drawn(p)]
    wrong = [problem("generate.no_input", place=f"--set {n}", name=n, allowed=known) for n in given if n not in known]
    if wrong:
        raise RequestError(*wrong)


def recipe_of(model: Any) -> Recipe:
    """The recipe of a Bundle, or of an Engine over an exported file, which has it as text. Raises RecipeError where that is none."""
    return model.recipe if isinstance(model.recipe, Recipe) else Recipe.of(parse(model.recipe)[0])


def draw(
    model: Any, *, n: int = 1, seed: int | None = None, set: Mapping[str, Any] | Sequence[str] = ()
) -> list[np.ndarray]:
    """`n` pictures of a Bundle or an Engine, uint8 (H, W) or (H, W, 3), from the seeds `seed`, `seed + 1` ...

    `set`: what is asked for, {input: value} (or "input=value"); a class that is not named takes turns. Raises Unsupported for a
    model that makes none, RequestError for an unknown input or class, DataError for a value that cannot be read.
    """
    given = dict(set) if isinstance(set, Mapping) else dict(s.partition("=")[::2] for s in set)
    recipe, engine = recipe_of(model), getattr(model, "engine", model)
    draws(recipe, given)
    seed = recipe.seed if seed is None else seed
    rows = [row(model, given, seed, i) for i in range(n)]
    found = []
    for start in range(0, n, PART):
        examples, bad = encode_values(model.columns, model.inputs, rows[start : start + PART])
        if bad:
            raise DataError("generate.bad_input", number=start + min(bad) + 1, reason=bad[min(bad)])
        (made,) = engine.run(examples.arrays(np.arange(len(examples)))).values()
        found += [p.transpose(1, 2, 0) if len(p) > 1 else p[0] for p in shown(made)]
    return found


def row(model: Any, given: Mapping[str, Any], seed: int, number: int) -> dict[str, Any]:
    """The inputs of one picture. Raises RequestError for a class that training did not have."""
    result: dict[str, Any] = {}
    for name in model.inputs:
        column = model.columns[name]
        labels = getattr(column, "labels", None)
        if column.drawn:
            result[name] = seed + number
        elif name not in given:
            result[name] = labels[number % len(labels)] if labels else None
        elif labels and str(given[name]) not in labels:
            raise RequestError(
                problem("generate.no_class", place=f"--set {name}", name=str(given[name]), allowed=labels)
            )
        else:
            result[name] = given[name]
    return result


def save(pictures: Sequence[np.ndarray], out: str | Path) -> Path:
    """One PNG with all of them (`out` ends in .png), or a folder with a PNG for each: 0000.png ..."""
    path = Path(out)
    if path.suffix.lower() == ".png":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(tiled(pictures)))
        return path
    path.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        (path / f"{i:04d}.png").write_bytes(png(picture))
    return path


def tiled(pictures: Sequence[np.ndarray], across: int = ACROSS) -> np.ndarray:
    """Pictures side by side, a pixel of white between them, uint8 (H', W') or (H', W', 3)."""
    height, width, *rest = pictures[0].shape
    across = min(across, len(pictures))
    whole = np.full((-(-len(pictures) // across) * (height + 1) - 1, across * (width + 1) - 1, *rest), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // across * (height + 1), i % across * (width + 1)
        whole[y : y + height, x : x + width] = picture
    return whole


def png(picture: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "PNG")
    return file.getvalue()
