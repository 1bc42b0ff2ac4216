"""Training with rounded weights and activations beside rounding afterwards: accuracy, bytes and time of an image network.

    python -m benchmarks.aware FOLDER [--calibrate 512] [--epochs 1] [--rows 10000] [--pairs 15] [--json FILE]

FOLDER: a trained model whose recipe names its rows, as of `benchmarks.language.recipe fashion-cnn --out FOLDER`.

| side | what it is |
|---|---|
| whole | the model in fp32 |
| static N | `luban compress --quantize int8 --calibrate N`: rounded afterwards, scales of activations from N training rows |
| aware N, E | the same with `--aware E`: E epochs of training on, at a tenth of the rate, with everything rounded |
| int4 | `luban compress --quantize int4`: weights alone, in four bits; training with these rounded is not offered |

Files of ONNX (int4: in PyTorch), one thread, all sides in turns; times are CPU seconds of the process. Accuracy of validation rows says which is chosen, that of test
rows what it is worth; `less_whole` is the paired difference on test rows.
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

from benchmarks.common import examples, finish
from benchmarks.int8 import BATCHES, timed, times
from luban.bundle import Bundle
from luban.columns.examples import Examples
from luban.data.prepare import prepare
from luban.engines import engine_of
from luban.errors import Unsupported
from luban.evaluation import intervals


def right(engine: Any, rows: Examples, output: str) -> np.ndarray:
    """Which rows are answered rightly."""
    pieces = np.array_split(np.arange(len(rows)), max(1, len(rows) // 250))
    said = np.concatenate([engine.run(rows.arrays(i))[output].argmax(1) for i in pieces])
    return said == rows.targets[output] - 1


def made(model: Bundle, data: Any, calibrate: list[int], epochs: list[int]) -> dict[str, tuple[Bundle, float]]:
    """Every smaller model that was not refused, and the CPU seconds that it took, its report included."""
    ways: dict[str, dict[str, Any]] = {f"static {n}": {"quantize": "int8", "calibrate": n} for n in calibrate}
    ways |= {f"aware {n}, {e}": {"quantize": "int8", "calibrate": n, "aware": e} for n in calibrate for e in epochs}
    found = {}
    for name, settings in {**ways, "int4": {"quantize": "int4"}}.items():
        began = time.process_time()
        try:
            small = model.compress(data, explain=0, resamples=20, **settings)
        except Unsupported as e:
            print(name, "refused:", e)
            continue
        found[name] = (small, time.process_time() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--calibrate", type=int, nargs="+", default=[512])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = Bundle.load(asked.folder)
    (output,) = model.outputs
    data = prepare(model.recipe)
    validation, test = (examples(model, data, p, asked.rows) for p in ("validation", "test"))
    sides = {"whole": (model, 0.0), **made(model, data, asked.calibrate, asked.epochs)}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        engines = {}
        for i, (name, (bundle, spent)) in enumerate(sides.items()):
            path = Path(place) / f"{i}.onnx"
            if name != "int4":
                bundle.export(out=path, data=data)
            engines[name] = bundle.engine if name == "int4" else engine_of(path, threads=1)
            size = bundle.bytes() if name == "int4" else path.stat().st_size
            rows[name] = {"bytes": size, "cpu_seconds": round(spent)}
        hits = {n: right(e, test, output) for n, e in engines.items()}
        for name, engine in engines.items():
            rows[name]["validation"] = round(float(right(engine, validation, output).mean()), 4)
            rows[name]["test"] = intervals.mean(hits[name]).to_json()
            if name != "whole":
                rows[name]["less_whole"] = intervals.paired_difference(hits[name], hits["whole"]).to_json()
        for batch in BATCHES:
            arrays = test.arrays(np.arange(batch))
            calls = {n: lambda e=e, arrays=arrays: e.run(arrays) for n, e in engines.items()}
            seconds = timed(calls, asked.pairs, 20 if batch == 1 else 2)
            for name, own in seconds.items():
                rows[name][f"ms_{batch}"] = round(statistics.median(own) * 1e3, 3)
                rows[name][f"faster_than_whole_{batch}"] = times(seconds["whole"], own)
    about = {"model": Path(asked.folder).name, "parameters": model.parameters(), "seed": model.recipe.seed}
    finish("aware", {**about, "test_rows": len(test), "sides": rows}, asked.json)


if __name__ == "__main__":
    main()
