"""The data-fault corpus: small bad files, each with what must come of it beside it.

`used`: rows that are kept; `bad`: {line: reason id} of the quarantine; `notes`: ids that must be told;
`refused`: id of the error. A reader that is silent about them is the planted fault.
"""

from __future__ import annotations

import csv
import io
import json
import struct
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from luban.data.sources import read, typed
from luban.errors import DataError


@dataclass(frozen=True)
class Fault:
    name: str
    content: bytes
    used: int = 0
    bad: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refused: str = ""
    numbers: tuple[str, ...] = ()
    cells: dict[str, list] = field(default_factory=dict)
    decimal: str = "."

    @property
    def file(self) -> str:
        return self.name.replace(" ", "-")


def F(
    name: str, content: str | bytes, used: int = 0, bad: dict[int, str] | None = None, notes: str = "", **more
) -> Fault:
    content = content.encode() if isinstance(content, str) else content
    bad = {line: f"data.{id}" for line, id in (bad or {}).items()}
    if "refused" in more:
        more["refused"] = f"data.{more['refused']}"
    return Fault(name, content, used, bad, tuple(f"data.{n}" for n in notes.split()), **more)


HTML = "<!DOCTYPE html>\n<html><body>404, not found</body></html>\n"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
DEEP = b"[" * 100_000 + b"]" * 100_000
NUMBERS = ("x",)

CSV = [
    F("clean.csv", "a,b\n1,2\n3,4\n", 2, cells={"a": ["1", "3"]}),
    F("crlf.csv", "a,b\r\n1,2\r\n3,4\r\n", 2, cells={"b": ["2", "4"]}),
    F("cr only.csv", "a,b\r1,2\r3,4\r", 2, cells={"b": ["2", "4"]}),
    F("mixed ends.csv", "a,b\n1,2\r\n3,4\n", 2, cells={"b": ["2", "4"]}),
    F("bom.csv", b"\xef\xbb\xbfa,b\n1,2\n", 1, notes="bom", cells={"a": ["1"]}),
    F("utf-16.csv", "a,b\n1,中\n".encode("utf-16"), 1, notes="utf16", cells={"b": ["中"]}),
    F("utf-16 be.csv", b"\xfe\xff" + "a,b\n1,2\n".encode("utf-16-be"), 1, notes="utf16"),
    F("utf-16 unmarked.csv", "a,b\n1,2\n3,4\n".encode("utf-16-le"), refused="utf16_unmarked"),
    F("utf-16 cut.csv", "a,b\n1,2\n".encode("utf-16")[:-1], refused="bad_utf16"),
    F("latin-1.csv", "a,b\ncafé,1\nnaïve,2\n".encode("latin-1"), refused="not_utf8"),
    F("latin-1 header.csv", "naïve,b\ncafe,1\n".encode("latin-1"), refused="not_utf8"),
    F("gb18030.csv", "文字,标签\n这本书很好看,好\n质量太差了,坏\n".encode("gb18030"), refused="not_utf8"),
    F("mixed encodings.csv", "a\né\nü\nö\n".encode() + "é\n".encode("latin-1") + b"x\n", 4, {5: "bad_bytes"}),
    F("short row.csv", "a,b,c\n1,2,3\n4,5\n6,7,8\n", 2, {3: "too_few_cells"}),
    F("long row.csv", "a,b\n1,2\n3,4,5\n6,7\n", 2, {3: "too_many_cells"}),
    F(
        "trailing comma.csv",
        "a,b\n1,2,\n3,4,\n",
        2,
        notes="trailing_delimiter",
        cells={"a": ["1", "3"], "b": ["2", "4"]},
    ),
    F("trailing comma header.csv", "a,b,\n1,2,\n", 1, notes="empty_name"),
    F("one trailing comma.csv", "a,b\n1,2\n3,4,\n", 1, {3: "too_many_cells"}),
    F("duplicate header.csv", "a,a\n1,2\n", 1, notes="duplicate_name", cells={"a": ["1"], "a_2": ["2"]}),
    F("triple header.csv", "a,a,a_2\n1,2,3\n", 1, notes="duplicate_name", cells={"a_3": ["2"], "a_2": ["3"]}),
    F("empty name.csv", "a,,c\n1,2,3\n", 1, notes="empty_name", cells={"column_2": ["2"]}),
    F("spaces in names.csv", " a , b\n1,2\n", 1, notes="trimmed_name", cells={"a": ["1"]}),
    F("no header.csv", "1,2\n3,4\n", 1, notes="header_is_numbers"),
    F("nul.csv", b"a,b\n1,2\n3\x00,4\n5,6\n", 2, {3: "nul"}),
    F("nul header.csv", b"a\x00,b\n1,2\n", refused="bad_header"),
    F("quote in the middle.csv", 'a,b\n5" pipe,1\nx,2\n', 2, notes="stray_quotes", cells={"a": ['5" pipe', "x"]}),
    F("text after quote.csv", 'a,b\n"x"y,1\nz,2\n', 1, {2: "text_after_quote"}),
    F("unclosed quote.csv", 'a,b\n1,"x\n2,y\n3,z\n', 2, {2: "unclosed_quote"}, cells={"a": ["2", "3"]}),
    F("unclosed last.csv", 'a,b\n1,x\n2,"y\n', 1, {3: "unclosed_quote"}),
    F("unclosed then quoted.csv", 'a,b\n1,"x\n2,"y"\n3,z\n', 2, {2: "text_after_quote"}, cells={"b": ["y", "z"]}),
    F("unclosed header.csv", 'a,"b\n1,2\n', refused="bad_header"),
    F("quoted newline.csv", 'a,b\n"x\ny",1\nz,2\n', 2, cells={"a": ["x\ny", "z"]}),
    F("quoted crlf.csv", 'a,b\r\n"x\r\ny",1\r\nz,2\r\n', 2, cells={"a": ["x\r\ny", "z"]}),
    F("doubled quotes.csv", 'a,b\n"say ""hi""",1\n"""",2\n', 2, cells={"a": ['say "hi"', '"']}),
    F("quoted delimiter.csv", 'a,b\n"x,y",1\n', 1, cells={"a": ["x,y"]}),
    F("space before quote.csv", 'a,b\n1, "x"\n', 1, notes="stray_quotes", cells={"b": [' "x"']}),
    F("empty quoted.csv", 'a,b\n"",1\n', 1, cells={"a": [None]}),
    F("semicolons.csv", "a;b\n1;2\n3;4\n", 2, notes="delimiter", cells={"a": ["1", "3"]}),
    F("semicolons and commas.csv", "a;b\n1,5;2\n3,5;4\n", 2, notes="delimiter", cells={"a": ["1,5", "3,5"]}),
    F("tabs.csv", "a\tb\n1\t2\n", 1, notes="delimiter", cells={"b": ["2"]}),
    F("bars.csv", "a|b\n1|2\n", 1, notes="delimiter"),
    F("commas.tsv", "a,b\n1,2\n", 1, notes="delimiter", cells={"b": ["2"]}),
    F("tabs.tsv", "a\tb\nx y\t2\n", 1, cells={"a": ["x y"]}),
    F("html page.csv", HTML, refused="html_page"),
    F("html page.json", HTML, refused="html_page"),
    F("html page.parquet", HTML, refused="html_page"),
    F("xml error.csv", '<?xml version="1.0"?><Error>denied</Error>', refused="html_page"),
    F("lfs pointer.csv", LFS, refused="lfs_pointer"),
    F("packed.csv", b"\x1f\x8b\x08\x00abc", refused="packed"),
    F("sheet.csv", b"PK\x03\x04abc", refused="packed"),
    F("document.csv", b"%PDF-1.7", refused="not_a_table"),
    F("pickle.csv", b"\x80\x04\x95\x00", refused="pickle"),
    F("cut mid row.csv", "a,b\n1,2\n3", 1, {3: "too_few_cells"}, "no_line_end"),
    F("cut mid cell.csv", "a,b\n1,2\n3,4", 2, notes="no_line_end"),
    F("repeated header.csv", "a,b\n1,2\na,b\n3,4\n", 2, {3: "repeated_header"}),
    F("repeated quoted header.csv", 'a,b\n"1",2\n"a","b"\n', 1, {3: "repeated_header"}),
    F("header only.csv", "a,b\n", refused="header_only"),
    F("header only no end.csv", "a,b", refused="header_only"),
    F("empty.csv", "", refused="empty_file"),
    F("blank.csv", "\n\n  \n", refused="empty_file"),
    F("only bad rows.csv", "a,b\n1\n2\n", refused="no_usable_row"),
    F("blank lines.csv", "a,b\n1,2\n\n3,4\n\n", 2, notes="blank_lines", cells={"a": ["1", "3"]}),
    F("blank first.csv", "\n\na,b\n1,2\n", 1, notes="blank_lines"),
    F("blank one column.csv", "a\nx\n\ny\n", 2, {3: "blank_line"}),
    F("one column.csv", 'a\nx\n""\n', 2, cells={"a": ["x", None]}),
    F("single row.csv", "a,b\n1,2\n", 1),
    F("na is a word.csv", "a,b\nNA,1\nnull,2\n,3\n", 3, cells={"a": ["NA", "null", None]}),
    F("leading zeros.csv", "zip,b\n01234,1\n", 1, cells={"zip": ["01234"]}),
    F("emoji and rtl.csv", "a,b\n🙂,1\nשלום,2\n", 2, cells={"a": ["🙂", "שלום"]}),
    F("long cell.csv", "a,b\n" + "x" * 1_000_000 + ",1\n", 1),
    F("many columns.csv", ",".join(f"c{i}" for i in range(2000)) + "\n" + ",".join("1" * 2000) + "\n", 1),
    F("lone cr.csv", b"a,b\n1\rx,2\n3,4\n", 2, cells={"a": ["1\rx", "3"]}),
    # numbers
    F("decimal comma.csv", 'x,y\n"1,5",a\n2,b\n', 1, {2: "cell.decimal_comma"}, numbers=NUMBERS),
    F("declared comma.csv", 'x,y\n"1,5",a\n2,b\n', 2, numbers=NUMBERS, decimal=",", cells={"x": [1.5, 2.0]}),
    F(
        "point under comma.csv",
        "x;y\n1.5;a\n2,5;b\n",
        1,
        {2: "cell.decimal_point"},
        "delimiter",
        numbers=NUMBERS,
        decimal=",",
    ),
    F("thousands.csv", 'x,y\n"1,234,567",a\n2,b\n', 1, {2: "cell.thousands"}, numbers=NUMBERS),
    F("thousands or decimals.csv", 'x,y\n"1,234",a\n2,b\n', 1, {2: "cell.thousands_or_decimal"}, numbers=NUMBERS),
    F("thin spaces.csv", "x,y\n1\u00a0234,a\n2,b\n", 1, {2: "cell.thousands"}, numbers=NUMBERS),
    F("one bad cell.csv", "x,y\n1,a\nabc,b\n3,c\n", 2, {3: "cell.text"}, numbers=NUMBERS, cells={"x": [1.0, 3.0]}),
    F(
        "infinite.csv",
        "x,y\ninf,a\n1e999,b\n-Infinity,c\n1,d\n",
        1,
        dict.fromkeys((2, 3, 4), "cell.not_finite"),
        numbers=NUMBERS,
    ),
    F("nan word.csv", "x,y\nnan,a\nNA,b\n1,c\n", 1, dict.fromkeys((2, 3), "cell.missing_word"), numbers=NUMBERS),
    F("truth among numbers.csv", "x,y\nTrue,a\n1,b\n", 1, {2: "cell.truth"}, numbers=NUMBERS),
    F("spaces only.csv", "x,y\n  ,a\n1,b\n", 1, {2: "cell.blank"}, numbers=NUMBERS),
    F("spaces around.csv", "x,y\n 1 ,a\n+2,b\n", 2, numbers=NUMBERS, cells={"x": [1.0, 2.0]}),
    F("beyond exact.csv", "x,y\n9007199254740993,a\n,b\n", 2, notes="beyond_exact", numbers=NUMBERS),
    F("underscores.csv", "x,y\n1_000,a\n0x10,b\n1,c\n", 1, {2: "cell.thousands", 3: "cell.text"}, numbers=NUMBERS),
    F("full width.csv", "x,y\n１２,a\n1,b\n", 1, {2: "cell.text"}, numbers=NUMBERS),
    F("missing number.csv", "x,y\n,a\n1,b\n", 2, numbers=NUMBERS, cells={"x": [None, 1.0]}),
    F("no number at all.csv", "x,y\na,b\nc,d\n", refused="cell.text", numbers=NUMBERS),
]

JSON = [
    F("clean.jsonl", '{"a": 1}\n{"a": 2}\n', 2, cells={"a": [1, 2]}),
    F("half line.jsonl", '{"a": 1}\n{"a": 2', 1, {2: "half_line"}),
    F("half line inside.jsonl", '{"a": 1}\n{"a": \n{"a": 3}\n', 2, {2: "bad_json"}),
    F("nan.jsonl", '{"a": NaN}\n{"a": 1.5}\n{"a": Infinity}\n', 1, {1: "json_constant", 3: "json_constant"}),
    F("duplicate key.jsonl", '{"a": 1, "a": 2}\n{"a": 3}\n', 1, {1: "duplicate_key"}),
    F("deep.jsonl", b'{"a": 1}\n{"a": ' + DEEP + b"}\n", 1, {2: "too_deep"}),
    F("deep only.json", DEEP, refused="too_deep"),
    F("differing keys.jsonl", '{"a": 1}\n{"b": 2}\n', 2, notes="key_lacks", cells={"a": [1, None], "b": [None, 2]}),
    F("not objects.jsonl", '{"a": 1}\n[1]\n3\n"x"\nnull\n', 1, dict.fromkeys((2, 3, 4, 5), "not_an_object")),
    F("trailing text.jsonl", '{"a": 1} x\n{"a": 2}\n', 1, {1: "bad_json"}),
    F("single quotes.jsonl", "{'a': 1}\n{\"a\": 2}\n", 1, {1: "bad_json"}),
    F("mixed kinds.jsonl", '{"a": 1}\n{"a": "x"}\n', 2, notes="mixed_kinds", cells={"a": ["1", "x"]}),
    F("nested.jsonl", '{"a": 1, "b": [1.5, 2]}\n', 1, notes="nested"),
    F("lone surrogate.jsonl", '{"a": "\\ud800"}\n{"a": "x"}\n', 1, {1: "lone_surrogate"}),
    F("surrogate pair.jsonl", '{"a": "\\ud83d\\ude42"}\n', 1, cells={"a": ["🙂"]}),
    F("nul.jsonl", '{"a": "\\u0000"}\n{"a": "x"}\n', 1, {1: "nul"}),
    F("raw nul.jsonl", b'{"a": "\x00"}\n{"a": "x"}\n', 1, {1: "bad_json"}),
    F("bad bytes.jsonl", '{"a": "é"}\n{"a": "ü"}\n'.encode() + b'{"a": "\xff"}\n', 2, {3: "bad_bytes"}),
    F("blank lines.jsonl", '{"a": 1}\n\n{"a": 2}\n', 2, notes="blank_lines"),
    F("huge integer.jsonl", '{"a": 123456789012345678901234567890}\n{"a": 1}\n', 2),
    F("digits bomb.jsonl", '{"a": ' + "9" * 10_000 + '}\n{"a": 1}\n', 1, {1: "bad_json"}),
    F("array.json", '[{"a": 1}, {"a": 2}]', 2, cells={"a": [1, 2]}),
    F("array of numbers.json", "[1, 2]", refused="not_objects"),
    F("only bad.jsonl", "x\ny\n", refused="no_usable_row"),
    F("empty key.jsonl", '{"": 1, "b": 2}\n', 1, notes="empty_name"),
    F("infinite.jsonl", '{"x": 1e999}\n{"x": 1.5}\n', 1, {1: "cell.not_finite"}, numbers=NUMBERS),
]


def _parquet(**columns) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.table(columns), out)
    return out.getvalue()


def _arrow(**columns) -> bytes:
    out = io.BytesIO()
    feather.write_feather(pa.table(columns), out, compression="uncompressed")
    return out.getvalue()


GOOD = _parquet(a=[1, 2, 3], b=["x", "y", None])
WORDS = pa.array(["x", "y", "x"]).dictionary_encode()
BROKEN_WORDS = pa.DictionaryArray.from_arrays(pa.array([0, 7]), ["x", "y"], safe=False)
IDX_IMAGES = struct.pack(">4I", 0x0803, 2, 3, 3) + bytes(18)

TYPED = [
    F("clean.parquet", GOOD, 3, cells={"a": [1, 2, 3], "b": ["x", "y", None]}),
    F("clean.feather", _arrow(a=[1, 2]), 2, cells={"a": [1, 2]}),
    F("parquet named.csv", GOOD, 3),
    F("cut footer.parquet", GOOD[:-6], refused="truncated"),
    F("half.parquet", GOOD[: len(GOOD) // 2], refused="truncated"),
    F("wrong magic.parquet", b"XXXX" + GOOD[4:], refused="wrong_magic"),
    F("text named.parquet", "a,b\n1,2\n", refused="wrong_magic"),
    F("footer lies.parquet", GOOD[:-8] + b"\xff\xff\xff\x7fPAR1", refused="damaged"),
    F("damaged inside.parquet", GOOD[:-80] + b"\x00" * 60 + GOOD[-20:], refused="damaged"),
    F("empty.parquet", b"", refused="empty_file"),
    F("no rows.parquet", _parquet(a=pa.array([], pa.int64())), refused="no_rows"),
    F("nested.parquet", _parquet(a=[1], b=[[1.5, 2]]), 1, notes="nested", cells={"a": [1]}),
    F("dictionary.parquet", _parquet(a=WORDS), 3, cells={"a": ["x", "y", "x"]}),
    F("dictionary overflow.arrow", _arrow(a=BROKEN_WORDS), refused="damaged"),
    F("cut.arrow", _arrow(a=list(range(1000)))[:-200], refused="damaged"),
    F("text named.arrow", "a,b\n1,2\n", refused="damaged"),
    F("all null.parquet", _parquet(a=pa.nulls(2), b=[1, 2]), 2, cells={"a": [None, None]}),
    F("nul.parquet", _parquet(a=["x\0", "y"]), 1, {1: "nul"}),
    F("infinite.parquet", _parquet(x=[float("inf"), 1.0, float("nan")]), 2, {1: "cell.not_finite"}, numbers=NUMBERS),
    F("truth as number.parquet", _parquet(x=[True, False]), 2, numbers=NUMBERS, cells={"x": [1.0, 0.0]}),
    F("beyond exact.parquet", _parquet(x=[2**53 + 1, 1]), 2, notes="beyond_exact", numbers=NUMBERS),
    F("times as numbers.parquet", _parquet(x=pa.array([1], pa.timestamp("s"))), refused="not_numbers", numbers=NUMBERS),
    F("alone-images-idx3-ubyte", IDX_IMAGES, refused="idx_alone"),
    F("data_batch_1.bin", bytes(3000), refused="cifar_length"),
]
FAULTS = CSV + JSON + TYPED


def outcome(fault: Fault, folder) -> tuple:
    """(used, {line: id}, note ids, refused, rows) as Luban does it."""
    path = folder / fault.file
    path.write_bytes(fault.content)
    try:
        rows = read(str(path))
        rows = typed(rows, dict.fromkeys(fault.numbers, "number"), decimal=fault.decimal)
    except DataError as e:
        assert str(path) in str(e), "the sentence names the file"
        return 0, {}, set(), e.id, None
    return len(rows), {q.line: q.reason_id for q in rows.quarantine}, {n.id for n in rows.notes}, "", rows


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_outcome(fault: Fault, tmp_path):
    used, bad, notes, refused, rows = outcome(fault, tmp_path)
    assert refused == fault.refused
    assert (used, bad) == (fault.used, fault.bad)
    assert notes == set(fault.notes), "a note for each oddity, and none for a clean file"
    if rows is not None:
        assert rows.rows_in == len(rows) + len(rows.quarantine)
        for name, cells in fault.cells.items():
            assert rows.table[name].to_pylist() == cells
        for q in rows.quarantine:
            assert q.reason and (q.raw or q.reason_id == "data.blank_line") and "{" not in q.reason.replace(q.raw, "")


def test_corpus_is_large_enough():
    assert len(FAULTS) >= 120 and len({f.name for f in FAULTS}) == len(FAULTS)


def silent_reader(fault: Fault) -> int:
    """The planted fault: what a reader does that drops, fills and guesses without a word."""
    text = fault.content.decode("utf-8-sig", "replace").replace("\0", "")
    return sum(1 for _ in csv.DictReader(io.StringIO(text, newline="")))


def test_control_a_silent_reader_fails_the_corpus():
    faulty = [f for f in CSV if f.bad or f.refused or f.notes]
    wrong = [f for f in faulty if silent_reader(f) != f.used or f.bad or f.notes]
    assert len(wrong) >= 0.8 * len(faulty) > 40


def test_quarantine_file_has_line_reason_and_raw_row(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('a,b\n1,2\nonly one\n"x"y,3\n')
    rows = read(str(path))
    rows.save_quarantine(tmp_path / "bad.csv")
    with open(tmp_path / "bad.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["line"], line["raw"]) for line in lines] == [("3", "only one"), ("4", '"x"y,3')]
    assert all(line["reason"] for line in lines)


def test_missing_words_are_declared_never_guessed(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("x,y\nNA,1\n?,2\n3,4\n")
    assert read(str(path)).table["x"].null_count == 0
    rows = typed(read(str(path), missing=("", "NA", "?")), {"x": "number"})
    assert rows.table["x"].to_pylist() == [None, None, 3.0] and not rows.quarantine


CONTENT = [
    {"n": "1", "w": "x"},
    {"n": "2.5", "w": None},
    {"n": None, "w": "é 中"},
    {"n": "1e999", "w": "inf"},
    {"n": "abc", "w": 'q"q,'},
    {"n": "9007199254740993", "w": "big"},
]


def _written(folder) -> dict[str, str]:
    names = {k: str(folder / f"x.{k}") for k in ("csv", "tsv", "jsonl", "parquet", "feather")}
    for kind, delimiter in (("csv", ","), ("tsv", "\t")):
        with open(names[kind], "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["n", "w"], delimiter=delimiter, lineterminator="\n")
            writer.writeheader()
            writer.writerows(CONTENT)
    with open(names["jsonl"], "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in CONTENT)
    table = pa.Table.from_pylist(CONTENT)
    parquet.write_table(table, names["parquet"])
    feather.write_feather(table, names["feather"])
    return names


def test_same_content_has_the_same_outcome_in_every_format(tmp_path):
    results = []
    for name in _written(tmp_path).values():
        rows = typed(read(name), {"n": "number"})
        reasons = [(q.reason_id, q.values["value"], q.raw) for q in rows.quarantine]
        results.append(
            (rows.table.to_pylist(), reasons, {n.id for n in rows.notes}, rows.row_hashes(b"k"), rows.fingerprint())
        )
    assert all(r == results[0] for r in results)
    assert [r[0] for r in results[0][1]] == ["data.cell.not_finite", "data.cell.text"]


def test_numbers_of_typed_formats_agree_with_text(tmp_path):
    (tmp_path / "x.csv").write_text("x,y\n1,0.5\n2,\n")
    (tmp_path / "x.jsonl").write_text('{"x": 1, "y": 0.5}\n{"x": 2, "y": null}\n')
    parquet.write_table(pa.table({"x": [1, 2], "y": [0.5, np.nan]}), tmp_path / "x.parquet")
    read_as = [
        typed(read(str(tmp_path / f"x.{k}")), {"x": "number", "y": "number"}) for k in ("csv", "jsonl", "parquet")
    ]
    assert len({r.fingerprint() for r in read_as}) == 1
    assert len({tuple(r.row_hashes(b"k")) for r in read_as}) == 1
