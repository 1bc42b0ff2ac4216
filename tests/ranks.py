"""Runs with several ranks, for tests: data, recipe, the command, and what can be done to its ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
RECIPE = """luban: 1
data: {rows: rows.csv}
inputs: {a: number, b: number, words: text}
outputs: {y: category}
size: nano
model: {words: {transformer: {dropout: 0}}}
fusion: {concat: {dropout: 0}}
stages: [{train: {epochs: 3, precision: fp32, augment: false, batch: 32}}]
"""
PICTURES = """luban: 1
data: {rows: pictures.csv}
inputs: {photo: image}
outputs: {y: category}
size: nano
model: {photo: {resnet: {width: 4}}}
fusion: {concat: {dropout: 0}}
stages: [{train: {epochs: 2, precision: fp32, augment: false, batch: 32, optimizer: sgd, rate: 0.05}}]
"""
LINUX = sys.platform == "linux"


def place(folder: Path) -> Path:
    """A folder with `rows.csv` and `recipe.yaml`: numbers, texts of many lengths, some answers missing."""
    random = np.random.default_rng(0)
    lines = ["a,b,words,y"]
    for _ in range(230):
        a, b = random.normal(size=2)
        words = " ".join(random.choice(list("abcdef"), random.integers(2, 9)))
        lines.append(f"{a:.3f},{b:.3f},{words},{'yes' if a + words.count('a') + random.normal() * 0.3 > 0.5 else 'no'}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def pictures(folder: Path, count: int = 123) -> Path:
    """A folder with `pictures.csv`, its files and `pictures.yaml`: a network with batch norms. The last batch is a smaller one."""
    from PIL import Image

    random = np.random.default_rng(0)
    (folder / "files").mkdir()
    lines = ["photo,y"]
    for i in range(count):
        kind = int(random.integers(2))
        pixels = random.integers(0, 120, (12, 12, 3), np.uint8)
        pixels[:, 6 * kind : 6 * kind + 6] += 90
        Image.fromarray(pixels).save(folder / "files" / f"{i}.png")
        lines.append(f"files/{i}.png,{'right' if kind else 'left'}")
    (folder / "pictures.csv").write_text("\n".join(lines) + "\n")
    (folder / "pictures.yaml").write_text(PICTURES)
    return folder


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [more.pop("PYTHONPATH", ""), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def start(folder: Path, out: str, *words: str, verb: tuple[str, ...] = ("run", "recipe.yaml"), **env: str):
    command = [sys.executable, "-m", "luban", *verb, *(("--out", out) if verb[0] != "resume" else ()), *words]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**env)
    )


def run(folder: Path, out: str, *words: str, code: int = 0, seconds: float = 240.0, **more) -> str:
    """Run to the end; what was said on stderr."""
    running = start(folder, out, *words, **more)
    _, said = running.communicate(timeout=seconds)
    assert running.returncode == code, said[-2000:]
    return said


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> str:
    return json.loads((folder / "MANIFEST.json").read_text())["files"]["model.safetensors"]


def apart(one: Path, two: Path) -> float:
    """The largest difference of any loss of two runs."""
    a, b = metrics(one), metrics(two)
    assert len(a) == len(b)
    return max(abs(x[k] - y[k]) for x, y in zip(a, b) for k in ("loss", "validation_loss"))


def living(parent: int | Path) -> dict[int, int]:
    """{rank: process} of the ranks that a launcher has started, or that work below a folder."""
    found = {}
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            command = (path / "cmdline").read_bytes().decode().split("\0")
            if "luban.scaling.work" not in command:
                continue
            above = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            variables = (path / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        rank = [v for v in variables if v.startswith(b"RANK=")]
        mine = str(parent) in command[-2] if isinstance(parent, Path) else above == parent
        if rank and mine:
            found[int(rank[0][5:])] = int(path.name)
    return found


def reached(folder: Path, step: int) -> bool:
    """Whether a checkpoint of this step or a later one is there: only the last two are kept."""
    found = (p.name.removeprefix("step-") for p in (folder / "checkpoints").glob("step-*"))
    return any(n.isdecimal() and int(n) >= step for n in found)


def wait_for(condition, running: subprocess.Popen, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition() and running.poll() is None and time.monotonic() < until:
        time.sleep(0.02)


def kill(parent: int, rank: int) -> bool:
    """Whether there was one to kill."""
    process = living(parent).get(rank)
    if process is not None:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
            return True
    return False
