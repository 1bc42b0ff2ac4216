"""What this machine can do, what is installed, and what of it cannot load."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from luban import energy, machine
from luban.data import cache
from luban.data.blocks import home
from luban.errors import TIED
from luban.messages import listed, say

# Imported each in a process of its own: a broken one must not take the others, or this process, with it.
TRIED = (
    "torch", "numpy", "pyarrow", "sklearn", "tokenizers", "safetensors", "PIL", "onnx", "onnxscript", "onnxruntime", "fastapi",
    "uvicorn", "fairlearn", "transformers", "gguf", "timm", "torchvision", "torchaudio", "pandas", "polars", "datasets", "openvino",
)  # fmt: skip
PATIENCE = 60.0  # seconds for one import
GIB = 1024**3


def look() -> tuple[list[tuple[str, str]], bool]:
    """(name, text) of every finding, and whether something that is installed cannot load."""
    broken = dict(cannot_load(TRIED))
    facts = [*_machine(), *machine.versions().items()]
    facts += [(say("doctor.broken_mark", name=name), text) for name, text in broken.items()]
    facts.append((say("doctor.verdict"), say("doctor.sick", names=list(broken)) if broken else say("doctor.well")))
    return facts, bool(broken)


def _machine() -> Iterator[tuple[str, str]]:
    about = machine.processor()
    flags = listed(about["flags"]) or say("doctor.no_flags")
    yield say("doctor.processor"), say("doctor.processor_text", name=about["name"], flags=flags)
    limit = machine._container_limit()
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else about["cores"]
    container = say("doctor.container", count=limit) if limit else say("doctor.no_container")
    yield (
        say("doctor.threads"),
        say("doctor.threads_text", used=machine.threads(), cores=about["cores"], allowed=allowed, container=container),
    )
    memory = machine.memory()
    if memory:
        yield say("doctor.memory"), say("doctor.memory_text", free=memory[0] / GIB, total=memory[1] / GIB)
    place = _cache()
    yield say("doctor.disk"), say("doctor.disk_text", free=shutil.disk_usage(place).free / GIB, path=str(place))
    kept, most = cache.size(cache.folder()) if cache.folder().is_dir() else 0, cache.limit()
    yield say("doctor.encoded"), say("doctor.encoded_text", kept=kept / GIB, most=most / GIB, path=str(cache.folder()))
    gpus, backends = _devices()
    yield say("doctor.gpu"), listed(gpus, "; ") or say("doctor.no_gpu")
    yield say("doctor.scale"), _scale(backends)
    yield say("doctor.energy"), listed(c.name for c in energy.counters()) or say("doctor.no_energy")


def _cache() -> Path:
    """The nearest folder that exists to where fetched data are kept."""
    path = home()
    return next(p for p in (path, *path.absolute().parents) if p.is_dir())


def _devices() -> tuple[list[str], list[str]]:
    """The GPUs that PyTorch sees, and the backends that carry tensors between its ranks."""
    if find_spec("torch") is None:
        return [], []
    code = (
        "import torch\n"
        "import torch.distributed as dist\n"
        "for i in range(torch.cuda.device_count()):\n"
        "    p = torch.cuda.get_device_properties(i)\n"
        "    print(f'{p.name}, {p.total_memory / 2**30:.0f} GiB, {p.major}.{p.minor}')\n"
        "if torch.backends.mps.is_available(): print('mps')\n"
        "if dist.is_available():\n"
        "    print('=gloo' * dist.is_gloo_available() + '=nccl' * (torch.cuda.is_available() and dist.is_nccl_available()))\n"
    )
    done = _python(code)
    lines = [line for line in done.stdout.split("\n") if line] if done and done.returncode == 0 else []
    backends = [b for line in lines if line.startswith("=") for b in line.split("=") if b]
    return [line for line in lines if not line.startswith("=")], backends


def _scale(backends: list[str]) -> str:
    """Which engines can train in several processes."""
    engines = [f"torchrun ({', '.join(backends)})"] if backends else []
    engines += ["ray"] if find_spec("ray") else []
    lacking = "" if find_spec("ray") else say("doctor.no_ray")
    return say("doctor.scale_text", engines=engines or "-", lacking=lacking).strip()


def cannot_load(names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(library, what is wrong and what to do) for each that is installed and cannot be imported."""
    for name in names:
        if find_spec(name) is None:
            continue
        done = _python(f"import {name}")
        if done is None:
            yield name, say("doctor.too_slow", name=name, seconds=PATIENCE)
        elif done.returncode:
            reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), str(done.returncode))
            tied = next((t for t in TIED if t in (name, *re.findall(r"\w+", reason))), None)
            advice = (
                say("doctor.tied", name=tied, remove=" ".join(TIED[tied]))
                if tied
                else say("doctor.reinstall", name=name)
            )
            yield name, say("doctor.broken", reason=reason.strip()[:300], advice=advice)


def _python(code: str) -> subprocess.CompletedProcess[str] | None:
    """Run a line of Python in a process of its own; None where it took too long."""
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
    try:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, errors="replace", timeout=PATIENCE, env=quiet,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
