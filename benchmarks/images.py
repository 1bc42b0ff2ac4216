"""Images a second: Luban's `fit` beside the best loop that we can write by hand, and beside the naive one.

    python -m benchmarks.images [--models cnn resnet] [--rows 7680] [--pairs 5 | --quick] [--json FILE]

Fashion-MNIST, the default CNN and a ResNet-18, the same first weights on every side, batches of 128, AdamW at 2e-3, one
thread; turns of one epoch as in `benchmarks.loop`. Accuracy on 2,000 test rows after the last epoch stands beside each.

| side | what it is |
|---|---|
| luban | `fit` with every default on (images are moved about, the hand-written loop's are not), uint8 in memory, the precision that the trial of `precision: auto` takes |
| hand | the same modules: one uint8 tensor, permuted once an epoch, channels last, fused AdamW; bf16 where that is faster |
| naive | DataLoader over standardised fp32 images, AdamW as it comes, `loss.item()` |

Where the processor has bf16 the goal is twice the naive loop, too; the JSON says whether it has (`bf16`).
"""

from __future__ import annotations

import argparse
import copy
import gzip
import itertools
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from benchmarks.common import finish
from benchmarks.loop import Side, Tick, duel
from luban.columns.base import make
from luban.columns.examples import Examples
from luban.data import samples
from luban.nn.network import Composed
from luban.recipe import Recipe
from luban.training.loop import Plan, fit
from luban.training.objectives import supervised
from luban.training.precision import able, choose

BATCH, RATE, TEST = 128, 2e-3, 2000


def idx(path: Path) -> np.ndarray:
    """An idx file: two bytes of nothing, the type, the number of sizes, the sizes, the bytes."""
    content = gzip.decompress(path.read_bytes())
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(content[3])]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


class Work:
    """The rows, the columns fitted on them, and the network with its first weights. `model`: as in a recipe; x: (N, H, W)
    or (N, H, W, C) bytes."""

    def __init__(self, model: Any, x: np.ndarray, y: np.ndarray, device: str = "cpu"):
        self.x, self.y, self.device = x, y, device
        plain = {"luban": 1, "inputs": {"image": "image"}, "outputs": {"label": "category"}, "stages": ["train"]}
        plain["model"] = {"image": model}
        self.recipe = Recipe.of(plain).resolved()
        parts = {**self.recipe.inputs, **self.recipe.outputs}
        raw = {"image": self.x, "label": [str(v) for v in self.y]}
        self.columns = {n: make(n, p.type, dict(p.settings)).fit(raw[n]) for n, p in parts.items()}
        torch.manual_seed(0)
        self.first = Composed(self.recipe, self.columns)
        self.pixels = self.columns["image"].encode_all(self.x)  # (N, C, H, W)
        count = len(self.x)
        self.examples = Examples(self.columns, {"image": self.pixels}, {"label": self.y + 1}, np.arange(count), count)
        self.precision = choose(self.first, self.examples, BATCH, device, supervised).precision

    def network(self) -> Composed:
        return copy.deepcopy(self.first)


class Fashion(Work):
    """The first rows of Fashion-MNIST, and test rows."""

    def __init__(self, model: str, count: int):
        with tempfile.TemporaryDirectory() as folder:
            samples.save("fashion-mnist", Path(folder) / "f")
            read = {n: idx(Path(folder) / "f" / f"{n}-ubyte.gz") for n in (
                "train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")}  # fmt: skip
        super().__init__(model, read["train-images-idx3"][:count], read["train-labels-idx1"][:count].astype(np.int64))
        self.test = read["t10k-images-idx3"][:TEST], read["t10k-labels-idx1"][:TEST].astype(np.int64)

    def accuracy(self, network: Composed) -> float:
        pixels = torch.from_numpy(self.test[0].copy())[:, None]
        with torch.no_grad():
            answers = Hand(network.eval())(pixels).argmax(1)
        return float((answers == torch.from_numpy(self.test[1])).float().mean())


class Hand(nn.Module):
    """The modules of the default network, called one after the other."""

    def __init__(self, network: Composed):
        super().__init__()
        (self.encoder,), (self.head,), self.fusion = network.encoders, network.heads, network.fusion
        self.form = self.encoder.form

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        h = (pixels.float() - self.form.mean) * self.form.scale if pixels.dtype == torch.uint8 else pixels
        if hasattr(self.encoder, "net"):
            h = self.encoder.net.maps(h.contiguous(memory_format=torch.channels_last))[-1].mean((2, 3))
        else:
            h = self.encoder.layers(h)[-1].flatten(2).transpose(1, 2).flatten(1)  # no copy where channels lie last
            h = self.encoder.dense(h)
        return self.head.out(self.fusion.dropout(h)).float()


def luban(work: Work) -> Side:
    settings = work.recipe.stage("train").settings
    known = {k: v for k, v in settings.items() if k in Plan.__dataclass_fields__}

    def side(epochs: int, tick: Tick) -> nn.Module:
        network = work.network()
        mine = {"epochs": epochs, "batch": BATCH, "rate": RATE, "tokens": 0, "device": work.device, "patience": 0}
        plan = Plan(**known | mine | {"precision": work.precision})
        with tempfile.TemporaryDirectory() as folder:
            fit(
                network, work.examples, None, plan=plan, objective=supervised, folder=Path(folder), title="train",
                watch=lambda _: tick(),
            )  # fmt: skip
        return network

    return side


def hand(work: Work) -> Side:
    def side(epochs: int, tick: Tick) -> nn.Module:
        network = work.network().train().to(work.device)
        model = Hand(network).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), RATE, fused=True)
        x, y = (torch.from_numpy(a.copy()).to(work.device) for a in (work.pixels, work.y))
        low = work.precision == "bf16"
        for epoch in range(epochs):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).to(work.device)
            for pixels, truth in zip(x[order].split(BATCH), y[order].split(BATCH)):
                with torch.autocast(work.device.split(":")[0], torch.bfloat16, enabled=low):
                    loss = nn.functional.cross_entropy(
                        model(pixels.contiguous(memory_format=torch.channels_last)), truth
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            tick()
        return network

    return side


def naive(work: Work) -> Side:
    def side(epochs: int, tick: Tick) -> nn.Module:
        network = work.network().train()
        model = Hand(network)
        x = (torch.from_numpy(work.x.copy())[:, None].float() - model.form.mean) * model.form.scale
        rows = torch.utils.data.TensorDataset(x, torch.from_numpy(work.y))
        loader = torch.utils.data.DataLoader(rows, batch_size=BATCH, shuffle=True)
        optimizer, total = torch.optim.AdamW(model.parameters(), RATE), 0.0
        for _ in range(epochs):
            for pixels, truth in loader:
                loss = nn.functional.cross_entropy(model(pixels), truth)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
            tick()
        return network

    return side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["cnn", "resnet"])
    parser.add_argument("--rows", type=int, default=7680)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="1,280 rows and two pairs: good to a third")
    parser.add_argument("--json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows, pairs = (1280, 2) if asked.quick else (asked.rows, asked.pairs)
    found: list[dict[str, Any]] = []
    for model, rival in itertools.product(asked.models, ("hand", "naive")):
        work = Fashion(model, rows)
        mine, theirs, (network, other) = duel(luban(work), pairs, {"hand": hand, "naive": naive}[rival](work))
        ratios = [b / a for a, b in zip(mine, theirs)]
        found.append({
            "model": model, "rival": rival, "images_per_second": round(len(work.x) / statistics.median(mine)),
            "rival_images_per_second": round(len(work.x) / statistics.median(theirs)),
            "times_the_rival": round(statistics.median(ratios), 3), "low": round(min(ratios), 3), "high": round(max(ratios), 3),
            "n": len(ratios), "accuracy": round(work.accuracy(network), 4),
            "rival_accuracy": round(work.accuracy(other), 4), "precision": work.precision, "bf16": able("cpu"),
        })  # fmt: skip
        finish("images", found, asked.json)


if __name__ == "__main__":
    main()
