"""A trained image network in OpenVINO, beside ONNX Runtime and PyTorch: images a CPU-second on one thread, and whether they agree.

    python -m benchmarks.openvino_speed FOLDER [--rows 10000] [--pairs 15] [--small FOLDER] [--json FILE]

FOLDER: a trained model whose recipe names its rows, as of `benchmarks.language.recipe fashion-resnet --out FOLDER`; `--small`: what `luban compress FOLDER --quantize
int8 --calibrate 512 --out SMALL` made of it, left out where none is given. Accuracy on test rows; all sides take turns, A B C A B C; times are CPU seconds of the process.

| side | what it is |
|---|---|
| eager | the model in PyTorch, fp32, as `luban predict` runs it |
| onnx, onnx int8 | the files of `luban export`, of the model and of the small one; Luban's engine |
| openvino, openvino int8 | the same of `luban export --to openvino` |
| by hand, by hand int8 | the two files of OpenVINO, called by hand with OpenVINO's own choice of precision |

`largest_difference` is what the gate of each export found, of the answers' own size.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.common import examples, finish
from benchmarks.int8 import BATCHES, accuracy, timed, times
from luban.bundle import Bundle
from luban.columns.examples import Examples
from luban.data.prepare import prepare
from luban.engines import engine_of
from luban.stages.export.gate import passes


class ByHand:
    """OpenVINO's own request over the files of an engine of Luban's; what is fed is fed by the same names."""

    def __init__(self, engine: Any):
        import openvino

        self.engine = engine
        settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 0}  # in the thread that calls
        self.compiled = openvino.Core().compile_model(str(engine.path), "CPU", settings)
        self.request = self.compiled.create_infer_request()
        self.precision = self.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()

    def run(self, arrays: Any) -> dict[str, np.ndarray]:
        names = ((key, part) for n, *keys in self.engine.feeds for part, key in zip(arrays.inputs[n], keys))
        fed = {k: np.ascontiguousarray(v, self.engine.types[k]) for k, v in names if k in self.engine.types}
        found = self.request.infer(fed, share_inputs=True, share_outputs=True)
        return {n: found[n] for n in self.engine.outputs}


def engines(models: dict[str, Bundle], data: Any, place: Path) -> dict[str, Any]:
    """Every side, each with `run(arrays)`; the files below `place`."""
    sides: dict[str, Any] = {"eager": models[""].engine}
    for kind, bundle in models.items():
        for to, name in (("onnx", f"model{kind}.onnx"), ("openvino", f"model{kind}.xml")):
            bundle.export(to=to, out=place / name, data=data)
            sides[f"{to}{kind}"] = engine_of(place / name, threads=1)
        sides[f"by hand{kind}"] = ByHand(sides[f"openvino{kind}"])
    return sides


def size(engine: Any) -> int:
    """Bytes on the disk, of OpenVINO's two files together."""
    files = (engine.path, engine.path.with_suffix(".bin")) if engine.path.suffix == ".xml" else (engine.path,)
    return sum(f.stat().st_size for f in files)


def measured(sides: dict[str, Any], test: Examples, output: str, pairs: int) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for name, side in sides.items():
        rows[name] = {"accuracy": accuracy(lambda arrays, side=side: side.run(arrays)[output], test, output)}
        rows[name] |= {"bytes": size(side)} if hasattr(side, "path") else {}
        rows[name] |= {"precision": side.precision} if hasattr(side, "precision") else {}
    for batch in BATCHES:
        arrays = test.arrays(np.arange(batch))
        calls = {n: lambda side=side, arrays=arrays: side.run(arrays) for n, side in sides.items()}
        seconds = timed(calls, pairs, 20 if batch == 1 else 2)
        for name, own in seconds.items():
            rows[name][f"images_a_second_{batch}"] = round(batch / statistics.median(own))
            rows[name][f"faster_than_eager_{batch}"] = times(seconds["eager"], own)
            kind = " int8" if name.endswith("int8") else ""
            if name.startswith("openvino"):
                rows[name][f"faster_than_onnx_{batch}"] = times(seconds[f"onnx{kind}"], own)
                rows[name][f"of_by_hand_{batch}"] = times(own, seconds[f"by hand{kind}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--small")
    parser.add_argument("--json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = Bundle.load(asked.folder)
    (output,) = model.outputs
    data = prepare(model.recipe)
    test = examples(model, data, "test", asked.rows)
    models = {"": model} | ({" int8": Bundle.load(asked.small)} if asked.small else {})
    with tempfile.TemporaryDirectory() as place:
        sides = engines(models, data, Path(place))
        rows = measured(sides, test, output, asked.pairs)
        for kind, bundle in models.items():
            for name in (f"onnx{kind}", f"openvino{kind}"):
                rows[name]["largest_difference"] = passes(bundle, sides[name], test)["largest_difference"]
    about = {"model": Path(asked.folder).name, "parameters": model.parameters(), "test_rows": len(test)}
    finish("openvino", {**about, "sides": rows}, asked.json)


if __name__ == "__main__":
    main()
