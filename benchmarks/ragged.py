"""Real tokens per CPU-second of training on texts of different lengths, the same network on all sides.

    python -m benchmarks.ragged [movie-sentences chinese-reviews] [--rows 1000] [--pairs 10 | --quick] [--json FILE]

| side | what it is |
|---|---|
| luban | `fit` as it is: batches under `tokens: auto`, finite check, clipping, loss, progress |
| hand | the best loop that we can write: the same kind of batches, padded before the clock starts, fused AdamW, clipping |
| trainer | transformers' Trainer at its defaults: random order, `DataCollatorWithPadding` |
| trainer-grouped | the same with `train_sampling_strategy="group_by_length"` |

Every side sees each row once an epoch in batches of 32 on average, fp32, AdamW with a linear schedule, gradients clipped to norm 1.
Luban and a rival train at the same time, in turns of one epoch, each turn timed by the CPU time of its thread, as in
`benchmarks.loop`. `validation_loss` is that of the same rows for all sides, after the last epoch. Rivals: `pip install luban[rivals]`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.common import finish
from benchmarks.loop import Side, Tick, duel
from luban import console
from luban.bundle import build_network
from luban.columns.examples import Examples, encode
from luban.columns.fitting import fit_columns
from luban.data.prepare import prepare
from luban.data.sources import read
from luban.nn.tokens import Batch
from luban.recipe import Recipe
from luban.training.batches import order, padding, tokens_for
from luban.training.loop import Plan, evaluate, fit
from luban.training.objectives import supervised
from luban.training.random import seed_torch

DATA = {"movie-sentences": ("sentence", "sentiment"), "chinese-reviews": ("review", "label")}
BATCH, RATE = 32, 1e-3


class Work:
    """One data set, encoded once, and a fresh copy of one network for whoever asks."""

    def __init__(self, name: str, rows: int, seed: int = 0):
        text, label = DATA[name]
        source = read(name)
        source = source.take(np.sort(np.random.default_rng(seed).permutation(len(source))[:rows]))
        self.recipe = Recipe.of(
            {
                "luban": 1,
                "data": {"split": {"validation": 0.2, "test": 0}},
                "inputs": {text: {"text": {"drop": 0.0}}},
                "outputs": {label: "category"},
                "model": {text: {"transformer": {"width": 128, "layers": 2, "dropout": 0.0}}},
            }
        ).resolved()
        data = prepare(self.recipe, source)
        self.columns = fit_columns(self.recipe, data)
        self.training, self.validation = (
            encode(self.columns, [text], [label], data.framed(p, self.recipe.frame)) for p in ("train", "validation")
        )
        self.text, self.label = text, label
        self.tokens = tokens_for(self.training, BATCH)
        self.plan = Plan(
            epochs=1,
            batch=BATCH,
            rate=RATE,
            tokens=self.tokens,
            schedule="linear",
            warmup=0.0,
            augment=False,
            keep="last",
        )

    def network(self) -> torch.nn.Module:
        seed_torch(0, "weights")
        return build_network(self.recipe, self.columns, ())

    def loss(self, network: torch.nn.Module) -> float:
        return evaluate(network, self.validation, self.plan)["loss"]


def luban(work: Work) -> Side:
    def side(epochs: int, tick: Tick) -> torch.nn.Module:
        network = work.network()
        plan = Plan(**{**vars(work.plan), "epochs": epochs})
        fit(network, work.training, None, plan=plan, objective=supervised, watch=lambda _: tick())
        return network

    return side


def hand(work: Work) -> Side:
    def side(epochs: int, tick: Tick) -> torch.nn.Module:
        network = work.network().train()
        orders = [order(work.training, BATCH, 0, e, tokens=work.tokens) for e in range(epochs)]
        padded = [[Batch.of(work.training.arrays(i)) for i in found] for found in orders]
        parameters = list(network.parameters())
        optimizer = torch.optim.AdamW(parameters, RATE, fused=True)
        step, total = 0, sum(map(len, padded))
        for batches in padded:
            for batch in batches:
                optimizer.param_groups[0]["lr"] = RATE * (1 - step / total)
                for each, weight in network.loss(network(batch), batch).values():
                    (each.sum() / weight.sum()).backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
            tick()
        return network.eval()

    return side


class Wrapped(torch.nn.Module):
    """The network as transformers' Trainer wants it: keywords in, `loss` and `logits` out."""

    def __init__(self, network: torch.nn.Module, work: Work):
        super().__init__()
        self.network, self.text, self.label = network, work.text, work.label

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> dict:
        inputs = {self.text: (input_ids, attention_mask.bool())}
        batch = Batch(inputs, {self.label: (labels, torch.ones_like(labels, dtype=torch.bool))}, len(labels))
        o = self.network(batch)
        ((each, weight),) = self.network.loss(o, batch).values()
        return {"loss": each.sum() / weight.sum(), "logits": o[self.label]}


def rows_for_trainer(examples: Examples, work: Work) -> list[dict]:
    ids, labels = examples.inputs[work.text], examples.targets[work.label]
    return [{"input_ids": i.tolist(), "labels": int(y)} for i, y in zip(ids.take(np.arange(len(examples))), labels)]


def trainer(work: Work, strategy: str = "random") -> Side:
    from tokenizers import Tokenizer
    from transformers import (
        DataCollatorWithPadding,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(work.columns[work.text].tokenizer.to_str()), pad_token="⟨pad⟩"
    )

    def side(epochs: int, tick: Tick) -> torch.nn.Module:
        network = work.network()
        told = type("Told", (TrainerCallback,), {"on_epoch_end": lambda *_, **__: tick()})()
        with tempfile.TemporaryDirectory() as folder:
            asked = TrainingArguments(
                output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=BATCH, learning_rate=RATE,
                weight_decay=work.plan.weight_decay, train_sampling_strategy=strategy, report_to=[], save_strategy="no",
                disable_tqdm=True, use_cpu=True, logging_strategy="no",
            )  # fmt: skip
            Trainer(
                Wrapped(network, work), asked, train_dataset=rows_for_trainer(work.training, work),
                data_collator=DataCollatorWithPadding(words), callbacks=[told],
            ).train()  # fmt: skip
        return network.eval()

    return side


RIVALS = {"hand": hand, "trainer": trainer, "trainer-grouped": lambda work: trainer(work, "group_by_length")}


def row(name: str, rows: int, count: int, rivals: Sequence[str] = tuple(RIVALS)) -> dict[str, Any]:
    work = Work(name, rows)
    real = int(work.training.lengths().sum())
    found = order(work.training, BATCH, 0, 0, tokens=work.tokens)
    result: dict[str, Any] = {
        "row": name, "rows": len(work.training), "real_tokens": real, "longest": int(work.training.lengths().max()),
        "padding": round(padding(work.training, found), 3), "epochs": count + 1, "n": count,
    }  # fmt: skip
    for rival in rivals:
        mine, theirs, (network, other) = duel(luban(work), count, RIVALS[rival](work))
        ratios = [b / a for a, b in zip(mine, theirs)]
        result[rival] = {
            "tokens_per_cpu_second": round(real / statistics.median(theirs)),
            "luban_tokens_per_cpu_second": round(real / statistics.median(mine)),
            "luban_is_faster_by": {
                k: round(f(ratios), 3) for k, f in (("median", statistics.median), ("min", min), ("max", max))
            },
            "validation_loss": round(work.loss(other), 4),
            "luban_validation_loss": round(work.loss(network), 4),
        }
        print(rival, result[rival], file=sys.stderr, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows_of", nargs="*", default=list(DATA))
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--quick", action="store_true", help="400 rows and three pairs: good to a fifth")
    parser.add_argument("--json")
    asked = parser.parse_args()
    console.configure(quiet=True)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rows, pairs = (400, 3) if asked.quick else (asked.rows, asked.pairs)
    finish("ragged", [row(n, rows, pairs, asked.rivals) for n in asked.rows_of], asked.json)


if __name__ == "__main__":
    main()
