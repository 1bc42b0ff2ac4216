"""A disk that can be watched, killed at any operation, made to fail, and whose power can go.

`Disk` tells of every operation that changes a disk before it is done: open, write, fsync, replace, mkdir, unlink, rmdir,
rmtree. `Recorder` notes them, and `crashes` gives every state that a power loss after any of them can leave.
"""

import io
import itertools
import os
import shutil
from pathlib import Path

from luban import files


class Killed(BaseException):
    """The process is gone at this operation; nothing of ours runs afterwards."""


class Disk:
    """Every change of the disk, as it is asked for: `on(operation, *arguments)` is called before it is done."""

    def __init__(self, monkeypatch, on):
        for name in ("replace", "mkdir", "unlink", "rmdir", "fsync"):
            monkeypatch.setattr(os, name, self.told(name, getattr(os, name), on))
        tree, opened = shutil.rmtree, io.open
        monkeypatch.setattr(shutil, "rmtree", lambda path, **k: (on("rmtree", path), tree(path, **k)))

        def told_open(file, mode="r", *a, **k):
            if mode[0] not in "wax":
                return opened(file, mode, *a, **k)
            on("open", file)
            return Told(opened(file, mode, *a, **k), file, on)

        monkeypatch.setattr("builtins.open", told_open)
        monkeypatch.setattr(io, "open", told_open)

    @staticmethod
    def told(name, real, on):
        def call(*args, **keywords):
            on(name, *args)
            return real(*args, **keywords)

        return call


class Told:
    """A file that tells of its writes."""

    def __init__(self, file, path, on):
        self.__dict__ |= {"file": file, "path": path, "on": on}

    def write(self, data):
        self.on("write", self.path, data.encode() if isinstance(data, str) else bytes(data))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def killed_after(count: int, work, monkeypatch) -> bool:
    """Do the work up to the disk's operation `count`; True when it came to its end before."""
    seen = itertools.count(1)
    dead = []

    def on(*_):
        if dead or next(seen) > count:  # a dead process cleans nothing up either
            dead.append(1)
            raise Killed

    with monkeypatch.context() as m:
        Disk(m, on)
        try:
            work()
        except Killed:
            pass
        finally:
            files._held.clear()
    return not dead


# -- power loss ----------------------------------------------------------------------------------------------------------


class Recorder:
    """The operations of a piece of work below `root`, by path relative to it."""

    def __init__(self, root: Path):
        self.root, self.log, self.deep = root.resolve(), [], False

    def __call__(self, operation, *arguments):
        if operation == "fsync":
            operation, arguments = "sync", (os.readlink(f"/proc/self/fd/{arguments[0]}"),)
        if operation in ("unlink", "rmdir") and not os.path.isabs(os.fspath(arguments[0])):
            return  # a step of rmtree, which has been noted
        paths = [Path(a) for a in arguments[: 2 if operation == "replace" else 1]]
        if all(p.is_absolute() and p.is_relative_to(self.root) for p in paths):
            names = [str(p.relative_to(self.root)) for p in paths]
            self.log.append((operation, *names, *(arguments[1:] if operation == "write" else ())))


def tree(root: Path) -> dict[str, bytes | None]:
    """Names below a folder: a file's bytes, None for a folder."""
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


def laid_out(state: dict[str, bytes | None], root: Path) -> None:
    for name, data in state.items():
        path = root / name
        (path if data is None else path.parent).mkdir(parents=True, exist_ok=True)
        if data is not None:
            path.write_bytes(data)


HARMS = ("full", "lost", "empty", "torn")


def crashes(log, first: dict[str, bytes | None], unseen=lambda name: False):
    """Every state, once, that the disk can be in when power goes after any prefix of the log.

    A file's bytes are sure once it was synced; before, they are there, lost with the name, empty or torn, each unsynced
    file by itself where there are few. A name (made, renamed, removed) is sure once its folder was synced; of those that
    are not, any first part may be kept, in order, as journaling file systems do; of a tree that goes, half may be gone.
    States that differ only in names which nobody reads (`unseen`) are given once.
    """
    seen = set()
    for upto in range(len(log) + 1):
        data, steps, pending = _played(log[:upto], first)
        for kept in range(len(pending) + 1):
            sure = [s for i, s in enumerate(steps) if i not in pending[kept:]]
            half = steps[pending[kept]] if kept < len(pending) and steps[pending[kept]][0] == "rmtree" else None
            unsure = [i for i, (_, synced) in data.items() if not synced]
            for harms in _harms(unsure):
                state = _named(sure, half, data, harms, first)
                key = frozenset((n, *d, len(data[d[0]][0])) for n, d in state.items() if d and not unseen(n))
                if key not in seen:
                    seen.add(key)
                    yield {n: d and _bytes(data[d[0]][0], d[1]) for n, d in state.items()}


def _harms(unsure):
    if len(unsure) <= 3:
        choices = itertools.product(HARMS, repeat=len(unsure))
    else:
        choices = [[h] * len(unsure) for h in HARMS]
        choices += [
            ["full"] * i + [h] + ["full"] * (len(unsure) - i - 1) for i in range(len(unsure)) for h in HARMS[1:]
        ]
    return [dict(zip(unsure, c)) for c in choices]


def _played(log, first):
    """What the log does: {inode: [bytes, synced]}, its steps that change names, and which of those are not yet sure."""
    data = {n: [d, True] for n, d in first.items() if d is not None}
    now = {n: n for n in data}  # name -> inode
    steps, unsure = [], {}
    for number, (operation, *arguments) in enumerate(log):
        name = arguments[0]
        if operation == "open":
            inode = f"{name}#{number}"
            data[inode], now[name] = [b"", False], inode
            steps.append(("make", name, inode))
        elif operation == "write":
            data[now[name]][0] += arguments[1]
            data[now[name]][1] = False
        elif operation == "sync":
            if name in now:
                data[now[name]][1] = True
            unsure = {i: parent for i, parent in unsure.items() if parent != name}
        elif operation in ("replace", "rmtree", "unlink"):
            moved = {n: i for n, i in now.items() if n == name or n.startswith(name + "/")}
            now = {n: i for n, i in now.items() if n not in moved}
            if operation == "replace":
                now |= {arguments[1] + n[len(name) :]: i for n, i in moved.items()}
            steps.append((operation, *arguments))
        if operation in ("open", "replace", "rmtree", "unlink"):
            unsure[len(steps) - 1] = str(Path(arguments[-1]).parent)
    return data, steps, sorted(unsure)


def _named(steps, half, data, harms, first):
    """The names that are left, each with its inode and what became of its bytes."""
    now = {n: n for n, d in first.items() if d is not None}
    folders = {n for n, d in first.items() if d is None}
    for operation, name, *other in [*steps, *([half] if half else [])]:
        below = [n for n in now if n == name or n.startswith(name + "/")]
        inside = {n for n in folders if n == name or n.startswith(name + "/")}
        if operation == "make":
            now[name] = other[0]
        elif operation == "replace":
            now |= {other[0] + n[len(name) :]: now.pop(n) for n in below}
            folders = (folders - inside) | {other[0] + n[len(name) :] for n in inside}
        else:
            for n in below[: len(below) // 2] if half and (operation, name) == half[:2] else below:
                del now[n]
            folders -= set() if half else inside
    state = dict.fromkeys(folders)
    for n, inode in now.items():
        harm = harms.get(inode, "full")
        if harm != "lost":
            state[n] = (inode, harm)
    return state


def _bytes(whole, harm):
    return {"full": whole, "empty": b"", "torn": whole[: len(whole) // 2]}[harm]
