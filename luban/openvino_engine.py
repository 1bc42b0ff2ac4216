"""An exported model in OpenVINO on the processor: two files, `NAME.xml` with the graph and Luban's description, `NAME.bin` with the weights."""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from luban.columns.examples import Arrays
from luban.engines import FORMAT, LONGEST, Described
from luban.errors import BundleError, Unsupported, need

TWICE = 64 * 2**20  # bytes of weights that may lie in memory a second time, for single examples
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
        openvino = need("openvino", "openvino")
        core, self.tensor = openvino.Core(), openvino.Tensor
        try:
            model = core.read_model(str(path))
            about = {f"luban.{k}": model.get_rt_info(["luban", k]).astype(str) for k in KEYS}
        except RuntimeError as e:
            raise BundleError("onnx.not_ours", path=str(path)) from e
        if about["luban.format"] != FORMAT:
            raise BundleError("onnx.other_format", path=str(path), found=about["luban.format"][:20], known=FORMAT)
        super().__init__(path, about)
        count = allowed(threads)
        # one thread is that of the caller: to hand a small network to a stream costs half of its time
        streams = min(count - 1, 1)
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": count, "NUM_STREAMS": streams}
        self._compile = lambda graph: core.compile_model(graph, "CPU", settings)
        try:
            self.compiled = self._compile(model)
        except RuntimeError as e:
            raise BundleError("openvino.unreadable", path=str(path), reason=str(e).splitlines()[0][:200]) from e
        fixed = all(i.partial_shape.rank.is_static and i.partial_shape[1:].is_static for i in model.inputs)
        self.model = model if fixed and weights.stat().st_size <= TWICE else None
        self.here = threading.local()
        kinds = {i.any_name: TYPES.get(i.element_type.get_type_name()) for i in model.inputs}
        self.types = {n: t and np.dtype(t) for n, t in kinds.items()}
        self.results = [(name, i) for i, o in enumerate(model.outputs) for name in o.names]
        given = {name for name, _ in self.results}
        if self.lacking or None in self.types.values() or not {*self.outputs, *self.made.values()} <= given:
            raise BundleError("onnx.other_graph", path=str(path))

    def run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Output name -> raw head output (B, ...)."""
        if self.made:
            raise Unsupported("match.no_answer")
        found = self._asked(arrays)
        return {n: found[n] for n in self.outputs}

    def vectors(self, name: str, arrays: Arrays) -> np.ndarray:
        """The vectors of one input, (B, D). Raises Unsupported for a network that makes none."""
        if name not in self.made:
            raise Unsupported("search.no_vectors")
        return self._asked(arrays)[self.made[name]]

    @cached_property
    def of_one(self) -> Any:
        """The graph compiled for a single example: where it need not work out sizes a small network answers in four fifths of the time."""
        graph = self.model.clone()
        graph.reshape({i.any_name: [1, *i.get_partial_shape()[1:]] for i in graph.inputs})
        return self._compile(graph)

    def _request(self, size: int) -> Any:
        """One for each thread: a request runs one batch at a time."""
        name = "one" if size == 1 and self.model else "many"
        if not hasattr(self.here, name):
            compiled = self.of_one if name == "one" else self.compiled
            setattr(self.here, name, compiled.create_infer_request())
        return getattr(self.here, name)

    def _asked(self, arrays: Arrays) -> dict[str, np.ndarray]:
        request, fed = self._request(arrays.size), []
        for name, *keys in self.feeds:
            for key, value in zip(keys, arrays.inputs[name]):
                if key in self.types:  # a mask that the graph never looks at is not in it
                    fed.append(self._ready(value, self.types[key]))
                    request.set_tensor(key, self.tensor(fed[-1], shared_memory=True))  # which is read where it lies
        request.infer(share_outputs=True)
        return {name: request.get_output_tensor(i).data.copy() for name, i in self.results}

    @staticmethod
    def _ready(value: np.ndarray, kind: np.dtype) -> np.ndarray:
        """The array itself where OpenVINO can read it: of that type, in one piece, and (it insists) not read-only."""
        ready = value.dtype == kind and value.flags.c_contiguous and value.flags.writeable
        return value if ready else np.array(value, kind, order="C")
