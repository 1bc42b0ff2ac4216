"""`luban new TASK FOLDER`: a recipe to begin with, and rows to try it on. Nothing heavy is imported before rows are made.

Tables and digits are scikit-learn's, copied. There is no free text among them, and there are neither masks nor clips, so all else is made
up by a rule that the recipe's first lines tell, with as many wrong answers as they say (`luban.starter_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luban import starter_rows as made
from luban.errors import RequestError, problem
from luban.messages import say
from luban.starter_rows import WRONG
from luban.wrapping import wrapped


@dataclass(frozen=True)
class Starter:
    """`rows`: writes the sample into the folder and gives its name. `recipe`: what stands in the recipe beside `data`; `train`: in
    its stage beside `epochs`.
    """

    rows: Callable[[Path], str]
    recipe: Mapping[str, Any]
    epochs: int
    explained: bool = True
    train: Mapping[str, Any] = field(default_factory=dict)


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

    stages: list[dict[str, Any]] = [{"train": {"epochs": starter.epochs, **starter.train}}, {"evaluate": {}}]
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
    return ["# " + line for line in wrapped(say(id, wrong=f"{WRONG:.0%}"), 98)]


STARTERS = {
    "tabular-classification": Starter(
        made.sample("breast-cancer"), {"inputs": {}, "outputs": {"diagnosis": "category"}}, 15
    ),
    "tabular-regression": Starter(made.sample("diabetes"), {"inputs": {}, "outputs": {"progression": "number"}}, 30),
    "text-classification": Starter(
        made.messages, {"inputs": {"message": "text"}, "outputs": {"topic": "category"}}, 10
    ),
    "text-generation": Starter(
        made.messages, {"outputs": {"message": "text"}, "frame": {"pack": {"length": 64}}}, 10, explained=False
    ),
    "text2text-generation": Starter(
        made.days,
        {
            "inputs": {"day": {"text": {"tokens": "characters"}}},
            "outputs": {"letter": {"text": {"tokens": "characters", "whitespace": True}}},
        },
        15,
    ),
    "token-classification": Starter(made.tagged, {"inputs": {"wish": "text"}, "outputs": {"names": "tags"}}, 10),
    "question-answering": Starter(
        made.asked,
        {"inputs": {"question": "text", "note": "text"}, "outputs": {"answer": {"span": {"of": "note"}}}},
        20,
    ),
    "image-classification": Starter(
        made.sample("digits"), {"inputs": {"image": "image"}, "outputs": {"label": "category"}}, 10
    ),
    "object-detection": Starter(made.things, {"inputs": {"picture": "image"}, "outputs": {"objects": "boxes"}}, 15),
    "image-segmentation": Starter(
        made.outlined,
        {
            "inputs": {"picture": "image"},
            "outputs": {"mask": {"mask": {"labels": ["background", "box", "ball"]}}},
        },
        15,
    ),
    "image-to-text": Starter(
        made.captions,
        {
            "inputs": {"picture": {"image": {"flip": False}}},
            "outputs": {"caption": "text"},
            "model": {
                "picture": {"cnn": {"channels": [16, 32], "dense": [], "dropout": 0.0}},
                "caption": {"llama": {"width": 64, "layers": 2, "heads": 2}},
            },
        },
        20,
        train={"optimizer": "muon", "rate": 0.02},
    ),
    "image-generation": Starter(
        made.shapes,
        {"inputs": {"shape": "category"}, "outputs": {"picture": "image"}},
        80,
        explained=False,
        train={"batch": 64, "rate": 0.002, "ema": 0.98, "adversary": {"rate": 0.004}},
    ),
    "video-classification": Starter(made.clips, {"inputs": {"clip": "video"}, "outputs": {"way": "category"}}, 15),
    "visual-question-answering": Starter(
        made.questions,
        {
            "inputs": {"picture": {"image": {"flip": False}}, "question": "text"},
            "outputs": {"answer": "category"},
        },
        30,
    ),
    "multimodal-classification": Starter(
        made.parcels,
        {"inputs": {"picture": "image", "note": "text", "weight": "number"}, "outputs": {"arrived": "category"}},
        20,
    ),
}
