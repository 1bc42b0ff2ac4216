"""A network as OpenVINO's two files, held against the model before anyone gets them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from luban import files
from luban.bundle import Bundle
from luban.columns.examples import Examples
from luban.errors import ExportMismatch, need
from luban.onnx_file import about, onnx_bytes, reason, silent
from luban.openvino_engine import OpenVinoEngine
from luban.stages.export.gate import passes


def to_openvino(bundle: Bundle, examples: Examples, path: Path) -> dict[str, Any]:
    """Write NAME.xml and NAME.bin beside it; what the gate compared. Weights stay in 32 bits.

    Raises ExportMismatch where the answers do not agree or OpenVINO cannot read the network, MissingExtra.
    """
    ov = need("openvino", "openvino")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written, source = Path(folder) / path.name, Path(folder) / "model.onnx"
        source.write_bytes(onnx_bytes(bundle, examples.arrays(np.arange(min(8, len(examples))))))
        with silent():
            try:
                model = ov.convert_model(source)
                for key, value in about(bundle).items():
                    model.set_rt_info(value, key.split("."))
                ov.save_model(model, written, compress_to_fp16=False)
            except RuntimeError as e:
                raise ExportMismatch("export.failed", reason=reason(e)) from e
        found = passes(bundle, OpenVinoEngine(written, threads=1), examples)
        os.replace(written.with_suffix(".bin"), path.with_suffix(".bin"))
        os.replace(written, path)
    files.sync(path.parent)
    return found
