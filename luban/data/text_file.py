"""Text files before they are parsed: encodings, and files that are not what their name says."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

import pyarrow as pa

from luban.errors import DataError, Problem, problem

# What a file really is, by its first bytes. (The label files of idx are told apart by name.)
MAGIC = (
    (b"PAR1", "parquet"),
    (b"ARROW1", "arrow"),
    (b"FEA1", "Feather-1"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"%PDF", "PDF"),
    (b"SQLite format 3", "SQLite"),
    (b"\xd0\xcf\x11\xe0", "Microsoft Office"),
    (b"\x89HDF", "HDF5"),
    (b"\x93NUMPY", "NumPy"),
    (b"\x89PNG", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF8", "image"),
    (b"\x80\x02", "pickle"),
    (b"\x80\x03", "pickle"),
    (b"\x80\x04", "pickle"),
    (b"\x80\x05", "pickle"),
)
_HTML = re.compile(rb"\s*<(!doctype\s+html|html|head|body|\?xml)", re.IGNORECASE)
_BLANK = b"\r\n\t \0"
_LFS = b"version https://git-lfs"


def magic(head: bytes) -> str | None:
    """The binary format that a file's first bytes announce, or None for text."""
    return next((kind for mark, kind in MAGIC if head.startswith(mark)), None)


def refuse_foreign(head: bytes, source: str) -> None:
    """Raises DataError for what is no table at all: an error page, a git-lfs pointer, an archive, a pickle."""
    if _HTML.match(head.removeprefix(codecs.BOM_UTF8)):
        raise DataError(problem("data.html_page", place=f"{source}:1"))
    if head.startswith(_LFS):
        raise DataError(problem("data.lfs_pointer", place=f"{source}:1"))
    kind = magic(head)
    if kind == "pickle":
        raise DataError(problem("data.pickle", place=source))
    if kind in ("gzip", "bzip2", "xz", "zstd", "zip"):
        raise DataError(problem("data.packed", place=source, kind=kind))
    if kind is not None:
        raise DataError(problem("data.not_a_table", place=source, kind=kind))


def read_bytes(path: Path, source: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise DataError(problem("data.unreadable", place=source, reason=e.strerror or type(e).__name__)) from e


def as_utf8(data: bytes, source: str) -> tuple[bytes, list[Problem]]:
    """The text as UTF-8 without a byte order mark, lines ended by LF or CR LF, and what was noticed.

    Bytes that are not UTF-8 are left in place where most of the text is UTF-8 (the parser puts those rows
    aside). Raises DataError where the whole file has another encoding, which cannot be known for certain.
    """
    notes = []
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            data = data.decode("utf-16").encode()
        except UnicodeError as e:
            raise DataError(problem("data.bad_utf16", place=source)) from e
        notes.append(problem("data.utf16", place=source))
    elif data.startswith(codecs.BOM_UTF8):
        data = data[3:]
        notes.append(problem("data.bom", place=source))
    elif _looks_like_utf16(data):
        raise DataError(problem("data.utf16_unmarked", place=source))
    if not data[:4096].strip(_BLANK) and not data.strip(_BLANK):
        raise DataError(problem("data.empty_file", place=source))
    if b"\n" not in data and b"\r" in data:
        data = data.replace(b"\r", b"\n")
    refuse_other_encoding(data, source)
    return data, notes


def _looks_like_utf16(data: bytes) -> bool:
    head = data[:2000]
    return len(head) >= 4 and max(head[::2].count(0), head[1::2].count(0)) > 0.3 * len(head) / 2


def refuse_other_encoding(data: bytes, source: str) -> None:
    """Raises DataError where most of what is not ASCII is not UTF-8 either."""
    if is_utf8(data):
        return
    try:
        first = len(data.decode()) + 1
    except UnicodeDecodeError as e:
        first = e.start
    foreign = [line for line in data.split(b"\n") if not line.isascii()]
    broken = sum("\ufffd" in line.decode("utf-8", "replace") for line in foreign)
    if broken * 2 > len(foreign) or first < data.find(b"\n"):
        line = data.count(b"\n", 0, first) + 1
        byte = f"0x{data[first]:02X}"
        raise DataError(problem("data.not_utf8", place=f"{source}:{line}", byte=byte, guess=_guess(data)))


def is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        pa.array([text], pa.large_binary()).cast(pa.large_string())  # checks without building Python strings
    except pa.ArrowInvalid:
        return False
    return True


def _guess(data: bytes) -> str:
    """The likelier of the two families seen in the wild: Chinese GB 18030, or Western European."""
    text = data[:200_000].rpartition(b"\n")[0].decode("gb18030", "replace")
    chinese = sum("\u4e00" <= c <= "\u9fff" for c in text)
    return "GB18030" if chinese > 4 and text.count("\ufffd") * 10 < chinese else "ISO-8859-1"
