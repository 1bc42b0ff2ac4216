"""Saved models side by side, with no service: what differs in their settings, their scores, their time and energy.

Where two were judged on the same rows of data that are still there, both answer them again and the difference gets an
interval of its own: two intervals that overlap say little about it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luban import console, files
from luban.errors import BundleError, DataError, LubanError, RequestError
from luban.messages import say
from luban.pages import energy_of, first_metric, judged_now
from luban.recipe import Recipe
from luban.report import Report
from luban.space import HIGHER

SIDE_BY_SIDE = 6  # runs that get a column of all their metrics; more are listed, one a line
DEEPEST = 6  # folders below the named one that are looked into
HELD = 1 << 30  # bytes of weights that stay in memory until their models have answered; others are read again
NOT_A_SETTING = ("tune", "curve", "luban")


@dataclass
class Run:
    """What the folder of a saved model says about it."""

    name: str
    path: Path
    recipe: Recipe
    history: list[dict[str, Any]]
    judged: dict[str, Any]  # the numbers of its report "evaluate", or what `compress` measured after it
    parameters: int
    bundle: Any = None  # the model itself, until it has answered

    def entry(self) -> dict[str, Any]:
        return next((h for h in reversed(self.history) if h.get("stage") == "train"), {})

    def seconds(self) -> float:
        return sum(h["seconds"] for h in self.history if isinstance(h.get("seconds"), (int, float)))

    def joules(self) -> float | None:
        told = [(h.get("energy") or {}).get("joules") for h in self.history]
        found = [j for j in told if isinstance(j, (int, float))]
        return round(sum(found), 3) if found else None

    def bytes(self) -> int:
        return (self.path / "model.safetensors").stat().st_size

    def metrics(self) -> dict[str, dict[str, Any]]:
        """{"output metric": {"value", "low", "high"}}."""
        outputs = self.judged.get("outputs") or {}
        return {
            f"{n} {k}": m for n, o in outputs.items() for k, m in o["metrics"].items() if m.get("value") is not None
        }

    def headline(self) -> dict[str, dict[str, Any]]:
        outputs = self.judged.get("outputs") or {}
        names = {n: first_metric(o)[0] for n, o in outputs.items()}
        return {f"{n} {k}": outputs[n]["metrics"][k] for n, k in names.items() if k in outputs[n]["metrics"]}

    def settings(self) -> dict[str, Any]:
        """Every setting of the resolved recipe by its dotted name."""
        plain = {k: v for k, v in self.recipe.plain().items() if k not in NOT_A_SETTING}
        plain["stages"] = {p.type: dict(p.settings) for p in self.recipe.stages}
        return dict(_flat(plain))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}".removeprefix("."))
    else:
        yield name.removeprefix("stages."), value


def found_in(folders: Sequence[str | Path]) -> list[Path]:
    """The saved models that the folders are, or that lie below them. Raises RequestError where there are none."""
    found = []
    for folder in map(Path, folders):
        here = (
            [folder] if (folder / files.MANIFEST).is_file() or not folder.is_dir() else sorted(_below(folder, DEEPEST))
        )
        if not here:
            raise RequestError("compare.none", path=str(folder))
        found += here
    return list(dict.fromkeys(found))


def _below(folder: Path, depth: int) -> Iterator[Path]:
    for path in folder.iterdir() if depth else ():
        if path.name.startswith(".") or path.is_symlink() or not path.is_dir():
            continue
        if _is_bundle(path):
            yield path
        else:
            yield from _below(path, depth - 1)


def _is_bundle(path: Path) -> bool:
    with suppress(BundleError):
        return bool(files.open_sealed(path, "bundle", whole=False))
    return False


def read(path: Path, name: str) -> Run:
    """Raises BundleError for a folder that is not a Bundle, damaged, foreign or hostile."""
    from luban.bundle import Bundle

    bundle = Bundle.load(path)
    judged = judged_now(bundle.history, bundle.reports)
    return Run(name, path, bundle.recipe, bundle.history, judged, bundle.parameters(), bundle)


def compare(folders: Sequence[str | Path], *, paired: bool = True) -> Report:
    """Saved models, or all below a folder, side by side; the best first where they were found below one."""
    paths = found_in(folders)
    runs, held = [], 0
    for path, name in zip(paths, names_of(paths)):
        runs.append(read(path, name))
        held += runs[-1].bytes()
        if not paired or held > HELD:
            runs[-1].bundle = None
    if len(paths) > len(folders):
        runs.sort(key=_order)
    report = Report("compare", say("compare.title"))
    differ = differing(runs)
    pairs = differences(runs) if paired and len(runs) > 1 else []
    report.numbers = {"runs": [_plain(r) for r in runs], "differ": differ, "paired": pairs}
    _list(report, runs)
    if differ:
        rows = [[k, *map(_said, values)] for k, values in _gathered(differ).items()]
        report.table(say("compare.differ"), ["", *(r.name for r in runs)], rows)
    if len(runs) <= SIDE_BY_SIDE:
        _metrics(report, runs)
    if pairs:
        _paired(report, pairs, runs[0].name)
    return report


def names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [p.absolute().parts for p in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(p) for p in paths]


def _order(run: Run) -> tuple[bool, float, str]:
    score, up = _score(run)
    return score is None, -(score or 0.0) if up else (score or 0.0), run.name


def _score(run: Run) -> tuple[float | None, bool]:
    for name, metric in run.headline().items():
        kind = next(iter(run.judged["outputs"].values()))["kind"]
        return metric.get("value"), HIGHER.get(kind, {}).get(name.rpartition(" ")[2], True)
    return None, True


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """{setting: its value in each run} of those that are not the same in all; None where a run has no such setting."""
    every = [r.settings() for r in runs]
    keys = dict.fromkeys(k for s in every for k in s)
    table = {k: [s.get(k) for s in every] for k in keys}
    return {k: v for k, v in table.items() if any(x != v[0] for x in v)}


def _gathered(differ: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Thirty columns whose same setting differs in the same way are one line."""
    alike: dict[str, list[str]] = {}
    for name, values in differ.items():
        head, *rest = name.split(".")
        kind = [head, *rest[1:]] if head in ("model", "inputs", "outputs") else name
        alike.setdefault(json.dumps([kind, values], default=str), []).append(name)
    more = lambda names: f" ({say('compare.more', count=len(names) - 1)})" if len(names) > 1 else ""  # noqa: E731
    return {names[0] + more(names): differ[names[0]] for names in alike.values()}


def _plain(run: Run) -> dict[str, Any]:
    entry = run.entry()
    return {
        "name": run.name, "path": str(run.path), "task": run.recipe.task(), "parameters": run.parameters, "bytes": run.bytes(),
        "rows": entry.get("rows"), "seconds": round(run.seconds(), 3), "joules": run.joules(), "metrics": run.metrics(),
        "judged_on": {"part": run.judged.get("part"), "rows": run.judged.get("rows")},
    }  # fmt: skip


def _list(report: Report, runs: Sequence[Run]) -> None:
    """One line a run: its first metric of each output, its size, what it cost."""
    scores = list(dict.fromkeys(k for r in runs for k in r.headline()))
    told = any(r.joules() is not None for r in runs)
    sizes = [say("compare.parameters"), say("compare.bytes"), say("compare.trained_rows"), say("report.seconds")]
    head = ["", *scores, *sizes, *([say("report.energy")] if told else [])]
    rows = []
    for r in runs:
        entry, mine = r.entry(), r.headline()
        energy = [energy_of({"energy": {"joules": r.joules()}})] if told else []
        numbers = [r.parameters, r.bytes(), (entry.get("rows") or {}).get("train"), f"{r.seconds():.1f} s", *energy]
        rows.append([r.name, *(_metric(mine.get(s)) for s in scores), *numbers])
    report.table(say("compare.runs"), head, rows)


def _metric(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return found and {k: found.get(k) for k in ("value", "low", "high")}


def _metrics(report: Report, runs: Sequence[Run]) -> None:
    every = [r.metrics() for r in runs]
    keys = dict.fromkeys(k for m in every for k in m)
    report.table(
        say("compare.metrics"), ["", *(r.name for r in runs)], [[k, *(_metric(m.get(k)) for m in every)] for k in keys]
    )


def _said(value: Any) -> str:
    return (
        "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    )


# -- the same rows ----------------------------------------------------------------------------------------------------------


def differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every run minus the first one, for each output that both answer, on the rows that both were judged on.

    {"run", "output", "metric", "value", "low", "high", "rows", "verdict"}, or {"run", "why"} where rows are not the same.
    """
    first, *others = ((r, _rows_of(r)) for r in runs)
    if first[1] is None:
        return [{"run": r.name, "why": "compare.no_rows"} for r, _ in others]
    found, base = [], None
    for run, rows in others:
        if rows is None or rows["key"] != first[1]["key"]:
            found.append({"run": run.name, "why": "compare.no_rows" if rows is None else "compare.other_rows"})
            continue
        try:
            base = base or _answered(first[0], first[1]["data"])
            found += _between(run, base, _answered(run, rows["data"]))
        except LubanError as e:
            found.append({"run": run.name, "why": "compare.not_answered", "reason": str(e).splitlines()[0]})
    return found


def _rows_of(run: Run) -> dict[str, Any] | None:
    """The rows that a run was judged on, where its data are still what it was trained from."""
    from luban.data.prepare import prepare

    if not run.recipe.data.get("rows") or run.judged.get("part") not in ("test", "validation"):
        return None
    try:
        data = prepare(run.recipe)
    except (DataError, OSError):
        return None
    if run.entry().get("data") not in (None, data.rows.fingerprint()):
        return None
    part, rows = data.held_out()
    if part != run.judged["part"] or len(rows) != run.judged.get("rows"):
        return None
    source = str(Path(run.recipe.data["rows"]).absolute())
    return {"data": data, "key": (source, part, data.rows.lines[rows].tobytes())}


def _answered(run: Run, data: Any) -> Any:
    from luban.bundle import Bundle
    from luban.evaluation.table import table

    console.tell("compare.answering", run=run.name)
    bundle, run.bundle = run.bundle or Bundle.load(run.path), None
    return table(bundle, data)


def _between(run: Run, before: Any, after: Any) -> list[dict[str, Any]]:
    from luban.evaluation.pairs import between

    shared = [
        n for n, p in after.outputs.items() if n in before.outputs and before.outputs[n].column.type == p.column.type
    ]
    return [{"run": run.name, "output": n, **between(before, after, n)} for n in shared]


def _paired(report: Report, pairs: Sequence[Mapping[str, Any]], first: str) -> None:
    """Compared with the first: the difference with its interval, and whether that says anything."""
    rows = []
    for p in pairs:
        if "why" in p:
            rows.append([p["run"], "", None, say(p["why"], reason=p.get("reason", ""))])
            continue
        difference = {k: p[k] for k in ("value", "low", "high")}
        rows.append([p["run"], f"{p['output']} {p['metric']}", difference, say(f"tune.against_{p['verdict']}")])
    head = ["", say("evaluate.metric"), say("compare.difference"), ""]
    report.table(say("compare.paired", name=first), head, rows)


__all__ = ["Run", "compare", "differences", "differing", "found_in", "names_of", "read"]
