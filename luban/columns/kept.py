"""Examples that are encoded once and kept on disk: see `luban.data.cache`. Few rows are encoded in memory each time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from luban.columns.base import Column, Encoded, Ragged
from luban.columns.examples import Examples, cells, encode
from luban.columns.windows import Drawn, learning
from luban.console import Progress, tell
from luban.data import cache
from luban.data.blocks import rest
from luban.data.frames import Framed
from luban.data.rows import content
from luban.errors import Unsupported
from luban.messages import say

ABOVE = 128 << 20  # bytes of encoded examples from which on they are kept on disk instead of in memory
PROBE = 256  # rows encoded to tell how large all will be


def encode_kept(
    columns: Mapping[str, Column], inputs: Sequence[str], outputs: Sequence[str], framed: Framed
) -> Examples:
    """`encode`, in memory where the examples are few; else from the cache, or block by block into it.

    The cache is known by the cells, the rows chosen, the columns' settings and all they learned, so that it cannot be
    another's. Where it cannot be written (a full disk), that is said and the examples stay in memory.
    Long texts that are read in windows are all there (`luban.columns.windows.Drawn`). Raises DataError as `encode` does.
    """
    if framed.pack:
        columns = {n: c.whole() if hasattr(c, "whole") else c for n, c in columns.items()}
        return packed(_kept(columns, inputs, outputs, framed), framed.pack)
    return Drawn.of(_kept(learning(columns, outputs), inputs, outputs, framed))


def packed(examples: Examples, length: int) -> Examples:
    """The texts of all examples one after another, in stretches of `length` ids: nothing is padded, nothing copied.

    `rows`: the row that a stretch begins in. Raises Unsupported where there is more than one text, or anything else.
    """
    given = {**examples.inputs, **examples.targets}
    if len(given) != 1 or not all(isinstance(e, Ragged) for e in given.values()):
        raise Unsupported("frame.pack_inputs", inputs=list(examples.inputs), outputs=list(examples.targets))
    ((name, texts),) = given.items()
    starts = np.arange(0, len(texts.flat), length)
    stretches = {name: Ragged(texts.flat, np.append(starts, len(texts.flat)))}
    rows = np.asarray(examples.rows)[np.searchsorted(texts.offsets, starts, side="right") - 1]
    ins, outs = (stretches, {}) if examples.inputs else ({}, stretches)
    return Examples(examples.columns, ins, outs, rows, len(starts))


def _kept(columns: Mapping[str, Column], inputs: Sequence[str], outputs: Sequence[str], framed: Framed) -> Examples:
    present = [n for n in outputs if n in framed.source.column_names]
    absent = [n for n in inputs if n not in framed.source.column_names and not columns[n].drawn]
    there = [n for n in (*inputs, *present) if n in framed.source.column_names]
    few = absent or (size(columns, inputs, present, framed) < ABOVE and raw(there, framed) < ABOVE)
    if few or not cache.limit():
        return encode(columns, inputs, outputs, framed)
    names = list(dict.fromkeys([*there, *filter(None, (getattr(columns[n], "of", None) for n in inputs))]))
    learned = {n: columns[n].to_json() for n in (*names, *inputs)}
    key = cache.key_of(digest(columns, names, framed), learned, list(inputs), present)
    about = {"rows": len(framed), "inputs": list(inputs), "outputs": present}
    try:
        arrays = cache.kept(key, about, lambda writer: _write(writer, columns, inputs, present, framed))
    except OSError as e:
        tell("cache.not_written", path=str(cache.folder()), reason=e.strerror or type(e).__name__)
        return encode(columns, inputs, outputs, framed)
    return _examples(columns, inputs, present, framed, arrays)


def size(columns: Mapping[str, Column], inputs: Sequence[str], outputs: Sequence[str], framed: Framed) -> int:
    """Bytes that all examples will take, by a few of them."""
    if not len(framed):
        return 0
    probe = framed.some(PROBE)
    few = encode(columns, inputs, outputs, probe)
    return sum(map(_bytes, (*few.inputs.values(), *few.targets.values()))) * len(framed) // len(probe)


def raw(names: Sequence[str], framed: Framed) -> int:
    """Bytes of the cells that all examples are made from."""
    cells = framed.source.select(names).nbytes
    return cells * len(framed) // max(1, framed.source.num_rows)


def _bytes(encoded: Encoded) -> int:
    return encoded.flat.nbytes + encoded.offsets.nbytes if isinstance(encoded, Ragged) else encoded.nbytes


def digest(columns: Mapping[str, Column], names: Sequence[str], framed: Framed) -> str:
    """SHA-256 of the cells of some columns, in the order of the examples, and of the files that they name."""
    found = hashlib.sha256()
    for block in framed.blocks():
        for name in names:
            found.update(f"{name}\0{block.table[name].type}\0{len(block)}\0".encode())
            for part in (*content(block.table[name]), columns[name].outside(cells(block.table[name]))):
                found.update(part)
    return found.hexdigest()


# ---- writing: every array of a block goes to the file of its name


def _write(
    writer: cache.Writer, columns: Mapping[str, Column], inputs: Sequence[str], outputs: Sequence[str], framed: Framed
) -> None:
    progress, done = Progress(say("cache.title"), len(framed)), 0
    reached: dict[str, int] = {}  # where the next example of a ragged array begins
    try:
        for block in framed.blocks():
            for name, array in _named(encode(columns, inputs, outputs, block), reached):
                writer.add(name, array)
            done += len(block)
            rest()
            if progress.due():
                progress.update(done, unit=say("progress.rows"))
    finally:
        progress.close()


def _named(block: Examples, reached: dict[str, int]) -> Iterator[tuple[str, np.ndarray]]:
    for i, (_, x, mask) in enumerate(block.blocks):
        yield f"block {i} x", x
        yield f"block {i} mask", mask
    for name, (x, mask) in block.flat_targets.items():
        yield f"target {name} x", x
        yield f"target {name} mask", mask
    rest = {f"input {n}": (n, block.inputs[n]) for n in block.others}
    rest |= {f"target {n}": (n, e) for n, e in block.targets.items() if n not in block.flat_targets}
    for label, (name, encoded) in rest.items():
        if not isinstance(encoded, Ragged):
            yield label, encoded
            continue
        if label not in reached:
            yield f"{label} offsets", np.zeros(1, np.int64)
        yield f"{label} offsets", encoded.offsets[1:] + reached.get(label, 0)
        yield f"{label} flat", _narrow(encoded.flat, block.columns[name])
        reached[label] = reached.get(label, 0) + len(encoded.flat)


def _narrow(ids: np.ndarray, column: Column) -> np.ndarray:
    """Ids in the fewest bytes that hold all of the vocabulary."""
    if column.form != "ids" or ids.dtype.kind not in "iu" or (len(ids) and ids.min() < 0):  # ~id: given
        return ids
    return ids.astype(np.min_scalar_type(column.size - 1))


# ---- reading


def _examples(
    columns: Mapping[str, Column], inputs: Sequence[str], outputs: Sequence[str], framed: Framed, arrays: cache.Arrays
) -> Examples:
    few = encode(columns, inputs, outputs, framed.some(1))  # which columns stand together
    blocks = [(names, arrays[f"block {i} x"], arrays[f"block {i} mask"]) for i, (names, _, _) in enumerate(few.blocks)]
    flat = {n: (arrays[f"target {n} x"], arrays[f"target {n} mask"]) for n in few.flat_targets}
    views = {n: x[:, i] for names, x, _ in blocks for i, n in enumerate(names)}
    ins = {n: views[n] if n in views else _encoded(f"input {n}", arrays) for n in inputs}
    outs = {n: flat[n][0] if n in flat else _encoded(f"target {n}", arrays) for n in outputs}
    return Examples(columns, ins, outs, framed.rows, len(framed), (blocks, flat))


def _encoded(label: str, arrays: cache.Arrays) -> Encoded:
    if f"{label} flat" in arrays:
        return Ragged(arrays[f"{label} flat"], arrays[f"{label} offsets"])
    return arrays[label]
