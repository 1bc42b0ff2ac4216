"""How the main metric falls when what is answered from gets worse on its way: every corruption that a column knows, five severities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from luban import plots
from luban.columns.examples import encode
from luban.errors import Unsupported
from luban.evaluation import views
from luban.evaluation.table import Table, table
from luban.messages import say

SEVERITIES = (1, 2, 3, 4, 5)
ROWS = 1000  # judged on no more than so many, drawn at random: there are dozens of passes over them


def robustness(bundle: Any, data: Any, rows: np.ndarray, seed: int) -> dict[str, Any]:
    """{output: {"metric", "rows", "clean", "mean", "corruptions": {input: {name: [value per severity]}}}}.

    The same rows, and the same draw of a corruption, whatever the model. Raises Unsupported where no input knows any.
    """
    able = [n for n in bundle.inputs if bundle.columns[n].corruptions()]
    if not able or not bundle.outputs:
        raise Unsupported("evaluate.no_corruptions", inputs=list(bundle.inputs))
    if len(rows) > ROWS:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:ROWS])
    examples = encode(bundle.columns, bundle.inputs, bundle.outputs, data.framed(rows, bundle.recipe.frame))
    values = lambda given: _values(bundle, table(bundle, data, rows, examples=given), seed)  # noqa: E731
    clean = values(examples)
    found = {
        n: {"metric": m, "rows": len(rows), "clean": v, "corruptions": {i: {} for i in able}}
        for n, (m, v) in clean.items()
    }
    for name in able:
        for k, kind in enumerate(bundle.columns[name].corruptions()):
            for severity in SEVERITIES:
                random = np.random.default_rng([seed, k, severity])
                x = bundle.columns[name].corrupted(examples.inputs[name], kind, severity, random)
                for output, (_, value) in values(replace(examples, inputs={**examples.inputs, name: x})).items():
                    found[output]["corruptions"][name].setdefault(kind, []).append(value)
    for numbers in found.values():
        each = [v for kinds in numbers["corruptions"].values() for values in kinds.values() for v in values]
        numbers["mean"] = float(np.mean(each))
    return found


def _values(bundle: Any, judged: Table, seed: int) -> dict[str, tuple[str, float]]:
    """Per output its main metric and the value of it."""
    found = {}
    for name, predictions in judged.outputs.items():
        view = views.view(name, predictions, judged, resamples=2, seed=seed)
        found[name] = (view.main[0], view.metrics[view.main[0]].value)
    return found


def write(report: Any, name: str, numbers: dict[str, Any]) -> None:
    """A table of corruptions by severity, and how the metric falls."""
    metric = numbers["metric"]
    report.heading(say("evaluate.robustness"), 3)
    for column, kinds in numbers["corruptions"].items():
        head = [say("evaluate.corruption"), *map(str, SEVERITIES), say("evaluate.corruption_mean")]
        ordered = sorted(kinds.items(), key=lambda pair: float(np.mean(pair[1])))
        rows = [[kind, *(f"{v:.3f}" for v in values), f"{np.mean(values):.3f}"] for kind, values in ordered]
        report.table(say("evaluate.corruptions", name=column, metric=metric), head, rows, "l" + "r" * (len(head) - 1))
        drawn = {kind: ([0, *SEVERITIES], [numbers["clean"], *values]) for kind, values in kinds.items()}
        axes = {"x_label": say("evaluate.severity"), "y_label": metric}
        told = {
            "metric": metric,
            "clean": f"{numbers['clean']:.3f}",
            "mean": f"{numbers['mean']:.3f}",
            "rows": numbers["rows"],
        }
        report.plot(
            say("evaluate.severities", name=name), plots.lines(drawn, **axes), say("evaluate.robust_text", **told)
        )
