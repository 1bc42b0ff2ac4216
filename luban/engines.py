"""Engines that answer without PyTorch. An exported `.onnx` file holds all it needs: network, columns, recipe.

A file from elsewhere is looked at before any library reads it: weights outside the file, a missing or overgrown
description, another format and everything that is not ONNX are refused with a BundleError.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from luban.columns.base import from_json, together
from luban.columns.examples import Arrays
from luban.errors import BundleError, Unsupported, need

FORMAT = "1"
LARGEST = 2**31 - 1  # bytes that a protobuf can have
LONGEST = 64 * 2**20  # bytes of description
DEEPEST = 24  # graphs within graphs
EXPORTED = {".onnx": "onnx", ".xml": "openvino"}  # endings of files that answer by themselves, and what runs them
TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class Described:
    """What every engine over a file knows of its model: columns, recipe, and what the graph calls inputs and outputs."""

    def __init__(self, path: Path, about: Mapping[str, str]):
        """`about`: what stands in the file as `luban.*`. Raises BundleError for what is none, RecipeError for a column that is not there."""
        self.path, self.recipe = path, about["luban.recipe"]
        self.weights = about.get("luban.weights", "")  # SHA-256 of the weights it was made from
        plain = _json(about["luban.columns"], path, list)
        self.columns = together({c.name: c for c in (from_json(_dict(p, path)) for p in plain)})
        feeds = _json(about["luban.feeds"], path, dict)
        try:
            self.feeds = [(str(n), str(x), str(mask)) for n, x, mask in feeds["inputs"]]
            self.outputs = tuple(str(n) for n in feeds["outputs"])
            self.inputs = tuple(n for n, _, _ in self.feeds)
            self.made = {str(n): str(v) for n, v in (feeds.get("vectors") or {}).items()}
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise BundleError("onnx.bad_description", path=str(path), reason=str(e)[:200]) from e
        self.lacking = sorted({*self.inputs, *self.outputs} - self.columns.keys())


def exported(path: str | Path) -> str | None:
    """What runs an exported file, by its name; None for a saved model."""
    return None if Path(path).is_dir() else EXPORTED.get(Path(path).suffix)


def engine_of(path: str | Path, threads: int | None = None) -> Described:
    """The engine that answers from an exported file, by its name: OpenVINO's for `.xml`. Raises BundleError, MissingExtra."""
    if exported(path) != "openvino":
        return OnnxEngine(path, threads)
    from luban.openvino_engine import OpenVinoEngine

    return OpenVinoEngine(path, threads)


class OnnxEngine(Described):
    """An exported model in ONNX Runtime on the processor, behind the interface that every engine has.

    `threads`: how many to compute with, None for what this process may use. `recipe`: the text of the recipe.
    Raises BundleError for a file that Luban did not export, damaged or hostile; RecipeError for a type of column that is not
    installed; MissingExtra without onnxruntime.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
        data, about = opened(Path(path))
        super().__init__(Path(path), about)
        self.session = session(data, self.path, threads)
        self.types = {i.name: TYPES.get(i.type) for i in self.session.get_inputs()}
        wanted = {x for _, *pair in self.feeds for x in pair}
        given = {o.name for o in self.session.get_outputs()}
        if (
            self.types.keys() != wanted
            or None in self.types.values()
            or given != {*self.outputs, *self.made.values()}
            or self.lacking
        ):
            raise BundleError("onnx.other_graph", path=str(path))

        self.kinds, self.names = {n: np.dtype(t) for n, t in self.types.items()}, list(self.outputs)

    def run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Output name -> raw head output (B, ...)."""
        if self.made:
            raise Unsupported("match.no_answer")
        return dict(zip(self.outputs, self.session.run(self.names, self._fed(arrays.inputs))))

    def vectors(self, name: str, arrays: Arrays) -> np.ndarray:
        """The vectors of one input, (B, D); others that are not given are missing. Raises Unsupported for a network that makes none."""
        if name not in self.made:
            raise Unsupported("search.no_vectors")
        given = dict(arrays.inputs)
        for n in self.inputs:
            if n not in given:
                nothing = self.columns[n].encode_all([None] * arrays.size)
                given[n] = self.columns[n].collate(nothing)
        return self.session.run([self.made[name]], self._fed(given))[0]

    def _fed(self, pairs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        fed = {}
        for name, x, mask in self.feeds:
            for key, value in zip((x, mask), pairs[name]):
                ready = value.flags.c_contiguous and value.dtype is self.kinds[key]
                fed[key] = value if ready else np.ascontiguousarray(value, self.types[key])
        return fed


def session(data: bytes, path: Path, threads: int | None) -> Any:
    """An ONNX Runtime session that neither spins nor takes more threads than it was given."""
    from luban.machine import threads as allowed

    ort = need("onnxruntime", "export")
    options = ort.SessionOptions()
    options.intra_op_num_threads = allowed(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    state = need("onnxruntime.capi.onnxruntime_pybind11_state", "export")
    refusals = tuple(v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception))
    try:
        made = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        _ = [v.name for v in (*made.get_inputs(), *made.get_outputs())]  # names must be readable, too
        return made
    except (*refusals, RuntimeError, ValueError) as e:
        raise BundleError("onnx.unreadable", path=str(path), reason=str(e).splitlines()[0][:200]) from e


def opened(path: Path) -> tuple[bytes, dict[str, str]]:
    """The bytes of an exported file and its description, once it is known that nothing in it leads out of it.

    Raises BundleError. What was looked at is what is returned, so the file cannot change in between.
    """
    if not path.is_file():
        raise BundleError("onnx.no_file", path=str(path))
    if path.stat().st_size > LARGEST:
        raise BundleError("onnx.too_large", path=str(path), most=LARGEST)
    data = path.read_bytes()
    about: dict[str, str] = {}
    try:
        for number, value in _fields(memoryview(data)):
            if number == 14:
                pair = {n: bytes(v).decode() for n, v in _fields(value) if len(v) <= LONGEST}
                about[pair.get(1, "")] = pair.get(2, "")
            elif number in (7, 20, 25) and _outside(number, value):
                raise BundleError("onnx.external_data", path=str(path))
    except (ValueError, IndexError, RecursionError, struct.error) as e:
        raise BundleError("onnx.unreadable", path=str(path), reason=str(e)[:200]) from e
    if "luban.format" not in about:
        raise BundleError("onnx.not_ours", path=str(path))
    if about["luban.format"] != FORMAT:
        raise BundleError("onnx.other_format", path=str(path), found=about["luban.format"][:20], known=FORMAT)
    for name in ("luban.recipe", "luban.columns", "luban.feeds"):
        if not about.get(name):
            raise BundleError("onnx.bad_description", path=str(path), reason=name)
    return data, about


def _json(text: str, path: Path, kind: type) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise BundleError("onnx.bad_description", path=str(path), reason=str(e)[:200]) from e
    if not isinstance(value, kind):
        raise BundleError("onnx.bad_description", path=str(path), reason=kind.__name__)
    return value


def _dict(value: Any, path: Path) -> dict[str, Any]:
    want = {"name": str, "type": str, "settings": dict, "state": dict}
    if not isinstance(value, dict) or not all(isinstance(value.get(k), t) for k, t in want.items()):
        raise BundleError("onnx.bad_description", path=str(path), reason="luban.columns")
    return value


# -- just enough of protocol buffers -----------------------------------------------------------------------------------

# Where tensors can stand, as field numbers of onnx.proto: kind of message -> field -> kind of message within.
WITHIN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
EXTERNAL, LOCATION = 13, 14  # of TensorProto


def _outside(number: int, message: memoryview) -> bool:
    """Does any tensor of this part of the model keep its numbers in another file?"""
    return _search(WITHIN["model"][number], message, 0)


def _search(kind: str, message: memoryview, depth: int) -> bool:
    if depth > 4 * DEEPEST:
        raise ValueError(depth)
    if kind == "tensor":
        return any(n == EXTERNAL or (n == LOCATION and v != b"\x00") for n, v in _fields(message))
    inside = WITHIN[kind]
    return any(_search(inside[n], v, depth + 1) for n, v in _fields(message) if n in inside)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, bytes) of a message; whole numbers as the byte of their low seven bits. Raises ValueError."""
    at, end = 0, len(message)
    while at < end:
        key, at = _number(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _number(message, at)
            yield key >> 3, memoryview(bytes([min(value, 127)]))
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = _number(message, at)
        if size is None or at + size > end:
            raise ValueError(at)
        yield key >> 3, message[at : at + size]
        at += size


def _number(message: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError(at)
