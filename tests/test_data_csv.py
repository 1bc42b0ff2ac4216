"""CSV: the fast path and the careful path are one reader."""

import csv
import io
import sys

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data import csv_file
from luban.data.csv_file import careful, fast, parse

CELL = st.text(st.sampled_from(list('ab1.é中🙂 ,;\t"\n\r')), max_size=6)


@st.composite
def tables(draw):
    width = draw(st.integers(1, 4))
    row = st.lists(CELL, min_size=width, max_size=width)
    header = [f"h{i}" for i in range(width)]
    return [header, *draw(st.lists(row, min_size=1, max_size=6))]


def written(table, delimiter=",", end="\n", quoting=csv.QUOTE_MINIMAL) -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(table)
    return out.getvalue().encode()


def same(a, b) -> bool:
    return a.fingerprint() == b.fingerprint() and a.lines.tolist() == b.lines.tolist() and a.columns == b.columns


@settings(max_examples=300, deadline=None)
@given(tables(), st.sampled_from([",", ";", "\t"]), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_both_paths_agree_and_give_back_what_was_written(table, delimiter, end, quote_all):
    data = written(table, delimiter, end, csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL)
    slow = careful(data, "x", delimiter, ("",))
    quick = fast(data, "x", delimiter, ("",))
    assert quick is None or same(quick, slow)
    if quote_all:
        assert [[c or "" for c in row.values()] for row in slow.table.to_pylist()] == table[1:]
        assert not slow.quarantine


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(list('ab",\n\r\0;')), min_size=1, max_size=60))
def test_no_text_loses_a_row_or_tells_the_paths_apart(text):
    data = ("h,i\n" + text).encode()
    slow = careful(data, "x", ",", ("",))
    assert slow.rows_in == len(slow) + len(slow.quarantine)
    quick = fast(data, "x", ",", ("",))
    assert quick is None or same(quick, slow)


def test_clean_files_take_the_fast_path(monkeypatch):
    monkeypatch.setattr(csv_file, "careful", None)
    assert len(parse(b"a,b\n1,2\n3,4\n", "x")) == 2
    assert parse(b'a,b\n"x, ""y""\nz",2\n3,4\n', "x").lines.tolist() == [2, 4]


def test_control_arrow_alone_is_not_strict():
    """The planted fault: without our checks Arrow's parser passes over what the careful reader puts aside."""
    data = b'a,b\n"x"y,1\nz,2\n\n3\x00,4\n'
    lenient = csv_file._arrow(data, ["a", "b"], ",", ("",), False)
    assert lenient is not None and len(lenient) == 4
    assert fast(data, "x", ",", ("",)) is None and len(careful(data, "x", ",", ("",)).quarantine) == 2


@pytest.mark.parametrize("planted", [False, True])
def test_threads_of_the_parser_hold_nothing_of_python(planted, monkeypatch):
    """Held by a thread when the interpreter ends, a Python buffer aborts the process. Planted: the bytes themselves."""
    data, given = b"a,b\n" + b"1,2\n" * 50, []
    if planted:
        monkeypatch.setattr(csv_file, "_copied", lambda data, start: pa.py_buffer(data).slice(start))
    monkeypatch.setattr(csv_file, "_arrow", lambda body, *_: given.append(body))
    before = sys.getrefcount(data)
    fast(data, "x", ",", ("",))
    assert given[0].size == 200 and (sys.getrefcount(data) > before) == planted


@pytest.mark.parametrize("bad", ["a,b\n" + '1,"x\n' * 3000, "a,b\n" + '"x"y,1\n' * 3000, "a\n" + '"' * 20_001])
def test_bad_quotes_cost_linear_time(bad):
    rows = careful(bad.encode(), "x", ",", ("",))
    assert rows.rows_in == len(rows) + len(rows.quarantine) > 0
