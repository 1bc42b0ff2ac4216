"""Which way a drawing moves in a short clip, beside what one frame, or all frames without their order, would tell.

    python -m benchmarks.clips FOLDER [--seeds 1] [--epochs 12] [--test] [--json FILE]

Clips are made from the sample set `clip-art-scenes` and keep its split: a drawing cut out of one scene goes left, right, up or down, comes nearer or goes away, or
turns, in front of another scene out of focus, while the camera shakes. FOLDER gets them as video files, the recipes and the models. A
model that lies there is judged, and not trained again. Without `--test` only validation rows are judged.

| side | what it is |
|---|---|
| model | a CNN over each frame, a GRU over what it gave |
| unordered | what that CNN gave, averaged over the frames, and logistic regression (its strength by validation rows): all frames, no order |
| frame | the same CNN on the middle frame alone |
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.clip_art import PARTS
from benchmarks.common import finish, learned, taught
from luban.data import samples
from luban.data.prepare import prepare
from luban.evaluation import intervals

COUNTS = {"train": 2400, "validation": 400, "test": 800}
SIDE, FRAMES = 48, 12  # pixels; frames of a file, of which the network sees half
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
WAYS = (*STEPS, "nearer", "away", "clockwise", "anticlockwise")
CNN = "{cnn: {channels: [16, 32, 64], dense: [64]}}"
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
MODELS = {
    "model": ("clip: {video: {frames: 6}}", f"clip: {{frames: {{each: {CNN}, over: gru}}}}"),
    "frame": ("frame: {image: {flip: false}}", f"frame: {CNN}"),
}
RECIPE = """luban: 1
data: {{rows: clips.csv, split: {{column: split}}}}
inputs: {{{input}}}
outputs: {{way: category}}
model: {{{model}}}
stages:
  - train: {{compile: "off", epochs: {epochs}, batch: 32, rate: 0.002}}
"""


def cut_outs(lines: list[dict[str, Any]], below: Path) -> list[Any]:
    """Drawings cut out of scenes by their masks, RGBA; those over which another of their kind lies cannot be told apart and may go along."""
    from PIL import Image

    found = []
    for line in lines:
        picture, mask = Image.open(below / line["image"]).convert("RGB"), np.asarray(Image.open(below / line["mask"]))
        for x, y, w, h in (o["box"] for o in line["objects"]):
            inside = mask[y : y + h, x : x + w]
            kind = np.bincount(inside[inside > 0]).argmax()
            if min(w, h) >= 32:
                drawing = picture.crop((x, y, x + w, y + h))
                drawing.putalpha(Image.fromarray(((inside == kind) * 255).astype(np.uint8)))
                found.append(drawing)
    return found


def clip(way: str, drawing: Any, ground: Any, rng: np.random.Generator) -> list[Any]:
    """FRAMES pictures. In the middle of the clip the drawing is anywhere, of any size and turned anyhow, whichever way it goes."""
    from PIL import Image

    side, turn, (x, y) = rng.uniform(16, 26), rng.uniform(-30, 30), rng.uniform(12, SIDE - 12, 2)
    speed, frames = rng.uniform(1.0, 1.8), []
    wide = ground.resize((8, 8), Image.Resampling.BOX).resize((SIDE + 6, SIDE + 6), Image.Resampling.BICUBIC)
    for t in np.arange(FRAMES) - (FRAMES - 1) / 2:
        left, top = rng.integers(2, 5, 2)
        frame = wide.crop((left, top, left + SIDE, top + SIDE))
        grown = side * np.exp(0.08 * speed * t * ((way == "nearer") - (way == "away")))
        size = [max(3, round(n * grown / max(drawing.size))) for n in drawing.size]
        angle = turn + 9 * speed * t * ((way == "anticlockwise") - (way == "clockwise"))
        shown = drawing.resize(size, Image.Resampling.BILINEAR).rotate(angle, Image.Resampling.BILINEAR, expand=True)
        dx, dy = STEPS.get(way, (0, 0))
        at = [round(p + speed * t * d - n / 2) for p, d, n in zip((x, y), (dx, dy), shown.size)]
        frame.paste(shown, tuple(at), shown)
        frames.append(frame)
    return frames


def written(folder: Path) -> None:
    """The clips, their middle frames and the table of both, where they are not there yet. A function of the sample set alone."""
    import cv2
    from PIL import Image

    scenes = samples.fetch("clip-art-scenes")
    if (folder / "clips.csv").exists():
        return
    lines = [json.loads(line) for line in scenes.read_text(encoding="utf-8").splitlines()]
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rows = [["clip", "frame", "way", "split"]]
    for part, count in COUNTS.items():
        mine = [line for line in lines if line["split"] == part]
        drawings = cut_outs(mine, scenes.parent)
        for i in range(count):
            rng = np.random.default_rng([PARTS.index(part), i])
            way, name = WAYS[i % len(WAYS)], f"clips/{part}-{i:04}"
            ground = Image.open(scenes.parent / mine[rng.integers(len(mine))]["image"]).convert("RGB")
            frames = clip(way, drawings[rng.integers(len(drawings))], ground, rng)
            film = cv2.VideoWriter(str(folder / f"{name}.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 12, (SIDE, SIDE))
            for frame in frames:
                film.write(np.asarray(frame)[..., ::-1])
            film.release()
            frames[FRAMES // 2].save(folder / f"{name}.png")
            rows.append([f"{name}.avi", f"{name}.png", way, part])
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@torch.no_grad()
def averaged(model: Any, files: list[str]) -> np.ndarray:
    """(N, D): what the model's CNN gave, averaged over the frames."""
    encoder, found = model.network.encoders[0], []
    for start in range(0, len(files), 64):
        x = torch.from_numpy(model.columns["clip"].encode_all(files[start : start + 64]))
        embedded = encoder.embed(x, torch.ones(len(x), dtype=torch.bool)).flatten(0, 1)
        vectors = encoder.pool(encoder.each(embedded, torch.ones(len(embedded), dtype=torch.bool)))
        found.append(vectors.unflatten(0, x.shape[:2]).mean(1).numpy())
    return np.concatenate(found)


def unordered(model: Any, rows: dict[str, Any], part: str) -> np.ndarray:
    """What logistic regression makes of the averages."""
    from sklearn.linear_model import LogisticRegression

    x = {p: averaged(model, r["clip"]) for p, r in rows.items()}
    models = [LogisticRegression(C=c, max_iter=1000).fit(x["train"], rows["train"]["way"]) for c in STRENGTHS]
    return max(models, key=lambda m: m.score(x["validation"], rows["validation"]["way"])).predict(x[part])


def run(folder: Path, seed: int, epochs: int, part: str) -> dict[str, Any]:
    """Each side's accuracy on the rows of a part, and how much better the model is, clip by clip."""
    result: dict[str, Any] = {"seed": seed, "epochs": epochs}
    said: dict[str, np.ndarray] = {}
    for name, (column, network) in MODELS.items():
        recipe = folder / f"{name}.yaml"
        recipe.write_text(RECIPE.format(input=column, model=network, epochs=epochs), encoding="utf-8")
        model, _ = taught(str(recipe), seed, folder / f"{name}-{seed}")
        data = prepare(model.recipe)
        rows = {p: data.table.take(data.part(p)).to_pydict() for p in PARTS}
        (source,) = model.inputs
        said[name] = np.array([a["way"] for a in model.predict([{source: v} for v in rows[part][source]])])
        result[name] = {"parameters": model.parameters(), "cpu_seconds_training": round(learned(model)["cpu_seconds"])}
        if name == "model":
            said["unordered"], result["unordered"] = unordered(model, rows, part), {}
    truth = np.array(rows[part]["way"])
    right = {n: s == truth for n, s in said.items()}
    for name, r in right.items():
        result[name] |= {"accuracy": intervals.mean(r).to_json(), "by_way": {w: round(float(r[truth == w].mean()), 3) for w in WAYS}}  # fmt: skip
        if name != "model":
            result[name]["model_less_this"] = intervals.paired_difference(right["model"], r).to_json()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--json")
    a = parser.parse_args()
    torch.set_num_threads(1)
    written(a.folder)
    part = "test" if a.test else "validation"
    runs = [run(a.folder, seed, a.epochs, part) for seed in range(a.seeds)]
    mean = {n: statistics.mean(r[n]["accuracy"]["value"] for r in runs) for n in (*MODELS, "unordered")}
    finish("clips", {"part": part, "clips": COUNTS, "mean": mean, "runs": runs}, a.json)


if __name__ == "__main__":
    main()
