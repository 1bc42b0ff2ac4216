"""Answers that are a stretch of a text: how they are written, measured, decoded; each check has a planted fault."""

import collections
import json
import re
import string

import numpy as np
import pytest
import torch

from luban.columns.base import make
from luban.data import spans
from luban.data.rows import BadRow
from luban.data.sources import read
from luban.errors import DataError
from luban.evaluation import answers
from luban.evaluation.span_baselines import span_baselines
from luban.nn.heads.span import SpanHead
from luban.nn.tokens import Tokens
from tests import checkpoints

TEXT = "In 1889 Rome saw Rome's tower, 330 m high."


# -- how answers are written -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("cell", "want"),
    [
        ("Rome", [("Rome", None)]),
        ({"text": "Rome", "start": 17}, [("Rome", 17)]),
        ([{"text": "Rome", "answer_start": 8}, {"text": "330 m", "start": 31}], [("Rome", 8), ("330 m", 31)]),
        ({"text": ["Rome", "330 m"], "answer_start": [8, 31]}, [("Rome", 8), ("330 m", 31)]),
        (json.dumps([{"text": "Rome", "start": 8}]), [("Rome", 8)]),
        ({"text": [], "answer_start": []}, []),
        ("[]", []),
        ([], []),
        ("[1]", [("[1]", None)]),  # words that only look like a list
        (["Rome", "330 m"], [("Rome", None), ("330 m", None)]),
        (None, None),
        ("", None),
    ],
    ids=str,
)
def test_every_way_of_writing_is_read(cell, want):
    assert spans.plain(cell) == want


@pytest.mark.parametrize(
    "cell", [3, {"text": ""}, {"text": "a", "start": "b"}, [{"words": "a"}], {"text": ["a"], "answer_start": [1, 2]}]
)
def test_what_is_no_answer_is_refused(cell):
    with pytest.raises(BadRow):
        spans.plain(cell)


def test_answers_are_placed_where_they_stand():
    place = lambda words, start: tuple(spans.placed([(words, start)], TEXT)[0])  # noqa: E731
    assert place("Rome", None) == (8, 12) and place("Rome", 17) == (17, 21)
    assert place("Rome", 16) == (17, 21) and place("Rome", 9) == (8, 12)  # beside the place that is told
    with pytest.raises(BadRow):
        place("Paris", 8)


def test_rows_whose_answer_is_not_there_go_aside_and_the_rest_is_one_kind_of_cell():
    cells = ["Rome", "Paris", json.dumps({"text": "Rome", "start": 16}), None, "[]"]
    rows = read([{"story": TEXT, "a": c, "n": i} for i, c in enumerate(cells)])
    found = spans.spanned(rows, "a", "story")
    told = [v and json.loads(v) for v in found.table["a"].to_pylist()]
    assert told == [[{"text": "Rome", "start": 8}], [{"text": "Rome", "start": 17}], None, []]
    assert found.quarantine[0].line == 2 and "Paris" in found.quarantine[0].reason
    assert [n.id for n in found.notes] == ["span.moved"]
    assert spans.spanned(rows, "a", "story", "none").table["a"].to_pylist()[2] == "[]"
    beside = read([{"story": TEXT, "a": "Rome", "a_start": 17}])
    assert json.loads(spans.spanned(beside, "a", "story").table["a"][0].as_py())[0]["start"] == 17
    with pytest.raises(DataError, match="Paris"):
        spans.spanned(read([{"story": TEXT, "a": "Paris"}]), "a", "story")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_of_squad_is_read_as_it_is(tmp_path, indent):
    asked = [
        {"id": "1", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 8}], "is_impossible": False},
        {
            "id": "2",
            "question": "Who?",
            "answers": [],
            "is_impossible": True,
            "plausible_answers": [{"text": "Rome", "answer_start": 8}],
        },
    ]
    article = {"title": "Towers", "paragraphs": [{"context": TEXT, "qas": asked}]}
    (tmp_path / "dev-v2.0.json").write_text(json.dumps({"version": "v2.0", "data": [article]}, indent=indent))
    rows = read(tmp_path / "dev-v2.0.json")
    assert rows.columns == ["id", "title", "question", "context", "answers"] and len(rows) == 2
    found = spans.spanned(rows, "answers", "context").table["answers"].to_pylist()
    assert [json.loads(v) for v in found] == [[{"text": "Rome", "start": 8}], []]
    (tmp_path / "other.json").write_text('{"data": [{"paragraphs": 3}]}')  # control: it only looks like one
    assert read(tmp_path / "other.json").columns != rows.columns if _reads(tmp_path / "other.json") else True


def _reads(path):
    try:
        return bool(read(path))
    except DataError:
        return False


def test_answers_in_nested_cells_are_read(tmp_path):
    lines = [{"q": "Where?", "story": TEXT, "a": {"text": ["Rome"], "answer_start": [17]}}] * 2
    (tmp_path / "hub.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = spans.spanned(read(tmp_path / "hub.jsonl"), "a", "story").table["a"].to_pylist()
    assert json.loads(found[0]) == [{"text": "Rome", "start": 17}]


# -- how they are measured -----------------------------------------------------------------------------------------------------
def official(truth, said):
    """evaluate-v1.1.py and -v2.0.py, as Rajpurkar et al. wrote them down."""

    def normal(s):
        s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())

    gold, found = normal(truth).split(), normal(said).split()
    common = sum((collections.Counter(gold) & collections.Counter(found)).values())
    if not gold or not found:
        return float(normal(truth) == normal(said)), float(gold == found)
    precision, recall = common / len(found), common / len(gold)
    return float(normal(truth) == normal(said)), 2 * precision * recall / (precision + recall) if common else 0.0


def agrees(exact, f1):
    random = np.random.default_rng(0)
    words = ["The", "a", "an", "Tower", "tower,", "of", "Rome", "Rome's", "330", "m", "(high)", "-", "—", "Theatre"]
    for _ in range(300):
        truth, said = (" ".join(random.choice(words, random.integers(0, 5))) for _ in range(2))
        want = official(truth, said)
        if not (exact([truth], said) == want[0] and f1([truth], said) == pytest.approx(want[1])):
            return False
    return True


def test_exact_match_and_f1_are_squads():
    assert agrees(answers.exact, answers.f1)
    assert answers.exact(["Paris", "the Rome"], "rome") == 1 and answers.f1(
        ["Paris", "old Rome"], "Rome"
    ) == pytest.approx(2 / 3)
    assert answers.exact([], "") == 1 and answers.exact([], "Rome") == 0 and answers.f1([], "the") == 1


def test_control_metrics():
    assert not agrees(lambda t, s: float(t == [s]), answers.f1)  # planted fault: articles count
    assert not agrees(answers.exact, lambda t, s: float(len({*t[0].split()} & {*s.split()}) > 0))


def test_chinese_is_compared_by_characters():
    assert answers.exact(["《红楼梦》"], "红楼梦") == 1
    assert answers.f1(["红楼梦"], "红楼") == pytest.approx(0.8)


def test_simple_rivals_find_what_stands_near():
    texts = ["It rained. Ann sat in Rome. Bob had a map.", "Fay had two green apples. The day was long. It rained."]
    found = span_baselines((texts, [["Rome"], []]), (["What did Bob have?", "Was the day long?"], texts))
    told = {b.name: b.answers for b in found}
    assert told["first_sentence"] == ["It rained.", "Fay had two green apples."]
    assert told["nearest_sentence"] == ["Bob had a map.", "The day was long."]
    assert told["no_answer"] == ["", ""] and set(told) == {
        "first_sentence",
        "nearest_sentence",
        "nearest_words",
        "no_answer",
    }
    assert all(a in t for a, t in zip(told["nearest_words"], texts))
    assert "no_answer" not in {b.name for b in span_baselines((texts, [["Rome"], ["long"]]), (["?"], texts[:1]))}


# -- the column ------------------------------------------------------------------------------------------------------------------
def columns(tokens="words", answers_=("Rome", "tower, 330 m", []), **settings):
    text = {"tokens_of": checkpoints.folder("bert")} if tokens == "checkpoint" else {"tokens": tokens, "least": 1}
    text = make("story", "text", text).fit([TEXT, "ﬁne Ｒome " * 3])
    column = make("answer", "span", {"of": "story", **settings}).beside({"story": text})
    return column.fit(list(answers_), of=[TEXT] * len(answers_)), text


@pytest.mark.parametrize("tokens", ["words", "characters", "bpe", "checkpoint"])
def test_an_answer_comes_back_as_the_characters_of_the_text(tokens):
    column, _ = columns(tokens)
    for words, start in (("Rome", 8), ("Rome", 17), ("tower, 330 m", 24), (TEXT, 0)):
        at = column.encode({"text": words, "start": start}, of=TEXT)
        o = np.full((1 + len(column.text_column.encode(TEXT)), 2), -9.0)
        o[1 + at[0], 0] = o[1 + at[1], 1] = 9.0
        if at[1] - at[0] >= column.state["most"] or (tokens == "words" and start == 17):  # "Rome's" is one token
            continue
        found = column.decode(o, of=TEXT)
        assert (found.value, found.details["start"], found.details["end"]) == (words, start, start + len(words))
        assert found.probability > 0.99


@pytest.mark.parametrize("tokens", ["words", "checkpoint"])
def test_answers_are_legal_whatever_the_network_says(tokens):
    column, text = columns(tokens)
    assert legal_always(column, text, column.decode)


def legal_always(column, text, decode):
    random = np.random.default_rng(0)
    offsets = text.offsets(TEXT)
    for _ in range(200):
        found = decode(random.normal(0, 5, (1 + len(offsets), 2)), of=TEXT)
        start, end = found.details["start"], found.details["end"]
        if start is None:
            continue
        inside = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start) & (offsets[:, 0] >= 0))
        if not (
            0 <= start < end <= len(TEXT) and TEXT[start:end] == found.value and len(inside) <= column.state["most"]
        ):
            return False
    return True


def test_control_legal_answers():
    """Planted fault: beginning and end taken each by itself."""
    column, text = columns("checkpoint")

    def each(o, of):
        start, end = o[1:].argmax(0)
        offsets = text.offsets(of)
        details = {"start": int(offsets[start, 0]), "end": int(offsets[end, 1])}
        return type("A", (), {"value": of[details["start"] : details["end"]], "details": details})

    assert not legal_always(column, text, each)


def test_probabilities_are_those_of_all_legal_answers():
    column, text = columns("words")
    o = np.random.default_rng(1).normal(size=(1 + len(text.encode(TEXT)), 2))
    found, most = column.legal(o, text.offsets(TEXT)), column.state["most"]
    count = len(o) - 1
    worth = {(i, j): o[1 + i, 0] + o[1 + j, 1] for i in range(count) for j in range(i, min(count, i + most))}
    worth[-1, -1] = o[0].sum()
    total = np.log(sum(np.exp(list(worth.values()))))
    assert {tuple(map(int, a)): float(v) for a, v in zip(found.at, found.log)} == pytest.approx(
        {k: v - total for k, v in worth.items()}
    )
    best = max(worth, key=worth.get)
    answer = column.decode(o, of=TEXT)
    assert answer.probability == pytest.approx(np.exp(worth[best] - total))


def test_an_answer_beyond_what_is_read_is_none_to_the_network():
    text = make("story", "text", {"tokens": "words", "least": 1, "length": 4}).fit([TEXT])
    column = make("answer", "span", {"of": "story"}).beside({"story": text})
    late = {"text": "330 m", "start": 31}
    fitted = column.fit([late, "1889"], of=[TEXT, TEXT])
    assert fitted.encode(late, of=TEXT).tolist() == [-2, -2] and fitted.encode("1889", of=TEXT).tolist() == [1, 1]
    optional = column.fit([late, "1889", []], of=[TEXT] * 3)
    assert optional.encode(late, of=TEXT).tolist() == [-1, -1] and optional.optional and not fitted.optional


# -- the head ----------------------------------------------------------------------------------------------------------------------
def head_of(column, seed=0):
    torch.manual_seed(seed)
    return SpanHead(column, 6).eval()


@pytest.mark.parametrize("optional", [True, False])
def test_the_score_is_the_log_odds_of_the_columns_probability(optional):
    column, text = columns("words", ("Rome", "tower, 330 m", []) if optional else ("Rome", "tower, 330 m"))
    head, count = head_of(column), len(text.encode(TEXT))
    x = torch.randn(1, count + 3, 6) * 3
    o = head(Tokens(x, torch.arange(count + 3)[None] < count)).detach()
    row = o[0, : 1 + count].detach().numpy()
    found = column.legal(row, text.offsets(TEXT))
    for at, log in zip(found.at, found.log):
        p = np.exp(log)
        if 1e-6 < p < 1 - 1e-6:
            (score,) = head.score(o, torch.tensor(at)[None])
            assert float(score) == pytest.approx(np.log(p / (1 - p)), abs=1e-3)
    assert (found.at[-1, 0] == -1) == optional


def test_padding_and_control_tokens_never_answer():
    column, text = columns("checkpoint")
    head, count = head_of(column), len(text.encode(TEXT))
    x = torch.randn(2, count + 4, 6)
    mask = torch.arange(count + 4)[None] < torch.tensor([[count], [count - 2]])
    o = head(Tokens(x, mask))
    shorter = head(Tokens(x[1:, : count - 2], mask[1:, : count - 2]))
    assert torch.allclose(o[1, : count - 1], shorter[0], atol=1e-5)
    for row, n in zip(o.softmax(1), (count, count - 2)):
        assert row[1].max() == 0 and row[n:].max() == 0 and row[2:n].min() > 0  # [CLS] first, [SEP] last, padding


def test_loss_counts_rows_with_a_truth():
    column, _ = columns("words")
    head = head_of(column)
    o = torch.randn(3, 9, 2)
    x, mask = column.collate(np.array([[2, 4], [-1, -1], [-2, -2]]))
    each, weight = head.loss(o, torch.as_tensor(x), torch.as_tensor(mask))
    start, end = o.log_softmax(1)[..., 0], o.log_softmax(1)[..., 1]
    assert each.tolist() == pytest.approx([-float(start[0, 3] + end[0, 5]) / 2, -float(start[1, 0] + end[1, 0]) / 2, 0])
    assert weight.tolist() == [1, 1, 0]
