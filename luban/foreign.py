"""Weights that were trained elsewhere: a `.pth` or `.safetensors` file becomes a Bundle. Nothing in a file is executed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from luban.asking import Ask, recipe_from
from luban.bundle import Bundle, build_network
from luban.columns.fitting import fit_columns
from luban.console import tell
from luban.data.prepare import prepare
from luban.errors import BundleError, RequestError, problem, raise_all, shortened
from luban.huggingface import imported
from luban.recipe import Recipe

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
ENDINGS = (*PICKLED, ".safetensors")
INSIDE = ("state_dict", "model_state_dict", "model")  # where trainers put the weights beside other things
WRAPPED = "module."  # what DataParallel puts before every name


def import_weights(
    file: str | Path,
    recipe: Any = None,
    data: str | None = None,
    *,
    module: nn.Module | None = None,
    column: str = "text",
) -> Bundle:
    """A Bundle of the network that a recipe describes, with the weights of a file; its columns are fitted on the rows.

    recipe: a file or a Recipe. `data` stands for the rows that the recipe names. `module`: for a recipe with `fusion: own`.
    Without a recipe `file` is a checkpoint in the Hugging Face layout (a folder, a name on the hub), which says itself what
    it is, and `column` what its text is called; see `luban.huggingface.imported`.
    Raises BundleError where the file is hostile or unreadable or its names or shapes differ, RecipeError, DataError.
    """
    if not recipe and Path(file).suffix not in ENDINGS:
        return imported(str(file), column)
    if not recipe:
        raise RequestError("cli.lacking", what="--recipe", verb="import")
    weights = read(file)
    changes = (f"data.rows={data}",) if data else ()
    asked = replace(recipe, data={**recipe.data, "rows": data}) if isinstance(recipe, Recipe) and data else recipe
    described, rows, _ = recipe_from(asked, Ask(changes=changes))
    described = described.resolved()
    prepared = prepare(described, rows)
    columns = fit_columns(described, prepared)
    network = build_network(described, columns, (), module)
    _fit(network, weights, str(file))
    tell("import.done", path=str(file), count=len(weights))
    return Bundle(described, columns, network.eval()).with_history("import", file=Path(file).name, tensors=len(weights))


def read(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises BundleError, RequestError for another kind of file."""
    path = Path(file)
    if path.suffix not in ENDINGS:
        raise RequestError(problem("import.kind", place=str(file), name=path.suffix, allowed=ENDINGS))
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


def _fit(network: nn.Module, weights: Mapping[str, Tensor], file: str) -> None:
    """Put the weights in; every name that lacks, is too many, or has another shape is told at once."""
    wanted = network.state_dict()
    lacking, extra = [k for k in wanted if k not in weights], [k for k in weights if k not in wanted]
    problems = [problem("import.lacking", place=file, names=shortened(lacking))] if lacking else []
    if extra:
        problems.append(problem("import.extra", place=file, names=shortened(extra)))
    for name, tensor in weights.items():
        if name in wanted and tensor.shape != wanted[name].shape:
            found, want = (" x ".join(map(str, s)) or "()" for s in (tensor.shape, wanted[name].shape))
            problems.append(problem("import.shape", place=file, tensor=name, found=found, want=want))
    raise_all(BundleError, problems)
    network.load_state_dict(dict(weights))


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
