"""export: a file for another runtime, held against the model on real rows before anyone gets it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from luban import files
from luban.bundle import Bundle
from luban.columns.examples import Examples, encode
from luban.console import tell
from luban.data.prepare import prepare
from luban.errors import DataError, RequestError, need
from luban.onnx_file import onnx_bytes
from luban.settings import Count
from luban.stages.export.gate import passes


def export(
    bundle: Bundle,
    data: Any,
    *,
    to: Literal["onnx", "openvino", "huggingface", "word2vec"] = "onnx",
    out: str | None = None,
    rows: Count = 64,
) -> Path:
    """onnx: one self-contained file that `luban.engines.OnnxEngine` and `luban serve` answer from without PyTorch.
    openvino: two files, `NAME.xml` and `NAME.bin`, that `luban.openvino_engine.OpenVinoEngine` answers from.
    huggingface: a folder that `transformers`, vLLM and llama.cpp open, of a model that writes or says hidden words.
    word2vec: a text file of the vectors of the words of one input, as gensim and `vectors:` of a column read it.

    `out`: the file or folder, or (onnx) a folder to put `model.onnx` into. `rows`: how many real rows it is held against, in several batch
    sizes, lengths and paddings; the file appears only when all answers agree.
    Raises ExportMismatch where they do not or the network cannot be written down, DataError without rows, MissingExtra.
    """
    if not out:
        raise RequestError("cli.lacking", what="--out", verb="export")
    if to == "huggingface":
        from luban.stages.export.to_huggingface import to_huggingface

        path, worst = to_huggingface(bundle, out)
        tell("export.agrees_folder", difference=f"{worst:.1e}")
        return path
    if to == "word2vec":
        from luban.stages.export.to_word2vec import to_word2vec

        return to_word2vec(bundle, out)
    for module in ("onnx", "onnxscript", "onnxruntime"):
        need(module, "export")
    if to == "openvino":
        from luban.stages.export.to_openvino import to_openvino

        path = Path(out) if Path(out).suffix == ".xml" else Path(out) / "model.xml"
        found = to_openvino(bundle, real_rows(bundle, data, rows), path)
        tell("export.agrees", rows=found["rows"], difference=f"{found['largest_difference']:.1e}")
        return path
    path = Path(out)
    path = path / "model.onnx" if path.is_dir() or not path.suffix else path
    examples = real_rows(bundle, data, rows)
    written = onnx_bytes(bundle, examples.arrays(np.arange(min(8, len(examples)))))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        files.write(temporary, written)
        found = passes(bundle, temporary, examples)
        os.replace(temporary, path)
        files.sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    tell("export.agrees", rows=found["rows"], difference=f"{found['largest_difference']:.1e}")
    return path


def real_rows(bundle: Bundle, data: Any, count: int) -> Examples:
    """Held-out rows, else those that the recipe names. Raises DataError where there are none."""
    named = bundle.recipe.data.get("rows")
    if data is None and named and Path(named).exists():
        data = prepare(bundle.recipe)
    rows = data.held_out()[1][:count] if data is not None else np.zeros(0, np.int64)
    if not len(rows):
        raise DataError("export.no_rows")
    return encode(bundle.columns, bundle.inputs, (), data.framed(rows, bundle.recipe.frame))
