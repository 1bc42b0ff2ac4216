"""What `auto` and `find` come to for one network: each answered by a trial, told, and kept for the history and a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from luban import plots
from luban.columns.examples import Examples
from luban.console import tell
from luban.messages import say
from luban.recipe import Recipe
from luban.report import Report
from luban.training import finders
from luban.training.batches import tokens_for
from luban.training.plan import Plan
from luban.training.precision import choose
from luban.training.ranks import here

MEASURED = ("auto", "find")  # settings that say this are answered by looking at data or clock


def settled(folder: Path | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    """`asked`, but with what a run that is taken up again measured when it began instead of `auto` and `find`."""
    path = folder / "recipe.yaml" if folder else None
    if path is None or not path.is_file():
        return dict(asked)
    stage = Recipe.load(path).stage("train")
    before = stage.settings if stage else {}
    return {k: before.get(k, v) if v in MEASURED else v for k, v in asked.items()}


class Choices:
    """Asks the finders in turn; each knows what those before it found. `numbers`: all that was measured, as JSON.

    Of several ranks the first one tries, and tells the others.
    """

    def __init__(self, network: Any, examples: Examples, objective: Any, plan: Plan, tokens: int | str = "auto"):
        """`tokens`: the budget of a batch that was asked for; the plan's follows it."""
        self.network, self.examples, self.objective, self.plan, self.tokens = network, examples, objective, plan, tokens
        self._budget()
        self.numbers: dict[str, dict[str, Any]] = {}

    def precision(self, asked: str) -> str:
        """Of an update on the longest examples."""
        if asked == "auto":
            asked = here().told(here().first and self._precision())
        self.plan = replace(self.plan, precision=asked)
        return asked

    def _precision(self) -> str:
        lengths, plan = self.examples.lengths(), self.plan
        most = max(1, plan.tokens // int(lengths.max())) if plan.tokens and lengths is not None else plan.batch
        found = choose(self.network, self.examples, most, plan.device, self.objective)
        if found.seconds:
            self.numbers["precision"] = asdict(found)
        if found.precision != "fp32":
            times = {n: f"{s * 1000:.3g}" for n, s in found.seconds.items()}
            tell("found.precision", precision=found.precision, fp32=times["fp32"], other=times[found.precision])
        return found.precision

    def batch(self, asked: int | str) -> int:
        """Anything but `find` keeps the plan's."""
        if asked == "find":
            self.plan = replace(self.plan, batch=here().told(here().first and self._batch()))
            self._budget()
        return self.plan.batch

    def _batch(self) -> int:
        found = finders.find_batch(self.network, self.examples, self.plan, self.objective, self.tokens)
        self.numbers["batch"] = asdict(found)
        tell("found.batch", batch=found.batch, tried=list(found.speeds), why=say(f"found.stopped.{found.stopped}"))
        return found.batch

    def _budget(self) -> None:
        budget = tokens_for(self.examples, self.plan.batch) if self.tokens == "auto" else self.tokens
        self.plan = replace(self.plan, tokens=budget)

    def rate(self, asked: float | str) -> float:
        if asked == "find":
            asked = here().told(here().first and self._rate())
        self.plan = replace(self.plan, rate=asked)
        return asked

    def _rate(self) -> float:
        found = finders.find_rate(self.network, self.examples, self.plan, self.objective)
        self.numbers["rate"] = asdict(found)
        tell("found.rate", rate=f"{found.rate:.2g}", updates=len(found.rates))
        return found.rate

    def compile(self, asked: str, updates: int) -> str:
        if asked == "auto":
            asked = here().told(here().first and self._compile(updates))
        self.plan = replace(self.plan, compile=asked)
        return asked

    def _compile(self, updates: int) -> str:
        found = finders.find_compile(self.network, self.examples, self.plan, self.objective, updates)
        if found.compiled:
            self.numbers["compile"] = asdict(found)
            times = {"plain": f"{found.plain * 1000:.3g}", "compiled": f"{found.compiled * 1000:.3g}"}
            tell(f"found.compile.{found.compile}", cost=f"{found.cost:.0f}", **times)
        return found.compile

    def page(self) -> Report | None:
        """What was tried, as a Report; None where nothing was searched for."""
        if not self.numbers.keys() & {"batch", "rate", "compile"}:
            return None
        report = Report("choices", say("found.title"), self.numbers)
        if "rate" in self.numbers:
            _rate(report, **self.numbers["rate"])
        if "batch" in self.numbers:
            rows = [[size, round(speed)] for size, speed in self.numbers["batch"]["speeds"].items()]
            report.text(say("found.batch_text", batch=self.numbers["batch"]["batch"]))
            report.table(say("found.speeds"), [say("found.size"), say("found.speed")], rows)
        for kind in ("precision", "compile"):
            if kind in self.numbers:
                chosen = self.numbers[kind][kind]
                report.text(say("found.chosen", what=kind, chosen=chosen))
        return report


def _rate(report: Report, rate: float, rates: list[float], losses: list[float]) -> None:
    curve = {say("found.loss"): ([math.log10(r) for r in rates], losses)}
    marks = {say("found.taken", rate=f"{rate:.2g}"): math.log10(rate)}
    drawn = plots.lines(curve, x_label=say("found.log_rate"), y_label=say("found.loss"), marks=marks, height=200)
    report.plot(say("found.range"), drawn, say("found.range_text", rate=f"{rate:.2g}"))
