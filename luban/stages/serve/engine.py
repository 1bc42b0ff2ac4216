"""Which engine answers, and how raw rows become answers in a thread."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from luban import files, machine, registry
from luban.columns.answering import Engine, answer, finite
from luban.columns.base import Answer
from luban.data.rows import BadRow
from luban.data.talks import SPEAK, messages
from luban.engines import engine_of, exported, opened
from luban.errors import BundleError, DataError, Problem, RequestError, Unsupported, problem
from luban.stages.serve.refusal import placed

TALKS = "messages"  # what a conversation is called in a request


class Guarded:
    """An engine whose rows come from strangers: no value may name a file to open."""

    def __init__(self, engine: Engine, name: str, explainer: Explainer | None = None, model: str = ""):
        self.engine, self.name, self.explainer = engine, name, explainer
        self.model = model or "model"  # what it is called, its folder's name
        self.limit()
        self.inputs, self.outputs = tuple(engine.inputs), tuple(engine.outputs)
        self.explained = self.inputs or self.outputs  # what goes on from a text reads the beginning of that text
        writes = [self.columns[n] for n in self.outputs if not self.inputs]
        self.talks = any(c.type in SPEAK and getattr(c, "chat", None) for c in writes)

    def explaining(self, rows: Sequence[Any]) -> tuple[str, ...]:
        """The columns that rows to be explained must have; `messages` will do where the model knows how conversations look."""
        first = rows[0] if rows and isinstance(rows[0], dict) else {}
        return (TALKS,) if self.talks and TALKS in first and not set(self.explained) & set(first) else self.explained

    def limit(self, pixels: int = 0) -> None:
        """How many pixels a picture may have that is sent; 0: what is usual."""
        self.columns = {n: c.guarded(pixels) for n, c in self.engine.columns.items()}
        if self.explainer is not None:
            self.explainer.pixels = pixels

    def run(self, arrays: Any) -> dict[str, np.ndarray]:
        return self.engine.run(arrays)

    def answers(self, rows: Sequence[Mapping[str, Any]], batch: int) -> list[Mapping[str, Answer] | Problem]:
        """Per row its answers, or the problem with it. An answer that is no finite number is a problem."""
        with np.errstate(all="ignore"):
            found = answer(self, rows, batch)
            return [self._one(row, f) for row, f in zip(rows, found)]

    def _one(self, row: Mapping[str, Any], found: Any) -> Mapping[str, Answer] | Problem:
        if found.answers is None:
            return self._why(row) or problem("serve.bad_row", reason=str(found.error))
        wrong = [n for n, a in found.answers.items() if not finite(a)]
        return problem("serve.not_finite", columns=wrong) if wrong else found.answers

    def _why(self, row: Mapping[str, Any]) -> Problem | None:
        """The problem behind a row that could not be read, with the column it is in."""
        for name in (n for n in self.inputs if n in row):
            try:
                self.columns[name].encode(row[name])
            except DataError as e:
                return placed(e.problems[0], name)
        return None


class Explainer:
    """The stage `explain` on a network of its own, one request at a time.

    `made`: gives the Bundle that is served. It is asked with the first request: an engine without torch needs it for
    nothing else.
    """

    settings = ("method", "output", "target", "attention")
    flags = ("attention",)  # those that are true or false
    most = 8  # rows of one request

    def __init__(self, made: Callable[[], Any]):
        self.made, self.lock, self.pixels = made, Lock(), 0

    @cached_property
    def bundle(self) -> Any:
        """The served Bundle again, with guarded columns, so that hooks and gradients touch no network that answers."""
        served = self.made()
        columns = {n: c.guarded(self.pixels) for n, c in served.columns.items()}
        return replace(served, columns=columns, network=served.copy_network())

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], names: Sequence[str]
    ) -> dict[str, Any]:
        """The numbers of the explanation report. `names`: the columns that are read. Raises DataError where a row cannot be read,
        RequestError, BundleError where the model is there no more.
        """
        from luban.data.prepare import data_of

        explain = registry.find("stages", "explain")
        for i, row in enumerate(rows if TALKS in names else ()):
            try:
                messages(row[TALKS])
            except BadRow as e:
                raise DataError(problem(e.id, place=f"rows[{i}].{TALKS}", **{"name": TALKS, **e.values})) from e
        with self.lock:
            data = data_of([{n: row[n] for n in names if n in row} for row in rows], self.bundle.columns)
            if bad := data.rows.quarantine:
                raise DataError(problem(bad[0].reason_id, place=f"rows[{bad[0].line - 1}]", **bad[0].values))
            data = replace(data, rows=replace(data.rows, source="rows"))  # what is wrong with one is told as rows:1
            report = explain(self.bundle, data, rows=len(rows), **settings)
        return report.to_json()["numbers"]


def choose(source: Any, which: str = "auto", threads: int | None = None) -> Guarded:
    """The engine for a Bundle, a folder, an exported file, or an Engine as it is. Raises RequestError, BundleError."""
    if hasattr(source, "run") and hasattr(source, "outputs"):
        return Guarded(source, type(source).__name__)
    if not isinstance(source, (str, Path)):  # a Bundle: torch is there already
        path = getattr(source, "path", None)
        return _fitting(path, threads) if which == "onnx" else _torch(source)
    path, device = Path(source), machine.wanted_device()
    if name := exported(path):
        if which not in ("auto", name):
            raise Unsupported("serve.exported", path=str(path), engine=which)
        return Guarded(engine_of(path, threads), name)
    auto = which == "auto" and device in (None, "cpu")
    if which == "onnx" or (auto and find_spec("onnxruntime") and fits(path)):
        found = _fitting(path, threads)
        if which == "onnx" or found.outputs:  # embeddings are the network's own to give
            return found
    from luban.bundle import Bundle

    bundle = Bundle.load(path)
    return _torch(bundle.on(device) if device else bundle)


def _torch(bundle: Any) -> Guarded:
    return Guarded(bundle.engine, "torch", Explainer(lambda: bundle), bundle.path.name if bundle.path else "")


def _fitting(folder: Path | None, threads: int | None) -> Guarded:
    """The model.onnx of a folder; what it cannot, explain, is done by the folder's weights where torch is installed."""
    if folder is None or not fits(folder):
        raise RequestError("serve.no_onnx", path=str(folder or ""))
    weights = _weights(folder)

    def bundle() -> Any:
        from luban.bundle import Bundle

        found = Bundle.load(folder)
        if _weights(folder) != weights:
            raise RequestError("serve.model_changed", path=str(folder))
        return found

    return Guarded(
        engine_of(Path(folder) / "model.onnx", threads), "onnx", Explainer(bundle) if find_spec("torch") else None
    )


def _weights(folder: Path) -> Any:
    """The fingerprint of the weights that are in the folder now."""
    return files.open_sealed(Path(folder), "bundle", whole=False)["files"].get("model.safetensors")


def fits(folder: Path) -> bool:
    """Whether FOLDER/model.onnx was exported from the model that is in the folder now: its weights, and its columns."""
    path = Path(folder) / "model.onnx"
    if not path.is_file():
        return False
    manifest = files.open_sealed(Path(folder), "bundle")
    try:
        about = opened(path)[1]
        exported = json.loads(about["luban.columns"])
        kept = json.loads((Path(folder) / "columns.json").read_text(encoding="utf-8"))
    except (BundleError, ValueError, RecursionError):
        return False
    same = [_without_tokenizer(c) for c in exported] == [_without_tokenizer(c) for c in kept]
    return same and about.get("luban.weights") == manifest["files"].get("model.safetensors")


def _without_tokenizer(column: dict[str, Any]) -> dict[str, Any]:
    """A saved column without what a folder keeps in a file of its own."""
    return {**column, "state": {k: v for k, v in column["state"].items() if k != "tokenizer"}}


def share_processors(threads: int) -> None:
    """Run in each worker thread: the libraries compute with this thread's share of the processors."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
