"""Sample sets of language: parsed right, every part whole, nothing twice. Small packages are made here, in the real formats."""

import csv
import io
import struct
import tarfile
import zlib
from pathlib import Path

import pytest

from luban.data.samples import SAMPLES, clients, language, load
from luban.data.samples.catalogue import Package, Sample
from luban.errors import WorkError


def tar(files: dict[str, bytes], kind: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=kind) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def deb(files: dict[str, bytes]) -> bytes:
    """An `ar` archive as dpkg-deb writes it; members of odd length are padded."""
    out = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", tar(files, "w:xz"))):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) % 2)
    return out


def made(monkeypatch, tmp_path, name: str, *packages: bytes) -> list[dict[str, str]]:
    """What the sample set's function makes of these packages."""
    sample = Sample(name, "", 0, tuple(Package("apt", f"package-{i}", 1) for i in range(len(packages))))
    for i, content in enumerate(packages):
        (tmp_path / f"package-{i}").write_bytes(content)
    monkeypatch.setattr(language, "download", lambda s, package, work: work / package.name)
    ((_, content),) = language.CONTENT[name](sample, tmp_path)
    return list(csv.DictReader(io.StringIO(content.decode())))


def page(*paragraphs: tuple[str, str], title: str = "Seite") -> bytes:
    body = "\n".join(f'<p id="{id}" class="paragraph" dir="auto">{text}</p>' for id, text in paragraphs)
    return f'<title>{title}</title>\n<p dir="auto">menu</p><h1 id="hd_id1" dir="auto">{title}</h1>{body}'.encode()


def help_package(language: str, **pages: bytes) -> bytes:
    folder = f"./usr/share/libreoffice/help/{language}/text/"
    return deb({folder + name.replace("__", "/") + ".html": content for name, content in pages.items()})


def test_help_pairs_meet_on_page_and_id(monkeypatch, tmp_path):
    english = help_package(
        "en-US",
        calc__sums=page(("par_id1", "Adds <b>two</b>&nbsp;cells."), ("par_id2", "SUM(A1)"), ("par_id3", "Only here."), title="Sums"),
        writer__text=page(("par_id1", "Writes."), ("par_id9", "Adds two cells."), title="Text"),
    )  # fmt: skip
    german = help_package(
        "de",
        calc__sums=page(("par_id1", "Addiert\n zwei Zellen."), ("par_id2", "SUM(A1)"), title="Summen"),
        writer__text=page(("par_id1", "Schreibt."), ("par_id9", "Anders."), title="Text"),
    )
    rows = made(monkeypatch, tmp_path, "libreoffice-help-en-de", english, german)
    assert [(r["page"], r["source"], r["target"]) for r in rows] == [
        ("calc/sums", "Sums", "Summen"),
        ("calc/sums", "Adds two cells.", "Addiert zwei Zellen."),
        ("writer/text", "Writes.", "Schreibt."),
    ]  # without what was left in English, what has no partner, and what was there before
    assert len({r["part"] for r in rows[:2]}) == 1


def test_chinese_pairs_have_chinese_in_them(monkeypatch, tmp_path):
    english = help_package("en-US", a=page(("par_id1", "New text."), ("par_id2", "A file."), title="T"))
    chinese = help_package("zh-CN", a=page(("par_id1", "Old text."), ("par_id2", "一个文件。"), title="T"))
    rows = made(monkeypatch, tmp_path, "libreoffice-help-en-zh", english, chinese)
    assert [r["target"] for r in rows] == ["一个文件。"]
    titles = made(monkeypatch, tmp_path, "libreoffice-titles-zh", chinese)
    assert [(r["text"], r["title"]) for r in titles] == [("Old text.\n一个文件。", "T")]


def test_headings_ask_for_the_first_sentence_below_them(monkeypatch, tmp_path):
    sections = [
        ("To add a row", "Click here. It is added."),
        ("To copy it", "Press C: done."),
        ("Syntax", "ADD(A1)"),
        ("To end", "Close."),
    ]
    parts = "".join(f'<h2 id="hd_id{i}">{h}</h2><p id="par_id{i}">{p}</p>' for i, (h, p) in enumerate(sections))
    english = help_package("en-US", a=parts.encode(), few=parts[: parts.index("<h2", 1)].encode())
    rows = made(monkeypatch, tmp_path, "libreoffice-headings", english)
    assert [(r["heading"], r["answer"], int(r["answer_start"])) for r in rows] == [
        ("To add a row", "Click here.", 0),
        ("To copy it", "Press C:", 25),
    ]  # no heading and no answer of one word, and no page of few sections
    assert {r["passage"] for r in rows} == {"Click here. It is added. Press C: done. ADD(A1) Close."}
    assert all(r["passage"][int(r["answer_start"]) :].startswith(r["answer"]) for r in rows)


def ztext(verses: list[str]) -> dict[str, bytes]:
    """One block with these entries; the last is referred to twice, as verses that are told together are."""
    plain = "".join(verses).encode()
    packed, index, at = zlib.compress(plain), b"", 0
    for verse in [*verses, verses[-1]]:
        size = len(verse.encode())
        index += struct.pack("<IIH", 0, min(at, len(plain) - size), size)
        at += size
    return {"bzs": struct.pack("<3I", 0, len(packed), len(plain)), "bzv": index, "bzz": packed}


def book(name: str, *verses: str) -> list[str]:
    return [
        f'<div canonical="true" osisID="{name}" sID="gen1" type="book"/><title type="main">The Book</title>',
        *verses,
    ]


def test_books_in_plain_text(monkeypatch, tmp_path):
    old = book(
        "Gen",
        '<div sID="gen2" type="x-p"/><chapter n="1" sID="Gen.1"/><w lemma="x">God</w><note>1:1 <seg>Elohim</seg></note><w>made</w> it. ',
        '<div sID="gen3" type="x-p"/>Light &amp; day<note>or so</note>, and',
    )
    new = book("DanGr", "left out") + book("Matt", '<l level="1" sID="g1"/>a line<l eID="g1"/> <l sID="g2"/>another')
    modules = {f"{t}.{k}": v for t, verses in (("ot", old), ("nt", new)) for k, v in ztext(verses).items()}
    folder = "./usr/share/sword/modules/texts/ztext/engWEB2015eb/"
    speeches = tar({"package/sotu/data/1790_a.txt": b" Fellow citizens. \n", "package/sotu/data/1790_a.json": b"{}", "package/x": b""})  # fmt: skip
    rows = made(monkeypatch, tmp_path, "english-books", speeches, deb({folder + n: c for n, c in modules.items()}))
    assert [(r["document"], r["source"], r["text"]) for r in rows] == [
        ("1790_a", "state-of-the-union", "Fellow citizens."),
        ("Gen", "web-bible", "God made it.\n\nLight & day, and"),
        ("Matt", "web-bible", "a line\nanother"),
    ]


def test_every_pronunciation_is_kept(monkeypatch, tmp_path):
    lines = b"A  AH0\nA(1)  EY1\nABLE  EY1 B AH0 L\nABLE(1)  EY0 B AH1 L\n"
    rows = made(monkeypatch, tmp_path, "cmudict", tar({"package/cmudict/data/dict.txt": lines}))
    assert [(r["word"], r["phonemes"], r["variants"]) for r in rows] == [("A", "AH", "AH; EY"), ("ABLE", "EY B AH L", "EY B AH L")]  # fmt: skip


PACKAGES = "Package: zoo-data\nSource: zoo (1.2)\nArchitecture: all\n\nPackage: zoo\nSection: games\n\nPackage: ant\n\n"
DESCRIPTIONS = """Package: zoo
Description-md5: 1
Description-en: animals
 A zoo of
 animals.
 .
 It has:
  * ants
  * bees

Package: zoo-data
Description-en: animals, data
 Pictures.

Package: ant
Description-en: one ant
 Pictures.

Package: elsewhere
Description-en: not built for this machine
 Text.
"""


def test_descriptions_are_unwrapped_and_grouped_by_source(monkeypatch, tmp_path):
    (tmp_path / "main_Packages").write_text(PACKAGES)
    (tmp_path / "main_Translation-en").write_text(DESCRIPTIONS)
    monkeypatch.setattr(language, "apt_index", lambda sample, package, work: sorted(tmp_path.iterdir()))
    rows = made(monkeypatch, tmp_path, "debian-descriptions", b"")
    assert [(r["package"], r["source"], r["long"], r["short"]) for r in rows] == [
        ("ant", "ant", "Pictures.", "one ant"),
        ("zoo", "zoo", "A zoo of animals.\nIt has:\n* ants\n* bees", "animals"),
    ]  # the same long text comes once


def test_parts_are_drawn_by_the_group_alone():
    parts = [language.part_of("a", str(i)) for i in range(20_000)]
    assert parts == [language.part_of("a", str(i)) for i in range(20_000)] != [language.part_of("b", str(i)) for i in range(20_000)]  # fmt: skip
    for part, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(parts.count(part) / 20_000 - share) < 0.01


def test_what_is_no_debian_package_is_refused(tmp_path):
    for content in (b"", b"!<arch>\n", deb({"./x": b"y"})[:100], b"no archive at all" * 10):
        (tmp_path / "package").write_bytes(content)
        with pytest.raises(WorkError):
            clients.deb_data(tmp_path / "package", SAMPLES["english-books"])


def test_another_npm_package_is_refused(tmp_path, monkeypatch):
    def run(command, sample, folder, check=True, **environment):
        Path(folder, "package.tgz").write_bytes(tar({"package/cmudict/data/dict.txt": b"A  AH0\n"}))
        return 0

    monkeypatch.setattr(clients, "run", run)
    monkeypatch.setattr(clients.shutil, "which", lambda name: name)
    with pytest.raises(WorkError, match="another content"):
        clients.download(SAMPLES["cmudict"], SAMPLES["cmudict"].packages[0], tmp_path)


@pytest.mark.parametrize(("name", "word"), [("debian-descriptions", "bookworm"), ("cmudict", "npm"), ("english-books", "npm")])  # fmt: skip
def test_without_a_client_the_way_out_is_said(name, word, monkeypatch, tmp_path):
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path))
    monkeypatch.setattr(clients.shutil, "which", lambda name: None)
    with pytest.raises(WorkError, match=word) as e:
        load(name)
    assert "--out FILE" in str(e.value)


GROUPS = {
    "english-books": "document",
    "libreoffice-help-en-zh": "page",
    "libreoffice-help-en-de": "page",
    "libreoffice-titles-zh": "page",
    "libreoffice-headings": "page",
    "debian-descriptions": "source",
    "cmudict": "word",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(GROUPS))
def test_real_sets_are_split_by_whole_groups(name):
    rows = load(name)
    assert len(rows) == SAMPLES[name].rows and not rows.quarantine
    table = rows.table.select([GROUPS[name], "part"]).to_pandas()
    assert (table.groupby(GROUPS[name])["part"].nunique() == 1).all()
    assert set(table["part"]) == {"train", "validation", "test"}
