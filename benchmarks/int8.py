"""A trained image network in integers: time and accuracy of every way to run it on one thread.

    python -m benchmarks.int8 FOLDER [--rows 10000] [--pairs 15] [--calibrate 512] [--json FILE]

FOLDER: a trained model whose recipe names its rows, as of `benchmarks.language.recipe fashion-resnet --out FOLDER`. Calibrated with
training rows; accuracy on test rows. All sides take turns, A B C A B C; times are CPU seconds of the process.

| side | what it is |
|---|---|
| eager | the model in PyTorch, fp32, as `luban predict` runs it |
| onnx | the fp32 file of `luban export` in ONNX Runtime, called by hand |
| luban | `luban compress --quantize int8 --calibrate N`, exported, answered by Luban's engine |
| same file | that very file in ONNX Runtime, called by hand |
| by hand | the fp32 file through `onnxruntime.quantization.quantize_static` with the same rows (QDQ, per channel, min-max) |
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
import onnxruntime
import torch

from benchmarks.common import examples, finish
from luban.bundle import Bundle
from luban.columns.examples import Examples
from luban.data.prepare import prepare
from luban.engines import OnnxEngine

BATCHES = (1, 32)
Side = Callable[[Any], np.ndarray]


def by_hand(path: Path, out: Path, examples: Examples, rows: int) -> None:
    """ONNX Runtime's own static quantisation of a file, at the settings that its documentation gives for processors."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Rows(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(np.array_split(np.arange(rows), max(1, rows // 64)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            index = next(self.batches, None)
            return None if index is None else fed(OnnxEngine(path, threads=1), examples.arrays(index))

    ready = out.with_suffix(".ready.onnx")
    quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    kinds = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}
    quantize_static(str(ready), str(out), Rows(), quant_format=QuantFormat.QDQ, per_channel=True, **kinds)


def fed(engine: OnnxEngine, arrays: Any) -> dict[str, np.ndarray]:
    pairs = ((n, key, part) for n, *keys in engine.feeds for part, key in enumerate(keys))
    return {key: np.ascontiguousarray(arrays.inputs[n][part], engine.types[key]) for n, key, part in pairs}


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def timed(sides: dict[str, Callable[[], Any]], pairs: int, repeat: int) -> dict[str, list[float]]:
    """CPU seconds of a call, side by side, round by round."""
    found: dict[str, list[float]] = {n: [] for n in sides}
    for i in range(pairs + 1):
        for name, call in sides.items():
            began = time.process_time()
            for _ in range(repeat):
                call()
            if i:
                found[name].append((time.process_time() - began) / repeat)
    return found


def accuracy(answer: Side, test: Examples, output: str) -> float:
    """Of `answer`, arrays -> (B, K), on every test row."""
    pieces = np.array_split(np.arange(len(test)), max(1, len(test) // 250))
    said = np.concatenate([answer(test.arrays(i)).argmax(1) for i in pieces])
    return round(float((said == test.targets[output] - 1).mean()), 4)


def times(over: list[float], under: list[float], digits: int = 2) -> list[float]:
    """Median, lowest and highest of the ratios of pairs."""
    ratios = [a / b for a, b in zip(over, under)]
    return [round(f(ratios), digits) for f in (statistics.median, min, max)]


def bound(arrays: Any, model: Bundle, engine: OnnxEngine, sessions: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Every side on one batch that lies ready."""
    ready, names = fed(engine, arrays), list(engine.outputs)
    return {
        "eager": lambda: model.engine.run(arrays), "onnx": lambda: sessions["whole"].run(names, ready),
        "luban": lambda: engine.run(arrays), "same file": lambda: sessions["integers"].run(names, ready),
        "by hand": lambda: sessions["hand"].run(names, ready),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--calibrate", type=int, default=512)
    parser.add_argument("--json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = Bundle.load(asked.folder)
    (output,) = model.outputs
    data = prepare(model.recipe)
    training, test = examples(model, data, "train", asked.calibrate), examples(model, data, "test", asked.rows)
    small = model.compress(data, quantize="int8", calibrate=asked.calibrate, explain=8)
    with tempfile.TemporaryDirectory() as place:
        whole, integers, hand = (Path(place) / f"{n}.onnx" for n in ("whole", "integers", "hand"))
        model.export(out=whole, data=data)
        small.export(out=integers, data=data)
        by_hand(whole, hand, training, len(training))
        engine, sessions = OnnxEngine(integers, threads=1), {p.stem: session(p) for p in (whole, integers, hand)}
        names = list(engine.outputs)
        run = lambda which: lambda arrays: sessions[which].run(names, fed(engine, arrays))[0]  # noqa: E731
        answers: dict[str, Side] = {
            "eager": lambda arrays: model.engine.run(arrays)[output], "onnx": run("whole"),
            "luban": lambda arrays: engine.run(arrays)[output], "same file": run("integers"), "by hand": run("hand"),
        }  # fmt: skip
        rows: dict[str, dict[str, Any]] = {n: {} for n in answers}
        for name, side in answers.items():
            rows[name]["accuracy"] = accuracy(side, test, output)
        for batch in BATCHES:
            calls = bound(test.arrays(np.arange(batch)), model, engine, sessions)
            found = timed(calls, asked.pairs, 20 if batch == 1 else 2)
            for name, seconds in found.items():
                rows[name][f"ms_{batch}"] = round(statistics.median(seconds) * 1e3, 3)
                rows[name][f"faster_than_eager_{batch}"] = times(found["eager"], seconds)
            rows["luban"][f"of_same_file_{batch}"] = times(found["luban"], found["same file"], 3)
        sizes = {"eager": model.bytes(), "onnx": whole.stat().st_size, "luban": integers.stat().st_size, "by hand": hand.stat().st_size}  # fmt: skip
    for name, size in sizes.items():
        rows[name]["bytes"] = size
    recipe = {"model": str(asked.folder).rsplit("/", 1)[-1], "parameters": model.parameters(), "test_rows": len(test)}
    finish("int8", {**recipe, "calibrate": asked.calibrate, "sides": rows}, asked.json)


if __name__ == "__main__":
    main()
