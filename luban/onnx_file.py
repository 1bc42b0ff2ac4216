"""A network as one self-contained ONNX file: weights, columns and recipe inside, nothing beside it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luban import __version__
from luban.bundle import Bundle
from luban.columns.examples import Arrays
from luban.engines import FORMAT, LARGEST
from luban.errors import ExportMismatch, Unsupported, need
from luban.nn import recurrence, static
from luban.nn.lora import merge_lora
from luban.nn.tokens import Batch

OPSET = 20
ROWS, POSITIONS = 3, 5  # of the example that is traced: neither 0 nor 1, which an exporter may take for constants


class Flat(nn.Module):
    """The network with tensors in and tensors out: x and mask of each input, in order; outputs in order."""

    def __init__(self, network: Any, inputs: Sequence[str], outputs: Sequence[str]):
        super().__init__()
        self.network, self.inputs, self.outputs = network, tuple(inputs), tuple(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        pairs = {n: (tensors[2 * i], tensors[2 * i + 1]) for i, n in enumerate(self.inputs)}
        o = self.network(Batch(pairs, {}, tensors[0].shape[0]))
        return tuple(o[n] for n in self.outputs or self.inputs)  # without outputs: a vector of each input


def feeds(inputs: Sequence[str]) -> list[list[str]]:
    """Per input its name, the name of x and of its mask in the graph: NAME and NAME.mask, whatever the columns are called."""
    taken, result = set(inputs), []
    for name in inputs:
        mask = f"{name}.mask"
        while mask in taken:
            mask += "_"
        taken.add(mask)
        result.append([name, name, mask])
    return result


def onnx_bytes(bundle: Bundle, arrays: Arrays) -> bytes:
    """The file. `arrays`: real rows, which are only looked at for their shapes.

    Raises ExportMismatch where the network cannot be written down for every batch size and length, MissingExtra.
    """
    if getattr(bundle.network, "written", None) or not (bundle.outputs or bundle.matches):
        if not getattr(bundle.network, "written", None):
            raise Unsupported("onnx.answers_nothing", task=bundle.recipe.task())
        raise Unsupported("onnx.writes", outputs=list(bundle.outputs))
    for module in ("onnx", "onnxscript"):
        need(module, "export")
    if bundle.bytes() > LARGEST:
        raise Unsupported("onnx.too_large", path="onnx", most=LARGEST)
    names = feeds(bundle.inputs)
    network = Flat(merge_lora(bundle.copy_network()).cpu().eval(), bundle.inputs, bundle.outputs)
    for module in network.modules():
        if hasattr(module, "spell_out"):
            module.spell_out()
    tensors, axes = example(bundle, arrays)
    with silent():
        try:
            program = torch.onnx.export(
                network,
                tensors,
                dynamo=True,
                input_names=[n for _, *pair in names for n in pair],
                output_names=outputs_apart(bundle.outputs or vectors_of(names).values(), names),
                dynamic_shapes=(axes,),
                opset_version=OPSET,
                custom_translation_table=recurrence.onnx_table() | static.onnx_table(),
                external_data=False,
                verbose=False,
                optimize=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as e:
            raise ExportMismatch("export.failed", reason=reason(e)) from e
        tidy(program.model)
        describe(program.model, bundle)
        return program.model_proto.SerializeToString()


def vectors_of(names: list[list[str]]) -> dict[str, str]:
    """Per input the graph's name of its vector: NAME.vector."""
    taken, result = {n for name in names for n in name}, {}
    for name, *_ in names:
        vector = f"{name}.vector"
        while vector in taken:
            vector += "_"
        taken.add(vector)
        result[name] = vector
    return result


def outputs_apart(outputs: Iterable[str], names: list[list[str]]) -> list[str]:
    """Names of the graph's outputs: those of the columns. No column is an input and an output at once."""
    masks = {mask for _, _, mask in names}
    if masks & set(outputs):
        raise Unsupported("export.names", names=sorted(masks & set(outputs)))
    return list(outputs)


def example(bundle: Bundle, arrays: Arrays) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Tensors to trace with, and which axes of each may be of any size: the batch, and the length of ragged inputs."""
    rows = np.arange(ROWS) % arrays.size
    batch, tensors, axes = torch.export.Dim("batch"), [], []
    ragged = [n for n in bundle.inputs if bundle.columns[n].ragged]
    lengths = {n: torch.export.Dim("length" if len(ragged) == 1 else f"length_{i}") for i, n in enumerate(ragged)}
    for name in bundle.inputs:
        x, mask = (a[rows] for a in arrays.inputs[name])
        if name in lengths:
            size = max(x.shape[1], POSITIONS + 2 * ragged.index(name))
            x, mask = (a[:, np.arange(size) % a.shape[1]] for a in (x, mask))
        free = {0: batch} | ({1: lengths[name]} if name in lengths else {})
        for array in (x, mask):
            tensors.append(torch.as_tensor(np.ascontiguousarray(array)))
            axes.append({d: dim for d, dim in free.items() if d < array.ndim})
    return tuple(tensors), tuple(axes)


def tidy(model: Any) -> None:
    """Constants worked out, dead nodes gone; int8 weights stay int8, which is what makes the file small."""
    from onnxscript import ir
    from onnxscript.optimizer import optimize_ir

    def int8(node: Any) -> bool | None:
        return False if any(v is not None and v.dtype == ir.DataType.INT8 for v in node.inputs) else None

    optimize_ir(model, should_fold=int8)


def describe(model: Any, bundle: Bundle) -> None:
    """What an engine must know goes into the file; what an exporter says about this machine's folders goes out of it."""
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.producer_name, model.producer_version = "luban", __version__
    model.metadata_props.update(about(bundle))


def about(bundle: Bundle) -> dict[str, str]:
    """What an engine must know beside the graph."""
    names = feeds(bundle.inputs)
    return {
        "luban.format": FORMAT,
        "luban.version": __version__,
        "luban.weights": bundle.fingerprint(),
        "luban.recipe": bundle.recipe.yaml(),
        "luban.columns": json.dumps([c.to_json() for c in bundle.columns.values()], ensure_ascii=False),
        "luban.feeds": json.dumps(
            {"inputs": names, "outputs": list(bundle.outputs)}
            | ({"vectors": vectors_of(names)} if bundle.matches else {}),
            ensure_ascii=False,
        ),
    }


def reason(error: BaseException) -> str:
    """The innermost cause in one line: an exporter's own message is a page long."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """The exporter talks to its own developers: warnings, log lines and prints of theirs reach nobody here."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
