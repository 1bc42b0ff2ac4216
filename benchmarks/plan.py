"""What `luban plan` predicts beside what is measured on this machine.

    python -m benchmarks.plan [memory ranks seconds] [--only NAME] [--repeat 5] [--json FILE]

| row | predicted | measured |
|---|---|---|
| memory | bytes of weights, gradients, optimiser, activations, copy of the best weights | in a process of its own, the largest resident memory during `fit` less that before it |
| ranks | the same for one of two devices, under ddp and under fsdp | the same in two gloo processes on this machine; the larger of the two |
| seconds | CPU seconds of a run, from a few timed updates | CPU seconds that `fit` then takes for all of them, median of the ratios |

Goals: memory within 15 %, seconds within 25 % (median of 5). Recipes whose tensors outweigh everything else; rows are made up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.common import finish


def texts(encoder: dict[str, Any], length: int, batch: int, **train: Any) -> dict[str, Any]:
    return {
        "luban": 1, "inputs": {"review": {"text": {"length": length, "vocabulary": 20_000}}},
        "outputs": {"label": {"category": {"most": 10}}}, "model": {"review": encoder},
        "stages": [{"train": {"batch": batch, "precision": "fp32"} | train}],
    }  # fmt: skip


def pictures(encoder: dict[str, Any], side: int, batch: int, **train: Any) -> dict[str, Any]:
    return {
        "luban": 1, "inputs": {"photo": {"image": {"side": side, "channels": 3}}},
        "outputs": {"label": {"category": {"most": 10}}}, "model": {"photo": encoder},
        "stages": [{"train": {"batch": batch, "precision": "fp32"} | train}],
    }  # fmt: skip


TABLE = {
    "luban": 1, "inputs": {f"x{i}": "number" for i in range(30)}, "outputs": {"y": "number"},
    "fusion": {"concat": {"layers": [4096, 2048]}},
}  # fmt: skip
DEEP = {"transformer": {"width": 256, "layers": 6, "heads": 4, "dropout": 0.0}}
# Large enough for their tensors to outweigh all else, small enough for a step in seconds.
LARGE: dict[str, dict[str, Any]] = {
    "table, mlp": TABLE | {"stages": [{"train": {"batch": 1024, "precision": "fp32"}}]},
    "table, mlp, sgd": TABLE | {"stages": [{"train": {"batch": 1024, "optimizer": "sgd", "precision": "fp32"}}]},
    "images, cnn": pictures({"cnn": {"width": 64}}, 64, 64),
    "images, transformer": pictures({"transformer": {"width": 256, "layers": 4, "patch": 4, "dropout": 0.0}}, 64, 32),
    "text, cnn": texts({"cnn": {"width": 256, "embedding": 128}}, 256, 64),
    "text, bilstm": texts({"bilstm": {"hidden": 256, "embedding": 200}}, 200, 32),
    "text, gru": texts({"gru": {"hidden": 256, "embedding": 200}}, 100, 32),
    "text, transformer": texts(DEEP, 256, 16),
    "text, transformer, dropout": texts({"transformer": {"width": 256, "layers": 4, "heads": 4}}, 256, 16),
    "text, transformer, bf16": texts(DEEP, 256, 32, precision="bf16"),
    "text, transformer, recompute": texts(DEEP, 256, 32, recompute=True),
}  # fmt: skip
SPREAD = ("table, mlp", "images, cnn", "text, transformer")  # of these, over ranks
RANKS = 2
SMALL: dict[str, dict[str, Any]] = {
    "table, mlp": TABLE | {"fusion": {"concat": {"layers": [256, 128]}}, "stages": [{"train": {"batch": 64, "steps": 1500}}]},
    "images, cnn": pictures({"cnn": {"width": 16}}, 28, 32, steps=150, precision="auto"),
    "text, bilstm": texts({"bilstm": {"hidden": 64}}, 64, 32, steps=150, precision="auto"),
    "text, transformer": texts({"transformer": {"width": 96, "layers": 2}}, 64, 32, steps=150, precision="auto"),
}  # fmt: skip


def subject_of(recipe: dict[str, Any]) -> Any:
    from luban.asking import Ask
    from luban.planning.subject import of_recipe

    subject = of_recipe(recipe, Ask(), 1000)
    return replace(subject, validation=len(subject.examples))  # they are judged too


def predicted_bytes(recipe: dict[str, Any], strategy: str = "one") -> dict[str, float]:
    from luban.planning.hardware import Device
    from luban.planning.layout import Measured, Setup, bytes_on

    subject = subject_of(recipe)
    here = Device("cpu", "cpu", 1e12, 1e10, 1, {"fp32": 1e11, "bf16": 1e11}, cores=1)
    measured = Measured(subject, fused=False)
    devices = 1 if strategy == "one" else RANKS
    setup = Setup(here, devices, strategy, subject.precision, subject.accumulate, subject.recompute)
    return bytes_on(measured, setup)


def measured_bytes(recipe: dict[str, Any]) -> float:
    """The largest resident memory while `fit` trains a new network, less what the process had before."""
    from luban import machine
    from luban.planning.calibrate import new_network_of
    from luban.training.loop import fit
    from luban.training.objectives import supervised
    from luban.training.ranks import here
    from luban.training.recompute import recomputed

    warm = subject_of(SMALL["table, mlp"])
    _fit(warm, replace(warm.plan, steps=2))
    subject = subject_of(recipe)
    few = replace(
        subject.plan, epochs=2, steps=2 * -(-len(subject.examples) // subject.plan.batch), precision=subject.precision
    )
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    before = machine.resident()
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # as `luban train --out` has one: nothing is kept in memory to go back to
        network, place = new_network_of(subject), Path(here().told(folder))  # one folder for all ranks
        with recomputed(network) if subject.recompute else nullcontext():
            fit(network, subject.examples, subject.examples, plan=few, objective=supervised, folder=place)
        here().wait()
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    return float(peak - before)


def one_of_ranks(recipe: dict[str, Any], strategy: str) -> None:
    """What torchrun starts: `measured_bytes` of this rank, the group being there already; printed."""
    from luban.training import ranks

    group = ranks.join(strategy=strategy)
    with ranks.together(group):
        each = group.gather(torch_bytes(measured_bytes(recipe)))
    if group.first:
        print(float(each.max()))
    ranks.leave()


def torch_bytes(number: float) -> Any:
    import torch

    return torch.tensor([number], dtype=torch.float64)


def _fit(subject: Any, plan: Any) -> float:
    from luban.planning.calibrate import new_network_of
    from luban.training.loop import fit
    from luban.training.objectives import supervised

    network = new_network_of(subject)
    began = time.process_time()
    fit(network, subject.examples, None, plan=plan, objective=supervised)
    return time.process_time() - began


def memory(names: list[str], repeat: int) -> list[dict[str, Any]]:
    rows = []
    for name in names or LARGE:
        parts = predicted_bytes(LARGE[name])
        code = f"from benchmarks.plan import *; print(measured_bytes(LARGE[{name!r}]))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | FIXED)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        seen = float(done.stdout.split()[-1])
        rows.append({"recipe": name, "predicted": sum(parts.values()), "measured": seen, "ratio": sum(parts.values()) / seen, "parts": parts})  # fmt: skip
        print(
            f"{name:32} predicted {sum(parts.values()) / 1e6:8.1f} MB  measured {seen / 1e6:8.1f} MB  ratio {rows[-1]['ratio']:.3f}"
        )
    return rows


def several(names: list[str], repeat: int) -> list[dict[str, Any]]:
    rows = []
    for name, strategy in product(names or SPREAD, ("ddp", "fsdp")):
        parts = predicted_bytes(LARGE[name], strategy)
        code = f"from benchmarks.plan import *; one_of_ranks(LARGE[{name!r}], {strategy!r})"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), "--no-python"]  # fmt: skip
        done = subprocess.run(
            [*command, sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | FIXED
        )
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        seen = float(done.stdout.split()[-1])
        rows.append({"recipe": name, "strategy": strategy, "predicted": sum(parts.values()), "measured": seen, "ratio": sum(parts.values()) / seen, "parts": parts})  # fmt: skip
        print(
            f"{name:24} {strategy:4} predicted {sum(parts.values()) / 1e6:8.1f} MB  measured {seen / 1e6:8.1f} MB  ratio {rows[-1]['ratio']:.3f}",
            flush=True,
        )
    return rows


# glibc keeps freed memory for later; told to give it back, resident memory is what is in use.
FIXED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


def seconds(names: list[str], repeat: int) -> list[dict[str, Any]]:
    from luban.planning import calibrate
    from luban.training.batches import epochs_of

    rows = []
    for name in names or SMALL:
        subject = subject_of(SMALL[name])
        found = []
        for _ in range(repeat):
            timed = calibrate.run(subject)
            epochs = epochs_of(
                subject.steps, subject.examples, subject.plan.batch, subject.plan.seed, subject.plan.tokens
            )
            plan = replace(subject.plan, steps=subject.steps, epochs=epochs, precision=timed.precision)
            taken = _fit(subject, plan)
            found.append((timed.update * subject.steps, taken))
        ratio = statistics.median(a / b for a, b in found)
        rows.append({"recipe": name, "predicted": statistics.median(a for a, _ in found), "measured": statistics.median(b for _, b in found), "ratio": ratio, "ratios": [a / b for a, b in found]})  # fmt: skip
        print(
            f"{name:32} predicted {rows[-1]['predicted']:8.2f} s  measured {rows[-1]['measured']:8.2f} s  ratio {ratio:.3f}"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"memory": memory, "ranks": several, "seconds": seconds}
    parser.add_argument("rows", nargs="*", default=list(kinds))
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json")
    asked = parser.parse_args()
    finish("plan", {kind: kinds[kind](asked.only, asked.repeat) for kind in asked.rows}, asked.json)


if __name__ == "__main__":
    main()
