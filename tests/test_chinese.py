"""A Chinese reader meets no English sentence: on the terminal, in the report, in the model card.

Names of metrics, tasks, columns, recipe keys and commands stay as they are; three Latin words in a row are a sentence.
"""

import re
from html import unescape
from pathlib import Path

import pytest

from luban import messages
from luban.cli import VERBS, main
from luban.machine import processor
from tests import tiny

TRAIN = ["train", "rows.csv", "--target", "back", "--size", "nano", "--set", "train.epochs=1", "--out", "m"]
ASKED = (
    ["check", "rows.csv", "--target", "back"],
    ["evaluate", "m", "rows.csv", "--slices", "shop"],
    ["explain", "m", "rows.csv", "--rows", "2", "--out", "why"],
    ["audit", "m", "rows.csv", "--sensitive", "shop"],
    ["compare", "m", "m"],
    ["train", "rows.csv", "--target", "bakc", "--out", "n"],
    ["train", "rows.csv", "--target", "back", "--set", "train.epoch=1", "--out", "n"],
    ["predict", "nowhere", "rows.csv"],
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    rows = [f"{r['shop']},{r['price']:.4f},{r['back']}\n" for r in tiny.rows(60)]
    (tmp_path / "rows.csv").write_text("shop,price,back\n" + "".join(rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROGRESS", "1")
    yield tmp_path
    messages.set_language(None)


def run(capfd, *commands: list[str]) -> str:
    capfd.readouterr()
    for words in commands:
        main([*words, "--lang", "zh"])
    return "".join(capfd.readouterr())


def sentences(text: str) -> list[str]:
    """Three and more Latin words in a row, in a line of a terminal or an element of a page."""
    text = re.sub(r"(?s)<(style|pre)\b.*?</\1>|```.*?```|^---.*?^---|(?m:^ *luban .*)|`[^`\n]*`|'[^'\n]*'", "\n", text)
    lines = unescape(re.sub(r"<[^>]*>", "\n", text)).replace(processor()["name"], "").splitlines()
    word = r"[A-Za-z]+(?:[-’'][A-Za-z]+)*[,;:.]?"
    return [m[0] for line in lines for m in re.finditer(rf"(?<!\S){word}(?: {word}){{2,}}(?!\S)", line)]


def test_what_a_chinese_user_reads_has_no_english_sentence(place, capfd):
    told = run(capfd, TRAIN, *ASKED)
    assert "读取 60 行" in told and not sentences(told)
    page, card, why = (
        Path(p).read_text(encoding="utf-8") for p in ("m/report.html", "m/README.md", "why/explain.html")
    )
    assert '<html lang="zh">' in page and "置信区间" in page and not sentences(page)
    assert "## 使用方法" in card and not sentences(card)
    assert "完备性" in why and not sentences(why)


def test_help_has_no_english_sentence(capfd):
    told = run(capfd, ["--help"], *([v.__name__.strip("_"), "--help"] for v in VERBS))
    assert told.count("所有命令共有的选项") == len(VERBS) and not sentences(told)


def test_control_a_sentence_that_is_not_in_the_chinese_catalogue_is_found(place, capfd, monkeypatch):
    gone = {"data.how_classes", "report.trained", "card.use_text", "cli.train"}
    chinese = {k: v for k, v in messages.catalogue("zh").items() if k not in gone}
    monkeypatch.setitem(messages._read, "zh", chinese)
    assert sentences(run(capfd, TRAIN)) and sentences(run(capfd, ["train", "--help"]))
    assert sentences(Path("m/report.html").read_text(encoding="utf-8"))
    assert sentences(Path("m/README.md").read_text(encoding="utf-8"))


def test_control_names_and_code_are_no_sentences():
    assert not sentences("accuracy 0.91\n| `a b c` | <td>Intel</td><td>a</td>\n  luban train a b c\n列 'one two three'")
    assert sentences("<p>没有值： the rows are gone.</p>") == ["the rows are gone."]
