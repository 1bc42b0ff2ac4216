"""The model before and after on the same held-out rows: size, time, every metric, agreement, explanations."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luban.bundle import Bundle
from luban.columns import answering
from luban.columns.base import to_list
from luban.columns.examples import Examples, cells, encode
from luban.engines import OnnxEngine
from luban.errors import Unsupported
from luban.evaluation import retrieval, views
from luban.evaluation.attribution import attributions, likeness
from luban.evaluation.intervals import Metric, mean, paired_difference
from luban.evaluation.latency import FASTER, one_thread, speedup, timings
from luban.evaluation.made_view import witness
from luban.evaluation.table import table
from luban.nn.static import is_static
from luban.nn.tokens import Batch
from luban.onnx_file import onnx_bytes

BATCHES = (1, 32)
TRIES = 2  # measurements before a model is refused for its speed: a machine may be busy with something else


@dataclass
class Comparison:
    """All that was measured, as `numbers` for JSON; `difference` is after - before."""

    before: dict[str, Any]
    after: dict[str, Any]
    speed: dict[str, Any] = field(default_factory=dict)
    file_speed: dict[str, Any] = field(default_factory=dict)  # both as files
    metrics: dict[str, dict[str, list[Metric]]] = field(default_factory=dict)  # output -> metric -> before, after, diff
    agreement: dict[str, dict[str, Any]] = field(default_factory=dict)
    explanations: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: int = 0
    part: str = ""
    explained: int = 0

    def numbers(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "part": self.part,
            "before": self.before,
            "after": self.after,
            "threads": 1,
            "speedup": self.speed,
            **({"speedup_as_files": self.file_speed} if self.file_speed else {}),
            "outputs": {
                n: {m: dict(zip(("before", "after", "difference"), v)) for m, v in metrics.items()}
                for n, metrics in self.metrics.items()
            },
            "agreement": self.agreement,
            "explanations": {"rows": self.explained, **self.explanations},
        }


def sizes(bundle: Bundle, packed: bool = False) -> dict[str, Any]:
    """Bytes of the weights as saved, weights in all and those that are not zero; `packed`: bytes after zlib, too."""
    tensors = [*bundle.network.parameters(), *(b for b in bundle.network.buffers() if b.dtype == torch.int8)]
    found: dict[str, Any] = {
        "bytes": bundle.bytes(),
        "parameters": bundle.parameters(),
        "nonzero": sum(int(torch.count_nonzero(t)) for t in tensors),
    }
    if packed:
        found["packed_bytes"] = sum(
            len(zlib.compress(t.detach().cpu().contiguous().numpy().tobytes())) for t in tensors
        )
    return found


def compared(before: Bundle, after: Bundle, data: Any, *, explain: int, resamples: int, zeros: bool) -> Comparison:
    """Measure both models. Without data only their sizes. `zeros`: all that was done is to set weights to zero."""
    found = Comparison(sizes(before, zeros), sizes(after, zeros))
    if data is None:
        return found
    found.part, rows = data.held_out()
    if not before.inputs or hasattr(before.network, "masked"):  # answers nothing, and finds texts more or less likely
        found.rows = len(rows)
        if found.rows:
            _judge(found, before, after, data, rows, resamples)
        return found
    framed = data.framed(rows, before.recipe.frame)
    examples = encode(before.columns, before.inputs, (), framed)
    found.rows = len(examples)
    if not found.rows:
        return found
    if before.matches and len(before.inputs) == 2:
        _judge_places(found, before, after, data, rows, resamples)
        before, after = before.closeness(), after.closeness()
    elif before.matches:
        return found
    _time(found, before, after, examples)
    if zeros:  # the same arithmetic: whatever the clock said, it was chance
        found.speed = {b: {**s, "faster": False} for b, s in found.speed.items()}
    if not before.matches:
        _judge(found, before, after, data, rows, resamples)
    raw = [answering.outputs_of(b.engine, examples) for b in (before, after)]
    for name in raw[0]:
        cells_of = lambda of: cells(framed.table[of])  # noqa: E731
        answers = [answering.decoded(b.columns[name], o[name], cells_of) for b, o in zip((before, after), raw)]
        wide = before.columns[name].form == "grid"
        found.agreement[name] = _apart(*(o[name] for o in raw)) if wide else agreement(before.columns[name], *answers)
    lacks = getattr(before.network, "lacks", ())
    if explain and "score" not in lacks and all(hasattr(before.network, v) for v in ("embed", "score")):
        found.explained = min(explain, found.rows)
        found.explanations = explained(before, after, examples, framed, found.explained, raw[0])
    return found


def _time(found: Comparison, before: Bundle, after: Bundle, examples: Examples) -> None:
    whole = is_static(after.network)  # computed with integers by an engine alone: both as files, beside PyTorch
    with one_thread(), ExitStack() as files:
        engines = [before.engine, files.enter_context(as_file(after, examples)) if whole else after.engine]
        engines += [files.enter_context(as_file(before, examples))] if whole else []
        for size in BATCHES:
            arrays = examples.arrays(np.arange(size) % len(examples))
            first, second, *file = timings(engines, arrays)
            found.before[f"milliseconds_{size}"], found.after[f"milliseconds_{size}"] = first.per_row, second.per_row
            found.speed[str(size)] = speedup(first, second)
            if file:
                found.before[f"file_milliseconds_{size}"] = file[0].per_row
                found.after[f"file_milliseconds_{size}"] = second.per_row
                found.file_speed[str(size)] = speedup(file[0], second)


@contextmanager
def as_file(bundle: Bundle, examples: Examples) -> Iterator[OnnxEngine]:
    """The model as the file that `export` would write, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(onnx_bytes(bundle, examples.arrays(np.arange(min(8, len(examples))))))
        yield OnnxEngine(path, threads=1)


def refuse(before: Bundle, after: Bundle, data: Any, examples: tuple[Examples, Examples], accept: float) -> None:
    """Raises Unsupported where a model that computes with integers loses more of an output's main metric than `accept`, or is no
    faster as a file than the one before in PyTorch. Judged on validation rows, of training rows where there are none.
    """
    rows = data.part("validation") if len(data.part("validation")) else data.part("train")
    judged = [table(b, data, rows) for b in (before, after)]
    for name in judged[0].outputs:
        first, second = (views.view(name, t.outputs[name], t, resamples=20, seed=0) for t in judged)
        metric, higher = first.main
        lost = (first.metrics[metric].value - second.metrics[metric].value) * (1 if higher else -1)
        if lost > accept:
            raise Unsupported("compress.lost", name=name, metric=metric, lost=f"{lost:.4f}", accept=accept)
    arrays = examples[0].arrays(np.arange(min(max(BATCHES), len(examples[0]))))
    with one_thread(), as_file(after, examples[0]) as engine:
        for _ in range(TRIES):
            ratio = speedup(*timings([before.engine, engine], arrays))["value"]
            if ratio >= FASTER:
                return
    raise Unsupported("compress.slower", ratio=f"{ratio:.2f}", least=FASTER)


def _judge(found: Comparison, before: Bundle, after: Bundle, data: Any, rows: np.ndarray, resamples: int) -> None:
    judged = [table(b, data, rows) for b in (before, after)]
    if hasattr(before.network, "drawn"):
        seen = witness(before, data, judged[0])
        judged = [replace(t, witness=seen) for t in judged]
    for name in judged[0].outputs:
        seed = before.recipe.seed
        first, second = (views.view(name, t.outputs[name], t, resamples=resamples, seed=seed) for t in judged)
        found.metrics[name] = {
            m: [first.metrics[m], second.metrics[m], d]
            for m, d in first.difference(second).items()
            if m in first.metrics
        }


def _judge_places(
    found: Comparison, before: Bundle, after: Bundle, data: Any, rows: np.ndarray, resamples: int
) -> None:
    """At which place each row's own partner comes, of both models."""
    seed = before.recipe.seed
    places = [retrieval.own_places(b, data, rows) for b in (before, after)]
    first, second = (retrieval.metrics(p, resamples, seed) for p in places)
    both = [retrieval.by_row(p) for p in places]
    draws = {"seed": seed, "resamples": resamples}
    found.metrics[retrieval.KIND] = {
        m: [first[m], second[m], paired_difference(both[1][m], both[0][m], **draws)] for m in first
    }


def _apart(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """How far what both make is apart, each row as a whole: the correlation, and the mean distance in their own units."""
    each = np.abs(first - second).reshape(len(first), -1).mean(1)
    return {"correlation": float(np.corrcoef(first.ravel(), second.ravel())[0, 1]), "distance": mean(each)}


def agreement(column: Any, first: list[Any], second: list[Any]) -> dict[str, Any]:
    """How often, or how far, both give the same answer; for numbers their correlation and mean distance in raw units."""
    if column.form != "scalar":
        return {"same": mean(np.array([column.agree(a, b) for a, b in zip(first, second)]))}
    a, b = (np.array([x.value for x in side], float) for side in (first, second))
    varies = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
    return {"correlation": float(np.corrcoef(a, b)[0, 1]) if varies else None, "distance": mean(np.abs(a - b))}


def explained(
    before: Bundle, after: Bundle, examples: Examples, framed: Any, count: int, raw: dict[str, Any]
) -> dict[str, Any]:
    """Per output: cosine and rank correlation of the two models' integrated gradients, for the answers given before."""
    arrays = examples.arrays(np.arange(count))
    result = {}
    for name, o in raw.items():
        column = before.columns[name]
        if column.along:
            found = answering.decoded(column, o[:count], lambda of: to_list(cells(framed.table[of]))[:count])
            texts = to_list(cells(framed.table[column.of]))[:count]
            answers = column.collate([column.fixed(a, None, t)[0] for a, t in zip(found, texts)])[0]
        else:
            answers = column.numbered(o[:count])
        both = [attributions(b.network, b.columns, arrays, name, answers) for b in (before, after)]
        cosine, rank = likeness(*both)
        result[name] = {"cosine": mean(cosine[~np.isnan(cosine)]), "rank": mean(rank[~np.isnan(rank)])}
    return result


def sample(bundle: Bundle, data: Any, count: int = 8) -> Batch:
    """A few real examples to try a network on. Raises IndexError without rows."""
    rows = data.held_out()[1][:count]
    examples = encode(bundle.columns, bundle.inputs, (), data.framed(rows, bundle.recipe.frame))
    return Batch.of(examples.arrays(np.arange(len(examples))))
