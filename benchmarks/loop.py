"""What one training step costs around the arithmetic: Luban's `fit` beside bare loops and other trainers.

    python -m benchmarks.loop [luban hf ...] [--pairs 5 | --quick] [--json FILE]        needs the extra `rivals`

The work is the same everywhere: 12,800 rows of 64 numbers, a 64-64-4 network, batches of 32, AdamW at 1e-3, one thread.
Each side is paired with the best bare loop: both train at the same time, in turns of one epoch (400 steps), A B A B, each
turn timed by the CPU time of its thread; the first turn, with all setting up, is left out. A ratio is that of two turns
side by side, so that what else the machine does falls upon both.

| side | what it is |
|---|---|
| bare | the best loop that we can write by hand: tensors in memory, permuted once an epoch, fused AdamW, no clipping, nothing watched |
| naive | the loop of most tutorials: DataLoader over a TensorDataset, AdamW as it comes, `loss.item()` |
| luban | `fit` with every default on: progress line, metrics, checkpoints, finite check, clipping, warm-up and cosine, best weights |
| hf, hf_best | `transformers.Trainer` at its defaults; and with logging, saving, clipping and tqdm off and batches that are slices |
| lightning, lightning_best | `lightning.Trainer` with `self.log`; and with logger, checkpoints, bar and summary off and batches that are slices |
| keras, keras_best | `keras.Model.fit` on the torch backend at its defaults; and silent |
| accelerate | a hand-written loop through `accelerate` |
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import torch
from torch import nn

from benchmarks.common import finish

ROWS, FEATURES, CLASSES, WIDTH, BATCH, RATE = 12_800, 64, 4, 64, 32, 1e-3


Tick = Callable[[], None]  # called at the end of every epoch
Side = Callable[[int, Tick], nn.Module]


class Terminal(io.StringIO):
    """A terminal that nobody looks at, so that progress bars draw as they would on one."""

    def isatty(self) -> bool:
        return True


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers and the class that a random network gives them."""
    torch.manual_seed(0)
    x = torch.randn(ROWS, FEATURES)
    return x, (torch.tanh(x @ torch.randn(FEATURES, 16) / 8) @ torch.randn(16, CLASSES)).argmax(1)


X, Y = rows()


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))


def loss_of(net: nn.Module) -> float:
    with torch.no_grad():
        return float(nn.functional.cross_entropy(net(X), Y))


def slices(epoch: int, device: str = "cpu") -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of an epoch as views of one permuted copy."""
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch))
    return list(zip(X[order].to(device).split(BATCH), Y[order].to(device).split(BATCH)))


# -- the sides: each trains for so many epochs and gives the network -------------------------------------------------------
def bare_on(device: str) -> Side:
    def side(epochs: int, tick: Tick) -> nn.Module:
        net, cross_entropy = network().to(device), nn.functional.cross_entropy
        optimizer = torch.optim.AdamW(net.parameters(), RATE, fused=True)
        for epoch in range(epochs):
            for x, y in slices(epoch, device):
                loss = cross_entropy(net(x), y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            tick()
        return net.cpu()

    return side


bare = bare_on("cpu")


def naive(epochs: int, tick: Tick) -> nn.Module:
    net = network()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=BATCH, shuffle=True)
    optimizer, criterion, total = torch.optim.AdamW(net.parameters(), RATE), nn.CrossEntropyLoss(), 0.0
    for _ in range(epochs):
        for x, y in loader:
            loss = criterion(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        tick()
    return net


def luban(device: str = "cpu", step: Callable[..., Any] | None = None) -> Side:
    """`step`: another way of making an update than the usual one."""
    import pyarrow as pa

    from luban.columns.base import make
    from luban.columns.examples import encode
    from luban.data.frames import row
    from luban.nn.networks.own import Own
    from luban.recipe import Recipe
    from luban.training.loop import Plan, fit
    from luban.training.objectives import supervised
    from luban.training.steps import plain as usual

    names = [f"x{i}" for i in range(FEATURES)]
    table = pa.table({n: X[:, i].numpy() for i, n in enumerate(names)} | {"y": [str(int(v)) for v in Y]})
    inputs = {n: {"number": {"scale": "none"}} for n in names}
    plain = {"luban": 1, "inputs": inputs, "outputs": {"y": "category"}, "fusion": "own", "stages": ["train"]}
    recipe = Recipe.of(plain).resolved()
    parts = {**recipe.inputs, **recipe.outputs}
    columns = {n: make(n, p.type, dict(p.settings)).fit(table[n]) for n, p in parts.items()}
    examples = encode(columns, names, ["y"], row(table, np.arange(ROWS)))
    known = {k: v for k, v in recipe.stage("train").settings.items() if k in Plan.__dataclass_fields__}

    def side(epochs: int, tick: Tick) -> nn.Module:
        net = network()
        own = Own(recipe, columns, net)
        plan = Plan(**{**known, "epochs": epochs, "batch": BATCH, "rate": RATE, "tokens": 0, "device": device, "precision": "fp32", "patience": 0})  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            fit(
                own,
                examples,
                None,
                plan=plan,
                objective=supervised,
                step=step or usual,
                folder=Path(folder),
                title="train",
                watch=lambda _: tick(),
            )
        return net.cpu()

    return side


class Pairs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"x": X[i], "labels": Y[i]}


class Fetched(Pairs):
    """Gives a whole batch at once, as a DataLoader allows."""

    def __getitems__(self, index: list[int]) -> dict[str, torch.Tensor]:
        return {"x": X[index], "labels": Y[index]}


def hf(best: bool) -> Side:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    off = {"logging_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "max_grad_norm": 0.0, "remove_unused_columns": False, "optim": "adamw_torch_fused"}  # fmt: skip

    def side(epochs: int, tick: Tick) -> nn.Module:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, num_train_epochs=epochs, per_device_train_batch_size=BATCH, learning_rate=RATE, use_cpu=True,
                report_to="none", **(off if best else {}),
            )  # fmt: skip
            model = Model()
            more = {"data_collator": lambda batch: batch} if best else {}
            told = type("Told", (TrainerCallback,), {"on_epoch_end": lambda *_, **__: tick()})()
            Trainer(model, arguments, train_dataset=Fetched() if best else Pairs(), callbacks=[told], **more).train()
        return model.net

    return side


def lightning(best: bool) -> Side:
    import lightning as L

    class Model(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            if not best:
                self.log("loss", loss, prog_bar=True)
            return loss

        def on_train_epoch_end(self) -> None:
            self.tick()

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), RATE, fused=best)

    class Slices:
        epoch = 0

        def __len__(self) -> int:
            return ROWS // BATCH

        def __iter__(self) -> Any:
            self.epoch += 1
            return iter(slices(self.epoch))

    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}

    def side(epochs: int, tick: Tick) -> nn.Module:
        model = Model()
        model.tick = tick
        data = torch.utils.data.TensorDataset(X, Y)
        loader = Slices() if best else torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)
        with tempfile.TemporaryDirectory() as folder:
            L.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=folder, **(off if best else {})).fit(
                model, loader
            )
        return model.net

    return side


def keras(best: bool) -> Side:
    import keras

    def side(epochs: int, tick: Tick) -> nn.Module:
        net = network()
        first, second = keras.layers.Dense(WIDTH, "relu"), keras.layers.Dense(CLASSES)
        model = keras.Sequential([keras.layers.Input((FEATURES,)), first, second])
        for mine, theirs in ((net[0], first), (net[2], second)):
            theirs.set_weights([mine.weight.detach().numpy().T, mine.bias.detach().numpy()])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        told = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: tick())
        model.compile(optimizer=keras.optimizers.AdamW(RATE), loss=loss)
        model.fit(
            X.numpy(), Y.numpy(), batch_size=BATCH, epochs=epochs, verbose=0 if best else "auto", callbacks=[told]
        )
        for mine, theirs in ((net[0], first), (net[2], second)):
            weight, bias = theirs.get_weights()
            mine.weight.data.copy_(torch.from_numpy(weight.T.copy()))
            mine.bias.data.copy_(torch.from_numpy(bias))
        return net

    return side


def accelerate() -> Side:
    from accelerate import Accelerator

    def side(epochs: int, tick: Tick) -> nn.Module:
        accelerator = Accelerator(cpu=True)
        net = network()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=BATCH, shuffle=True)
        optimizer = torch.optim.AdamW(net.parameters(), RATE, fused=True)
        model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
        for _ in range(epochs):
            for x, y in loader:
                loss = nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
            tick()
        return net

    return side


SIDES: dict[str, Callable[[], Side]] = {
    "bare": lambda: bare,
    "luban": luban,
    "naive": lambda: naive,
    "hf": lambda: hf(False),
    "hf_best": lambda: hf(True),
    "lightning": lambda: lightning(False),
    "lightning_best": lambda: lightning(True),
    "keras": lambda: keras(False),
    "keras_best": lambda: keras(True),
    "accelerate": accelerate,
}


class Turns:
    """Two threads that work one after the other, an epoch each, and how much time by `clock` each of its turns took."""

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self.clock = clock
        self.gates = (threading.Semaphore(1), threading.Semaphore(0))
        self.spent: tuple[list[float], list[float]] = ([], [])
        self.results: list[nn.Module | None] = [None, None]
        self.failed: list[BaseException] = []

    def play(self, who: int, side: Side, epochs: int) -> None:
        mine, other = self.gates[who], self.gates[1 - who]
        mine.acquire()
        began = [self.clock()]

        def tick() -> None:
            self.spent[who].append(self.clock() - began[0])
            other.release()
            mine.acquire()
            began[0] = self.clock()

        try:
            self.results[who] = side(epochs, tick)
        except BaseException as e:
            self.failed.append(e)
        finally:
            other.release(epochs + 1)  # nobody waits for a side that is at its end, or has failed


def duel(
    side: Side, count: int, rival: Side = bare, clock: Callable[[], float] = time.thread_time
) -> tuple[list[float], list[float], list[nn.Module]]:
    """Seconds of each turn of a side and of its rival beside it, the first turn left out, and both networks."""
    turns = Turns(clock)
    threads = [threading.Thread(target=turns.play, args=(i, s, count + 1)) for i, s in enumerate((side, rival))]
    with warnings.catch_warnings(), contextlib.redirect_stderr(Terminal()), contextlib.redirect_stdout(Terminal()):
        warnings.simplefilter("ignore")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    networks = [n for n in turns.results if n is not None]
    if len(networks) < 2:
        raise SystemExit(f"a side failed: {turns.failed[:1]}")
    return turns.spent[0][1:], turns.spent[1][1:], networks


def row(name: str, count: int) -> dict[str, Any]:
    mine, theirs, (net, _) = duel(SIDES[name](), count)
    ratios, steps = [a / b for a, b in zip(mine, theirs)], ROWS / BATCH
    return {
        "side": name, "us_per_step": round(statistics.median(mine) / steps * 1e6, 1),
        "bare_us_per_step": round(statistics.median(theirs) / steps * 1e6, 1), "of_bare": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3), "high": round(max(ratios), 3), "n": len(ratios), "final_loss": round(loss_of(net), 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="*", default=list(SIDES))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="three pairs: good to a fifth")
    parser.add_argument("--json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for name in asked.sides:
        found.append(row(name, 3 if asked.quick else asked.pairs))
        print(found[-1], file=sys.stderr, flush=True)
        finish("loop", found, asked.json)


if __name__ == "__main__":
    main()
