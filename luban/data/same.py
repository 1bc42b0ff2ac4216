"""Which rows are the same: one number a row, equal exactly where the cells are equal.

Used by splits (duplicates stay on one side), cleaning and the data check. Nothing is sampled: 64-bit
numbers are mixed column by column, so two different rows meet by chance once in about 2**64 / rows**2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from luban.data.blocks import large, pieces

BLOCK = 256  # rows of pixels widened to 64 bits at once


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on uint64: every input bit moves every output bit (Steele et al. 2014)."""
    x = x.astype(np.uint64, copy=True)
    with np.errstate(over="ignore"):
        x += np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def order(count: int, seed: int) -> np.ndarray:
    """A permutation of `range(count)` that depends on the seed only, not on a library's version."""
    start = mix(np.array([seed], np.uint64))
    return np.argsort(mix(np.arange(count, dtype=np.uint64) ^ start), kind="stable")


def codes(column: pa.ChunkedArray) -> np.ndarray:
    """uint64 (N,): equal where the cells are equal; a missing cell equals a missing cell."""
    pixels = tensor(column)
    if pixels is not None:
        return _pixel_codes(pixels.reshape(len(pixels), -1))
    if pa.types.is_nested(column.type):
        column = pa.chunked_array([[repr(v) for v in column.to_pylist()]])
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):  # no rows at all
        return np.zeros(0, np.uint64)
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.uint64)


def groups(table: pa.Table, columns: Sequence[str] | None = None) -> np.ndarray:
    """int64 (N,): the number of each row's group of equal rows, counted from 0."""
    return np.unique(keys(table, columns), return_inverse=True)[1].reshape(-1).astype(np.int64)


def keys(table: pa.Table, columns: Sequence[str] | None = None) -> np.ndarray:
    """uint64 (N,): the same for equal rows."""
    table = table if columns is None else table.select(list(dict.fromkeys(columns)))
    if large(table):
        return np.concatenate([_mixed(piece, hashes) for piece in pieces(table)])
    return _mixed(table, codes)


def _mixed(table: pa.Table, numbers: Callable[[pa.ChunkedArray], np.ndarray]) -> np.ndarray:
    state = np.zeros(len(table), np.uint64)
    for name in table.column_names:
        state = mix(state ^ mix(numbers(table[name])))
    return state


def hashes(column: pa.ChunkedArray) -> np.ndarray:
    """uint64 (N,) of what each cell holds, so that blocks of a table can be compared; `codes` knows one block only."""
    pixels = tensor(column)
    if pixels is not None:
        return _pixel_codes(pixels.reshape(len(pixels), -1))
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        numbers = (
            column.cast(pa.float64(), safe=False)
            if not pa.types.is_integer(kind)
            else column.cast(pa.int64(), safe=False)
        )
        values = numbers.fill_null(0).to_numpy()
        return np.where(missing(column), _NOTHING, mix((values + 0).view(np.uint64)))
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        return np.zeros(0, np.uint64)
    words = np.array([_hash(v) for v in encoded.dictionary.to_pylist()], np.uint64)
    return words[encoded.indices.to_numpy(zero_copy_only=False)]


def _hash(value: Any) -> int:
    if value is None:
        return int(_NOTHING)
    text = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


_NOTHING = np.uint64(0x6C7562616E)  # a missing cell


def tensor(column: pa.ChunkedArray | pa.Array) -> np.ndarray | None:
    """The numpy view (N, ...) of a column of equally large tensors; None for any other column."""
    if not isinstance(column.type, pa.FixedShapeTensorType):
        return None
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        return np.zeros((0, *column.type.shape), column.type.value_type.to_pandas_dtype())
    return column.to_numpy_ndarray()


def _pixel_codes(flat: np.ndarray) -> np.ndarray:
    weights = mix(np.arange(flat.shape[1], dtype=np.uint64)) | np.uint64(1)
    result = np.empty(len(flat), np.uint64)
    as_bits = flat if flat.dtype.kind in "iub" else np.ascontiguousarray(flat).view(f"u{flat.dtype.itemsize}")
    for start in range(0, len(flat), BLOCK):
        block = as_bits[start : start + BLOCK]
        block = _BYTES[block] if block.dtype == np.uint8 else mix(block.astype(np.uint64))
        result[start : start + BLOCK] = (block * weights).sum(axis=1, dtype=np.uint64)
    return result


_BYTES = mix(np.arange(256, dtype=np.uint64))


def missing(column: pa.ChunkedArray) -> np.ndarray:
    """bool (N,): the cell is missing (null, or a float that is NaN)."""
    nulls = pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
    return nulls.to_numpy().astype(bool)
