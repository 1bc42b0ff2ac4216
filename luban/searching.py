"""What the verbs `embed` and `index` do: vectors of a file's rows; a model to search with, saved or straight from a checkpoint."""

from __future__ import annotations

from pathlib import Path

from luban.bundle import Bundle, build_network
from luban.columns import searching
from luban.columns.base import to_list
from luban.columns.examples import cells
from luban.columns.fitting import fit_columns
from luban.data import models
from luban.data.prepare import data_of, prepare
from luban.errors import DataError, RequestError, problem
from luban.files import MANIFEST
from luban.recipe import Recipe

ENDINGS = (".npy", ".parquet")


def embedded(bundle: Bundle, source: str, input: str | None, place: Path) -> tuple[int, int]:
    """Writes the vectors of all rows of a file as .npy (N, D), or beside the rows as .parquet; gives N and D.

    Raises RequestError, DataError; Unsupported for a model without vectors.
    """
    import numpy as np

    data = data_of(source, bundle.columns, bundle.recipe)
    name = input or next(iter(bundle.inputs), None)
    if name in bundle.inputs and name not in data.table.column_names:
        raise DataError(problem("data.no_column", place=source, name=name, allowed=data.table.column_names))
    values = to_list(cells(data.table[name])) if name in bundle.inputs else []
    found = bundle.embed(values, name)
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix == ".npy":
        np.save(place, found, allow_pickle=False)
    else:
        import pyarrow.parquet as pq

        pq.write_table(searching.table_of(data.table, found, name, bundle.fingerprint(), True), place)
    return found.shape


def searcher(model: str, source: str, input: str | None) -> Bundle:
    """A saved model; or one of a checkpoint as it is, over the text column `input` of the rows.

    Raises BundleError, RequestError where it is neither, DataError.
    """
    if (Path(model) / MANIFEST).is_file() or not models.possible(model):
        return Bundle.load(model)
    if not input:
        raise RequestError("search.which_column", model=model)
    recipe = Recipe.of({
        "luban": 1, "data": {"rows": source, "split": {"validation": 0, "test": 0}}, "inputs": {input: "text"}, "outputs": {},
        "model": {input: {"pretrained": {"name": model}}}, "fusion": "match",
    }).resolved()  # fmt: skip
    columns = fit_columns(recipe, prepare(recipe))
    return Bundle(recipe, columns, build_network(recipe, columns).eval()).with_history("import", model=model)
