"""An exported model in OpenVINO on the processor: two files, `NAME.xml` with the graph and Luban's description, `NAME.bin` with the weights."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from luban.columns.examples import Arrays
from luban.engines import FORMAT, LONGEST, Described
from luban.errors import BundleError, Unsupported, need

KEYS = ("format", "version", "weights", "recipe", "columns", "feeds")
TYPES = {"f32": np.float32, "f64": np.float64, "i64": np.int64, "i32": np.int32, "u8": np.uint8, "boolean": np.bool_}


class OpenVinoEngine(Described):
    """`threads`: how many to compute with, None for what this process may use. Products are made in 32 bits, as the model has them;
    OpenVINO by itself would take bf16 where the processor has it, and answer otherwise.

    Raises BundleError for files that Luban did not export, MissingExtra without openvino.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
        from luban.machine import threads as allowed

        path = Path(path)
        if not path.is_file() or path.stat().st_size > LONGEST:
            raise BundleError("onnx.no_file", path=str(path))
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise BundleError("openvino.no_weights", path=str(path), weights=weights.name)
        core = need("openvino", "openvino").Core()
        try:
            model = core.read_model(str(path))
            about = {f"luban.{k}": model.get_rt_info(["luban", k]).astype(str) for k in KEYS}
        except RuntimeError as e:
            raise BundleError("onnx.not_ours", path=str(path)) from e
        if about["luban.format"] != FORMAT:
            raise BundleError("onnx.other_format", path=str(path), found=about["luban.format"][:20], known=FORMAT)
        super().__init__(path, about)
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": allowed(threads), "NUM_STREAMS": 1}
        try:
            self.compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as e:
            raise BundleError("openvino.unreadable", path=str(path), reason=str(e).splitlines()[0][:200]) from e
        self.here = threading.local()
        self.types = {i.any_name: TYPES.get(i.element_type.get_type_name()) for i in model.inputs}
        given = {name for o in model.outputs for name in o.names}
        if self.lacking or None in self.types.values() or not {*self.outputs, *self.made.values()} <= given:
            raise BundleError("onnx.other_graph", path=str(path))

    def run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Output name -> raw head output (B, ...)."""
        if self.made:
            raise Unsupported("match.no_answer")
        found = self._asked(arrays.inputs)
        return {n: found[n] for n in self.outputs}

    def vectors(self, name: str, arrays: Arrays) -> np.ndarray:
        """The vectors of one input, (B, D). Raises Unsupported for a network that makes none."""
        if name not in self.made:
            raise Unsupported("search.no_vectors")
        return self._asked(arrays.inputs)[self.made[name]]

    def _asked(self, pairs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        fed = {
            key: np.ascontiguousarray(value, self.types[key])
            for name, *keys in self.feeds
            for key, value in zip(keys, pairs[name])
            if key in self.types  # a mask that the graph never looks at is not in it
        }
        if not hasattr(self.here, "request"):  # one for each thread: a request runs one batch at a time
            self.here.request = self.compiled.create_infer_request()
        found = self.here.request.infer(fed)
        return {name: found[o].copy() for o in self.compiled.outputs for name in o.names}
