"""What Luban makes of one NVIDIA GPU, each part beside its peer in the same run: ratios of medians of turns.

    python -m benchmarks.accelerator [gpt loop images detector generation] [--json FILE] [--quick]     on a machine with CUDA
    python -m benchmarks.accelerator --device cpu --quick                               the script itself, in tiny sizes

| part | what is measured | beside | goal on one H200 |
|---|---|---|---|
| gpt | training tokens a second of GPT-2 124M, bf16, compiled; its share of the peak; seconds to the first update | `language.nanogpt_loop` | 450,000; half of the peak; 15 s |
| loop | a step on a tiny model with all defaults on; how often a step waits for the device | the best bare loop, its rows on the device | 1.03 x bare; never |
| images | training images a second of a ResNet-50, 224 pixels, from bytes in the processor's memory | the same modules in a plain loop, its rows on the device | 0.98 x |
| detector | frames a second, one at a time, from pixels in memory to boxes | the network alone, its frames on the device | stated |
| generation | tokens a second of GPT-2 124M, and the share of what the memory's speed allows with fp32 weights | `transformers.generate` | 1.5 x |

Seconds are of the wall, all work of the device done (of the process on a processor, whose figures say nothing: they show that the script
runs). `peak`: what a product of 8,192 x 8,192 matrices of random bf16 reaches in this run, and the datasheet's where it is known. A part that
fails is said in its row and ends no other. All parts take about eight minutes; each can be asked for alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import images, loop
from benchmarks.common import finish
from benchmarks.language import generate, nanogpt_loop, train_gpt
from luban import console
from luban.asking import Ask
from luban.nn.tokens import Batch
from luban.planning import hardware
from luban.planning.subject import of_recipe
from luban.training.steps import plain

GPT2 = nanogpt_loop.SHAPES["gpt2"]
TINY = nanogpt_loop.Shape(layers=2, heads=2, width=32, block=32)
NO_GPU = "There is no CUDA device on this machine: nothing was measured (--device cpu --quick runs the script itself)."


def peak(device: str, size: int) -> dict[str, float]:
    """FLOPs a second of a bf16 product of random matrices: measured, and the datasheet's."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(5):
        began = nanogpt_loop.clock(device)
        for _ in range(4):
            a @ b
        best = max(best, 4 * 2 * size**3 / max(nanogpt_loop.clock(device) - began, 1e-9))
    name = torch.cuda.get_device_name() if device.startswith("cuda") else ""
    known = next((n for n in hardware.names() if n in name.upper()), None)
    return {"measured": best} | ({"datasheet": hardware.device(known).peak("bf16")} if known else {})


# -- the parts ---------------------------------------------------------------------------------------------------------------


def gpt(device: str, quick: bool) -> dict[str, Any]:
    tiny = device == "cpu"
    shape, batch, steps = (TINY, 2, 2) if tiny else (GPT2, 32, 16)
    compile = "off" if tiny or quick else "on"
    peaks = peak(device, 256 if tiny else 8192)  # first: it starts the device, for neither side to pay
    found = train_gpt.compared(
        2 if quick else 5, steps, batch, shape=shape, device=device, precision="fp32" if tiny else "bf16", compile=compile
    )  # fmt: skip
    counted = found["parameters_rival"] - shape.block * shape.width  # positions are looked up, not multiplied
    flops = 6 * counted + 12 * shape.layers * shape.width * shape.block
    shares = {n: flops * found["luban"] / p for n, p in peaks.items()}
    return {"goal": 450_000, **found, "flops_per_token": flops, "share_of_peak": shares}


def tiny_step(device: str, quick: bool) -> dict[str, Any]:
    pairs, clock = (1 if quick else 5), partial(nanogpt_loop.clock, device)
    mine, theirs, (net, other) = loop.duel(loop.luban(device), pairs, loop.bare_on(device), clock)
    ratios, steps = [a / b for a, b in zip(mine, theirs)], loop.ROWS / loop.BATCH
    return {
        "goal": 1.03, "of_bare": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "n": pairs,
        "us_per_step": statistics.median(mine) / steps * 1e6, "bare_us_per_step": statistics.median(theirs) / steps * 1e6,
        "loss": loop.loss_of(net), "bare_loss": loop.loss_of(other), "waits": waits(device),
    }  # fmt: skip


def waits(device: str) -> dict[str, Any] | None:
    """How often the device was waited for over the steps of an epoch, and where; None on a processor. The progress line
    reads the loss now and then, which is seen here, too.
    """
    if not device.startswith("cuda"):
        return None
    steps, last = 0, loop.ROWS // loop.BATCH

    def watched(*asked: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 10:  # what only the first steps do is over
            torch.cuda.set_sync_debug_mode("warn")
        numbers = plain(*asked)
        if steps == last:  # at the end of an epoch numbers are read
            torch.cuda.set_sync_debug_mode("default")
        return numbers

    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            loop.luban(device, watched)(1, lambda: None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(w.filename).name}:{w.lineno}" for w in heard if "synchroni" in str(w.message)]
    return {"steps": steps - 9, "count": len(places), "places": {p: places.count(p) for p in set(places)}}


def resnet(device: str, quick: bool) -> dict[str, Any]:
    tiny = device == "cpu"
    rows, side = (images.BATCH, 8) if tiny else (32 * images.BATCH, 224)
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (rows, side, side, 3), np.uint8), random.integers(0, 10, rows)
    model = {"depth": 18, "width": 8} if tiny else {"depth": 50, "width": 64, "stem": "imagenet"}
    work = images.Work({"resnet": model}, x, y, device)
    pairs, clock = (1 if quick else 5), partial(nanogpt_loop.clock, device)
    mine, theirs, (network, other) = loop.duel(images.luban(work), pairs, images.hand(work), clock)
    ratios = [b / a for a, b in zip(mine, theirs)]
    return {
        "goal": 0.98, "images_per_s": rows / statistics.median(mine), "rival_images_per_s": rows / statistics.median(theirs),
        "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "n": pairs, "precision": work.precision,
        "loss": fitted(network, work), "rival_loss": fitted(other, work), "parameters": sum(p.numel() for p in network.parameters()),
    }  # fmt: skip


@torch.no_grad()
def fitted(network: Any, work: images.Work) -> float:
    """The loss over the first rows that were trained on, in evaluation mode."""
    network = network.eval().cpu()
    batch = Batch.of(work.examples.arrays(np.arange(32)))
    each, weight = network.loss(network(batch), batch)["label"]
    return float(each.sum() / weight.sum())


def detector(device: str, quick: bool) -> dict[str, Any]:
    side, frames = (64, 3) if device == "cpu" else (512, 20 if quick else 100)
    recipe = {"luban": 1, "inputs": {"image": {"image": {"side": side}}}, "outputs": {"boxes": "boxes"}, "model": {"boxes": "fcos", "image": "resnet"}}  # fmt: skip
    what, clock = of_recipe(recipe, Ask(), 100), partial(nanogpt_loop.clock, device)
    torch.manual_seed(0)
    network = what.build().to(device).eval()
    column = what.examples.columns["boxes"]
    spent: dict[str, list[float]] = {"whole": [], "network": []}
    with torch.inference_mode():
        for i in range(frames + 3):  # the first three warm up
            arrays = what.examples.arrays(np.array([i % len(what.examples)]))
            there = Batch.of(arrays, device)
            began = clock()
            network(there)
            half = clock()
            o = network(Batch.of(arrays, device))
            column.decode_all(o["boxes"].float().cpu().numpy())
            if i >= 3:
                spent["network"].append(half - began)
                spent["whole"].append(clock() - half)
    ratios = [a / max(b, 1e-9) for a, b in zip(spent["network"], spent["whole"])]
    speed = {k: 1 / max(statistics.median(v), 1e-9) for k, v in spent.items()}
    return {
        "frames_per_s": speed["whole"], "rival_frames_per_s": speed["network"], "ratio": statistics.median(ratios),
        "low": min(ratios), "high": max(ratios), "n": frames, "side": side, "parameters": sum(p.numel() for p in network.parameters()),
    }  # fmt: skip


def generation(device: str, quick: bool) -> dict[str, Any]:
    import transformers

    transformers.logging.set_verbosity_error()
    size, new, prompt = ("nano", 8, 4) if device == "cpu" else ("gpt2", 64 if quick else 128, 32)
    made, pairs = generate.network(size), 1 if quick else 5
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        generate.folder(made, Path(place))
        rows = {
            f"batch {b}": generate.compared(made, Path(place), b, new, prompt, pairs, device, tried=False) for b in (1, 8)
        }  # fmt: skip
    return {"goal": 1.5, "new": new, "transformers": transformers.__version__, **rows}


PARTS: dict[str, Callable[[str, bool], dict[str, Any]]] = {
    "gpt": gpt,
    "loop": tiny_step,
    "images": resnet,
    "detector": detector,
    "generation": generation,
}


def measured(name: str, device: str, quick: bool) -> dict[str, Any]:
    """A part's row; where it fails, why."""
    began = time.monotonic()
    try:
        found = PARTS[name](device, quick)
    except (Exception, SystemExit) as e:  # the others go on, whatever it was
        found = {"failed": f"{type(e).__name__}: {e}"[:500], "where": traceback.format_exc()[-1500:]}
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return {"part": name, "device": device, "quick": quick, **found, "seconds": round(time.monotonic() - began, 1)}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="fewer turns, and nothing compiled")
    parser.add_argument("--json")
    asked = parser.parse_args(words)
    if unknown := [p for p in asked.parts if p not in PARTS]:
        parser.error(f"no part {unknown[0]}; there are {', '.join(PARTS)}")
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        print(NO_GPU)
        return 1
    console.configure(quiet=True)
    rows: list[dict[str, Any]] = []
    for name in asked.parts or PARTS:
        rows.append(measured(name, asked.device, asked.quick))
        print(rows[-1], file=sys.stderr, flush=True)
        if asked.json:  # after each: the time may be over before the last
            finish("accelerator", rows, asked.json)
    return int(any("failed" in r for r in rows))


if __name__ == "__main__":
    sys.exit(main())
