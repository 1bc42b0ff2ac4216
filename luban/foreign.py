"""Weights that were trained elsewhere: a `.pth` or `.safetensors` file becomes a Bundle. Nothing in a file is executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luban.asking import Ask, recipe_from
from luban.bundle import Bundle, build_network
from luban.columns.fitting import fit_columns
from luban.console import tell
from luban.data import models
from luban.data.prepare import prepare
from luban.errors import BundleError, RequestError, problem, raise_all, shortened
from luban.huggingface import finite, imported
from luban.nn.tensor_files import read
from luban.recipe import Recipe


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
    Without a recipe `file` is a checkpoint in the Hugging Face layout (a folder, a name on the hub) or a GGUF file, which says
    itself what it is, and `column` what its text is called; see `luban.huggingface.imported`.
    Raises BundleError where the file is hostile or unreadable or its names or shapes differ, RecipeError, DataError.
    """
    if not recipe and Path(file).suffix not in models.WEIGHTS:
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
    finite(weights, file)
    network.load_state_dict(dict(weights))
