"""The written file against the model, on real rows: nothing is handed out that answers differently.

The reference is the network asked about one row at a time, without padding. So a file that is wrong for a batch size, a
length or a padded row is refused, and so is a network whose own answers depend on who else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from luban.bundle import Bundle
from luban.columns.answering import unpadded
from luban.columns.examples import Arrays, Examples
from luban.engines import OnnxEngine
from luban.errors import ExportMismatch, Problem, problem, raise_all
from luban.nn.static import is_static

SIZES = (1, 2, 7, 32)
LENGTHS = (1, 2, 3, 17)
PADDING = (1, 9)
CLOSE = 1e-4  # of the answers' own size, at least of 1
# Of a network that rounds its activations: where the two sides add in another order a value may fall on the next level.
LEVELS_CLOSE = 0.05


def passes(bundle: Bundle, file: Path | Any, examples: Examples) -> dict[str, Any]:
    """What was compared: rows, batch sizes, the largest difference. `file`: an ONNX file, or the engine over another one.

    Raises ExportMismatch, BundleError.
    """
    engine = OnnxEngine(file, threads=1) if isinstance(file, Path) else file
    if isinstance(engine, OnnxEngine):
        raise_all(ExportMismatch, axes(bundle, engine, examples.arrays(np.arange(min(2, len(examples))))))
    worst, rows, wrong = 0.0, 0, []
    close = LEVELS_CLOSE if is_static(bundle.network) else CLOSE
    for what, arrays in trials(bundle, examples):
        expected = one_by_one(bundle, arrays)
        found = said(engine, arrays)
        rows += arrays.size
        for name, want in expected.items():
            column, o = bundle.columns[name], found[name]
            difference = max(map(distance, want, unpadded(column, o, arrays) if column.along else o), default=0.0)
            worst = max(worst, difference)
            if not difference <= close:
                values = {"output": name, "size": arrays.size, "difference": f"{difference:.2g}", "most": close}
                wrong.append(problem(f"export.differs.{what}", **values))
    raise_all(ExportMismatch, wrong[:6])
    return {"rows": rows, "sizes": list(SIZES), "largest_difference": worst}


def said(engine: Any, arrays: Arrays) -> dict[str, np.ndarray]:
    """What an engine gives for a batch: its outputs, else the vectors of its inputs."""
    if engine.outputs:
        return engine.run(arrays)
    return {n: engine.vectors(n, arrays) for n in engine.inputs}


def axes(bundle: Bundle, engine: OnnxEngine, arrays: Arrays) -> list[Problem]:
    """Axes that the file declares otherwise than the model has them: `batch` and lengths free, all others fixed."""
    declared = {i.name: i.shape for i in (*engine.session.get_inputs(), *engine.session.get_outputs())}
    expected: dict[str, tuple[tuple[int, ...], int]] = {}
    for name, *pair in engine.feeds:
        for key, array in zip(pair, arrays.inputs[name]):
            expected[key] = (array.shape, 2 if bundle.columns[name].ragged and array.ndim > 1 else 1)
    named = getattr(engine, "made", {})  # what the graph calls the vectors of inputs
    outputs = {named.get(n, n): o for n, o in said(bundle.engine, arrays).items()}
    along = {n for n in bundle.outputs if bundle.columns[n].along}
    expected |= {n: (o.shape, 2 if n in along else 1) for n, o in outputs.items()}
    wrong = []
    for key, (shape, free) in expected.items():
        found = list(declared[key])
        right = len(found) == len(shape) and found[0] == "batch"
        right = right and all(isinstance(d, str) for d in found[:free]) and found[free:] == list(shape[free:])
        if not right:
            wrong.append(problem("export.axes", name=key, found=str(found), want=str(["batch", *shape[1:]])))
    return wrong


def trials(bundle: Bundle, examples: Examples) -> Iterator[tuple[str, Arrays]]:
    """Real rows in batches of every size; padded further; cut to other lengths; with nothing known."""
    n = len(examples)
    start = 0
    for size in SIZES:
        for _ in range(3 if size < 8 else 2):
            yield "batch", examples.arrays((start + np.arange(size)) % n)
            start += size
    base = examples.arrays(np.arange(7) % n)
    ragged = [m for m in bundle.inputs if bundle.columns[m].ragged]
    most = min((bundle.columns[m].most for m in ragged), default=0)  # a network has no more positions
    for more in PADDING if ragged else ():
        yield "padding", _resized(base, ragged, more, most)
    for length in sorted({min(size, most) for size in LENGTHS}) if ragged else ():
        yield "length", _resized(base, ragged, length, most, stretch=True)
    yield "missing", Arrays({m: (x, np.zeros_like(mask)) for m, (x, mask) in base.inputs.items()}, {}, base.size)


def _resized(arrays: Arrays, names: list[str], size: int, most: int, stretch: bool = False) -> Arrays:
    """Some inputs with `size` more positions of padding, up to `most`; or with `size` positions, which every other row fills."""
    pairs = dict(arrays.inputs)
    for name in names:
        x, mask = pairs[name]
        length = size if stretch else max(x.shape[1], min(x.shape[1] + size, most))
        real = np.minimum(mask.sum(1), length)
        real[::2] = length if stretch else real[::2]
        x = x[:, np.arange(length) % x.shape[1]]
        pairs[name] = (x, np.arange(length) < real[:, None])
    return Arrays(pairs, {}, arrays.size)


def one_by_one(bundle: Bundle, arrays: Arrays) -> dict[str, list[np.ndarray]]:
    """The network's answers to single rows, each as long as its own real positions."""
    alone = [_row(bundle, arrays, i) for i in range(arrays.size)]
    found = [said(bundle.engine, a) for a in alone]
    one = lambda c, o, a: unpadded(c, o, a)[0] if c.along else o[0]  # noqa: E731
    return {n: [one(bundle.columns[n], o[n], a) for o, a in zip(found, alone)] for n in found[0]}


def _row(bundle: Bundle, arrays: Arrays, i: int) -> Arrays:
    pairs = {}
    for name, (x, mask) in arrays.inputs.items():
        x, mask = x[i : i + 1], mask[i : i + 1]
        if bundle.columns[name].ragged:
            real = max(1, int(np.flatnonzero(mask[0]).max(initial=0)) + 1)
            x, mask = x[:, :real], mask[:, :real]
        pairs[name] = (x, mask)
    return Arrays(pairs, {}, 1)


def distance(want: np.ndarray, found: np.ndarray) -> float:
    """The largest difference, of the answers' own size where that is above 1; infinite where shapes or NaN disagree."""
    if want.shape != found.shape or not np.isfinite(found).all() or not np.isfinite(want).all():
        return float("inf")
    return float(np.abs(want - found).max(initial=0) / max(1.0, float(np.abs(want).max(initial=0))))
