"""What this machine is and may use: threads within affinity and container, processor flags, versions. No torch at import."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from luban.errors import RequestError, Unsupported, problem
from luban.settings import DEVICE

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")
LIBRARIES = (
    "torch", "numpy", "pyarrow", "scikit-learn", "tokenizers", "safetensors", "pillow", "onnx", "onnxscript", "onnxruntime",
    "fastapi", "uvicorn", "fairlearn", "transformers", "gguf", "torchvision", "pandas", "polars", "datasets", "openvino", "ray",
    "optuna", "tensorboard", "mlflow",
)  # fmt: skip
_wanted = "auto"  # what `auto` stands for in this process


def want_device(name: str = "auto") -> None:
    """Say what device `auto` means from now on. Raises RequestError for a name that no device has; imports no torch."""
    global _wanted
    if not re.fullmatch(DEVICE, name):
        raise RequestError(problem("machine.bad_device", place="--device", name=name))
    _wanted = name


def device(name: str = "auto") -> str:
    """The device to compute on: the named one, else the wanted one, else a GPU where there is one.

    Raises Unsupported where this machine has no such device, RequestError for a name that no device has.
    """
    name = _wanted if name == "auto" else name
    if not re.fullmatch(DEVICE, name):
        raise RequestError(problem("machine.bad_device", name=name))
    if name == "cpu":
        return name
    import torch

    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return "cuda" if "cuda:0" in there else there[-1]
    if name not in (*there, "cuda") or (name == "cuda" and "cuda:0" not in there):
        raise Unsupported(problem("machine.no_device", name=name, allowed=there))
    return name


def wanted_device() -> str | None:
    """The device that was asked for by name in this process, checked; None where nobody did."""
    return None if _wanted == "auto" else device(_wanted)


def able(name: str, precision: str = "bf16") -> bool:
    """Whether a precision is computed, not imitated, on a device of that name."""
    if precision == "fp32":
        return True
    if name.startswith("cuda"):
        import torch

        generation = torch.cuda.get_device_capability(name)
        first = {"tf32": (8, 0), "bf16": (8, 0), "fp16": (5, 3)}
        return precision in first and generation >= first[precision]
    flags = {"avx512_bf16", "amx_bf16", "bf16"} & set(processor()["flags"])
    return name == "cpu" and precision in ("bf16", "medium") and bool(flags)


def computes(name: str, precision: str, place: str, known: Iterable[str]) -> None:
    """Raises Unsupported where a device would only imitate a precision. `known`: all that can be asked for at that place."""
    if not able(name, precision):
        there = [p for p in known if p == "auto" or able(name, p)]
        raise Unsupported(problem("precision.not_there", place=place, name=precision, allowed=there, device=name))


def threads(wanted: str | int | None = "auto") -> int:
    """How many threads to compute with: the given number, else the processors this process may use (container included)."""
    if wanted not in (None, "auto"):
        if not str(wanted).isdecimal() or int(wanted) < 1:
            raise RequestError(problem("machine.bad_threads", place="--threads", found=str(wanted)))
        return int(wanted)
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _container_limit() or allowed))


def _container_limit() -> int | None:
    """Processors that the control group grants, rounded up; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return None


def set_threads(wanted: str | int | None = "auto") -> int:
    """Give every numeric library the same number of threads, before or after it was imported."""
    count = threads(wanted)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # idle threads sleep instead of spinning against other libraries
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    return count


def memory() -> tuple[int, int] | None:
    """Bytes that are free and that there are, the container's limit counted in; None where neither can be read."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = {k: int(v.split()[0]) * 1024 for k, _, v in (line.partition(":") for line in lines)}
        free, total = found["MemAvailable"], found["MemTotal"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free, total
    return min(free, max(0, limit - used)), min(total, limit)


def resident() -> int:
    """Bytes of memory that this process has now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


@cache
def processor() -> dict[str, Any]:
    """Name, flags that matter for speed, cores."""
    name, flags = platform.processor() or platform.machine(), ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.split() == ["model", "name"]:
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = value
                break
    except OSError:
        pass
    return {
        "name": name,
        "flags": [f for f in FLAGS if f in flags.split()],
        "cores": os.cpu_count(),
        "threads": threads(),
    }


def free_memory() -> int | None:
    """Bytes that this process may still take, as `memory` has them."""
    found = memory()
    return found[0] if found else None


def versions() -> dict[str, str]:
    """Installed versions of Luban and of the libraries it may use, by metadata: nothing is imported."""
    from importlib.metadata import PackageNotFoundError, version

    from luban import __version__

    found = {"luban": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """What a report and a history line say about where the work was done."""
    return {"system": f"{platform.system()} {platform.machine()}", "processor": processor(), "versions": versions()}
