"""The report of compress: what was done, what it cost and what it brought."""

from __future__ import annotations

from typing import Any

from luban.messages import say
from luban.report import Report
from luban.stages.compress.compare import BATCHES, Comparison


def page(title: str, done: list[str], found: Comparison) -> Report:
    """`done`: sentences that say what was done."""
    report = Report("compress", title, {"methods": done, **found.numbers()})
    for sentence in done:
        report.text(sentence)
    _sizes(report, found)
    if not found.rows:
        report.note("warn", say("compress.not_measured"))
        return report
    _speed(report, found)
    for name, metrics in found.metrics.items():
        _metrics(report, name, metrics)
    _agreement(report, found)
    _explanations(report, found)
    report.text(say("compress.earlier_reports"))
    return report


def _sizes(report: Report, found: Comparison) -> None:
    labels = {
        "bytes": say("compress.bytes"),
        "packed_bytes": say("compress.packed_bytes"),
        "parameters": say("compress.parameters"),
        "nonzero": say("compress.nonzero"),
        **{f"milliseconds_{b}": say("compress.milliseconds", batch=b) for b in BATCHES},
        **{f"file_milliseconds_{b}": say("compress.file_milliseconds", batch=b) for b in BATCHES},
    }
    rows = [
        [label, found.before[key], found.after[key], _times(found.before[key], found.after[key])]
        for key, label in labels.items()
        if key in found.before
    ]
    head = ["", say("compress.before"), say("compress.after"), say("compress.ratio")]
    report.table(say("compress.table"), head, rows, "lrrr")
    if found.rows:
        as_file = f"file_milliseconds_{BATCHES[0]}" in found.after
        report.text(say("compress.how_timed_file" if as_file else "compress.how_timed"))


def _times(before: float, after: float) -> str:
    return f"{before / after:.2f}" if after else ""


def _speed(report: Report, found: Comparison) -> None:
    """Faster is said only where it was measured."""
    for kind, speeds in (("", found.speed), ("_file", found.file_speed)):
        for batch, speed in speeds.items():
            values = {"batch": batch} | {
                k: f"{speed[v]:.2f}" for k, v in (("ratio", "value"), ("low", "low"), ("high", "high"))
            }
            faster = speed["faster"]
            report.note("good" if faster else "info", say(f"compress.{'' if faster else 'not_'}faster{kind}", **values))


def _metrics(report: Report, name: str, metrics: dict[str, Any]) -> None:
    rows = [
        [
            metric,
            before.to_json(),
            after.to_json(),
            difference.to_json(),
            "*" if _told(difference) else "",
        ]
        for metric, (before, after, difference) in metrics.items()
        if before.value == before.value
    ]
    head = [say("evaluate.metric"), say("compress.before"), say("compress.after"), say("compress.difference"), ""]
    report.heading(say("evaluate.output", name=name), 3).table(say("compress.metrics"), head, rows)
    if any(row[-1] for row in rows):
        report.text(say("compress.told"))


def _told(difference: Any) -> bool:
    """The interval of the difference leaves zero out."""
    return difference.low is not None and (difference.low > 0 or difference.high < 0)


def _agreement(report: Report, found: Comparison) -> None:
    for name, numbers in found.agreement.items():
        if "same" in numbers:
            same = numbers["same"]
            ends = (same.value, same.value) if same.low is None else (same.low, same.high)
            shown = {"share": f"{same.value:.1%}", "low": f"{ends[0]:.1%}", "high": f"{ends[1]:.1%}"}
            report.text(say("compress.same", name=name, rows=f"{found.rows:,}", **shown))
        else:
            correlation = numbers["correlation"]
            shown = "-" if correlation is None else f"{correlation:.4f}"
            report.text(
                say("compress.close", name=name, correlation=shown, distance=f"{numbers['distance'].value:.4g}")
            )


def _explanations(report: Report, found: Comparison) -> None:
    rows = [[n, m["cosine"].to_json(), m["rank"].to_json()] for n, m in found.explanations.items()]
    if rows:
        head = [say("report.output"), say("compress.cosine"), say("compress.rank")]
        report.table(say("compress.explanations", rows=found.explained), head, rows)
