"""Training tokens a second of a GPT of ten million parameters: Luban's `fit` beside the hand-written loop (`nanogpt_loop`).

    python -m benchmarks.language.train_gpt [--pairs 5] [--steps 16] [--batch 4] [--json FILE]

Both train 6 layers, 6 heads, width 384, no biases, on stretches of 256 bytes of this repository's documents, fp32, fused AdamW at 1e-3, clipped at 1. In one
process in turns of `--steps` updates (an epoch of `fit`, with all its defaults: metrics, checkpoints, finite check, best weights), A B A B, each turn in CPU
seconds of the process; the first turn of each, with all setting up, is left out.
Quality: the loss of a held-out byte (nats) after the same number of updates.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.common import finish
from benchmarks.language import nanogpt_loop as rival
from benchmarks.language.generate import Ids
from luban.bundle import build_network
from luban.columns.base import Ragged
from luban.columns.examples import Examples
from luban.nn.tokens import Batch
from luban.recipe import Recipe, fill
from luban.training.loop import Plan, fit
from luban.training.objectives import supervised
from luban.training.steps import plain

SHAPE, RATE, DECAY = rival.Shape(), 1e-3, 0.1


def text() -> np.ndarray:
    """The bytes of the documents, one after another."""
    root = Path(__file__).parents[2]
    return np.frombuffer(b"\n".join(p.read_bytes() for p in sorted((root / "docs").glob("*.md"))), np.uint8)


def mine(shape: rival.Shape = SHAPE) -> tuple[Any, dict[str, Any]]:
    """The network, and the settings of training that a recipe has for it."""
    column = {"text": {"vocabulary": shape.vocabulary, "length": shape.block}}
    model = {"text": {"gpt": {"width": shape.width, "layers": shape.layers, "heads": shape.heads, "bias": False}}}
    recipe = Recipe.of({"luban": 1, "outputs": {"text": column}, "model": model, "stages": ["train"]}).resolved()
    learned = Ids("text", **fill("columns", recipe.outputs["text"], "small").settings).supposed()
    torch.manual_seed(0)
    known = {k: v for k, v in recipe.stage("train").settings.items() if k in Plan.__dataclass_fields__}
    return build_network(recipe, {"text": learned}), known


def stretches(columns: Any, data: np.ndarray, block: int = SHAPE.block) -> Examples:
    """Rows of `block` bytes each."""
    count = len(data) // block
    flat = data[: count * block].astype(np.int32)
    found = Ragged(flat, np.arange(count + 1) * block)
    return Examples(columns, {}, {"text": found}, np.arange(count), count)


@torch.no_grad()
def loss_of(network: Any, examples: Examples) -> float:
    network.eval()
    batch = Batch.of(examples.arrays(np.arange(len(examples))), next(network.parameters()).device)
    each, weight = network.loss(network(batch), batch)["text"]
    return float(each.sum() / weight.sum())


def compared(
    pairs: int, steps: int, batch: int, *, shape: rival.Shape = SHAPE, device: str = "cpu", precision: str = "fp32",
    compile: str = "off",
) -> dict[str, Any]:  # fmt: skip
    """Both sides in turns of `steps` updates. `first_step`: seconds from no network at all to its first update, compiling
    included; the rival's comes first, and what torch loads for the first optimiser and compiler of a process is in it.
    """
    data, clock = text(), partial(rival.clock, device)
    held = data[-16 * shape.block - 1 :]
    rows = steps * batch
    data = np.resize(data[: -len(held)], rows * shape.block)
    first: dict[str, float] = {}

    began = clock()
    torch.manual_seed(0)
    theirs = rival.GPT(shape).to(device)
    optimizer, run = rival.adamw(theirs, RATE, DECAY), torch.compile(theirs) if compile == "on" else theirs
    feed = rival.Feed(data.astype(np.uint16), batch, shape.block, device, 0)
    rival.step(run, optimizer, feed, precision, 1.0)
    first["rival"] = clock() - began

    began = clock()
    network, known = mine(shape)
    training = stretches(network.outputs, data, shape.block)
    turns: list[tuple[float, float]] = []

    def update(state: Any, batch: Batch, objective: Any) -> Any:
        numbers = plain(state, batch, objective)
        if "luban" not in first:
            first["luban"] = clock() - began
        return numbers

    def turn(_: Any) -> None:
        """At the end of an epoch of ours: the same number of updates of the other side."""
        nonlocal began
        ours = clock() - began
        began = clock()
        for _ in range(steps - (not turns)):  # the first of all is made already
            rival.step(run, optimizer, feed, precision, 1.0)
        turns.append((ours, clock() - began))
        began = clock()

    plan = Plan(**{
        **known, "epochs": pairs + 1, "batch": batch, "rate": RATE, "weight_decay": DECAY, "tokens": 0, "device": device,
        "precision": precision, "compile": compile, "patience": 0, "schedule": "constant", "warmup": 0.0, "optimizer": "adamw",
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fit(
            network, training, None, plan=plan, objective=supervised, step=update, folder=Path(folder), title="train",
            watch=turn,
        )  # fmt: skip
    turns = turns[1:]
    tokens = rows * shape.block
    ratios = [b / a for a, b in turns]
    with torch.no_grad():
        windows = torch.from_numpy(held[:-1].astype(np.int64)).view(16, shape.block).to(device)
        after = torch.from_numpy(held[1:].astype(np.int64)).view(16, shape.block).to(device)
        other = float(theirs.eval()(windows, after))
    return {
        "luban": tokens / statistics.median(a for a, _ in turns),
        "rival": tokens / statistics.median(b for _, b in turns),
        "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "n": len(turns),
        "loss_luban": loss_of(network, stretches(network.outputs, held[1:], shape.block)), "loss_rival": other,
        "updates": (pairs + 1) * steps, "batch": batch, "block": shape.block, "precision": precision, "compile": compile,
        "first_step": first, "parameters_luban": sum(p.numel() for p in network.parameters()),
        "parameters_rival": sum(p.numel() for p in theirs.parameters()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--json")
    a = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    finish("language.train_gpt", compared(a.pairs, a.steps, a.batch), a.json)


if __name__ == "__main__":
    main()
