"""Tags held against their text: every way of writing them, and what is wrong with bad ones, in a sentence."""

import json

import numpy as np
import pyarrow as pa
import pytest
from seqeval.metrics.sequence_labeling import get_entities

from luban.columns.base import make
from luban.data.rows import BadRow
from luban.data.samples import peoples_daily
from luban.data.sources import read
from luban.data.tagged import Entity, Scheme, aligned, placed, scheme_of, tagged, unit_of
from luban.errors import DataError

BIO = Scheme()
BIOES = scheme_of(["B-A", "I-A", "E-A", "S-A"])


def test_one_tag_a_word_or_a_character():
    assert aligned("O B-PER", "mr Lee", "words", BIO) == ["O", "B-PER"]
    assert aligned(["B-LOC", "I-LOC", "O"], "北京 好", "characters", BIO) == ["B-LOC", "I-LOC", "O"]
    assert aligned("O B-LOC", ["in", "New York"], "words", BIO) == ["O", "B-LOC"]
    assert placed(["in", "New York"], "words") == ("in New_York", [(0, 2), (3, 11)])
    assert placed(["北", "京"], "characters") == ("北京", [(0, 1), (1, 2)])
    assert aligned("", "mr Lee", "words", BIO) is None and aligned([], "mr Lee", "words", BIO) == ["O", "O"]


def test_names_by_their_place():
    spans = [{"start": 3, "end": 13, "label": "PER"}]
    want = ["O", "B-PER", "I-PER", "I-PER", "O"]
    assert aligned(spans, "mr de la Cruz left", "words", BIO) == want
    assert aligned(json.dumps(spans), "mr de la Cruz left", "words", BIO) == want
    assert aligned(spans, "mr de la Cruz left", "words", BIOES) == ["O", "B-PER", "I-PER", "E-PER", "O"]


@pytest.mark.parametrize(
    ("value", "text", "said"),
    [
        ("O O", "one two three", "tags.count.words"),
        ("O O", "三个字", "tags.count.characters"),
        ("O PER", "mr Lee", "tags.prefix"),
        ([{"start": 1, "end": 6, "label": "PER"}], "mr Lee", "tags.span"),
        ([{"start": 3, "end": 6}], "mr Lee", "tags.span"),
        ([{"start": 0, "end": 6, "label": "A"}, {"start": 3, "end": 6, "label": "B"}], "mr Lee", "tags.overlap"),
        ("[1, 2", "mr Lee", "tags.not_tags"),
        (["O", None], "mr Lee", "tags.not_tags"),
        (3.5, "mr Lee", "tags.not_tags"),
    ],
)
def test_what_is_wrong_is_one_sentence(value, text, said):
    with pytest.raises(BadRow) as e:
        aligned(value, text, "characters" if said.endswith("characters") else "words", BIO)
    assert e.value.id == said


def test_the_scheme_and_its_letters_are_told_from_the_tags():
    assert scheme_of(["O", "B-A", "I-A"]).name == "bio" and scheme_of(["NN", "VB", "B-"]).name == "none"
    assert scheme_of(["B-A", "M-A", "E-A", "S-A"]).letters == {"begin": "B", "inside": "M", "end": "E", "single": "S"}
    assert scheme_of(["B-A", "I-A", "L-A", "U-A"]).letters["single"] == "U"
    assert scheme_of(["O", "B-A"], "none").name == "none"


@pytest.mark.parametrize("letters", ["BI", "BIES"])
def test_any_sequence_is_read_as_seqeval_reads_it_and_written_legally(letters):
    scheme = BIO if letters == "BI" else BIOES
    rng = np.random.default_rng(0)
    tags = ["O", *(f"{c}-{k}" for c in letters for k in "AB")]
    for _ in range(500):
        found = rng.choice(tags, rng.integers(0, 9)).tolist()
        want = [Entity(s, e + 1, k) for k, s, e in get_entities(found)]
        assert scheme.entities(found) == want
        mended = scheme.mended(found)
        assert scheme.entities(mended) == want and scheme.mended(mended) == mended
        assert is_legal(mended, scheme)


def is_legal(tags, scheme):
    """By the definition of the scheme, not by what the code under test says."""
    before = ("O", "")
    for tag in [*tags, "O"]:
        prefix, kind = (tag[0], tag[2:]) if tag != "O" else ("O", "")
        if prefix in "IE" and not (before[0] in "BI" and before[1] == kind):
            return False
        if scheme.name == "bioes" and before[0] in "BI" and prefix not in "IE":
            return False
        before = (prefix, kind)
    return True


def test_rows_that_do_not_fit_go_aside_and_the_rest_is_mended():
    rows = read([
        {"t": "mr Lee left", "y": "O B-PER O"}, {"t": "in Rome", "y": "O I-LOC"}, {"t": "one two", "y": "O"},
        {"t": "a b", "y": "O PER"}, {"t": "no truth", "y": None}, {"t": "of " * 9 + "x", "y": "B-A " * 10},
    ])  # fmt: skip
    found = tagged(rows, "y", "t")
    assert found.table["y"].to_pylist() == ["O B-PER O", "O B-LOC", None, ("B-A " * 10).strip()]
    assert [(q.line, q.reason_id) for q in found.quarantine] == [(3, "tags.count.words"), (4, "tags.prefix")]
    assert all("'y'" in q.reason for q in found.quarantine)
    assert [n.id for n in found.notes][-1] == "tags.mended"
    with pytest.raises(DataError, match="2 tags for 1 words"):
        tagged(read([{"t": "one", "y": "O O"}]), "y", "t")


def test_unit_is_what_most_rows_have_a_tag_for():
    assert unit_of(["我爱北京", "好"], ["O O B-L I-L", "O"]) == "characters"
    assert unit_of(["one two", "three"], ["O O", "O"]) == "words"
    assert unit_of([["a", "b"]], [["O", "O"]]) == "characters" and unit_of([["ab", "c"]], [["O", "O"]]) == "words"


@pytest.mark.parametrize("tokens", ["characters", "words", "bpe"])
def test_the_first_piece_of_a_word_bears_its_tag(tokens):
    text = make("t", "text", {"tokens": tokens}).fit(["mr o'hara-smith lives in st. ives"] * 3)
    column = make("y", "tags", {"of": "t"}).beside({"t": text})
    column = column.fit(["O B-P O O B-L I-L"], of=["mr o'hara-smith lives in st. ives"])
    x = column.encode("O B-P O O B-L I-L", of="mr o'hara-smith lives in st. ives")
    assert len(x) == len(text.encode("mr o'hara-smith lives in st. ives"))
    assert [column.labels[i - 1] for i in x[x > 0]] == ["O", "B-P", "O", "O", "B-L", "I-L"]
    cut = make("t", "text", {"tokens": tokens, "length": 3}).fit(["mr o'hara-smith lives"] * 3)
    x = column.beside({"t": cut}).encode("O B-P O", of="mr o'hara-smith lives")
    assert len(x) == 3 and x[0] > 0


def test_lists_from_arrow_and_json_are_read(tmp_path):
    table = pa.table({"words": [["New York", "is"], ["big"]], "tags": [["B-L", "O"], ["O"]], "numbers": [[0, 1], [1]]})
    rows = read(table)
    assert {"words", "tags", "numbers"} <= set(rows.columns)
    assert tagged(rows, "tags", "words").table["tags"].to_pylist() == ["B-L O", "O"]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"w": ["a", "bc"], "y": ["O", "B-X"]}\n{"w": "a bc", "y": [{"start": 2, "end": 4, "label": "X"}]}\n'
    )
    mixed = read(path)
    assert len(mixed) == 2


CONLL = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\nPeter NNP B-PER\nbroken\n\nLondon NNP B-LOC\n"


def test_conll_files(tmp_path):
    (tmp_path / "a.conll").write_text(CONLL)
    rows = read(tmp_path / "a.conll")
    assert rows.table.to_pylist() == [
        {"words": "EU rejects", "column_2": "NNP VBZ", "tags": "B-ORG O"},
        {"words": "London", "column_2": "NNP", "tags": "B-LOC"},
    ]
    assert [(q.line, q.reason_id) for q in rows.quarantine] == [(6, "data.conll.columns")] and rows.lines.tolist() == [
        3,
        9,
    ]
    (tmp_path / "b.txt").write_text("北\tB-LOC\n京\tI-LOC\n\n好\tO\n", encoding="utf-8")
    assert read(tmp_path / "b.txt", format="conll").table["words"].to_pylist() == ["北京", "好"]
    (tmp_path / "c.conllu").write_text(
        "# text = do not\n1\tdo\tdo\tAUX\t_\t_\t_\t_\t_\t_\n2\tnot\tnot\tPART\t_\t_\t_\t_\t_\t_\n"
    )
    assert read(tmp_path / "c.conllu").table.to_pylist() == [{"words": "do not", "tags": "AUX PART"}]
    (tmp_path / "d.conll").write_text("word\nword\n")
    with pytest.raises(DataError, match="single column"):
        read(tmp_path / "d.conll")


def test_names_of_the_peoples_daily_are_whole():
    assert peoples_daily.names(["江", "泽民", "李", "鹏"]) == ["江泽民", "李鹏"]
    assert peoples_daily.names(["陈", "方", "安生"]) == ["陈方安生"] and peoples_daily.names(["欧阳", "修"]) == [
        "欧阳修"
    ]
    assert peoples_daily.names(["马克思", "恩格斯"]) == ["马克思", "恩格斯"] and peoples_daily.names([]) == []
    text = "本报/r  北京/ns  １月/t  ３日/t  讯/Ng  江/nr  泽民/nr  说/v  。/w  ”/w  好/a\n再/d  见/v\n"
    found = list(peoples_daily.sentences(text))
    assert [f[:2] for f in found] == [(3, "本报北京１月３日讯江泽民说。”"), (3, "好"), (3, "再见")]
    assert found[0][2].split()[2:4] == ["B-LOC", "I-LOC"] and found[0][2].split()[9:12] == ["B-PER", "I-PER", "I-PER"]
