"""explain: which parts of each row speak for the network's answer, and how far that can be believed.

The methods are plain functions, one a file: `shapley.kernel_shap`, `lime.lime`, `integrated_gradients`, `grad_cam`.
`game` turns rows into masked examples through what every column can do, `methods` applies a method to them, `checks`
measures the explanation on the network, `page` writes the report. `going_on` and `filling_in` make networks without an answer to
inputs, language models and those that say hidden words, into ones with. `attention` shows where a network looked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from luban import registry
from luban.bundle import Bundle
from luban.columns import answering
from luban.columns.base import Answer, Column, Ragged, take, text_of
from luban.columns.examples import Arrays, encode, encode_values, records
from luban.data.prepare import Data
from luban.data.talks import SPEAK, held, talked
from luban.errors import DataError, RequestError, Unsupported, problem
from luban.generation.writing import respond
from luban.messages import say
from luban.report import Report
from luban.settings import Count, Natural
from luban.stages.explain import checks
from luban.stages.explain.attention import Looked
from luban.stages.explain.attention import attention as seen
from luban.stages.explain.filling_in import FillingIn
from luban.stages.explain.game import Example, Masked, Scorer, example, still
from luban.stages.explain.going_on import GoingOn
from luban.stages.explain.methods import METHODS, Found, Task, feature_layers
from luban.stages.explain.page import page

MATCH = "match"  # the name of the closeness of two inputs
BY_TOKEN = ("integrated-gradients", "grad-cam")  # cheap enough to be asked about every token, or word, of an answer
MATRICES, LONGEST = 5, 60  # rows and tokens that are drawn so
IDEOGRAPHS = "\u2e80"  # the first character of scripts without blanks between words


@dataclass(frozen=True)
class Explanation:
    """What `explain_rows` found. R rows, in the order asked for; weights are per segment, by column through `Example.split`."""

    method: str
    output: str
    examples: list[Example]
    answers: list[Answer]
    explained: list[Any]  # the answer whose score is explained
    weights: list[np.ndarray]  # per row (S,), NaN where the method says nothing
    error: list[np.ndarray] | None  # standard errors of the weights
    score: np.ndarray  # (R,)
    baseline: np.ndarray  # (R,)
    completeness: checks.Completeness | None  # None where the method's weights do not share out a difference
    deletion: checks.Deletion
    own: Mapping[str, np.ndarray] = field(default_factory=dict)
    without: tuple[str, ...] = ()  # inputs that the method says nothing about
    by_token: Mapping[int, tuple[list[str], np.ndarray]] = field(
        default_factory=dict
    )  # row -> tokens of its answer, (T, S)
    attention: Mapping[int, list[Looked]] = field(default_factory=dict)  # row -> where the network looked

    def by_column(self) -> list[dict[str, np.ndarray]]:
        return [e.split(w) for e, w in zip(self.examples, self.weights)]


def explain(
    bundle: Bundle,
    data: Any,
    *,
    method: Literal["integrated-gradients", "grad-cam", "lime", "kernel-shap"] = "integrated-gradients",
    rows: Count | list[Natural] = 20,
    output: str | None = None,
    target: str | float | bool | None = None,
    samples: Count | Literal["auto"] = "auto",
    steps: Count = 50,
    background: Literal["typical", "rows"] | dict = "typical",
    tokens: Count = 20,
    attention: bool = False,
    seed: Natural = 0,
    out: str | None = None,
) -> Report:
    """Signed weights of every segment of every input, for each row, with the method's own error beside them.

    What is explained is the score of a fixed answer: the log-odds of a class, a number's value in its own units, how close the two
    inputs of a row lie (`fusion: match`), or the log-probability of a text, with a matrix of its tokens against the words of the input for the first rows.
    `rows`: how many, from the first held-out row, or positions in the data from 0. `target`: the class to explain instead of
    the predicted one; of tags a type, a tag, or one at a place (see `luban.columns.tags.Tags.fixed`). `samples`: coalitions
    or masks a row (auto: 512, or eight a segment). `background`: what stands where a segment is gone: the column's "nothing there", the values of one row (a mapping), or of the explained rows in turn.
    A language model writes `tokens` on from the beginning of each text, and the words of that beginning are weighed: its prompt; of a
    conversation all before the assistant's last answer (of an imported model that knows how one looks: the column `messages`). One that says hidden words says the one at `[MASK]`, or the middle one.
    `attention`: for the first rows also where the network looked, layer by layer and head by head; that is no explanation.
    `out`: folder for explain.json and explain.html.
    Raises RequestError, DataError; Unsupported where the method cannot explain this network.
    """
    close = bundle.matches
    if close:
        bundle, output = bundle.closeness(), MATCH
    said = "" if close else _said(bundle, data)
    network = bundle.network if close else _asked(bundle, output, target, said)
    columns, given = bundle.columns, None
    if network is bundle.network and not (close or (bundle.outputs and bundle.inputs)):
        raise Unsupported("explain.no_question", inputs=list(bundle.inputs), outputs=list(bundle.outputs))
    if "score" in getattr(bundle.network, "lacks", ()):
        raise Unsupported("explain.no_score", outputs=list(bundle.outputs))
    data = Data(talked(data.rows, said, "chat", False)) if said else data
    data_rows, framed = _rows(bundle, data, rows)
    if network is bundle.network:
        raw, values = records(framed.table), _values(encode(columns, bundle.inputs, (), framed))
        output = output if close else _output(bundle, output)
    else:
        if network.reads not in framed.table.column_names:
            raise DataError(problem("data.no_column", place=data.rows.source, name=network.reads, allowed=framed.table.column_names))  # fmt: skip
        places = [data.rows.place(r) for r in data_rows]
        columns, raw, values = network.prompts([r[network.reads] for r in records(framed.table)], tokens, places)
        output, given = network.output, network.answered(values, tokens)
    found = explain_rows(
        network, columns, raw, values, data_rows,
        method=method, output=output, target=target, samples=None if samples == "auto" else samples,
        steps=steps, background=background, seed=seed, given=given, attention=attention,
    )  # fmt: skip
    report = page(found, columns, {"background": background, "seed": seed, "target": target})
    notes = [*_unread(data), *_beginnings(bundle, network, raw, values)]
    report.numbers |= {"notes": notes} if notes else {}
    for note in notes:
        report.note("info", note)
    if out:
        report.save(Path(out))
    return report


def explain_rows(
    network: Any,
    columns: Mapping[str, Column],
    raw: Sequence[Mapping[str, Any]],
    values: Sequence[Mapping[str, np.ndarray]],
    rows: Sequence[int],
    *,
    method: str,
    output: str,
    target: Any = None,
    samples: int | None = None,
    steps: int = 50,
    background: Any = "typical",
    seed: int = 0,
    given: tuple[list[Answer], np.ndarray] | None = None,
    attention: bool = False,
) -> Explanation:
    """Explain encoded rows (`values`: input -> x) of a network; see `explain`. The network is left as it was.

    `given`: its answers to the rows, and the same as numbers that can be scored, where they are known already.
    """
    method = registry.ALIASES.get(method, method)
    if method not in METHODS:
        raise RequestError(problem("explain.unknown_method", name=method, allowed=METHODS))
    with still(network), torch.random.fork_rng(devices=[]):
        answers, own = given or _answers(network, columns, values, output, raw)
        numbers, explained = _fixed(columns[output], answers, own, target, raw, rows)
        scorer = Scorer(network, columns, output, numbers, _choices(network, columns, values))
        games = [
            [example(columns, r, record, x, other) for r, record, x in zip(rows, raw, values)]
            for other in _backgrounds(columns, values, background)
        ]
        masked = [Masked(scorer, examples) for examples in games]
        looked = seen(scorer, columns, games[0]) if attention else {}
        tasks = [Task(scorer, e, m, samples, steps, seed) for e, m in zip(games, masked)]
        found = _mean([METHODS[method](task) for task in tasks])
        ends = np.mean([_ends(m) for m in masked], axis=0)  # (R, 2)
        baseline = ends[:, 0] if found.baseline is None else found.baseline
        shares_out = method in ("integrated-gradients", "kernel-shap")
        return Explanation(
            method, output, games[0], answers, explained, found.weights, found.error, ends[:, 1], baseline,
            checks.completeness(found.weights, ends[:, 1], baseline) if shares_out else None,
            checks.deletion(masked[0], found.weights, seed), found.own,
            tuple(n for n, layer in feature_layers(network, list(values[0]), output).items() if layer is None)
            if method == "grad-cam" else (),
            _by_token(scorer, columns[output], games[0], method, steps) if own is not None and own.ndim == 2 and method in BY_TOKEN else {},
            looked,
        )  # fmt: skip


def _said(bundle: Bundle, data: Any) -> str:
    """The column with the conversations that a network which writes texts is asked about; "" where there is a column of texts."""
    written = getattr(bundle.network, "written", None)
    there = data.table.column_names
    if bundle.inputs or written is None or written in there or bundle.columns[written].type not in SPEAK:
        return ""
    return held(there) or ""


def _asked(bundle: Bundle, output: str | None, target: Any, said: str) -> Any:
    """The network that is explained: the Bundle's own, or where it has no input or no output one around it that has both."""
    network = bundle.network
    if not bundle.inputs and hasattr(network, "advance"):
        return GoingOn(network, said)
    if bundle.inputs and not bundle.outputs and all(hasattr(g, "logits") for g in getattr(network, "fusion", ())):
        return FillingIn(network, output, bundle.columns, None if target is None else str(target))
    return network


def _rows(bundle: Bundle, data: Any, rows: Any) -> tuple[list[int], Any]:
    """Positions of the rows in the data, and the rows themselves as examples."""
    there = data.table.num_rows
    if isinstance(rows, int):
        chosen = data.held_out()[1][:rows] if rows > 0 else np.zeros(0, np.int64)
    else:
        outside = [r for r in rows if isinstance(r, bool) or not 0 <= r < there]
        if outside:
            raise RequestError(problem("explain.no_such_row", rows=outside, last=there - 1))
        chosen = np.asarray(rows, np.int64)
    framed = data.framed(chosen, bundle.recipe.frame)
    if not len(framed):
        if not there and data.rows.quarantine:  # there were rows, and none could be read
            raise DataError(problem("explain.unread", place=data.rows.source, reason=data.rows.quarantine[0].reason))
        raise RequestError(problem("explain.no_rows", asked=str(rows), there=there))
    return [int(np.ravel(r)[0]) for r in framed.rows], framed


def _unread(data: Any) -> list[str]:
    """What is said of rows that cannot be read."""
    bad = data.rows.quarantine
    return [say("explain.left_out", count=len(bad), line=bad[0].line, reason=bad[0].reason)] if bad else []


def _beginnings(
    bundle: Bundle, network: Any, raw: Sequence[Mapping[str, Any]], values: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What is said of texts that are longer than what is explained of them."""
    if network is not bundle.network and hasattr(network, "cut"):
        most = max((v[network.input].size for v in values), default=0)
        return [say("explain.cut", rows=len(network.cut), tokens=most)] if network.cut else []
    texts = [bundle.columns[n] for n in bundle.inputs if bundle.columns[n].form == "ids"]
    long = {c.name: c.overlong([r[c.name] for r in raw]) for c in texts}
    return [
        say(f"explain.only_{c.keep}", name=c.name, rows=long[c.name], all=len(raw), tokens=c.room)
        for c in texts if long[c.name]
    ]  # fmt: skip


def _values(encoded: Any) -> list[dict[str, np.ndarray]]:
    index = np.arange(len(encoded))
    items = {n: take(e, index) for n, e in encoded.inputs.items()}
    return [{n: v[i] for n, v in items.items()} for i in index]


def _output(bundle: Bundle, name: str | None) -> str:
    if name is not None and name not in bundle.outputs:
        raise RequestError(problem("explain.no_such_output", name=name, allowed=bundle.outputs))
    return name or bundle.outputs[0]


def _answers(
    network: Any,
    columns: Mapping[str, Column],
    values: Sequence[Mapping[str, Any]],
    name: str,
    raw: Sequence[Mapping[str, Any]],
) -> tuple[list[Answer], np.ndarray | None]:
    """What the network answers to each row, 64 at a time; the same as numbers that can be scored, where it takes no more
    than them to know."""
    scorer, found, column = Scorer(network, columns, name, np.zeros(0)), [], columns[name]
    for start in range(0, len(values), 64):
        part = values[start : start + 64]
        batch = scorer.batch({n: [v[n] for v in part] for n in part[0]}, len(part))
        with torch.no_grad():
            o = respond(network, batch)[name].float().cpu().numpy()
        found.append(answering.unpadded(column, o, _as_arrays(batch)) if column.along else o)
    if column.along:
        rows = Ragged.of([row for part in found for row in part])
        return answering.decoded(column, rows, lambda of: [r[of] for r in raw]), None
    whole = np.concatenate(answering.alike(found))
    if column.of_form:
        return answering.decoded(column, whole, lambda of: [r[of] for r in raw]), None
    return column.decode_all(whole), column.numbered(whole)


@torch.no_grad()
def _choices(
    network: Any, columns: Mapping[str, Column], values: Sequence[Mapping[str, Any]]
) -> dict[str, torch.Tensor]:
    """What the network chooses by looking at each row, 64 at a time, by output (see `luban.nn.networks.mapped`)."""
    if not hasattr(network, "choices"):
        return {}
    scorer, found = Scorer(network, columns, "", np.zeros(0)), []
    for start in range(0, len(values), 64):
        part = values[start : start + 64]
        found.append(network.choices(scorer.batch({n: [v[n] for v in part] for n in part[0]}, len(part))))
    return {n: torch.cat([f[n] for f in found]) for n in found[0]} if found else {}


def _as_arrays(batch: Any) -> Arrays:
    pairs = {n: (x.cpu().numpy(), mask.cpu().numpy()) for n, (x, mask) in batch.inputs.items()}
    return Arrays(pairs, {}, batch.size)


def _fixed(
    column: Column,
    answers: Sequence[Answer],
    own: np.ndarray | None,
    target: Any,
    raw: Sequence[Mapping[str, Any]],
    rows: Sequence[int],
) -> tuple[Any, list[Any]]:
    """What `score` takes, the class number (from 0), the ids, the tags, and the name of the answer explained in each row."""
    if own is None:
        pairs = [_of_row(column, a, target, r, row) for a, r, row in zip(answers, raw, rows)]
        numbers, names = [n for n, _ in pairs], [name for _, name in pairs]
        return (numbers if column.along else np.array(numbers)), names
    if own.ndim == 2:
        if target is None:
            return own, [a.value for a in answers]
        return np.repeat(column.encode(target)[None].astype(np.int64), len(answers), 0), [target] * len(answers)
    labels = getattr(column, "labels", None)
    if labels is None:
        if target is not None:
            raise RequestError(problem("explain.no_classes", output=column.name))
        return np.zeros(len(answers), np.int64), [a.value for a in answers]
    wanted = [text_of(target)] * len(answers) if target is not None else [labels[k] for k in own]
    if wanted and wanted[0] not in labels:
        raise RequestError(problem("explain.no_such_class", name=wanted[0], output=column.name, allowed=labels))
    return np.array([labels.index(w) for w in wanted], np.int64), wanted


def _of_row(column: Any, answer: Answer, target: Any, raw: Mapping[str, Any], row: int) -> tuple[Any, Any]:
    """What is fixed of one row; the error that its answer has no such part says which row."""
    try:
        return column.fixed(answer, target, raw[column.of])
    except RequestError as e:
        if e.id not in ("explain.no_such_one", "span.no_such_answer", "span.too_long"):
            raise
        raise RequestError(e.problems[0].at(say("explain.place", row=row))) from None


def _backgrounds(columns: Mapping[str, Column], values: Sequence[Mapping[str, Any]], background: Any) -> list[Any]:
    """What stands where a segment is gone: None for each column's own "nothing", else encoded rows."""
    if background == "typical":
        return [None]
    names = list(values[0])
    if not isinstance(background, Mapping) and background != "rows":
        raise RequestError(problem("explain.bad_background", name=str(background), allowed=("typical", "rows")))
    ragged = [n for n in names if columns[n].ragged]
    if ragged:
        raise RequestError(problem("explain.ragged_background", inputs=ragged))
    if background == "rows":
        return list(values)
    encoded, bad = encode_values(columns, names, [background])
    if bad:
        raise DataError(problem("explain.background_row", reason=bad[0]))
    return _values(encoded)


def _by_token(
    scorer: Scorer, column: Any, examples: list[Example], method: str, steps: int
) -> dict[int, tuple[list[str], np.ndarray]]:
    """How much each segment speaks for each token of the answer, what was written before it being given: rows of a matrix.

    Of Grad-CAM, whose rows are pictures, for each word: the sum of its tokens.
    """
    found = {}
    for r, e in enumerate(examples[:MATRICES]):
        ids = scorer.answers[r][scorer.answers[r] >= 0][:LONGEST]
        if not len(ids):
            continue
        names = [column.text([i]) or say("explain.end") for i in ids]
        own = np.eye(len(ids), dtype=bool)
        if method == "grad-cam":
            own = _words(column, ids)
            names = [column.text(ids[word]).strip() or say("explain.end") for word in own]
        each = Scorer(scorer.network, scorer.columns, scorer.output, np.where(own, ids, ~ids))
        rows = [e] * len(names)
        weights = METHODS[method](Task(each, rows, Masked(each, rows), None, steps, 0)).weights
        found[r] = (names, np.stack(weights))
    return found


def _words(column: Any, ids: np.ndarray) -> np.ndarray:
    """Which tokens make each word, bool (words, tokens); one begins after a blank, with a mark, and with every Chinese character."""
    read = [column.text(ids[:n]) for n in range(len(ids) + 1)]  # a token by itself may lose the blank before it
    added = [after[len(before) :][:1] for before, after in pairwise(read)]
    begins = np.array([i == 0 or not c.isalnum() or c >= IDEOGRAPHS for i, c in enumerate(added)])
    return np.arange(begins.sum())[:, None] == begins.cumsum() - 1


def _ends(masked: Masked) -> np.ndarray:
    """(R, 2): the score of each row with nothing there and as it is."""
    result = np.zeros((len(masked.examples), 2))
    for rows in masked.groups():
        players = masked.examples[rows[0]].players
        result[rows] = masked(rows, np.array([[False] * players, [True] * players]).reshape(2, players))
    return result


def _mean(found: list[Found]) -> Found:
    """Over backgrounds: Shapley values, gradients and surrogates are all linear in the score."""
    if len(found) == 1:
        return found[0]
    weights = [np.mean(w, axis=0) for w in zip(*(f.weights for f in found))]
    own = {n: np.mean([f.own[n] for f in found], axis=0) for n in found[0].own}
    error = [np.mean(e, axis=0) for e in zip(*(f.error for f in found))] if found[0].error else None
    baseline = np.mean([f.baseline for f in found], axis=0) if found[0].baseline is not None else None
    return Found(weights, own, baseline, error)
