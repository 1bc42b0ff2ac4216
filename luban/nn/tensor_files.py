"""Files of tensors that others wrote: .safetensors as they are, .pth and the like by an unpickler that makes tensors and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from luban.data.models import WEIGHTS
from luban.errors import BundleError, RequestError, problem

INSIDE = ("state_dict", "model_state_dict", "model")  # where trainers put the weights beside other things
WRAPPED = "module."  # what DataParallel puts before every name


def read(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises BundleError, RequestError for another kind of file."""
    path = Path(file)
    if path.suffix not in WEIGHTS:
        raise RequestError(problem("import.kind", place=str(file), name=path.suffix, allowed=WEIGHTS))
    if not path.is_file():
        raise RequestError("import.no_file", path=str(file))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unpickler that then refuses, in words for its own developers
            found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except UnpicklingError as e:
        raise BundleError("import.hostile", path=str(file), reason=_line(e)) from e
    except (
        SafetensorError,
        RuntimeError,
        ValueError,
        LookupError,
        EOFError,
        OSError,
        TypeError,
        AttributeError,
        MemoryError,
    ) as e:
        raise BundleError("import.unreadable", path=str(file), reason=_line(e)) from e
    return _tensors(found, str(file))


def _tensors(found: Any, file: str) -> dict[str, Tensor]:
    for key in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or any(not isinstance(v, Tensor) for v in found.values()):
        raise BundleError("import.no_tensors", path=file)
    wrapped = all(str(k).startswith(WRAPPED) for k in found)
    return {str(k)[len(WRAPPED) if wrapped else 0 :]: v for k, v in found.items()}


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
