"""Word vectors from files: GloVe text, word2vec text and binary, NumPy with a list of words beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from luban.console import tell
from luban.errors import DataError, problem


def read(path: str, words: Sequence[str], column: str) -> tuple[np.ndarray, int]:
    """Rows (V, D) float32 for a vocabulary, and how many of its words the file has.

    Row 0 (padding) is zero; a word that the file lacks gets a random vector of the same spread. A word is looked up as it
    is, then in lower case. Raises DataError for a file that cannot be read, has ragged rows, or has none of the words.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(problem("column.no_vectors", name=column, place=path))
    wanted = set(words) | {w.lower() for w in words}
    reader = {".bin": _binary, ".npy": _numpy}.get(file.suffix, _text)
    found = dict(reader(file, wanted))
    if not found:
        raise DataError(problem("column.no_word_of", name=column, place=path))
    known = np.stack(list(found.values()))
    random = np.random.Generator(np.random.Philox(key=0))
    table = random.normal(known.mean(0), known.std(0) + 1e-6, (len(words), known.shape[1])).astype(np.float32)
    hits = 0
    for i, word in enumerate(words):
        vector = found.get(word, found.get(word.lower()))
        if vector is not None:
            table[i], hits = vector, hits + 1
    table[0] = 0.0
    return table, hits


def _text(file: Path, wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """`word v1 v2 ...` a line; a first line of two whole numbers is word2vec's header, how many words and numbers of each."""
    size = promised = None
    count = 0
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            parts = line.rstrip().split(b" ")
            if number == 1 and len(parts) == 2 and all(p.isdigit() for p in parts):
                promised, size = map(int, parts)
                continue
            if parts == [b""]:
                continue
            count, size = count + 1, size or len(parts) - 1
            if len(parts) - 1 < size or not size:
                shown = parts[0].decode("utf-8", "replace")[:40]
                raise DataError(problem("column.short_vector", place=f"{file}:{number}", word=shown, found=len(parts) - 1, size=size))  # fmt: skip
            word = b" ".join(parts[:-size]).decode("utf-8", "replace")
            if word not in wanted:
                continue
            try:
                vector = np.array(parts[-size:], np.float32)
            except ValueError:
                raise DataError(problem("column.bad_vector", place=f"{file}:{number}", word=word[:40])) from None
            yield word, _finite(vector, f"{file}:{number}", word)
    if promised not in (None, count):
        tell("column.vectors_promised", place=str(file), promised=promised, count=count)


def _binary(file: Path, wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """word2vec's binary format: a line `N D`, then each word, a blank and D little-endian float32."""
    with open(file, "rb") as data:
        try:
            count, size = map(int, data.readline(100).split())
        except ValueError:
            raise DataError(problem("column.bad_vector", place=f"{file}:1", word="")) from None
        for number in range(count):
            word = bytearray()
            while (byte := data.read(1)) not in (b" ", b"") and len(word) < 10_000:
                word += byte
            numbers = data.read(4 * size)
            name = word.lstrip(b"\n").decode("utf-8", "replace")
            if len(numbers) < 4 * size:
                raise DataError(problem("column.bad_vector", place=f"{file}:{number + 2}", word=name[:40]))
            if name in wanted:
                yield name, _finite(np.frombuffer(numbers, "<f4"), f"{file}:{number + 2}", name)


def _numpy(file: Path, wanted: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """A (N, D) array, with its words in a .txt (one a line) or .parquet (first text column) of the same name."""
    table = np.load(file, mmap_mode="r", allow_pickle=False)
    names = _names(file)
    if table.ndim != 2 or len(names) != len(table):
        raise DataError(problem("column.bad_vector", place=str(file), word=str(table.shape)))
    for i, word in enumerate(names):
        if word in wanted:
            yield word, _finite(np.asarray(table[i], np.float32), f"{file}:{i + 1}", word)


def _names(file: Path) -> list[str]:
    text, parquet = file.with_suffix(".txt"), file.with_suffix(".parquet")
    if text.is_file():
        return text.read_text(encoding="utf-8").split("\n")[: len(np.load(file, mmap_mode="r"))]
    if parquet.is_file():
        import pyarrow.parquet as pq

        read = pq.read_table(parquet)
        return next((c.to_pylist() for c in read.columns if "string" in str(c.type)), [])
    raise DataError(problem("column.no_word_list", place=str(file)))


def _finite(vector: np.ndarray, place: str, word: str) -> np.ndarray:
    if not np.isfinite(vector).all():
        raise DataError(problem("column.bad_vector", place=place, word=word[:40]))
    return vector
