"""The Bundle: a saved model that can rebuild itself and answer raw rows.

    shop.luban/
      MANIFEST.json        {format, luban, kind, files: {name: sha256}}, written last
      recipe.yaml          resolved: every default and every choice
      columns.json         what the columns learned (tokenizer*.json beside it, Hugging Face format)
      edits.json           module edits, in order
      model.safetensors
      tables/*.arrow       tables that a network or stage keeps, each marked personal or not
      history.jsonl        one line a stage
      metrics.jsonl        one line an epoch
      reports/             KIND.json + KIND.html
      README.md            the model card

No pickle anywhere; nothing in it is ever executed on load.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn
from torch.overrides import TorchFunctionMode

from luban import files, registry
from luban.columns import answering, searching
from luban.columns.base import Column, from_json, together
from luban.columns.examples import Arrays
from luban.errors import BundleError, DataError, RequestError, Unsupported, problem
from luban.generation.writing import respond
from luban.nn.edits import replay
from luban.nn.quantized import unpacked
from luban.nn.tokens import Batch
from luban.recipe import UNTOLD, Recipe
from luban.report import Report

KIND = "bundle"
NEEDED = ("recipe.yaml", "columns.json", "edits.json", "model.safetensors")
LAYOUT = re.compile(  # everything else is refused, sealed or not
    r"recipe\.yaml|columns\.json|tokenizer(-\d+)?\.json|edits\.json|model\.safetensors|tables/[^/]+\.arrow"
    r"|history\.jsonl|metrics\.jsonl|reports/[^/]+\.(json|html)|README\.md"
)
# What a file with the right hashes and the wrong content can make of the code that reads it.
MALFORMED = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
ANSWERS = ("audit",)  # stages that are about nothing but a model's answers
GIANT = 64  # times the size of the weights' file that a network may have before its edits make it smaller


@dataclass
class Bundle:
    """A model with everything it needs. Stages take one and give another; they never change the one they got.

    `network` is None in a Bundle that is not built yet. `path` is where it was saved or loaded, if it was.
    """

    recipe: Recipe
    columns: dict[str, Column] = field(default_factory=dict)
    network: Any = None
    edits: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    reports: dict[str, Report] = field(default_factory=dict)
    path: Path | None = None

    def __post_init__(self) -> None:
        self.columns = together(self.columns)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.recipe.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self.recipe.outputs)

    # -- answering ---------------------------------------------------------------------------------------------------
    @cached_property
    def engine(self) -> TorchEngine:
        return TorchEngine(self)

    def on(self, device: str) -> Bundle:
        """This model on a device of that name (`cuda`); it answers, explains and is judged there."""
        self.network.to(device)
        return replace(self)  # its engine is made anew

    def seeded(self, seed: int | None) -> Bundle:
        """This model for a stage whose randomness starts at `seed`, the recipe's own where none is given."""
        return self if seed is None else replace(self, recipe=replace(self.recipe, seed=seed))

    def predict(self, rows: Any, *, probabilities: bool = True) -> list[dict[str, Any]]:
        """One plain dict per row, in order: the value of each output, its probabilities; `error` for a bad row.

        rows: a list of dicts, one dict, columns as a dict of lists, a file name, or any table that
        `luban.data.sources.read` takes.
        """
        return [r.plain(probabilities) for r in answering.answer(self.engine, self._records(rows))]

    def generate(self, prompt: Any = "", *, n: int = 1, **settings: Any) -> Any:
        """Pictures, of a model that makes some: see `luban.generation.drawing.draw`. Else the text that this model writes on from `prompt` (a language model), or as its answer to an input or a row.

        n > 1: a list of so many. Settings: `tokens` (at most so many new ones), `temperature`, `top_k`, `top_p`, `min_p`,
        `repetition_penalty`, `presence_penalty`, `frequency_penalty`, `stop`, `seed`; see `luban.generation`. Raises Unsupported for a model that writes nothing.
        """
        if self.recipe.draws and prompt == "":
            from luban.generation.drawing import draw

            pictures = draw(self, n=n, **settings)
            return pictures[0] if n == 1 else pictures
        from luban.generation.asking import generate

        (texts,) = generate(self, [prompt], n=n, **settings)
        return texts[0].text if n == 1 else [t.text for t in texts]

    def embed(self, values: Any, input: str | None = None) -> np.ndarray:
        """Vectors (N, D) of length 1 of some values of an input, the first unless named; for a model with `fusion: match`.

        Their products are cosines. Raises Unsupported for another model, DataError for a value that cannot be read, and for none.
        """
        if self.recipe.fusion.type == "skip_gram":
            raise Unsupported("skip_gram.no_vectors")
        name, values = self._input(input), [values] if isinstance(values, str) else list(values)
        if not self.inputs or not hasattr(self.network, "vector"):
            raise Unsupported("search.no_vectors")
        if not values:
            raise DataError("data.no_rows")
        return searching.vectors(self.engine, name, values)

    def search(self, query: Any, top: int = 5, input: str | None = None) -> list[dict[str, Any]]:
        """The rows of this model's index (stage `index`) nearest to a value of an input, best first, each with its `score`.

        Raises RequestError without an index, with one that was made with other weights, or for a query with nothing in it.
        """
        table = self.tables.get("index")
        if table is None:
            raise RequestError("search.no_index")
        if table.schema.metadata.get(b"weights", b"").decode() != self._weights:
            raise RequestError("search.old_index")
        if isinstance(query, str) and not query.strip():
            raise RequestError("search.empty")
        return searching.nearest(table, self.embed([query], input)[0], top)

    @cached_property
    def _weights(self) -> str:
        return self.fingerprint()

    def _input(self, name: str | None) -> str:
        if name is not None and name not in self.inputs:
            raise RequestError(problem("search.no_input", name=name, allowed=self.inputs))
        return name or next(iter(self.inputs), "")

    def chat(self, messages: Any, **settings: Any) -> str:
        """The assistant's answer to a conversation [{role, content}, ...], or to one message of a user.

        Settings as of `generate`. A model that learned from a column of type chat, or an imported one, keeps its template.
        """
        talk = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return self.generate(talk, **settings)

    def _records(self, rows: Any) -> Sequence[Mapping[str, Any]]:
        if isinstance(rows, Mapping) and not self._are_columns(rows):
            return [rows]
        if isinstance(rows, Sequence) and not isinstance(rows, (str, bytes)):
            return rows
        from luban.columns.examples import records
        from luban.data.prepare import data_of

        return records(data_of(rows, self.columns, self.recipe).table)

    def _are_columns(self, rows: Mapping[str, Any]) -> bool:
        """Whether a dict holds lists of cells, not one row: where no single cell of these inputs is a list itself."""
        flat = all(self.columns[n].form in ("scalar", "index", "ids") for n in self.inputs)
        return flat and bool(rows) and all(isinstance(v, (list, np.ndarray)) for v in rows.values())

    # -- stages as methods; the same names as the command line's verbs --------------------------------------------------
    def _stage(self, name: str, data: Any, settings: dict[str, Any]) -> Any:
        from luban.data.prepare import data_of

        self.refuse_without_outputs(name)

        return registry.find("stages", name)(
            self, data_of(data, self.columns, self.recipe) if data is not None else None, **settings
        )

    def evaluate(self, data: Any, **settings: Any) -> Report:
        return self._stage("evaluate", data, settings)

    def shots(self, data: Any, *, model: Any, **settings: Any) -> Report:
        return self._stage("shots", data, {"model": model, **settings})

    def explain(self, data: Any, **settings: Any) -> Report:
        return self._stage("explain", [data] if isinstance(data, Mapping) else data, settings)

    def compress(self, data: Any = None, **settings: Any) -> Bundle:
        return self._stage("compress", data, settings)

    def audit(self, data: Any, **settings: Any) -> Any:
        return self._stage("audit", data, settings)

    def export(self, to: str = "onnx", *, out: str | Path, data: Any = None, **settings: Any) -> Path:
        return self._stage("export", data, {"to": to, "out": out, **settings})

    def serve(self, **settings: Any) -> None:
        return self._stage("serve", None, settings)

    @property
    def matches(self) -> bool:
        """Whether it answers nothing and makes vectors that lie close (`fusion: match`)."""
        return not self.recipe.outputs and self.recipe.fusion.type == "match"

    def refuse_without_outputs(self, stage: str) -> None:
        """Raises Unsupported where a stage is about answers and this model gives none (`fusion: match`)."""
        if self.matches and stage in ANSWERS:
            raise Unsupported("search.no_answers", stage=stage)

    def closeness(self) -> Bundle:
        """A model that matches as one that answers how close the two inputs of a row lie, a number by the name `match`.

        Raises Unsupported where it has not two inputs.
        """
        from luban.columns.number import Number
        from luban.nn.networks.matching import NAME, Close

        if len(self.inputs) != 2:
            raise Unsupported("match.not_two_close", inputs=list(self.inputs))
        number = Number(NAME).learned(mean=0.0, deviation=1.0)
        return replace(self, network=Close(self.network), columns={**self.columns, NAME: number})

    def index(self, data: Any, **settings: Any) -> Bundle:
        return self._stage("index", data, settings)

    # -- derived Bundles -----------------------------------------------------------------------------------------------
    def with_report(self, report: Report) -> Bundle:
        return replace(self, reports={**self.reports, report.kind: report})

    def with_history(self, stage: str, **entry: Any) -> Bundle:
        return replace(self, history=[*self.history, {"stage": stage, **entry}])

    def copy_network(self) -> nn.Module:
        """A network of its own with the same weights, for a stage that changes it."""
        import copy

        return copy.deepcopy(self.network)

    def parameters(self) -> int:
        """Weights, those stored as integers included, of which four bits hold two a byte."""
        own = sum(p.numel() for p in self.network.parameters())
        stored = {torch.int8: 1, torch.uint8: 2}
        held = {n: b for n, b in self.network.named_buffers() if not n.endswith("zero")}
        return own + sum(b.numel() * stored.get(b.dtype, 0) for b in held.values())

    def bytes(self) -> int:
        """Size of the weights, as saved."""
        return sum(t.numel() * t.element_size() for t in _distinct(self.network.state_dict()).values())

    def fingerprint(self) -> str:
        """SHA-256 of the weights as `save` writes them: their file's entry in MANIFEST.json."""
        return hashlib.sha256(save(_distinct(self.network.state_dict()))).hexdigest()

    # -- the folder ------------------------------------------------------------------------------------------------------
    def save(self, folder: str | Path, *, share: bool = False) -> Path:
        """Write the folder: all of it or, on a crash, what stood there before. `share` leaves personal tables out.

        Checkpoints and what else may lie beside a Bundle's files (see `luban.files`) stay. Raises RequestError where
        the folder holds files that Luban did not write, or another process is writing it; DiskError where the disk is
        full or fails.
        """
        final = Path(folder).resolve()
        with files.room_for(final.parent, self._room()), files.held(final):
            files.refuse_foreign(final, KIND)
            new = files.near(final, f"{os.getpid()}.tmp")
            new.mkdir()
            try:
                files.seal(new, KIND, known=self._write(new, share))
                files.replace_folder(new, final)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
        self.path = Path(folder).absolute()
        return self.path

    def _room(self) -> int:
        """About how many bytes `save` writes."""
        return self.bytes() + sum(t.nbytes for t in self.tables.values()) + 2**16

    def _write(self, folder: Path, share: bool) -> dict[str, str]:
        """All files but the manifest; the SHA-256 of the large ones."""
        from luban.card import card

        columns, tokenizers = _without_tokenizers([c.to_json() for c in self.columns.values()])
        plain = {
            "recipe.yaml": self.recipe.yaml(),
            "columns.json": json.dumps(columns, ensure_ascii=False),
            "edits.json": json.dumps(self.edits),
            "history.jsonl": _lines(self.history),
            "metrics.jsonl": _lines(self.metrics),
            "README.md": card(self),
            **tokenizers,
        }
        for name, text in plain.items():
            (folder / name).write_text(text, encoding="utf-8")
        weights = {
            "model.safetensors": files.put(folder / "model.safetensors", save(_distinct(self.network.state_dict())))
        }
        for name, table in self.tables.items():
            if not (share and _personal(table)):
                _write_table(folder / "tables" / f"{name}.arrow", table)
        for report in self.reports.values():
            report.save(folder / "reports")
        return weights

    @classmethod
    def load(cls, folder: str | Path, *, module: nn.Module | None = None) -> Bundle:
        """A saved Bundle. `module` is one's own network, for a Bundle that was trained with one.

        Raises BundleError for a folder that is not a Bundle, damaged, foreign or hostile.
        """
        folder = files.recovered(Path(folder).absolute())
        manifest = files.open_sealed(folder, KIND)
        names = list(manifest["files"])
        foreign = [n for n in names if not LAYOUT.fullmatch(n)]
        if foreign:
            raise BundleError("bundle.file_foreign", path=str(folder), file=foreign[0])
        missing = [n for n in NEEDED if n not in names]
        if missing:
            raise BundleError("bundle.file_missing", path=str(folder), file=missing[0])
        try:
            bundle = cls._read(folder, names, module)
        except MALFORMED as e:
            reason = f"{type(e).__name__}: {e}"[:200]
            raise BundleError("bundle.unreadable", path=str(folder), reason=reason) from e
        if files.open_sealed(folder, KIND, whole=False) != manifest:  # saved anew in the meantime: nothing is mixed
            return cls.load(folder, module=module)
        return bundle

    @classmethod
    def _read(cls, folder: Path, names: Sequence[str], module: nn.Module | None) -> Bundle:
        recipe = Recipe.load(folder / "recipe.yaml")
        entries = _with_tokenizers(_json(folder / "columns.json"), folder, names)
        with _placed(folder / "columns.json"):
            columns = {c.name: c for c in map(from_json, entries)}
        if not columns or {*recipe.inputs, *recipe.outputs} != set(columns):
            raise BundleError("bundle.columns_differ", path=str(folder / "columns.json"), found=list(columns)[:8])
        edits = _json(folder / "edits.json")
        history, metrics = (_entries(folder, n) if n in names else [] for n in ("history.jsonl", "metrics.jsonl"))
        history = [{**h, "stage": str(h["stage"])} for h in history]
        bundle = cls(recipe, columns, None, edits, {}, history, metrics, {}, folder)
        path = folder / "model.safetensors"
        with _Modest(path), _placed(folder / "edits.json" if edits else folder / "recipe.yaml"):
            network = build_network(recipe, columns, edits, module)
        bundle.network = _with_weights(network, path)
        bundle.tables = {Path(n).stem: _read_table(folder / n) for n in names if n.startswith("tables/")}
        reports = [n for n in names if n.startswith("reports/") and n.endswith(".json")]
        bundle.reports = {Path(n).stem: Report.load(folder / n) for n in reports}
        return bundle

    def __repr__(self) -> str:
        return f"Bundle({self.recipe.task()}, {', '.join(self.inputs)[:60]} -> {', '.join(self.outputs)}, {self.parameters():,} parameters)"

    def _repr_html_(self) -> str:
        return self.recipe._repr_html_()


class TorchEngine:
    """The network in PyTorch, behind the interface that every engine has."""

    def __init__(self, bundle: Bundle):
        weights = (*bundle.network.parameters(), *bundle.network.buffers())
        self.device = weights[0].device if weights else torch.device("cpu")
        self.network = unpacked(bundle.network.eval())
        self.columns, self.inputs, self.outputs = bundle.columns, bundle.inputs, bundle.outputs

    @torch.inference_mode()
    def run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        if not self.outputs and hasattr(self.network, "vector"):
            raise Unsupported("match.no_answer")
        if hasattr(self.network, "masked"):
            raise Unsupported("masked.no_answer")
        return {n: o.float().cpu().numpy() for n, o in respond(self.network, Batch.of(arrays, self.device)).items()}

    @torch.inference_mode()
    def vectors(self, name: str, arrays: Arrays) -> np.ndarray:
        """The vectors of one input, (B, D). Raises Unsupported for a network that makes none."""
        if not hasattr(self.network, "vector"):
            raise Unsupported("search.no_vectors")
        return self.network.vector(name, Batch.of(arrays, self.device)).cpu().numpy()


def build_network(
    recipe: Recipe, columns: Mapping[str, Column], edits: Sequence[dict[str, Any]] = (), module: nn.Module | None = None
) -> Any:
    """The network that a resolved recipe describes, untrained, with the edits replayed."""
    from luban.nn.network import Composed

    if recipe.fusion.type == "own":
        from luban.nn.networks.own import Own

        return replay(Own(recipe, columns, module), edits)
    if recipe.fusion.type in UNTOLD:
        from luban.nn.networks.masked import Masked

        return replay(Masked(recipe, columns), edits)
    if recipe.prefers:
        from luban.nn.networks.preferring import Preferring

        return replay(Preferring(recipe, columns), edits)
    if recipe.draws:
        from luban.nn.networks.adversarial import Adversarial

        return replay(Adversarial(recipe, columns), edits)
    if recipe.writes:
        from luban.nn.networks.generative import Generative

        return replay(Generative(recipe, columns), edits)
    if recipe.fusion.type == "match":
        from luban.nn.networks.matching import Matching

        return replay(Matching(recipe, columns), edits)
    if any(recipe.maps(n) for n in recipe.outputs):
        from luban.nn.networks.mapped import Mapped

        return replay(Mapped(recipe, columns), edits)
    return replay(Composed(recipe, columns), edits)


class _Modest(TorchFunctionMode):
    """A recipe of a few bytes must not ask for all the memory there is: BundleError before it is taken."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.found, self.wanted = path, path.stat().st_size, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.empty, torch.zeros, torch.ones, torch.randn):
            size = (kwargs or {}).get("size", args)
            size = size[0] if size and not isinstance(size[0], int) else size
            self.wanted += 4 * math.prod(size)
            if self.wanted > max(2**30, GIANT * self.found):
                found, wanted = f"{self.found:,}", f"{self.wanted:,}"
                raise BundleError("bundle.too_large", path=str(self.path), wanted=wanted, found=found)
        return func(*args, **(kwargs or {}))


def _with_weights(network: nn.Module, path: Path) -> nn.Module:
    try:
        weights = load(path.read_bytes())
        shapes = {k: v.shape for k, v in network.state_dict().items()}
        wrong = [k for k, v in weights.items() if k in shapes and shapes[k] != v.shape]
        lacking, extra = _missing(network, weights), [k for k in weights if k not in shapes]
        if wrong or lacking or extra:
            raise BundleError(
                "bundle.weights_differ", path=str(path), lacking=lacking[:4], extra=extra[:4], wrong=wrong[:4]
            )
        network.load_state_dict(weights, strict=False)
    except (SafetensorError, ValueError, OverflowError, MemoryError) as e:
        raise BundleError("bundle.bad_weights", path=str(path), reason=str(e)[:200]) from e
    return network.eval()


def _missing(network: nn.Module, weights: Mapping[str, Any]) -> list[str]:
    """Names that no saved tensor stands for; of tensors that share memory one is enough."""
    saved = set(_distinct(network.state_dict()))
    return [k for k in saved if k not in weights]


def _distinct(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a state dict, those that share memory (tied weights) once, ready for safetensors."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    result = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        result[name] = tensor.detach().cpu().contiguous().clone()
    return result


def _without_tokenizers(columns: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    texts: dict[str, str] = {}
    for i, column in enumerate(columns):
        tokenizer = column["state"].get("tokenizer")
        if tokenizer is not None:
            name = "tokenizer.json" if not texts else f"tokenizer-{i}.json"
            texts[name] = json.dumps(tokenizer, ensure_ascii=False)
            column["state"] = {**column["state"], "tokenizer": {"file": name}}
    return columns, texts


def _with_tokenizers(columns: list[dict[str, Any]], folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    for column in columns:
        tokenizer = column["state"].get("tokenizer")
        if isinstance(tokenizer, dict) and "file" in tokenizer:
            if tokenizer["file"] not in names:
                raise BundleError("bundle.file_missing", path=str(folder), file=str(tokenizer["file"]))
            column["state"]["tokenizer"] = _json(folder / tokenizer["file"], dict)
    return columns


def _lines(entries: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(e, ensure_ascii=False, default=str) + "\n" for e in entries)


@contextmanager
def _placed(path: Path) -> Iterator[None]:
    """Errors of what a file names get the file's name."""
    try:
        yield
    except RequestError as e:
        raise BundleError(*(p.at(p.place or str(path)) for p in e.problems)) from e


def _json(path: Path, kind: type = list) -> Any:
    """A file of ours: a list of dicts, or one dict. Raises BundleError with the file's name."""
    return _plain(path.read_bytes(), path, kind)


def _entries(folder: Path, name: str) -> list[dict[str, Any]]:
    return [_plain(line, folder / name, dict) for line in (folder / name).read_bytes().splitlines() if line]


def _plain(data: bytes, path: Path, kind: type) -> Any:
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise BundleError("bundle.unreadable", path=str(path), reason=str(e)[:200]) from e
    if not isinstance(value, kind) or (kind is list and not all(isinstance(v, dict) for v in value)):
        raise BundleError("bundle.unreadable", path=str(path), reason=type(value).__name__)
    return value


def _personal(table: Any) -> bool:
    return (table.schema.metadata or {}).get(b"personal", b"true") != b"false"


def _write_table(path: Path, table: Any) -> None:
    import pyarrow as pa

    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _read_table(path: Path) -> Any:
    import pyarrow as pa

    try:
        with pa.OSFile(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            table.validate(full=True)
            return table
    except (pa.ArrowException, OSError, ValueError) as e:
        raise BundleError("bundle.unreadable", path=str(path), reason=str(e)[:200]) from e
