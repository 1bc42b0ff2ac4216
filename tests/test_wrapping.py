"""Lines of a terminal, in which a Chinese character takes two cells."""

import io
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luban.console import Progress
from luban.wrapping import AHEAD, BEHIND, cells, padded, wrapped

WORDS = st.lists(
    st.sampled_from(["model", "--out", "模型", "文件夹", "，", "。", "“引号”", "（允许：a，b）", "x" * 30, "'epoch'"]),
    max_size=30,
)


@given(WORDS, st.integers(8, 60), st.sampled_from(["", "  "]))
def test_lines_hold_the_text_and_no_more_than_there_is_room_for(words, width, indent):
    text = " ".join(words)
    lines = wrapped(text, width, indent)
    assert all(line.startswith(indent) and cells(line) <= width for line in lines) or not text
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)


@given(WORDS, st.integers(12, 60))
def test_no_line_begins_with_a_mark_that_ends_something(words, width):
    text = "".join(w for w in words if cells(w) < 10).lstrip(BEHIND)
    marks = re.sub(rf"[{BEHIND}]{{2,}}", "，", text)
    lines = wrapped(marks, width)
    assert not [line for line in lines[1:] if line[0] in BEHIND] and not [
        line for line in lines[:-1] if line[-1] in AHEAD
    ]


def test_latin_words_are_broken_between_them_and_wide_characters_anywhere():
    assert wrapped("A saved model, and --flags", 14) == ["A saved model,", "and --flags"]
    assert wrapped("已保存的模型", 7) == ["已保存", "的模型"]
    assert wrapped("abcdefghij，", 10) == ["abcdefghi", "j，"]
    assert wrapped("", 10, "  ") == ["  "]


def test_columns_stand_below_each_other():
    assert cells("模型 a") == 6 and cells("e\u0301") == 1
    assert (
        padded("模型", 6) == "模型  "
        and padded("模型", 6, right=True) == "  模型"
        and padded("模型模型", 6) == "模型模型"
    )


@pytest.mark.parametrize("room, drawn", [(140, "█ loss rate"), (80, "loss rate"), (60, "loss"), (20, "")])
def test_a_progress_line_is_no_longer_than_the_terminal(monkeypatch, room, drawn):
    """A longer one goes on in the next line and is never drawn over."""
    monkeypatch.delenv("NO_PROGRESS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((room, 24)))
    stream = io.StringIO()
    stream.isatty, stream.fileno = lambda: True, lambda: 2
    progress = Progress("训练", 1000, stream)
    progress.start -= 10
    progress.update(500, {"loss": 0.1234, "validation_accuracy_rate": 0.9474}, unit="步")
    line = stream.getvalue().strip("\r")
    assert "50%" in line and "步/s" in line and (cells(line) < room or room == 20)
    assert [w for w in ("█", "loss", "rate") if w in line] == drawn.split()
