"""How tokens are drawn, and whether what was asked for can be. No torch: a wrong request is refused before it is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from luban.checking import Check
from luban.errors import RequestError, Unsupported, problem, raise_all
from luban.recipe import Recipe
from luban.recipe import writes as writes_text
from luban.settings import Beams, Count, Fraction, Natural, NonNegative, Positive, Range, schema_of

Precision = Literal["fp32", "bf16"]
Penalty = Annotated[float, Range(low=-2, high=2)]
# Why a text ends: by itself, no more room, one of the words it was to stop at.
END, LENGTH, STOP = ("end", "length", "stop")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """`temperature` 0 takes the likeliest token. `top_k` likeliest tokens (0 = all); the fewest whose probability reaches
    `top_p` (Holtzman et al. 2020); those with `min_p` times the probability of the likeliest (Nguyen et al. 2024).
    `repetition_penalty`: tokens that stand in the text already, logits divided by it (Keskar et al. 2019); 1 = none.
    `presence_penalty` is taken from the logits of tokens that were written, not only read; `frequency_penalty` each time.
    """

    temperature: NonNegative = 1.0
    top_k: Natural = 0
    top_p: Annotated[float, Range(above=0, high=1)] = 1.0
    min_p: Fraction = 0.0
    repetition_penalty: Positive = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    seed: Natural = 0

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


GREEDY = Sampling(temperature=0.0)


def checked(**sampling: Any) -> dict[str, Any]:
    """Settings of `Sampling` as they were asked for. Raises RequestError with every one that cannot be."""
    known = schema_of(Sampling)["properties"]
    wrong = []
    for name, value in sampling.items():
        if name not in known:
            wrong.append(problem("generate.no_setting", name=name, allowed=known))
            continue
        wrong += Check().value(value, known[name], (name,))
    raise_all(RequestError, wrong)
    return sampling


def _asked(
    *,
    n: Count = 1,
    tokens: Natural = 0,
    stop: list[str] = (),
    seed: Annotated[int, Range(low=0, high=2**63 - 1)] | None = None,
    beams: Beams | None = None,
    precision: Precision = "fp32",
) -> None: ...


def orderly(**asked: Any) -> None:
    """How much is to be written, and until where. Raises RequestError with everything that cannot be."""
    known = schema_of(_asked)["properties"]
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asked.items() if v is not None}
    wrong = [p for k, v in plain.items() for p in Check().value(v, known[k], (k,))]
    if not wrong and "" in plain.get("stop", ()):
        wrong = [problem("generate.empty_stop", place="stop")]
    raise_all(RequestError, wrong)


def width(recipe: Recipe | None, beams: int | None, n: int, sampling: Mapping[str, Any]) -> int:
    """How many beginnings are kept: those asked for; where nothing is said and one likeliest answer is wanted, as many as
    the model's own answers are searched with. Raises RequestError where a search is asked for, and something that it does not do.
    """
    asked = Sampling(**sampling)
    other = n > 1 or asked.temperature != 0 or asked.penalised
    if beams is None:
        texts = [p for p in recipe.outputs.values() if writes_text(p)] if recipe and recipe.inputs else []
        return 1 if other else max((p.settings.get("beams") or 1 for p in texts), default=1)
    if beams > 1 and other:
        raise RequestError("generate.beams_alone", beams=beams)
    return beams


def writes(recipe: Recipe) -> None:
    """Raises Unsupported for the recipe of a model that writes no text."""
    if not recipe.writes:
        raise Unsupported("generate.writes_nothing", outputs=list(recipe.outputs))
