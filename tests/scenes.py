"""Small drawn scenes with boxes: warm rectangles and cold discs on noise, none on another."""

import base64
import io
import json

import numpy as np
from PIL import Image

KINDS = ("block", "disc")


def scene(rng, side=64, most=3):
    """uint8 (side, side, 3), and the boxes of what is in it as a table holds them."""
    pixels = rng.integers(60, 200, (side, side, 3)).astype(np.uint8)
    rows, columns = np.mgrid[:side, :side] + 0.5
    found = []
    for _ in range(rng.integers(0, most + 1)):
        wide, high = rng.integers(side // 6, side // 2, 2)
        x, y = rng.integers(0, side - wide), rng.integers(0, side - high)
        if any(x < a + c and a < x + wide and y < b + d and b < y + high for a, b, c, d in (f["box"] for f in found)):
            continue
        kind = KINDS[rng.integers(2)]
        inside = (abs(columns - x - wide / 2) <= wide / 2) & (abs(rows - y - high / 2) <= high / 2)
        if kind == "disc":
            inside = ((columns - x - wide / 2) / wide) ** 2 + ((rows - y - high / 2) / high) ** 2 <= 0.25
        colour = rng.integers((170, 0, 0), (256, 90, 90))
        pixels[inside] = colour if kind == "block" else colour[::-1]
        found.append({"label": kind, "box": [int(n) for n in (x, y, wide, high)]})
    return pixels, found


def rows(count, seed=0, side=64):
    """Images as `data:` URIs, as a request would bring them."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        pixels, objects = scene(rng, side)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        found.append(
            {"image": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(), "objects": objects}
        )
    return found


def recipe(path, head="fcos", count=400, side=64, width=16, **changes):
    """A small detector and its scenes, written to `path`; `changes` go into its training."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows(count, side=side)), encoding="utf-8")
    settings = {"width": 2 * width}
    if head == "faster_rcnn":
        settings |= {"hidden": [4 * width], "proposals": 2 * width, "learned": 2 * width}
    train = {"epochs": 12, "batch": 16, "rate": 0.002, "keep": "last", "precision": "fp32", **changes}
    return {
        "luban": 1,
        "inputs": {"image": {"image": {"side": side, "shift": 0.1}}},
        "outputs": {"objects": "boxes"},
        "model": {"image": {"resnet": {"depth": 18, "width": width}}, "objects": {head: settings}},
        "data": {"rows": str(path), "split": {"validation": 0.1, "test": 0}},
        "stages": [{"train": train}],
    }


def found(truth, answers, sure=0.3):
    """The share of true boxes that an answer of their class overlaps by half, less the share of answers that meet none."""
    hits, wanted, told = 0, 0, 0
    for row, answer in zip(truth, answers):
        said = [a for a in answer["objects"] if a["score"] >= sure]
        wanted, told = wanted + len(row["objects"]), told + len(said)
        hits += sum(
            any(a["label"] == o["label"] and shared(a["box"], o["box"]) >= 0.5 for a in said) for o in row["objects"]
        )
    return hits / max(wanted, told, 1)


def shared(a, b):
    wide, high = (max(0, min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    return wide * high / (a[2] * a[3] + b[2] * b[3] - wide * high)
