"""The verb `plan`: what a run would take, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luban import files, machine
from luban.asking import Ask, is_recipe
from luban.errors import Problem, RequestError, problem, raise_all
from luban.planning import hardware
from luban.planning import shape as shapes
from luban.planning.hardware import Device
from luban.recipe import Recipe
from luban.report import Report

if TYPE_CHECKING:  # torch comes when all that was asked for is known to be right
    from luban.planning.calibrate import Timed
    from luban.planning.layout import Layout, Measured, Setup
    from luban.planning.subject import Subject

CHOICES = ("auto", "ddp", "fsdp", "tensor")
UNNAMED = "ddp"  # the strategy of a recipe that names none
BARELY = 1.1  # times slower, and the simpler strategy is still taken
PATIENCE = 20.0  # seconds that an update may take by estimate and still be timed here


def plan(
    source: Any = None,
    target: str | Sequence[str] | None = None,
    *,
    inputs: Sequence[str] = (),
    types: Mapping[str, str] | None = None,
    set: Sequence[str] = (),
    shape: str | Mapping[str, Any] | None = None,
    gpus: str | None = None,
    cpus: int | None = None,
    strategy: str = "auto",
    rows: int | None = None,
    price: float | None = None,
    carbon: float | None = None,
    achieved: float | None = None,
) -> Report:
    """What training would take: parameters, FLOPs, memory, minutes, cost, energy, CO2, traffic, and what does not fit.

    source: a recipe, a saved model (its recipe), or data with a `target`; or a `shape` of a decoder-only language model. `gpus`: "64xH100", else this
    machine's processor (`cpus` threads of it). `price`: USD for a device's hour; `carbon`: g of CO2 for a kWh; `achieved`:
    the share of peak FLOP/s to count with, instead of an estimate from every kernel's work. `rows`: of the data, where they
    are not there. Raises RequestError, RecipeError, DataError with everything that is wrong.
    """
    ask = Ask(target, inputs, types, changes=tuple(set))
    source = _of_model(source)
    numbers = {"--price": price, "--carbon": carbon, "--achieved": achieved, "--rows": rows, "--cpus": cpus}
    device, devices = _asked(source, shape, gpus, cpus, strategy, numbers)
    sizes = shapes.read(shape) if shape else None
    recipe = Recipe.of({"luban": 1, "stages": ["train"]}, changes=tuple(set)) if sizes else _early(source, ask)
    fixed = strategy != "auto"
    strategy, devices = _of_recipe(recipe, strategy, devices, gpus)
    from luban.planning import subject

    what = subject.of_shape(sizes, recipe, devices) if sizes else subject.of_recipe(source, ask, rows)
    planned = planning(what, device, devices, strategy, fixed=fixed, cpus=cpus, achieved=achieved)
    from luban.planning.pages import page

    return page(planned, price, carbon)


@dataclass(frozen=True)
class Planned:
    """What was found: `asked` is the setup as it was asked for, `laid` each strategy's layout, `nearest` what fits instead, of a
    `larger` batch where every device is to have something to do. `named`: whether somebody has said which strategy.
    """

    subject: Subject
    measured: Measured
    laid: dict[str, Layout]
    asked: Layout
    nearest: Layout | None
    timed: Timed | None
    achieved: float | None
    larger: Subject | None = None
    named: bool = True

    @property
    def stands(self) -> Layout:
        """The layout that training would take with nothing changed: ddp, where no strategy is named."""
        return self.asked if self.named else self.laid.get(UNNAMED, self.asked)

    @property
    def best(self) -> Layout:
        """The layout that minutes and cost are told of."""
        return self.nearest or self.asked

    @property
    def aim(self) -> Subject:
        """The run that `best` is a layout of."""
        return self.larger or self.subject

    def run_seconds(self, e: Layout) -> float:
        """Seconds of all updates, and of judging the validation rows after each epoch."""
        return self.aim.steps * e.seconds + self.aim.epochs * self._judging(e)

    def _judging(self, e: Layout) -> float:
        if self.timed is not None:
            return self.timed.judging
        step = self.measured.pace(e.micro, e.setup.precision, e.setup.recompute)
        return e.computing * step.forward / (step.forward + step.backward) * self.aim.validation / self.aim.update


def planning(
    subject: Subject,
    device: Device | None,
    devices: int = 1,
    strategy: str = "auto",
    *,
    fixed: bool = False,
    cpus: int | None = None,
    achieved: float | None = None,
) -> Planned:
    """Measure a subject and lay it over devices. `device` None: this machine's processor, where its run is timed; `fixed`: the
    nearest plan keeps the strategy, unless that cannot be.
    """
    from luban.planning import calibrate, layout

    if device is None:
        threads = machine.set_threads(cpus or "auto")
        device = calibrate.processor(threads)
    measured = layout.Measured(subject, fused=not device.cpu)
    precision = _precision(subject, device)
    first = layout.Setup(
        device, devices, "one" if devices == 1 else "ddp", precision, subject.accumulate, subject.recompute
    )
    beside = _beside(measured) if device.cpu else {}
    timed = None
    if device.cpu and achieved is None:
        guess = layout.lay(measured, first, beside=beside)
        timed = calibrate.run(subject) if guess.fits and guess.seconds < PATIENCE else None
    if timed is not None:
        first = replace(first, precision=timed.precision)

    def laid(setup: Setup) -> Layout:
        seen = timed.update / device.cores if timed is not None and setup == first else None
        return layout.lay(measured, setup, achieved=achieved, beside=beside, timed=seen)

    def near(of: Measured, ways: Sequence[str]) -> Layout | None:
        several = partial(layout.lay, of, achieved=achieved, beside=beside)
        return layout.nearest(of, asked.setup, laid if of is measured else several, ways, beside)

    found = {way: laid(replace(first, strategy=way)) for way in (layout.STRATEGIES if devices > 1 else ("one",))}
    named = strategy != "auto"
    ways = (strategy,) if named else layout.OWN
    able = [found[way] for way in (ways if devices > 1 else ("one",))]
    fitting = [e for e in able if e.able(subject.update)]
    if fitting:
        asked = next(e for e in fitting if e.seconds <= BARELY * min(f.seconds for f in fitting))
        return Planned(subject, measured, found, asked, None, timed, achieved, named=named)
    asked = next((e for e in able if not e.refused), able[0])
    ways = layout.OWN if asked.refused or not fixed else ways
    other, larger = near(measured, ways), None
    if other is None and asked.idle(subject.update) and asked.setup.replicas <= subject.rows:
        larger = subject.grown(asked.setup.replicas)
        other = near(measured.of(larger), ways)
        larger = larger if other else None
    if other is None and not fixed:
        other = near(measured, ("tensor",))
    return Planned(subject, measured, found, asked, other, timed, achieved, larger, named)


def _precision(subject: Subject, device: Device) -> str:
    asked = subject.precision
    if asked in ("bf16", "fp16") and not device.can(asked):
        raise RequestError("plan.no_precision", device=device.title, precision=asked)
    if asked == "auto":
        return "fp32" if device.cpu else next(p for p in ("bf16", "fp16", "fp32") if device.can(p))
    return asked


def _beside(measured: Measured) -> dict[str, float]:
    """What lies in a processor's memory beside the step: Python and its libraries, the rows."""
    return {"process": machine.resident(), "rows": measured.subject.host_bytes}


def _of_recipe(recipe: Recipe, strategy: str, devices: int, gpus: str | None) -> tuple[str, int]:
    """What the recipe's own `scale` says stands for what the command leaves open. Raises RequestError for an odd pair."""
    scale = getattr(recipe, "scale", None)
    scale = scale if isinstance(scale, Mapping) else scale.settings if scale else {}
    if gpus is None:
        devices = ranks if isinstance(ranks := scale.get("ranks"), int) else devices
    named = scale.get("strategy") or "auto"
    if strategy == "auto" and (devices > 1 or named != "ddp"):  # which a saved recipe says of one process, too
        strategy = named
    if strategy != "auto" and devices == 1:
        raise RequestError(problem("plan.one_device", place="--strategy", strategy=strategy))
    return strategy, devices


def _asked(
    source: Any, shape: Any, gpus: str | None, cpus: int | None, strategy: str, numbers: Mapping[str, float | None]
) -> tuple[Device | None, int]:
    """The device (None: this machine's processor) and how many. Raises RequestError with every mistake."""
    problems: list[Problem] = []
    device, devices = None, 1
    if (source is None) == (shape is None):
        problems.append(problem("plan.one_source"))
    if gpus is not None and cpus is not None:
        problems.append(problem("plan.gpus_or_cpus"))
    if strategy not in CHOICES:
        problems.append(problem("plan.no_strategy", place="--strategy", name=strategy, allowed=CHOICES))
    problems += [
        problem("plan.want_positive", place=n, found=v) for n, v in numbers.items() if v is not None and not v > 0
    ]
    if (share := numbers["--achieved"]) is not None and share > 1:
        problems.append(problem("plan.want_share", place="--achieved", found=share))
    if gpus is not None:
        try:
            device, devices = hardware.gpus(gpus)
        except RequestError as e:
            problems += e.problems
    raise_all(RequestError, problems)
    return device, devices


def _of_model(source: Any) -> Any:
    """The recipe of a saved model; everything else as it is."""
    recipe = Path(source) / "recipe.yaml" if isinstance(source, (str, Path)) else None
    saved = recipe is not None and recipe.is_file() and (recipe.parent / files.MANIFEST).is_file()
    return str(recipe) if saved else source


def _early(source: Any, ask: Ask) -> Recipe:
    """The mistakes of a recipe are told before torch is imported."""
    if isinstance(source, (str, Path)) and str(source).endswith((".yaml", ".yml")):
        return Recipe.load(source, tuple(ask.changes))
    if isinstance(source, Recipe):
        return source
    return Recipe.of(source if is_recipe(source) else {"luban": 1}, changes=tuple(ask.changes))
