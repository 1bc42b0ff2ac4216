"""Frames a second of detectors, one image at a time: in PyTorch and as an exported ONNX file, one thread.

    python -m benchmarks.detector MODEL... [--frames 60] [--json FILE]

A frame is a held-out image as it lies on the disk: read, brought to size, through the network, suppressed, told in its own pixels. `network` is
the network alone. Frames a CPU-second of this process, the median over the frames; both engines take turns frame by frame, and the boxes of both are
compared: the largest difference of a corner in pixels and of a probability, of answers that both give.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import luban
from benchmarks.common import finish
from luban.columns import answering
from luban.columns.examples import encode_values, records
from luban.data.prepare import prepare
from luban.engines import OnnxEngine


def seconds(act: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    found = act()
    return time.process_time() - began, found


def measured(folder: str, count: int) -> dict[str, Any]:
    model = luban.load(folder)
    data = prepare(model.recipe)
    part, rows = data.held_out()
    frames = records(data.table.take(rows[:count]))
    (name,) = model.outputs
    with tempfile.TemporaryDirectory() as place:
        file = model.export("onnx", out=Path(place) / "model.onnx", data=frames[:8])
        size = file.stat().st_size
        engines = {"torch": model.engine, "onnx": OnnxEngine(file, threads=1)}
    whole: dict[str, list[float]] = {n: [] for n in engines}
    network: dict[str, list[float]] = {n: [] for n in engines}
    told: dict[str, list[Any]] = {n: [] for n in engines}
    for i, frame in enumerate([*frames[:3], *frames]):  # the first three warm up
        arrays = encode_values(model.columns, model.inputs, [frame])[0].arrays(np.arange(1))
        for kind, engine in engines.items():
            spent, (row,) = seconds(lambda engine=engine, frame=frame: answering.answer(engine, [frame]))
            alone, _ = seconds(lambda engine=engine, arrays=arrays: engine.run(arrays))
            if i >= 3:
                whole[kind].append(spent)
                network[kind].append(alone)
                told[kind].append(row.answers[name].value)
    speed = lambda times: {k: round(1 / statistics.median(v), 1) for k, v in times.items()}  # noqa: E731
    return {
        "model": Path(folder).name, "head": model.recipe.head(name).type, "parameters": model.parameters(), "onnx_bytes": size,
        "side": list(model.columns[model.inputs[0]].hw), "frames": len(frames), "part": part,
        "frames_per_cpu_second": speed(whole), "network_alone": speed(network), "apart": apart(*told.values()),
    }  # fmt: skip


def apart(first: list[Any], second: list[Any]) -> Mapping[str, float]:
    """How far the answers of two engines are from each other; images where they do not give the same number of boxes of the same classes."""
    corners, scores, other = [0.0], [0.0], 0
    for mine, theirs in zip(first, second):
        if [v["label"] for v in mine] != [v["label"] for v in theirs]:
            other += 1
            continue
        for a, b in zip(mine, theirs):
            corners.append(max(abs(p - q) for p, q in zip(a["box"], b["box"])))
            scores.append(abs(a["score"] - b["score"]))
    return {"pixels": max(corners), "probability": max(scores), "other_answers": other}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    finish("detector", [measured(m, asked.frames) for m in asked.models], asked.json)


if __name__ == "__main__":
    main()
