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
import time
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

SHAPE, RATE, DECAY = rival.Shape(), 1e-3, 0.1


def text() -> np.ndarray:
    """The bytes of the documents, one after another."""
    root = Path(__file__).parents[2]
    return np.frombuffer(b"\n".join(p.read_bytes() for p in sorted((root / "docs").glob("*.md"))), np.uint8)


def mine() -> tuple[Any, dict[str, Any]]:
    """The network, and the settings of training that a recipe has for it."""
    column = {"text": {"vocabulary": SHAPE.vocabulary, "length": SHAPE.block}}
    model = {"text": {"gpt": {"width": SHAPE.width, "layers": SHAPE.layers, "heads": SHAPE.heads, "bias": False}}}
    recipe = Recipe.of({"luban": 1, "outputs": {"text": column}, "model": model, "stages": ["train"]}).resolved()
    learned = Ids("text", **fill("columns", recipe.outputs["text"], "small").settings).supposed()
    torch.manual_seed(0)
    known = {k: v for k, v in recipe.stage("train").settings.items() if k in Plan.__dataclass_fields__}
    return build_network(recipe, {"text": learned}), known


def stretches(columns: Any, data: np.ndarray) -> Examples:
    """Rows of `block` bytes each."""
    count = len(data) // SHAPE.block
    flat = data[: count * SHAPE.block].astype(np.int32)
    found = Ragged(flat, np.arange(count + 1) * SHAPE.block)
    return Examples(columns, {}, {"text": found}, np.arange(count), count)


@torch.no_grad()
def loss_of(network: Any, examples: Examples) -> float:
    network.eval()
    batch = Batch.of(examples.arrays(np.arange(len(examples))))
    each, weight = network.loss(network(batch), batch)["text"]
    return float(each.sum() / weight.sum())


def compared(pairs: int, steps: int, batch: int) -> dict[str, Any]:
    data = text()
    rows = steps * batch
    network, known = mine()
    training = stretches(network.outputs, data[: rows * SHAPE.block])
    held = data[-16 * SHAPE.block - 1 :]

    torch.manual_seed(0)
    theirs = rival.GPT(SHAPE)
    optimizer = rival.adamw(theirs, RATE, DECAY)
    feed = rival.Feed(data[: rows * SHAPE.block].astype(np.uint16), batch, SHAPE.block, "cpu", 0)
    turns: list[tuple[float, float]] = []
    began = time.process_time()

    def turn(_: Any) -> None:
        """At the end of an epoch of ours: the same number of updates of the other side."""
        nonlocal began
        ours = time.process_time() - began
        began = time.process_time()
        for _ in range(steps):
            rival.step(theirs, optimizer, feed, "fp32", 1.0)
        turns.append((ours, time.process_time() - began))
        began = time.process_time()

    plan = Plan(**{
        **known, "epochs": pairs + 1, "batch": batch, "rate": RATE, "weight_decay": DECAY, "tokens": 0, "device": "cpu",
        "precision": "fp32", "patience": 0, "schedule": "constant", "warmup": 0.0, "optimizer": "adamw",
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fit(network, training, None, plan=plan, objective=supervised, folder=Path(folder), title="train", watch=turn)
    turns = turns[1:]
    tokens = rows * SHAPE.block
    ratios = [b / a for a, b in turns]
    with torch.no_grad():
        windows = torch.from_numpy(held[:-1].astype(np.int64)).view(16, SHAPE.block)
        after = torch.from_numpy(held[1:].astype(np.int64)).view(16, SHAPE.block)
        other = float(theirs.eval()(windows, after))
    return {
        "luban": tokens / statistics.median(a for a, _ in turns),
        "rival": tokens / statistics.median(b for _, b in turns),
        "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "n": len(turns),
        "loss_luban": loss_of(network, stretches(network.outputs, held[1:])), "loss_rival": other,
        "updates": (pairs + 1) * steps, "batch": batch, "block": SHAPE.block, "precision": "fp32",
        "parameters_luban": sum(p.numel() for p in network.parameters()),
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
