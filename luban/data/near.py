"""Rows that are nearly the same: texts that differ in case, spaces or a word; pictures saved again."""

from __future__ import annotations

import io
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from luban.data import images
from luban.data.rows import Rows
from luban.data.same import mix, tensor

SHINGLE = 5  # characters
BANDS, DEEP = 8, 4  # 32 hashes: pairs of Jaccard 0.8 meet with probability 0.985
ALIKE = 0.8  # Jaccard similarity from which two texts are nearly the same
SHORTEST = 20  # characters below which only case and spaces may differ
BLOCK = 2 << 20  # characters hashed at once
CANDIDATES = 50  # rows of one bucket that are looked at
MOST_FILES = 2_000  # pictures that have to be opened
SIDE = 16
GREY = 3.0  # mean difference of grey levels up to which two pictures are nearly the same

Pairs = list[tuple[int, int]]


def pairs(rows: Rows, name: str, kind: str, train: np.ndarray, held: np.ndarray) -> Pairs:
    """(row of train, row of held) for each held row that is nearly a training row; one partner a row."""
    both = np.concatenate([train, held])
    if not len(train) or not len(held):
        return []
    if kind == "text":
        cells = [_folded(v) if isinstance(v, str) else "" for v in rows.table[name].take(pa.array(both)).to_pylist()]
        found = _meet(_text_keys(cells), len(train), lambda i, j: [k for k in i if _alike(cells[k], cells[j])])
    else:
        small = _thumbnails(rows, name, both)
        if small is None:
            return []
        found = _meet(_picture_keys(small), len(train), lambda i, j: _close(small, i, j))
    return [(int(both[i]), int(both[j])) for i, j in found]


def _meet(keys: list[list[Any]], count: int, agree: Callable[[list[int], int], list[int]]) -> Pairs:
    """Candidates share a bucket; `agree` decides. The first `count` items are the training rows."""
    buckets: dict[Any, list[int]] = defaultdict(list)
    for i in range(count):
        for key in keys[i]:
            buckets[key].append(i)
    found = []
    for j in range(count, len(keys)):
        candidates = sorted({i for key in keys[j] for i in buckets.get(key, ())[:CANDIDATES]})
        partners = agree(candidates, j) if candidates else []
        if partners:
            found.append((partners[0], j))
    return found


# ---- texts: MinHash (Broder 1997) finds candidates, exact Jaccard similarity decides


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _text_keys(texts: list[str]) -> list[list[Any]]:
    """The buckets of each text. A short one has a single bucket, itself; an empty one has none."""
    keys: list[list[Any]] = [[text] if text else [] for text in texts]
    long = [i for i, text in enumerate(texts) if len(text) >= SHORTEST]
    for block in _blocks(long, [len(texts[i]) for i in long]):
        for i, bands in zip(block, _bands([texts[i] for i in block]).tolist()):
            keys[i] = list(enumerate(bands))
    return keys


def _blocks(items: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Neighbours whose lengths together stay below `BLOCK`, or one alone."""
    block, size = [], 0
    for item, length in zip(items, lengths):
        if block and size + length > BLOCK:
            yield block
            block, size = [], 0
        block.append(item)
        size += length
    if block:
        yield block


def _bands(texts: list[str]) -> np.ndarray:
    """uint64 (texts, BANDS). Each text has at least SHINGLE characters."""
    lengths = np.array([len(t) for t in texts])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    grams = _grams("".join(texts))
    own = np.ones(len(grams), bool)  # a shingle that runs into the next text belongs to none
    for back in range(1, SHINGLE):
        own[starts[1:] - back] = False
    firsts = np.concatenate([[0], np.cumsum(lengths - SHINGLE + 1)[:-1]])
    grams = grams[own]
    least = np.stack([np.minimum.reduceat(grams * seed, firsts) for seed in _SEEDS], axis=1)
    bands = mix(least.reshape(len(texts), BANDS, DEEP) + np.arange(DEEP, dtype=np.uint64))
    return bands.sum(axis=2, dtype=np.uint64)


def _grams(text: str) -> np.ndarray:
    """A 64-bit number for each run of SHINGLE characters."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    state = np.zeros(max(0, len(points) - SHINGLE + 1), np.uint64)
    for i in range(SHINGLE):
        state = mix(state ^ points[i : i + len(state)])
    return state


_SEEDS = mix(np.arange(BANDS * DEEP, dtype=np.uint64)) | np.uint64(1)


def _alike(a: str, b: str) -> bool:
    if a == b or min(len(a), len(b)) < SHORTEST:
        return a == b
    x, y = np.unique(_grams(a)), np.unique(_grams(b))
    shared = len(np.intersect1d(x, y, assume_unique=True))
    return shared >= ALIKE * (len(x) + len(y) - shared)


# ---- pictures: a quarter of the difference hash makes candidates, small grey pictures decide


def _picture_keys(small: np.ndarray) -> list[list[Any]]:
    """Four buckets each: a picture saved again changes few bits. Quarters with hardly an edge are left out,
    and flat pictures altogether, because they all look alike."""
    half = small.reshape(len(small), SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4))
    bits = (half > np.roll(half, 1, axis=2) + 1).reshape(len(small), 4, -1)
    telling = (bits.sum(axis=2) >= 3) & (small.std(axis=(1, 2)) > GREY)[:, None]
    packed = np.packbits(bits, axis=2)
    return [[(k, packed[i, k].tobytes()) for k in np.flatnonzero(telling[i]).tolist()] for i in range(len(small))]


def _close(small: np.ndarray, candidates: list[int], j: int) -> list[int]:
    apart = np.abs(small[candidates] - small[j]).mean(axis=(1, 2))
    return [candidates[int(apart.argmin())]] if apart.min() <= GREY else []


def _thumbnails(rows: Rows, name: str, which: np.ndarray) -> np.ndarray | None:
    """(N, 16, 16) grey float32, or None where it would take too long."""
    pixels = tensor(rows.table[name])
    if pixels is not None:
        return (
            np.concatenate([_shrunk(pixels[which[i : i + 4096]]) for i in range(0, len(which), 4096)])
            if len(which)
            else None
        )
    if len(which) > MOST_FILES or not len(which):
        return None
    cells = rows.table[name].take(pa.array(which)).to_pylist()
    return np.stack([_opened(v, rows) for v in cells])


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    """Means over blocks, of pictures at least 16 wide; smaller ones are repeated first."""
    grey = pixels.astype(np.float32) if pixels.ndim == 3 else pixels.astype(np.float32).mean(axis=-1)
    for axis in (1, 2):
        size = grey.shape[axis]
        edges = (np.arange(SIDE) * size) // SIDE
        grey = np.repeat(grey, -(-SIDE // size), axis=axis)[:, :SIDE] if axis == 1 and size < SIDE else grey
        grey = np.repeat(grey, -(-SIDE // size), axis=axis)[:, :, :SIDE] if axis == 2 and size < SIDE else grey
        if size >= SIDE:
            widths = np.diff(np.append(edges, size)).astype(np.float32)
            shape = [1, 1, 1]
            shape[axis] = SIDE
            grey = np.add.reduceat(grey, edges, axis=axis) / widths.reshape(shape)
    return grey


def _opened(value: Any, rows: Rows) -> np.ndarray:
    from PIL import Image

    blank = np.zeros((SIDE, SIDE), np.float32)
    if value is None:
        return blank
    file = io.BytesIO(value) if isinstance(value, bytes) else (rows.root / value if rows.root else value)
    try:
        with images.opened(file) as image, images.decoding():
            image.draft("L", (SIDE * 4, SIDE * 4))
            return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    except (OSError, Image.DecompressionBombError):
        return blank
