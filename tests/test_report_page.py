"""The report: escaped whatever the user wrote, self-contained, whole on disk, the same after a round trip."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from luban.errors import BundleError
from luban.markup import escape, harmless, markdown, number, visible
from luban.report import BLOCKS, Details, Report, Table, combine, drawn_cell, jsonable
from luban.wrapping import cells

EVIL = "<script>alert(1)</script>\"' onload=x\n| `code` *b* [a](javascript:x) & \x00 \ud800 \u202e"


class Tags(HTMLParser):
    """All tags and attributes of a page, and whether each opened tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.seen, self.attributes, self.open, self.broken = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.broken.append(tag)


def tags(page: str) -> Tags:
    reader = Tags()
    reader.feed(page)
    assert not reader.broken and not reader.open
    return reader


def full(word: str) -> Report:
    report = Report("evaluate", word, {"accuracy": {"value": 0.9, "low": 0.8, "high": float("nan")}})
    report.heading(word).heading("b").heading(word, 3).text(word + "\n\nsecond").note("bad", word)
    report.table(
        word, [word, "n"], [[word, np.float32(0.25)], [None, {"value": 0.5, "low": 0.4, "high": 0.6}], [True, 12]]
    )
    report.plot(word, '<svg><text x="1">ok</text></svg>', word).html(word, "<b>ok</b>", word)
    return report.details(word, [Table("", [word], [[word]])])


def test_nothing_a_user_writes_becomes_markup():
    evil, tame = tags(full(EVIL).to_html()), tags(full("tame\nword".ljust(len(EVIL), "x")).to_html())
    assert evil.seen == tame.seen
    assert [k for k, _ in evil.attributes] == [k for k, _ in tame.attributes]
    assert "\x00" not in full(EVIL).to_html() and "\u202e" not in full(EVIL).to_html()


def test_the_check_above_sees_an_unescaped_value(monkeypatch):
    monkeypatch.setattr("luban.report.escape", str)
    page = full("<script>alert(1)</script>").to_html()
    assert "script" in seen(page)


def seen(page: str) -> list[str]:
    reader = Tags()
    reader.feed(page)
    return reader.seen


def test_markdown_tables_survive_bars_and_newlines():
    lines = full(EVIL).to_markdown().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows[:5]} == {3}
    assert not any("<script" in line for line in lines)


def test_the_page_fetches_nothing_and_runs_nothing():
    page = full("plain").to_html()
    reader = tags(page)
    assert not {"script", "link", "iframe", "object", "base"} & set(reader.seen)
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page)
    assert "url(" not in page and "@import" not in page
    assert "default-src &#x27;none&#x27;" in page


def test_contents_appear_with_several_headings_only():
    assert "<nav>" in full("x").to_html()
    assert "<nav>" not in Report("a", "b").heading("one").to_html()


def test_contents_link_to_the_headings():
    page = full("x").to_html()
    assert set(re.findall(r'href="#(\w+)"', page)) == set(re.findall(r'<h\d id="(\w+)"', page))


def test_json_round_trip_keeps_every_block(tmp_path):
    report = full(EVIL)
    report.save(tmp_path)
    again = Report.load(tmp_path / "evaluate.json")
    assert {b.type for b in again.blocks} == set(BLOCKS)
    assert again.to_json() == Report.from_json(report.to_json()).to_json() == report.to_json()
    assert again.to_html() == report.to_html()
    assert (
        isinstance(again.blocks[-1], Details)
        and again.blocks[-1].blocks[0].rows == report.to_json()["blocks"][-1]["blocks"][0]["rows"]
    )


def test_saved_files_are_strict_json_and_leave_nothing_behind(tmp_path):
    path = full("x").save(tmp_path / "reports")
    assert path == tmp_path / "reports" / "evaluate.html"
    assert sorted(p.name for p in path.parent.iterdir()) == ["evaluate.html", "evaluate.json"]
    data = json.loads(path.with_suffix(".json").read_text(), parse_constant=lambda c: pytest.fail(c))
    assert data["numbers"]["accuracy"]["high"] is None


def test_a_name_cannot_leave_the_folder(tmp_path):
    path = Report("../../evil", "x").save(tmp_path / "a")
    assert path.parent == tmp_path / "a" and path.exists()


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = Report("a", "first").save(tmp_path)
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError):
        Report("a", "second").save(tmp_path)
    assert "first" in path.read_text() and sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "a.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"report": 2}', '{"report": 1, "kind": "a"}', "[" * 10**5])
def test_what_is_not_a_report_is_refused_in_a_sentence(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BundleError) as e:
        Report.load(tmp_path / "a.json")
    assert e.value.id == "report.unreadable"


def test_a_missing_report_is_refused(tmp_path):
    with pytest.raises(BundleError):
        Report.load(tmp_path / "none.json")


HOSTILE = [
    "<script>x</script>",
    '<img src="http://example.org/a.png">',
    '<svg onload="x"></svg>',
    '<a href="java\nscript:x">a</a>',
    "<style>*{}</style>",
    '<iframe srcdoc="x"></iframe>',
    '<form action="x"></form>',
    '<div style="background:url(//a)"></div>',
    "<svg><foreignObject></foreignObject></svg>",
    '<use href="http://a#b"/>',
    '<meta http-equiv="refresh" content="0;url=http://a">',
    "<!-- a -->",
]


@pytest.mark.parametrize("fragment", HOSTILE)
def test_a_hostile_fragment_in_a_saved_report_is_shown_as_text(tmp_path, fragment):
    assert not harmless(fragment)
    report = Report("a", "b").plot("p", fragment).details("s", [BLOCKS["html"]("t", fragment)])
    report.save(tmp_path)
    page = Report.load(tmp_path / "a.json").to_html()
    assert fragment not in page


def test_harmless_fragments_stay():
    assert harmless('<svg viewBox="0 0 1 1"><g fill="url(#a)"><path d="M0 0"/></g></svg>')
    assert harmless('<img src="data:image/png;base64,AAAA" alt="a">')


def test_combined_reports_keep_all_numbers_and_chapters():
    whole = combine("All", [full("x"), full("y"), Report("audit", "Only numbers", {"a": {"b": 1}})])
    assert list(whole.numbers) == ["evaluate", "evaluate_2", "audit"]
    assert "a.b" in whole.to_html() and whole.to_html().count("<svg>") == 2


def test_a_report_without_blocks_shows_its_numbers():
    assert "accuracy" in Report("a", "b", {"accuracy": {"value": 0.5}}).to_html()


def test_notebooks_get_a_closed_frame():
    html = full(EVIL)._repr_html_()
    assert html.startswith("<iframe srcdoc=") and html.count("<") == 2


def test_a_wrong_note_level_is_refused():
    with pytest.raises(ValueError):
        Report("a", "b").note("loud", "x")


def test_jsonable_takes_numpy_and_nan():
    value = jsonable({1: np.int64(3), "a": np.array([1.0, np.nan]), "b": np.bool_(True), "c": float("inf"), "d": {1.5}})
    assert value == {"1": 3, "a": [1.0, None], "b": True, "c": None, "d": [1.5]}


@pytest.mark.parametrize(
    "value, said",
    [
        (0.97368, "0.9737"),
        (12, "12"),
        (-3, "−3"),
        (1234567, "1,234,567"),
        (3.2e9, "3.2×10⁹"),
        (1e-9, "1×10⁻⁹"),
        (None, "–"),
        (float("nan"), "–"),
        (12345.678, "12,346"),
    ],
)
def test_numbers_are_short(value, said):
    assert number(value) == said


def test_text_keeps_chinese_spaces_and_shows_control_characters():
    assert visible("中文\u3000a\nb\x1b") == "中文\u3000a\\nb\\x1b"
    assert escape("<a>") == "&lt;a&gt;" and markdown("a|b") == "a\\|b"


def test_a_terminal_says_where_pictures_are():
    report = Report("evaluate", "Title").heading("Worst", 3).html("", "<b>picture</b>").heading("Told").text("words")
    report.heading("Nothing")
    assert report.to_text().count("Shown on the HTML page") == 1
    assert "Worst\n-----\n\nShown on the HTML page" in report.to_text()


def test_a_long_answer_keeps_room_beside_numbers():
    report = Report("explain", "t")
    report.table("", ["answer", "score"], [["word " * 20, 1.0], ["short", 2.0]])
    page = report.to_html()
    assert page.count('<td class="long">') == 1 and ".long { min-width" in page


@pytest.mark.parametrize(
    "drawn, kept",
    [
        ("正面评价", ' class="short"'),
        ("word", ""),
        ("<b>房间</b>不敢恭维，" * 8, ' class="long"'),
        (f"<span title='{'x' * 90}'>words</span>", ""),
        (f"<img alt='{'图' * 90}'>", ""),
    ],
)
def test_chinese_in_a_cell_is_not_set_letter_below_letter(drawn, kept):
    assert drawn_cell(drawn) == f"<td{kept}>{drawn}</td>"


def test_lines_of_a_terminal_are_no_longer_than_it_and_points_stand_under_their_dash(monkeypatch):
    monkeypatch.setattr("luban.report.width", lambda: 60)
    told = Report("plan", "t").text("- " + "word " * 30).text("模型" * 50).note("info", "word " * 30).to_text()
    assert max(map(cells, told.splitlines())) <= 60
    assert re.search(r"(?m)^- word .*\n  word .*\n  word ", told)
