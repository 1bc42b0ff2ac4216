"""Real tokens a second of fine-tuning a GPT of ten million parameters on texts of different lengths: Luban's `fit` beside transformers' Trainer.

    python -m benchmarks.language.tune_gpt [--rows 240] [--pairs 5] [--json FILE]

Long descriptions of Debian packages, drawn from the sample set; every side starts from the same GPT-2 folder (made and saved by the rival,
`hf_trainer`, opened by Luban as any checkpoint) and reads the same tokens once: AdamW at 5e-5 that falls to zero, no decay, clipped at 1, batches
of 8 texts on average, fp32 where bf16 is not faster. All sides in turns within one process, each turn a whole run in CPU seconds of the process.
`default` are the rival's arguments as they come, `best` what its documentation offers (texts of like length together, no checkpoints ...).
Luban runs with all its defaults: batches under `tokens: auto`, checkpoints, finite check, best weights. Quality: the loss of a held-out token (nats),
for Luban without the first token of each text, which the rival does not learn.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.common import finish
from benchmarks.language import hf_trainer as rival
from luban import console
from luban.bundle import Bundle
from luban.columns.base import Ragged
from luban.columns.examples import Examples
from luban.data.samples import load
from luban.huggingface import opened
from luban.nn.tokens import Batch
from luban.training.batches import order, padding, tokens_for
from luban.training.loop import Plan, fit
from luban.training.objectives import supervised

BATCH, RATE, LONGEST = 8, 5e-5, rival.LONGEST - 1


def texts(rows: int, seed: int = 0) -> list[str]:
    table = load("debian-descriptions").table
    drawn = np.random.default_rng(seed).permutation(len(table))[:rows]
    return table["long"].take(np.sort(drawn)).to_pylist()


def examples(columns: Any, ids: Sequence[Sequence[int]], given: int = 0) -> Examples:
    """Texts to learn; the first `given` tokens of each are read only."""
    rows = [np.array([*(~i for i in row[:given]), *row[given:]], np.int64) for row in ids]
    return Examples(columns, {}, {"text": Ragged.of(rows)}, np.arange(len(rows)), len(rows))


@torch.no_grad()
def loss_of(network: Any, held: Examples) -> float:
    """As the rival's `evaluate` has it: of batches in the order of the rows the mean of a token, each batch by its rows."""
    total = 0.0
    for index in np.split(np.arange(len(held)), range(BATCH, len(held), BATCH)):
        batch = Batch.of(held.arrays(index))
        each, weight = network.loss(network(batch), batch)["text"]
        total += len(index) * float(each.sum() / weight.sum())
    return total / len(held)


def mine(start: Bundle, training: Examples, held: Examples) -> dict[str, Any]:
    """One epoch from the same weights, with what a recipe resolves to."""
    network, known = copy.deepcopy(start.network), start.recipe.resolved()
    asked = known.stage("train").settings if "train" in [s.type for s in known.stages] else {}
    defaults = {k: v for k, v in asked.items() if k in Plan.__dataclass_fields__}
    plan = Plan(**{
        **defaults, "epochs": 1, "batch": BATCH, "rate": RATE, "tokens": tokens_for(training, BATCH), "optimizer": "adamw",
        "weight_decay": 0.0, "schedule": "linear", "warmup": 0.0, "device": "cpu", "precision": "fp32", "patience": 0,
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        history = fit(network, training, None, plan=plan, objective=supervised, folder=Path(folder), title="train")
        seconds = time.process_time() - started
    tokens = int(training.lengths().sum())
    return {"tokens_per_s": tokens / seconds, "validation_loss": loss_of(network, held), "updates": history.step}


def compared(rows: int, pairs: int) -> dict[str, Any]:
    found = texts(rows)
    cut = rows * 9 // 10
    model, tokenizer = rival.made(found[:cut], 0)
    ids = [tokenizer(t + rival.END, truncation=True, max_length=LONGEST)["input_ids"] for t in found]
    train, held = [{"input_ids": i} for i in ids[:cut]], [{"input_ids": i} for i in ids[cut:]]
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place), tokenizer.save_pretrained(place)
        start = opened(place)
    training, unseen = examples(start.columns, ids[:cut]), examples(start.columns, ids[cut:], given=1)
    sides = {
        "luban": lambda: mine(start, training, unseen),
        "default": lambda: rival.run(model, tokenizer, train, held, False, 0),
        "best": lambda: rival.run(model, tokenizer, train, held, True, 0),
    }
    turns = [{name: side() for name, side in sides.items()} for _ in range(pairs)]
    result: dict[str, Any] = {
        "rows": cut, "tokens": int(training.lengths().sum()), "mean_length": float(training.lengths().mean()),
        "positions_per_token_luban": padding(training, order(training, BATCH, 0, 0, tokens=tokens_for(training, BATCH))),
        "positions_per_token_random": padding(training, np.array_split(np.random.default_rng(0).permutation(cut), -(-cut // BATCH))),
        "parameters": model.num_parameters(), "updates_luban": turns[0]["luban"]["updates"], "updates_rival": -(-cut // BATCH),
    }  # fmt: skip
    for name in ("default", "best"):
        ratios = [t["luban"]["tokens_per_s"] / t[name]["tokens_per_s"] for t in turns]
        result[name] = {
            "luban": statistics.median(t["luban"]["tokens_per_s"] for t in turns),
            "rival": statistics.median(t[name]["tokens_per_s"] for t in turns),
            "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "n": pairs,
            "loss_luban": turns[0]["luban"]["validation_loss"], "loss_rival": turns[0][name]["validation_loss"],
            "settings": turns[0][name]["settings"],
        }  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json")
    a = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    console.configure(quiet=True)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    finish("language.tune_gpt", compared(a.rows, a.pairs) | {"transformers": transformers.__version__}, a.json)


if __name__ == "__main__":
    main()
