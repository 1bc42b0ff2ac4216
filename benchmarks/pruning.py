"""An image network with fewer channels: accuracy, weights and time of what `luban compress --prune` leaves, one thread.

    python -m benchmarks.pruning FOLDER [--shares 0.3 0.5] [--rows 10000] [--pairs 15] [--json FILE]

FOLDER: a trained model whose recipe names its rows, as of `benchmarks.language.recipe fashion-resnet --out FOLDER`. Each share of the channels is
taken out and the network trained on for three epochs; accuracy on test rows, of the ONNX file. The model and what is left take turns, A B A B; times are
CPU seconds of the process, in PyTorch and as ONNX files called by hand.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.common import examples, finish
from benchmarks.int8 import BATCHES, accuracy, fed, session, timed, times
from luban.bundle import Bundle
from luban.data.prepare import prepare
from luban.engines import OnnxEngine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = Bundle.load(asked.folder)
    data = prepare(model.recipe)
    test = examples(model, data, "test", asked.rows)
    sides, spent = {"whole": model}, {"whole": 0.0}
    for share in asked.shares:
        started = time.process_time()
        sides[f"{share:.0%}"] = model.compress(data, prune=share, explain=8)
        spent[f"{share:.0%}"] = time.process_time() - started
    found = {
        "model": Path(asked.folder).name,
        "test_rows": len(test),
        "sides": measured(sides, data, test, asked.pairs),
    }
    for name, seconds in spent.items():
        found["sides"][name]["cpu_seconds"] = round(seconds)
    finish("pruning", found, asked.json)


def measured(sides: dict[str, Bundle], data: Any, test: Any, pairs: int) -> dict[str, dict[str, Any]]:
    """Of each side its weights, bytes, accuracy and milliseconds, and how many times as fast as the whole it is."""
    (output,) = sides["whole"].outputs
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        files = {}
        for name, model in sides.items():
            path = Path(place) / f"{name}.onnx"
            model.export(out=path, data=data)
            engine = OnnxEngine(path, threads=1)
            right = accuracy(lambda arrays, engine=engine: engine.run(arrays)[output], test, output)
            rows[name] = {"parameters": model.parameters(), "onnx_bytes": path.stat().st_size, "accuracy": right}  # fmt: skip
            files[name] = (engine, session(path))
        for batch in BATCHES:
            arrays = test.arrays(np.arange(batch))
            calls: dict[tuple[str, str], Callable[[], Any]] = {}
            for name, (engine, by_hand) in files.items():
                ready, names = fed(engine, arrays), list(engine.outputs)
                calls[name, "torch"] = lambda model=sides[name], arrays=arrays: model.engine.run(arrays)
                calls[name, "onnx"] = lambda by_hand=by_hand, names=names, ready=ready: by_hand.run(names, ready)
            seconds = timed(calls, pairs, 20 if batch == 1 else 2)
            for (name, engine), own in seconds.items():
                rows[name][f"{engine}_ms_{batch}"] = round(statistics.median(own) * 1e3, 3)
                rows[name][f"{engine}_faster_{batch}"] = times(seconds["whole", engine], own)
    return rows


if __name__ == "__main__":
    main()
